"""Which partitions a selection means: `--select` expressions and `--to ASSET`, turned into targets for `decide`.

Pure; the text of an expression is parsed by whoever calls.
"""

from collections.abc import Callable, Mapping

from lap_assets.model.ids import JOIN
from lap_assets.model.products import EXPOSURE_CELLS, EXPOSURES, PRODUCTS, get_product
from lap_assets.model.survey import PartitionRef, Survey


def describe_partition(survey: Survey, product: str, partition: str) -> dict[str, str]:
    """The values a selection may ask for: the parts of the key and, for exposures, their camera, band and night."""
    kind = get_product(product).partitions
    values = dict(zip(get_product(product).keys, partition.split(JOIN), strict=False))
    if kind in (EXPOSURES, EXPOSURE_CELLS):
        exposure = survey.exposures[values["exposure"]]
        values |= {"band": exposure.band, "night": exposure.night, "camera": exposure.camera, "object": exposure.object}
    return values | {"product": product}


def select_targets(
    survey: Survey,
    matches: Callable[[Mapping[str, str]], bool] | None = None,
    names: frozenset[str] = frozenset(),
    to: str | None = None,
) -> set[PartitionRef]:
    """The partitions that have every key of the selection and match it, of the product `to` and those before it.

    Parameters
    ----------
    matches : callable, optional
        Predicate over the values of `describe_partition`.
    names : frozenset of str
        Keys the selection names; a partition without one of them (a stack has no exposure) is not selected.
    to : str, optional
        Last product; all that it is not made from is left out.
    """
    products = products_before(to) if to else list(PRODUCTS)
    targets = set()
    for product in products:
        for partition in survey.partitions(product):
            values = describe_partition(survey, product, partition)
            if matches is None or (names <= values.keys() and matches(values)):
                targets.add((product, partition))
    return targets


def products_before(product: str) -> list[str]:
    """A product and everything it is made from, in the order of the chain."""
    wanted, open_ = set(), [get_product(product).name]
    while open_:
        name = open_.pop()
        wanted.add(name)
        open_.extend(PRODUCTS[name].inputs)
    return [name for name in PRODUCTS if name in wanted]
