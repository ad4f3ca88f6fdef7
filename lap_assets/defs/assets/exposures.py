"""From a raw exposure to calibrated chips and the exposure's solution, and the joint solution of a run."""

import dagster as dg

from lap_assets.defs.assets.stage import Stages


def build(stages: Stages) -> list[dg.AssetsDefinition]:
    """The assets of this part of the chain."""

    @stages.asset
    def chips(context):
        """Chips free of the instrument's signature, in electrons, with variance and mask."""
        yield from context.resources.lap.make(context)

    @stages.asset
    def solutions(context):
        """What one exposure says of itself: background, sources, astrometry, zero point, PSF."""
        yield from context.resources.lap.make(context)

    @stages.asset
    def joint_solutions(context):
        """Relative zero points of the exposures of a run, from the stars they share; frozen once made."""
        yield from context.resources.lap.make(context)

    return [chips, solutions, joint_solutions]
