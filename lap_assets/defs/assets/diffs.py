"""Differences, the streaks found on them, and the transients of a cell."""

import dagster as dg

from lap_assets.defs.assets.stage import Stages


def build(stages: Stages) -> list[dg.AssetsDefinition]:
    """The assets of this part of the chain."""

    @stages.asset
    def diffs(context):
        """Each warp minus a PSF-matched template without its night, and the sources left."""
        yield from context.resources.lap.make(context)

    @stages.asset
    def streak_masks(context):
        """Trails of satellites and aircraft found on the differences."""
        yield from context.resources.lap.make(context)

    @stages.asset
    def transients(context):
        """Difference sources associated over the exposures of a cell, with their light curves."""
        yield from context.resources.lap.make(context)

    return [diffs, streak_masks, transients]
