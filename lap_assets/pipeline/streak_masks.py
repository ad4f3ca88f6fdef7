"""Stage `streak_masks`: the trails on one exposure's differences, for the second stack pass to leave out.

Planning only; the search is `science/streaks.py`.
"""

import logging

import numpy as np

from lap_assets.errors import NoWork
from lap_assets.model.ids import DataId
from lap_assets.model.survey import Survey
from lap_assets.pipeline.diffs import is_good
from lap_assets.pipeline.task import Output, Task
from lap_assets.qa.pictures import thumbnail
from lap_assets.science.streaks import StreakLimits, draw_streaks, find_streaks
from lap_assets.settings import Settings
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)


def plan(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task per skycell that was to be differenced."""
    tasks = []
    for diff in repo.units(collection, "diffs", partition):
        manifest = repo.manifest(diff)
        if manifest is None:
            continue
        done = manifest.has_content
        params = {} if done else {"missing": f"no difference to search: {manifest.state} ({manifest.reason})"}
        pins = (manifest.pin,) if done else ()
        tasks.append(Task(DataId(collection, "streak_masks", partition, diff.unit), pins, settings, params))
    return tasks


def make(task: Task, repo: Repo) -> Output:
    """Find the trails of one difference; an empty table where there is none."""
    if reason := task.params.get("missing"):
        raise NoWork(reason)
    chosen = task.settings.streak_masks
    limits = StreakLimits(snr=chosen.snr, min_length_px=chosen.min_length_px)
    difference = repo.read_image(task.pins("diffs")[0])
    if not is_good(difference.header):
        raise NoWork(f"not searched, its subtraction is bad: {difference.header['QUALITY']}")
    streaks = find_streaks(difference, limits, float(difference.header.get("NOISECOV", 1.0)))
    if len(streaks):
        log.info("%s: %d trails", task.data_id, len(streaks))
    drawn = draw_streaks(difference.shape, streaks, chosen.margin_px).astype(np.float32)
    # the mask itself: grey where nothing is masked, black where there is no difference
    members = {"streaks.parquet": streaks, "preview.png": thumbnail(drawn, difference.mask)}
    return Output(members, {"n_streaks": len(streaks)})
