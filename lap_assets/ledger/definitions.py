"""Writing and reading definitions: exposures, reference catalogues, tessellations, sequences.

Each function works inside a transaction it is given. Records that are there already with the same content are left
alone, the same id with other bytes is a conflict. Calibration sets are `calibrations.py`'s, runs are `runs.py`'s.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lap_assets.errors import BadInput, Conflict
from lap_assets.ledger.leases import take_number
from lap_assets.ledger.records import (
    EXPOSURE_FIELDS,
    Added,
    SequenceRow,
    chip_values,
    derived_values,
    exposure_values,
    read_chip,
)
from lap_assets.ledger.tables import (
    chip_file,
    exposure,
    lap_sequence,
    reference_catalog,
    reference_catalog_band,
    tessellation,
)
from lap_assets.model.ids import check_name
from lap_assets.model.sphere import bounding_cap
from lap_assets.model.survey import ChipFile, Exposure
from lap_assets.model.tessellation import load_tessellation

_MANY = 500  # ids per IN list


def read_exposures(connection: Connection, ids: Iterable[str] | None = None) -> dict[str, Exposure]:
    """Exposures by id, sorted; all, or those asked for."""
    wanted = None if ids is None else sorted(set(ids))
    rows: list[Any] = []
    chips: dict[str, list[ChipFile]] = defaultdict(list)
    batches = [None] if wanted is None else [wanted[i : i + _MANY] for i in range(0, len(wanted), _MANY)]
    for batch in batches:
        heads, files = sa.select(exposure), sa.select(chip_file).order_by(chip_file.c.exposure, chip_file.c.chip)
        if batch is not None:
            heads, files = heads.where(exposure.c.id.in_(batch)), files.where(chip_file.c.exposure.in_(batch))
        rows += connection.execute(heads).mappings().all()
        for row in connection.execute(files).mappings():
            chips[row["exposure"]].append(read_chip(row))
    return {
        row["id"]: Exposure(**{name: row[name] for name in EXPOSURE_FIELDS}, chips=tuple(chips[row["id"]]))
        for row in sorted(rows, key=lambda row: row["id"])
    }


def read_files(connection: Connection, ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Paths of the files of exposures, sorted, each once: chips may share one."""
    wanted, found = sorted(set(ids)), defaultdict(set)
    columns = (chip_file.c.exposure, chip_file.c.path, chip_file.c.variance_path, chip_file.c.mask_path)
    for start in range(0, len(wanted), _MANY):
        here = chip_file.c.exposure.in_(wanted[start : start + _MANY])
        for exposure_id, *paths in connection.execute(sa.select(*columns).where(here).distinct()):
            found[exposure_id].update(path for path in paths if path)
    return {exposure_id: tuple(sorted(paths)) for exposure_id, paths in sorted(found.items())}


def write_exposures(connection: Connection, exposures: Iterable[Exposure]) -> tuple[Added, list[Exposure]]:
    """Insert or complete exposures; returns what became of them and those that changed the ledger."""
    given = list(exposures)
    for one in given:
        check_exposure(one)
    known = read_exposures(connection, (one.id for one in given))
    changed: list[Exposure] = []
    conflicts: list[tuple[str, str]] = []
    for one in given:
        before = known.get(one.id)
        problem, new = compare_exposures(before, one) if before else ("", list(one.chips))
        if problem:
            conflicts.append((one.chips[0].path, problem))
        elif new:
            merged = {chip.chip: chip for chip in (before.chips if before else ())} | {chip.chip: chip for chip in new}
            whole = replace(one, chips=tuple(merged[name] for name in sorted(merged)))
            if before is None:
                connection.execute(sa.insert(exposure).values(exposure_values(one) | derived_values(whole)))
            else:
                connection.execute(sa.update(exposure).where(exposure.c.id == one.id).values(derived_values(whole)))
            _replace_chips(connection, one.id, new)
            changed.append(one)
            known[one.id] = whole
    return Added(len(changed), len(given) - len(changed) - len(conflicts), tuple(conflicts)), changed


def check_exposure(one: Exposure) -> None:
    """Refuse ids that are no partition keys and exposures without usable chips; raises `BadInput`."""
    check_name(one.id, "exposure id")
    check_name(one.camera, "camera")
    check_name(one.band, "band")
    if not one.chips:
        raise BadInput(f"exposure {one.id} has no chips: nothing to process")
    names = [check_name(chip.chip, "chip") for chip in one.chips]
    if len(set(names)) != len(names):
        raise BadInput(f"exposure {one.id} has a chip twice: give each chip once")
    for chip in one.chips:
        bounding_cap(chip.footprint)


