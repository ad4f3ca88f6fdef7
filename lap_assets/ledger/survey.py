"""Building a `Survey`, the immutable picture of one collection, from the ledger.

A collection holds the exposures that are members of its runs (dropped ones left out; as long as it has no runs, all
that was ingested), the cells of those runs, and the masters those exposures are calibrated with. Who is made from
whom follows from it in `model/survey.py`.
"""

from collections import defaultdict

from sqlalchemy.engine import Connection

from lap_assets.ledger.definitions import read_calibrations, read_exposures, read_reference_catalogs
from lap_assets.ledger.runs import find_tessellation, read_members, read_runs
from lap_assets.ledger.tables import calibration_set
from lap_assets.model.survey import CalibrationSet, Exposure, PartitionRef, Run, Survey, choose_valid

MASTERS = {"bias": "master_biases", "flat": "master_flats"}
_MANY = 500


def build_survey(connection: Connection, collection: str) -> Survey:
    """The survey of one collection, whether or not its sequence is defined yet."""
    rows = read_runs(connection, collection)
    members: dict[int, list[str]] = defaultdict(list)
    for start in range(0, len(rows), _MANY):
        for one in read_members(connection, *(row.lap_id for row in rows[start : start + _MANY])):
            if one.data_state != "drop":
                members[one.lap_id].append(one.exposure)
    runs = tuple(Run(row.lap_id, row.cell, row.band, tuple(sorted(members[row.lap_id])), row.state) for row in rows)
    skies = {name: find_tessellation(connection, name)[1] for name in sorted({row.tessellation for row in rows})}
    exposures = read_exposures(connection, [id_ for run in runs for id_ in run.members] if runs else None)
    calibrations = read_calibrations(connection, usable_only=True)
    ends = _read_ends(connection)
    return Survey(
        collection=collection,
        exposures=exposures,
        cells={row.cell: skies[row.tessellation].cell(row.cell) for row in sorted(rows, key=lambda row: row.cell)},
        runs=runs,
        calibrations=calibrations,
        associations=_associate(exposures, calibrations, ends),
        reference_catalogs=read_reference_catalogs(connection),
    )


def _read_ends(connection: Connection) -> dict[str, str]:
    query = calibration_set.select().where(calibration_set.c.valid_to.is_not(None))
    return {row.key: row.valid_to for row in connection.execute(query)}


def _associate(
    exposures: dict[str, Exposure], calibrations: dict[str, CalibrationSet], ends: dict[str, str]
) -> dict[str, tuple[PartitionRef, ...]]:
    """The masters each raw exposure is calibrated with: in force on its night, of its band where that matters."""
    by_use: dict[tuple[str, str, str], list[CalibrationSet]] = defaultdict(list)
    for one in calibrations.values():
        by_use[one.camera, one.kind, one.band].append(one)
    chosen: dict[str, tuple[PartitionRef, ...]] = {}
    for exposure in exposures.values():
        if exposure.kind != "raw":
            continue
        refs: list[PartitionRef] = []
        for kind, product in MASTERS.items():
            candidates = by_use[exposure.camera, kind, exposure.band if kind == "flat" else "all"]
            valid = [one for one in candidates if ends.get(one.key, exposure.night) >= exposure.night]
            master = choose_valid(valid, exposure.night)
            if master is not None:
                refs.append((product, master.key))
        chosen[exposure.id] = tuple(refs)
    return chosen
