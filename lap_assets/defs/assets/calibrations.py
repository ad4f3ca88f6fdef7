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
    def master_flats(context):
        """Sigma-clipped mean of the flat frames of each chip, on one scale for the mosaic, with its dead pixels."""
        yield from context.resources.lap.make(context)

    return [master_biases, master_flats]