def compare_exposures(before: Exposure, after: Exposure) -> tuple[str, list[ChipFile]]:
    """(why they contradict each other or "", chips of `after` that are new or lie elsewhere now)."""
    for name in EXPOSURE_FIELDS:
        if name == "temperature_c":  # a mean over the chips that came so far
            continue
        if getattr(before, name) != getattr(after, name):
            return (
                f"exposure {after.id} is known with {name} {getattr(before, name)!r}, now it comes with "
                f"{getattr(after, name)!r} ({after.chips[0].path}): the same id must be the same exposure"
            ), []
    known = {chip.chip: chip for chip in before.chips}
    new: list[ChipFile] = []
    for chip in after.chips:
        old = known.get(chip.chip)
        if old is not None and old.sha256 != chip.sha256:
            return (
                f"exposure {after.id} chip {chip.chip} comes with other bytes ({chip.path}) than are known "
                f"({old.path}): restore the file, or ingest it under an id of its own"
            ), []
        if old != chip:
            new.append(chip)
    return "", new


def _replace_chips(connection: Connection, id_: str, chips: Sequence[ChipFile]) -> None:
    names = [chip.chip for chip in chips]
    connection.execute(sa.delete(chip_file).where(chip_file.c.exposure == id_, chip_file.c.chip.in_(names)))
    connection.execute(sa.insert(chip_file), [chip_values(chip) | {"exposure": id_} for chip in chips])


def write_reference_catalog(
    connection: Connection, name: str, bands: Sequence[str], content_sha256: str, n_rows: int
) -> bool:
    """Register a reference catalogue for bands (`*`: all others), or its new content; whether anything changed."""
    check_name(name, "reference catalogue")
    for band in bands:
        if band != "*":
            check_name(band, "band")
    table, values = reference_catalog, {"content_sha256": content_sha256, "n_rows": n_rows}
    row = connection.execute(sa.select(table).where(table.c.name == name)).one_or_none()
    served = read_reference_catalogs(connection)
    same = row is not None and (row.content_sha256, row.n_rows) == (content_sha256, n_rows)
    if same and all(served.get(band) == name for band in bands):
        return False
    if row is None:
        connection.execute(sa.insert(table).values(values | {"name": name}))
    else:
        connection.execute(sa.update(table).where(table.c.name == name).values(values))
    uses = reference_catalog_band
    connection.execute(sa.delete(uses).where(uses.c.band.in_(list(bands))))
    connection.execute(sa.insert(uses), [{"band": band, "name": name} for band in bands])
    return True


def read_reference_catalogs(connection: Connection) -> dict[str, str]:
    """Name of the reference catalogue by band (or `*`), sorted."""
    query = sa.select(reference_catalog_band).order_by(reference_catalog_band.c.band)
    return {row.band: row.name for row in connection.execute(query)}


def write_tessellation(connection: Connection, definition: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Register a tessellation; (whether it is new, its definition in canonical form)."""
    canonical = load_tessellation(definition).definition()
    row = connection.execute(sa.select(tessellation).where(tessellation.c.name == canonical["name"])).one_or_none()
    if row is not None:
        if dict(row.definition) != canonical:
            raise Conflict(f"tessellation {canonical['name']} is known with other values: choose another name")
        return False, canonical
    values = {"tess_id": take_number(connection, "tess_id"), "name": canonical["name"], "definition": canonical}
    connection.execute(sa.insert(tessellation).values(values))
    return True, canonical


def write_sequence(connection: Connection, name: str, description: str) -> tuple[bool, int]:
    """Register a sequence (a collection) (LAP-01); (whether it is new, its number)."""
    check_name(name, "sequence")
    row = connection.execute(sa.select(lap_sequence).where(lap_sequence.c.name == name)).one_or_none()
    if row is not None:
        return False, row.seq_id
    number = take_number(connection, "seq_id")
    connection.execute(sa.insert(lap_sequence).values(seq_id=number, name=name, description=description))
    return True, number


def read_sequences(connection: Connection) -> list[SequenceRow]:
    """Sequences, in order of their numbers."""
    query = sa.select(lap_sequence).order_by(lap_sequence.c.seq_id)
    return [SequenceRow(row.seq_id, row.name, row.description) for row in connection.execute(query)]


def read_tessellations(connection: Connection) -> list[str]:
    """Names of the tessellations, in order of their numbers."""
    return list(connection.execute(sa.select(tessellation.c.name).order_by(tessellation.c.tess_id)).scalars())
