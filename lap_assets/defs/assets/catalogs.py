"""Catalogues of the objects of a cell."""

import dagster as dg

from lap_assets.defs.assets.stage import Stages


def build(stages: Stages) -> list[dg.AssetsDefinition]:
    """The assets of this part of the chain."""

    @stages.asset
    def object_catalogs(context):
        """Objects found on the stacks of all bands together, measured in each band."""
        yield from context.resources.lap.make(context)

    return [object_catalogs]
