"""Master calibrations: what the raw frames of a camera are corrected with."""

import dagster as dg

from lap_assets.defs.assets.stage import Stages


def build(stages: Stages) -> list[dg.AssetsDefinition]:
    """The assets of this part of the chain."""

    @stages.asset
    def master_biases(context):
        """Sigma-clipped mean of the bias frames of each chip, overscan removed, with its variance and hot pixels."""
        yield from context.resources.lap.make(context)

    @stages.asset
    def master_darks(context):
        """Sigma-clipped mean of the dark frames of each chip, electrons per second, with its hot pixels."""
        yield from context.resources.lap.make(context)

    @stages.asset
    def master_flats(context):
        """Sigma-clipped mean of the flat frames of each chip, on one scale for the mosaic, with its dead pixels."""
        yield from context.resources.lap.make(context)

    @stages.asset
    def master_skies(context):
        """Illumination that flats leave, from object frames without their sources, smoothed to the large scale."""
        yield from context.resources.lap.make(context)

    @stages.asset
    def master_fringes(context):
        """Fringe pattern common to object frames, without sources and smooth sky, mean zero and unit amplitude."""
        yield from context.resources.lap.make(context)

    return [master_biases, master_darks, master_flats, master_skies, master_fringes]
