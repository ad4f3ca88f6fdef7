"""Partition sets and the mappings between them, built from a `Survey`; nothing here knows what an asset does.

Static sets joined by `StaticPartitionMapping`s are the one design that is exact in the UI and in backfills
(architecture, section 3).
"""

import dagster as dg

from lap_assets.model.products import get_product
from lap_assets.model.survey import Survey


class Partitions:
    """Dagster partition definitions and mappings of one survey, each built once."""

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self._definitions: dict[tuple[str, ...], dg.StaticPartitionsDefinition] = {}

    def definition(self, product: str) -> dg.StaticPartitionsDefinition:
        """The partition set of a product; products with the same keys share one object."""
        keys = self.survey.partitions(product)
        if keys not in self._definitions:
            self._definitions[keys] = dg.StaticPartitionsDefinition(list(keys))
        return self._definitions[keys]

    def dep(self, product: str, upstream: str, collection: str) -> dg.AssetDep:
        """How `product` depends on `upstream`: which of its partitions are made from which."""
        return dg.AssetDep(dg.AssetKey([collection, upstream]), partition_mapping=self._mapping(product, upstream))

    def _mapping(self, product: str, upstream: str) -> dg.PartitionMapping:
        same_kind = get_product(product).partitions == get_product(upstream).partitions
        if same_kind and self.survey.partitions(product) == self.survey.partitions(upstream):
            return dg.IdentityPartitionMapping()
        edges: dict[str, list[str]] = {}
        for key in self.survey.partitions(product):
            for source, source_key in self.survey.upstream(product, key):
                if source == upstream:
                    edges.setdefault(source_key, []).append(key)
        return dg.StaticPartitionMapping(edges)
