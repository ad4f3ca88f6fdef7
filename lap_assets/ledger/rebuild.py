"""Bringing a lost ledger back: definitions from the journal, the index from the manifests.

The journal also tells how each partition ended; that is believed only where the manifests on disk still hold exactly
the units it names. Any other partition is left out, so that it is made again and its good units are skipped.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy.engine import Connection

from lap_assets.errors import BadInput
from lap_assets.ledger.calibrations import write_calibration_state, write_calibrations
from lap_assets.ledger.definitions import (
    write_exposures,
    write_reference_catalog,
    write_sequence,
    write_tessellation,
)
from lap_assets.ledger.index import replace_partition
from lap_assets.ledger.leases import FENCE, raise_number
from lap_assets.ledger.quality import JUDGED, read_metrics, write_quality
from lap_assets.ledger.records import ManifestRow, MemberRow, RunRow, UnitRow, read_calibration, read_exposure
from lap_assets.ledger.runs import (
    add_members,
    close_run,
    find_sequence,
    find_tessellation,
    insert_members,
    insert_run,
    open_again,
    read_runs,
)
from lap_assets.ledger.steps import apply_steps, restore_steps, retire_runs, set_run_values, write_draining
from lap_assets.model.decisions import DROP_MEMBER, RUN_STATE, Step
from lap_assets.model.ids import DataId
from lap_assets.model.products import home_of
from lap_assets.model.states import DONE, ENDED, GONE, GOTO_CLEANED, INVALIDATED, PartitionState

_NOTES = frozenset({"rejected"})  # told for people, nothing to restore


def restore(
    connection: Connection, entries: Iterable[Mapping[str, Any]], manifests: Iterable[ManifestRow]
) -> tuple[int, int]:
    """Write all definitions and records into an empty ledger; returns the numbers of entries and partitions restored.

    Raises
    ------
    BadInput
        For an entry that cannot be read.
    """
    n_definitions = 0
    endings: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for number, entry in enumerate(entries, start=1):
        try:
            kind = entry["kind"]
            if kind == "partition":
                endings[entry["collection"], entry["product"], entry["partition"]] = entry
            elif kind == "marked":
                for product, key in entry["refs"]:
                    place = (home_of(entry["collection"], product), product, key)
                    endings[place] = endings[place] | {"marked": entry["reason"]}
            elif kind == "invalidated":
                for product, key in entry["refs"]:
                    place = (home_of(entry["collection"], product), product, key)
                    endings[place] = endings[place] | {"invalidated": f"{INVALIDATED}: {entry['reason']}"}
            elif kind not in _NOTES:
                _DEFINITIONS[kind](connection, entry)
                n_definitions += 1
        except (KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__} {error}"
            raise BadInput(
                f"journal entry {number} cannot be read ({what}): it is damaged, or from a newer version"
            ) from error
    return n_definitions, restore_index(connection, endings, manifests)


def restore_index(
    connection: Connection, endings: Mapping[tuple[str, str, str], Mapping[str, Any]], manifests: Iterable[ManifestRow]
) -> int:
    """Write the index of the partitions whose ending the manifests confirm (see the module's text); how many."""
    found: dict[tuple[str, str, str], dict[DataId, ManifestRow]] = defaultdict(dict)
    fence = n_restored = 0
    for row in manifests:
        found[row.data_id.collection, row.data_id.product, row.data_id.partition][row.data_id] = row
        fence = max(fence, row.fence)
    for place, entry in sorted(endings.items()):
        rows = confirm(entry, found[place])
        if rows is not None:
            updated = max((row.updated for row in rows), default=0.0)
            replace_partition(connection, updated, place[0], place[1:], restore_state(entry, rows), rows)
            _restore_quality(connection, place, found[place].values())
            n_restored += 1
    raise_number(connection, FENCE, fence)
    return n_restored


def _restore_quality(connection: Connection, place: tuple[str, str, str], manifests: Iterable[ManifestRow]) -> None:
    """The QC1 parameters of a partition, from the metrics of its units."""
    if place[1] in JUDGED:
        rows = [row for one in manifests for row in read_metrics(one.data_id, one.metrics)]
        write_quality(connection, *place, rows)


def confirm(entry: Mapping[str, Any], manifests: Mapping[DataId, ManifestRow]) -> list[UnitRow] | None:
    """The units of a partition as manifests and journal agree on them; None where they do not."""
    rows = []
    for name, state, content, reason in entry["units"]:
        data_id = DataId(entry["collection"], entry["product"], entry["partition"], name)
        manifest = manifests.get(data_id)
        if state not in ENDED:
            rows.append(UnitRow(data_id, state, content, reason=reason))
        elif manifest is None or (_normal(manifest.state), manifest.content_sha256) != (_normal(state), content):
            return None
        else:
            rows.append(
                UnitRow(
                    data_id, manifest.state, content, manifest.bytes, manifest.reason, manifest.seconds,
                    manifest.run_id, manifest.updated,
                )
            )  # fmt: skip
    return rows


def _normal(state: str) -> str:
    return DONE if state in GONE else state


def restore_state(entry: Mapping[str, Any], rows: list[UnitRow]) -> PartitionState:
    """How a partition ended; whether its files are there still is for the manifests to say."""
    state = PartitionState(**entry["state"])
    if "invalidated" in entry:
        state = replace(state, reason=entry["invalidated"])
    filed = {row.state for row in rows if _normal(row.state) == DONE}
    if _normal(state.state) != DONE or not filed:
        return state
    now = filed.pop() if len(filed) == 1 else GOTO_CLEANED
    kept = state.reason if "invalidated" in entry else ""
    return replace(state, state=now, reason=entry.get("marked", state.reason) if now in GONE else kept)


def _restore_exposures(connection: Connection, entry: Mapping[str, Any]) -> None:
    write_exposures(connection, [read_exposure(values) for values in entry["exposures"]])


def _restore_calibrations(connection: Connection, entry: Mapping[str, Any]) -> None:
    write_calibrations(connection, [read_calibration(values) for values in entry["calibrations"]])


def _restore_certification(connection: Connection, entry: Mapping[str, Any]) -> None:
    write_calibration_state(connection, **{name: value for name, value in entry.items() if name != "kind"})


def _restore_catalog(connection: Connection, entry: Mapping[str, Any]) -> None:
    write_reference_catalog(connection, entry["name"], entry["bands"], entry["content_sha256"], entry["n_rows"])


def _restore_tessellation(connection: Connection, entry: Mapping[str, Any]) -> None:
    write_tessellation(connection, entry["definition"])


def _restore_sequence(connection: Connection, entry: Mapping[str, Any]) -> None:
    write_sequence(connection, entry["name"], entry["description"])


def _restore_run(connection: Connection, entry: Mapping[str, Any]) -> None:
    run = RunRow(**entry["run"])
    members = [MemberRow(**values) for values in entry["members"]]
    known = read_runs(connection, lap_ids=[run.lap_id])
    if known:
        add_members(connection, known[0], members)
    else:
        seq_id, (tess_id, _) = find_sequence(connection, run.sequence), find_tessellation(connection, run.tessellation)
        insert_run(connection, replace(run, seq_id=seq_id, tess_id=tess_id))
        insert_members(connection, members)
        raise_number(connection, "lap_id", run.lap_id)


def _restore_steps(connection: Connection, entry: Mapping[str, Any]) -> None:
    restore_steps(connection, entry["steps"])


def _restore_reopened(connection: Connection, entry: Mapping[str, Any]) -> None:
    open_again(connection, entry["lap_id"], "run", entry.get("dropped", False))


def _restore_run_values(connection: Connection, entry: Mapping[str, Any]) -> None:
    set_run_values(connection, entry["lap_id"], **entry["values"])


def _restore_retired(connection: Connection, entry: Mapping[str, Any]) -> None:
    retire_runs(connection, entry["collection"], entry["lap_ids"])


def _restore_draining(connection: Connection, entry: Mapping[str, Any]) -> None:
    write_draining(connection, entry["draining"])


def _restore_run_state(connection: Connection, entry: Mapping[str, Any]) -> None:
    """As the first version wrote it."""
    (run,) = read_runs(connection, lap_ids=[entry["lap_id"]])
    if run.state == "full":
        open_again(connection, run.lap_id, "run")
    if entry["state"] == "full":
        close_run(connection, run.lap_id)
    elif entry["state"] == "run":
        apply_steps(connection, [Step(run.lap_id, RUN_STATE, value="run")])


def _restore_drop(connection: Connection, entry: Mapping[str, Any]) -> None:
    """As the first version wrote it."""
    apply_steps(connection, [Step(entry["lap_id"], DROP_MEMBER, entry["exposure"])])


_DEFINITIONS: dict[str, Callable[[Connection, Mapping[str, Any]], None]] = {
    "exposures": _restore_exposures,
    "calibrations": _restore_calibrations,
    "certification": _restore_certification,
    "reference_catalog": _restore_catalog,
    "tessellation": _restore_tessellation,
    "sequence": _restore_sequence,
    "run": _restore_run,
    "steps": _restore_steps,
    "reopened": _restore_reopened,
    "run_values": _restore_run_values,
    "retired": _restore_retired,
    "draining": _restore_draining,
    "run_state": _restore_run_state,
    "drop": _restore_drop,
}
