"""The index of partitions and units: what became of each, written in one transaction per partition.

The files are the truth; this index answers at once what scheduling asks. Each function works inside a transaction.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lap_assets.errors import BadInput
from lap_assets.ledger.records import UnitRow
from lap_assets.ledger.tables import partition, unit
from lap_assets.model.ids import DataId
from lap_assets.model.products import CALIBRATION_COLLECTION, home_of
from lap_assets.model.states import (
    CORRUPT,
    DONE,
    DROPPED,
    ENDED,
    FAILED,
    GONE,
    GOTO_CLEANED,
    INVALIDATED,
    PartitionState,
)
from lap_assets.model.survey import PartitionRef

FILED = GONE | {DONE}  # there are, or were, files


class Report(Protocol):
    """What the index reads of a unit's report (`pipeline.task.UnitReport`)."""

    data_id: DataId
    state: str
    content: str
    skipped: bool
    reason: str
    seconds: float
    bytes: int
    metrics: Mapping[str, Any]


def write_partition(
    connection: Connection, now: float, collection: str, ref: PartitionRef, state: PartitionState,
    reports: Iterable[Report], run_id: str,
) -> list[UnitRow]:  # fmt: skip
    """Replace the record of a partition and of its units; returns the units.

    A unit that was skipped keeps what is known of how it was made.
    """
    product, key = ref
    home = home_of(collection, product)
    before = {row.data_id: row for row in read_units(connection, home, product, key)}
    rows = []
    for one in reports:
        old = before.get(one.data_id)
        if one.skipped and old is not None and (old.state, old.content) == (one.state, one.content):
            rows.append(old)
        else:
            rows.append(
                UnitRow(one.data_id, one.state, one.content, one.bytes, one.reason, one.seconds, run_id, now)
            )  # fmt: skip
    replace_partition(connection, now, home, ref, state, rows)
    return rows


def replace_partition(
    connection: Connection, now: float, home: str, ref: PartitionRef, state: PartitionState, rows: list[UnitRow]
) -> None:
    """Delete what is recorded of a partition and insert this."""
    product, key = ref
    where = (partition.c.collection == home, partition.c.product == product, partition.c.partition == key)
    connection.execute(sa.delete(unit).where(*_place(home, product, key)))
    connection.execute(sa.delete(partition).where(*where))
    counts = Counter(row.state for row in rows)
    values = {
        "collection": home, "product": product, "partition": key, "state": state.state,
        "inputs_sha256": state.inputs_sha256, "content_sha256": state.content_sha256,
        "config_sha256": state.config_sha256, "attempts": state.attempts, "n_units": dict(sorted(counts.items())),
        "reason": state.reason, "updated": now,
    }  # fmt: skip
    connection.execute(sa.insert(partition).values(values))
    if rows:
        connection.execute(sa.insert(unit), [_unit_values(row) for row in rows])


def _unit_values(row: UnitRow) -> dict[str, Any]:
    id_ = row.data_id
    return {
        "collection": id_.collection, "product": id_.product, "partition": id_.partition, "unit": id_.unit,
        "state": row.state, "content_sha256": row.content, "bytes": row.bytes, "reason": row.reason,
        "seconds": row.seconds, "run_id": row.run_id, "updated": row.updated,
    }  # fmt: skip


def _place(home: str, product: str, key: str) -> list[sa.ColumnElement[bool]]:
    return [unit.c.collection == home, unit.c.product == product, unit.c.partition == key]


def read_states(connection: Connection, collection: str) -> dict[PartitionRef, PartitionState]:
    """The record of every partition of a collection, masters included."""
    query = sa.select(partition).where(partition.c.collection.in_([collection, CALIBRATION_COLLECTION]))
    return {
        (row.product, row.partition): PartitionState(
            row.state, row.inputs_sha256, row.content_sha256, row.config_sha256, row.attempts, row.reason
        )
        for row in connection.execute(query.order_by(partition.c.product, partition.c.partition))
    }


def read_counts(
    connection: Connection, collection: str, products: Collection[str] | None = None
) -> dict[PartitionRef, Mapping[str, int]]:
    """Number of units by state of every partition of a collection, masters included; of all products or these."""
    query = sa.select(partition.c.product, partition.c.partition, partition.c.n_units)
    query = query.where(partition.c.collection.in_([collection, CALIBRATION_COLLECTION]))
    if products is not None:
        query = query.where(partition.c.product.in_(sorted(products)))
    return {(row[0], row[1]): dict(row[2]) for row in connection.execute(query)}


