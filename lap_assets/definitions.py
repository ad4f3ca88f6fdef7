"""Assembly of the Dagster definitions from the repository in force; what `workspace.yaml` and `dagster dev` load.

Without a repository (a fresh clone) the graph is there with empty partition sets.
"""

import gc
import os
import warnings
from pathlib import Path

import dagster as dg

from lap_assets.defs import jobs, status
from lap_assets.defs.assets import calibrations, catalogs, diffs, exposures, lensing, stacks, warps
from lap_assets.defs.assets.stage import Stages
from lap_assets.defs.cleanup import clean_job
from lap_assets.defs.jobs import load_collection
from lap_assets.defs.resources import LapResource
from lap_assets.defs.sensors import Sensors
from lap_assets.errors import BadInput
from lap_assets.ledger.survey import without_collector
from lap_assets.model.survey import Survey
from lap_assets.operations.workspace import Workspace
from lap_assets.settings import REPOSITORY_VARIABLE, find_repository

COLLECTION_PARTS = (exposures, warps, stacks, diffs, catalogs, lensing)


@without_collector()
def build_defs(
    root: Path | None = None, collections: tuple[str, ...] | None = None, lap: LapResource | None = None
) -> dg.Definitions:
    """Definitions of the repository at `root` (default: found from the environment or the current folder).

    `collections` are those to show instead of the open ones: those of the settings, then every other sequence.
    """
    chosen = lap or LapResource(root)
    surveys = load_surveys(root, collections)
    loaded = [load_collection(survey) for survey, _ in surveys]
    assets: list[dg.AssetsDefinition | dg.AssetSpec] = []
    for number, (survey, hashes) in enumerate(surveys):
        stages = Stages(survey, hashes)
        parts = (calibrations, *COLLECTION_PARTS) if number == 0 else COLLECTION_PARTS
        assets += [asset for part in parts for asset in part.build(stages)]
        assets.append(status.build(survey.collection, stages.group))
    makers = jobs.build(loaded)
    # without a repository there is nothing to look after
    watchers = Sensors(loaded, lambda: Workspace.open(root)).build(makers) if has_repository(root) else []
    made = dg.Definitions(
        assets=assets,
        jobs=[*makers, clean_job],
        sensors=watchers,
        resources={"lap": chosen.define()},
        executor=dg.in_process_executor,
    )
    with warnings.catch_warnings():
        # Dagster copies sensors, and warns of a parameter of its own copy that nobody set
        warnings.simplefilter("ignore", dg.BetaWarning)
        made.get_repository_def()
    return made


def load_surveys(root: Path | None, collections: tuple[str, ...] | None = None) -> list[tuple[Survey, dict[str, str]]]:
    """The survey of each open collection with the hashes of its settings; one empty survey without a repository.

    Lean ones: partition sets need no file of any exposure.
    """
    if not has_repository(root):
        return [(Survey("main"), {})]
    space = Workspace.open(root)
    try:
        surveys = [space.complete(space.ledger.survey(name, lean=True)) for name in collections or space.collections()]
        return [(survey, space.configs()) for survey in surveys]
    finally:
        space.ledger.close()


def has_repository(root: Path | None) -> bool:
    """Whether there is a repository; raises `BadInput` where one is named and is none."""
    try:
        find_repository(root)
    except BadInput:
        if root is not None or os.environ.get(REPOSITORY_VARIABLE):
            raise
        return False
    return True


@dg.definitions
def defs() -> dg.Definitions:
    """What Dagster loads."""
    made = build_defs()
    # 100,000 partitions stay as long as the process: the collector need not walk them while they are sent, or at a tick
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    return made
