"""Calibration sets: which frames belong together, how far a master may be used, and what was judged of it (PHX-02).

Each function works inside a transaction it is given. Which set an exposure is calibrated with is `survey.py`'s to ask
and `model/associations.py`'s to say.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lap_assets.errors import BadInput, NotFound
from lap_assets.ledger.records import Added, frame_values, read_chip
from lap_assets.ledger.tables import CALIBRATION_STATES, calibration_frame, calibration_set
from lap_assets.model.associations import REJECTED, VIRTUAL
from lap_assets.model.ids import check_key
from lap_assets.model.products import MASTERS
from lap_assets.model.survey import CalibrationSet, ChipFile


def read_calibrations(
    connection: Connection, usable_only: bool = False, keys: Collection[str] | None = None
) -> dict[str, CalibrationSet]:
    """Calibration sets by key, sorted; without rejected ones if only usable ones are asked for.

    Where `keys` are given only those have their frames, and these no footprints.
    """
    frames = _read_frames(connection, keys)
    query = sa.select(calibration_set).order_by(calibration_set.c.key)
    if usable_only:
        query = query.where(calibration_set.c.state != REJECTED)
    return {
        row.key: CalibrationSet(
            row.key, row.camera, row.kind, row.band, row.valid_from, tuple(frames[row.key]), row.state,
            row.valid_to or "", row.reason, row.temperature_c, row.judged,
        )
        for row in connection.execute(query)
    }  # fmt: skip


def _read_frames(connection: Connection, keys: Collection[str] | None) -> dict[str, list[ChipFile]]:
    frames: dict[str, list[ChipFile]] = defaultdict(list)
    table = calibration_frame.c
    order = (table.calibration, table.path, table.chip)
    if keys is None:
        for row in connection.execute(sa.select(calibration_frame).order_by(*order)).mappings():
            frames[row["calibration"]].append(read_chip(row))
    elif keys:
        columns = (table.calibration, table.chip, table.path, table.hdu, table.sha256)
        some = sa.select(*columns).where(table.calibration.in_(sorted(keys))).order_by(*order)
        for key, chip, path, hdu, sha256 in connection.execute(some).all():
            frames[key].append(ChipFile(chip, path, hdu, (), sha256))
    return frames


def list_usable(connection: Connection) -> list[str]:
    """Keys of the calibration sets that were not rejected."""
    query = sa.select(calibration_set.c.key).where(calibration_set.c.state != REJECTED)
    return list(connection.execute(query).scalars())


def count_frames(connection: Connection) -> dict[str, int]:
    """Number of frames of every calibration set: files, whatever the number of their chips."""
    paths = sa.func.count(sa.distinct(calibration_frame.c.path))
    query = sa.select(calibration_frame.c.calibration, paths).group_by(calibration_frame.c.calibration)
    return {row[0]: row[1] for row in connection.execute(query)}


def write_calibrations(connection: Connection, sets: Iterable[CalibrationSet]) -> tuple[Added, list[CalibrationSet]]:
    """Insert or complete calibration sets; a set that gains frames is `virtual` again, for it must be built anew.

    Raises
    ------
    BadInput
        A key that is none, or a kind there are no masters of; nothing is written then.
    """
    given = list(sets)
    known = read_calibrations(connection)
    changed: list[CalibrationSet] = []
    conflicts: list[tuple[str, str]] = []
    for one in given:
        check_key(one.key, "calibration key")
        if one.kind not in MASTERS:
            raise BadInput(f"calibration {one.key}: no masters of kind {one.kind!r}; there are {', '.join(MASTERS)}")
        before = known.get(one.key)
        old = {(frame.path, frame.chip): frame.sha256 for frame in (before.frames if before else ())}
        clash = [frame.path for frame in one.frames if old.get((frame.path, frame.chip), frame.sha256) != frame.sha256]
        new = [frame for frame in one.frames if (frame.path, frame.chip) not in old]
        if clash:
            conflicts.append((clash[0], f"calibration {one.key} is known with other bytes of this file: restore it"))
        elif before is None or new:
            _insert_frames(connection, one, new, before)
            changed.append(one)
            known[one.key] = replace(one, frames=(*(before.frames if before else ()), *new))
    return Added(len(changed), len(given) - len(changed) - len(conflicts), tuple(conflicts)), changed


def _insert_frames(
    connection: Connection, one: CalibrationSet, frames: list[ChipFile], before: CalibrationSet | None
) -> None:
    if before is not None:
        values = {"state": VIRTUAL, "reason": "", "judged": "", "temperature_c": _average(before, one, len(frames))}
        connection.execute(sa.update(calibration_set).where(calibration_set.c.key == one.key).values(values))
    else:
        names = ("key", "camera", "kind", "band", "valid_from", "temperature_c")
        values = {name: getattr(one, name) for name in names} | {"valid_to": one.valid_to or None, "state": VIRTUAL}
        connection.execute(sa.insert(calibration_set).values(values))
    if frames:
        rows = [frame_values(frame) | {"calibration": one.key} for frame in frames]
        connection.execute(sa.insert(calibration_frame), rows)


def _average(before: CalibrationSet, after: CalibrationSet, new: int) -> float | None:
    """Mean temperature of the frames there were and of the new ones."""
    if before.temperature_c is None or after.temperature_c is None:
        return after.temperature_c if before.temperature_c is None else before.temperature_c
    old = len(before.frames)
    return (old * before.temperature_c + new * after.temperature_c) / (old + new)


def write_calibration_state(
    connection: Connection, key: str, state: str, valid_from: str | None = None, valid_to: str | None = None,
    reason: str = "", judged: str | None = None,
) -> None:  # fmt: skip
    """Set the state of a calibration set, and its first and last night where they are given (`""`: no last one).

    Raises
    ------
    BadInput
        No such state, or a last night before the first.
    NotFound
        No such set.
    """
    if state not in CALIBRATION_STATES:
        raise BadInput(f"calibration state {state!r} is none of {', '.join(CALIBRATION_STATES)}")
    chosen = calibration_set.c.key == key
    row = connection.execute(sa.select(calibration_set).where(chosen)).one_or_none()
    if row is None:
        raise NotFound(f"no calibration {key!r} in the ledger: ingest its frames first (lap ingest --kind calibration)")
    first = row.valid_from if valid_from is None else valid_from
    last = row.valid_to if valid_to is None else valid_to or None
    if last is not None and last < first:
        raise BadInput(f"calibration {key} cannot be valid from {first} to {last}: give a last night after the first")
    values = {"state": state, "reason": reason, "valid_from": first, "valid_to": last}
    values |= {} if judged is None else {"judged": judged}
    connection.execute(sa.update(calibration_set).where(chosen).values(values))
