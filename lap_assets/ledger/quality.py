"""QC1 parameters (PHX-08): numbers that say how good a product is, in one table, by partition and unit.

Of solutions and masters they are written with the record of a partition, from the metrics of its units, so that the
table can be rebuilt from the manifests; whoever judges them adds more. Each function works inside a transaction.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lap_assets.ledger.records import QUALITY_FIELDS
from lap_assets.ledger.tables import quality
from lap_assets.model.ids import DataId
from lap_assets.model.products import MASTERS, home_of
from lap_assets.model.quality import QualityRow

# products whose metrics are kept as QC1 parameters
JUDGED = frozenset({"solutions", *MASTERS.values()})
PASSED = "_passed"


def read_metrics(data_id: DataId, metrics: Mapping[str, Any]) -> list[QualityRow]:
    """The metrics of a unit as QC1 parameters, sorted by name.

    Numbers and texts are rows; a truth value called `NAME_passed` says of the row NAME whether it is within its limit.
    What is neither (lists, tables) is left out, and so is what is not finite.
    """
    verdicts = {name.removesuffix(PASSED): one for name, one in metrics.items() if isinstance(one, bool)}
    place = (data_id.unit, data_id.collection, data_id.product, data_id.partition)
    rows = []
    for name, one in sorted(metrics.items()):
        if isinstance(one, str):
            rows.append(QualityRow(name, None, one, verdicts.get(name), *place))
        elif isinstance(one, bool):
            if name.removesuffix(PASSED) not in metrics or not name.endswith(PASSED):
                rows.append(QualityRow(name.removesuffix(PASSED), None, "", one, *place))
        elif isinstance(one, (int, float)) and math.isfinite(one):
            rows.append(QualityRow(name, float(one), "", verdicts.get(name), *place))
    return rows


def forget_quality(connection: Connection, collection: str, product: str, partition: str) -> None:
    """Remove the parameters of a partition."""
    home = home_of(collection, product)
    where = (quality.c.collection == home, quality.c.product == product, quality.c.partition == partition)
    connection.execute(sa.delete(quality).where(*where))


def write_quality(
    connection: Connection, collection: str, product: str, partition: str, rows: Iterable[QualityRow]
) -> None:
    """Add parameters of a partition; those of the same unit and name are replaced."""
    home = home_of(collection, product)
    given = {(one.unit, one.name): one for one in rows}  # the last one counts
    here = (quality.c.collection == home, quality.c.product == product, quality.c.partition == partition)
    for unit in sorted({unit for unit, _ in given}):
        names = [name for each, name in given if each == unit]
        connection.execute(sa.delete(quality).where(*here, quality.c.unit == unit, quality.c.name.in_(names)))
    place = {"collection": home, "product": product, "partition": partition}
    values = [{name: getattr(one, name) for name in QUALITY_FIELDS} | place for one in given.values()]
    if values:
        connection.execute(sa.insert(quality), values)


def read_quality(
    connection: Connection, collection: str, product: str | None = None, partition: str | None = None,
    names: Collection[str] | None = None,
) -> list[QualityRow]:  # fmt: skip
    """Parameters of a collection, sorted by place and name; of a product, partition or names where given.

    Those of masters where `product` is one of theirs: masters lie outside all collections.
    """
    home = collection if product is None else home_of(collection, product)
    query = sa.select(*(quality.c[name] for name in QUALITY_FIELDS)).where(quality.c.collection == home)
    for column, value in ((quality.c.product, product), (quality.c.partition, partition)):
        if value is not None:
            query = query.where(column == value)
    if names is not None:
        query = query.where(quality.c.name.in_(sorted(names)))
    rows = [QualityRow(*row) for row in connection.execute(query).all()]
    return sorted(rows, key=lambda row: (row.product, row.partition, row.unit, row.name))
