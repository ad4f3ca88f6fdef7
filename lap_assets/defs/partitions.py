"""Partition sets and the mappings between them, built from a `Survey`; nothing here knows what an asset does.

Static sets joined by `StaticPartitionMapping`s are the one design that is exact in the UI and in backfills
(architecture, section 3).
"""

import dagster as dg

from lap_assets.model.products import get_product
from lap_assets.model.survey import Survey

Edges = dict[str, list[str]]  # partitions made from it, by partition


class Partitions:
    """Dagster partition definitions and mappings of one survey, each built once."""

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self._definitions: dict[tuple[str, ...], dg.StaticPartitionsDefinition] = {}
        self._edges: dict[str, dict[str, Edges]] = {}
        self._mappings: list[tuple[Edges, dg.StaticPartitionMapping]] = []

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
        edges = self._find_edges(product).get(upstream, {})
        # of 100,000 edges each mapping takes long to make; warps are to chips what they are to solutions
        for known, mapping in self._mappings:
            if known == edges:
                return mapping
        # a single key stands alone: 100,000 lists are what a webserver takes longest to read
        single = {source: keys[0] if len(keys) == 1 else keys for source, keys in edges.items()}
        self._mappings.append((edges, dg.StaticPartitionMapping(single)))
        return self._mappings[-1][1]

    def _find_edges(self, product: str) -> dict[str, Edges]:
        """For each input of a product: which of its partitions are made from which of the input's."""
        if product not in self._edges:
            found: dict[str, Edges] = {name: {} for name in get_product(product).inputs}
            for key in self.survey.partitions(product):
                for source, source_key in self.survey.upstream(product, key):
                    found[source].setdefault(source_key, []).append(key)
            self._edges[product] = found
        return self._edges[product]
