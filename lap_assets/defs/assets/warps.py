"""Exposures resampled to the skycells of a projection cell."""

import dagster as dg

from lap_assets.defs.assets.stage import Stages


def build(stages: Stages) -> list[dg.AssetsDefinition]:
    """The assets of this part of the chain."""

    @stages.asset
    def warps(context):
        """Background-subtracted chips on the grid of each skycell, nJy, with variance and mask."""
        yield from context.resources.lap.make(context)

    return [warps]
