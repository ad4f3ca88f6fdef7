"""Assembly of the Dagster definitions from the repository in force; what `workspace.yaml` and `dagster dev` load.

Without a repository (a fresh clone) the graph is there with empty partition sets.
"""

import os
from pathlib import Path

import dagster as dg

from lap_assets.defs.assets import calibrations, catalogs, diffs, exposures, lensing, stacks, warps
from lap_assets.defs.assets.stage import Stages
from lap_assets.defs.resources import LapResource
from lap_assets.errors import BadInput
from lap_assets.model.survey import Survey
from lap_assets.operations.workspace import Workspace
from lap_assets.settings import REPOSITORY_VARIABLE, find_repository

COLLECTION_PARTS = (exposures, warps, stacks, diffs, catalogs, lensing)


def build_defs(
    root: Path | None = None, collections: tuple[str, ...] | None = None, lap: LapResource | None = None
) -> dg.Definitions:
    """Definitions of the repository at `root` (default: found from the environment or the current folder).

    `collections` are those to show instead of the open ones of the settings.
    """
    assets: list[dg.AssetsDefinition] = []
    for number, (survey, hashes) in enumerate(load_surveys(root, collections)):
        stages = Stages(survey, hashes)
        parts = (calibrations, *COLLECTION_PARTS) if number == 0 else COLLECTION_PARTS
        assets += [asset for part in parts for asset in part.build(stages)]
    return dg.Definitions(assets=assets, resources={"lap": lap or LapResource(root)}, executor=dg.in_process_executor)


def load_surveys(root: Path | None, collections: tuple[str, ...] | None = None) -> list[tuple[Survey, dict[str, str]]]:
    """The survey of each open collection with the hashes of its settings; one empty survey without a repository."""
    try:
        find_repository(root)
    except BadInput:
        if root is not None or os.environ.get(REPOSITORY_VARIABLE):
            raise
        return [(Survey("main"), {})]
    space = Workspace.open(root)
    return [(space.survey(name), space.configs()) for name in collections or space.settings.collections]


@dg.definitions
def defs() -> dg.Definitions:
    """What Dagster loads."""
    return build_defs()