def read_units(
    connection: Connection, collection: str | None = None, product: str | None = None, key: str | None = None,
    state: str | None = None,
) -> list[UnitRow]:  # fmt: skip
    """Units, sorted by data id; of a collection (masters included), product, partition or state where given."""
    query = sa.select(unit)
    if collection is not None:
        query = query.where(unit.c.collection.in_([collection, CALIBRATION_COLLECTION]))
    for column, value in ((unit.c.product, product), (unit.c.partition, key), (unit.c.state, state)):
        if value is not None:
            query = query.where(column == value)
    rows = [
        UnitRow(
            DataId(row.collection, row.product, row.partition, row.unit), row.state, row.content_sha256, row.bytes,
            row.reason, row.seconds, row.run_id, row.updated,
        )
        for row in connection.execute(query)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: row.data_id)


def sum_bytes(connection: Connection) -> int:
    """Bytes of all units that have files, of all collections."""
    query = sa.select(sa.func.sum(unit.c.bytes)).where(unit.c.state.in_([DONE, GOTO_CLEANED]))
    return int(connection.execute(query).scalar_one() or 0)


def forget_attempts(connection: Connection, collection: str, dropped: bool = False) -> None:
    """Let every failed partition of a collection be tried afresh, with `dropped` also those given up."""
    homes = partition.c.collection.in_([collection, CALIBRATION_COLLECTION])
    connection.execute(sa.update(partition).where(homes, partition.c.attempts > 0).values(attempts=0))
    if dropped:
        home = unit.c.collection.in_([collection, CALIBRATION_COLLECTION])
        given_up = sa.select(unit.c.product, unit.c.partition).where(home, unit.c.state == DROPPED)
        named = sa.tuple_(partition.c.product, partition.c.partition).in_(given_up)
        these = sa.or_(partition.c.state == DROPPED, named)
        connection.execute(sa.update(partition).where(homes, these).values(state=FAILED, attempts=0))


def mark_partitions(
    connection: Connection, now: float, collection: str, refs: Iterable[PartitionRef], state: str, reason: str
) -> list[PartitionRef]:
    """Set the state of partitions that are done, or cleaned, and of their units that are; returns those changed.

    Hashes stay, so that nothing made from them is made again.
    """
    if state not in FILED:
        raise BadInput(f"partitions can be marked {', '.join(sorted(FILED))}, not {state!r}")
    changed = []
    for product, key in sorted(set(refs)):
        place = (home_of(collection, product), product, key)
        where = (partition.c.collection == place[0], partition.c.product == product, partition.c.partition == key)
        row = connection.execute(sa.select(partition.c.state, partition.c.n_units).where(*where)).one_or_none()
        if row is None or row.state not in FILED or row.state == state:
            continue
        counts: Counter[str] = Counter()
        for name, count in row.n_units.items():
            counts[state if name in FILED else name] += count
        values = {"state": state, "reason": reason, "updated": now, "n_units": dict(sorted(counts.items()))}
        connection.execute(sa.update(partition).where(*where).values(values))
        filed = (*_place(*place), unit.c.state.in_(sorted(FILED)))
        connection.execute(sa.update(unit).where(*filed).values(state=state, updated=now))
        changed.append((product, key))
    return changed


def invalidate_partitions(
    connection: Connection, now: float, collection: str, refs: Iterable[PartitionRef], reason: str
) -> list[PartitionRef]:
    """Note of partitions that ended that they are to be made again; returns those. Files and hashes stay as they are.

    By the reason alone: what is wrong with them is no state of their files.
    """
    changed = []
    for product, key in sorted(set(refs)):
        here = (partition.c.collection == home_of(collection, product), partition.c.product == product)
        query = sa.update(partition).where(*here, partition.c.partition == key, partition.c.state.in_(sorted(ENDED)))
        if connection.execute(query.values(reason=f"{INVALIDATED}: {reason}", updated=now)).rowcount:
            changed.append((product, key))
    return changed


def forget_unit(connection: Connection, now: float, data_id: DataId, reason: str) -> None:
    """Delete a unit and mark its partition `corrupt`, so that it is made again."""
    ref = (data_id.product, data_id.partition)
    state = read_states(connection, data_id.collection).get(ref)
    if state is None:
        return
    rows = [row for row in read_units(connection, data_id.collection, *ref) if row.data_id != data_id]
    text = f"{data_id.unit}: {reason}".lstrip(": ")
    replace_partition(connection, now, data_id.collection, ref, replace(state, state=CORRUPT, reason=text), rows)
