"""First-pass stacks and the final, destreaked set of stacks of a run."""

import dagster as dg

from lap_assets.defs.assets.stage import Stages


def build(stages: Stages) -> list[dg.AssetsDefinition]:
    """The assets of this part of the chain."""

    @stages.asset
    def stacks(context):
        """Clipped mean of the warps of each skycell with enough inputs: the first pass, and the source of templates."""
        yield from context.resources.lap.make(context)

    @stages.asset
    def final_stacks(context):
        """The complete set of stacks: first-pass ones where no input had a streak, the others made again."""
        yield from context.resources.lap.make(context)

    return [stacks, final_stacks]
