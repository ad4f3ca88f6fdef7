"""Stage `final_stacks`: the complete set of stacks, without trails.

A skycell whose first-pass stack is good and none of whose inputs has a trail refers to that stack; the others are
stacked (again) from all warps there are, trails masked. Where no difference could be made, the plain warps are used.
"""

import logging

import pandas as pd

from lap_assets.errors import NoWork
from lap_assets.model.ids import DataId, join_key
from lap_assets.model.image import Mask, MaskedImage
from lap_assets.model.survey import Survey
from lap_assets.pipeline.stacks import combine_warps, describe_stack
from lap_assets.pipeline.task import Output, Task
from lap_assets.pipeline.warps import find_warps
from lap_assets.science.streaks import draw_streaks
from lap_assets.settings import Settings
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)

_STREAK = int(Mask.STREAK)


def plan(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task per skycell that has a warp: its warps, their streak masks, and the first-pass stack if it is up to
    date.
    """
    cell, band = partition.split("|")
    members = survey.members(cell, band)
    tasks = []
    for skycell, warps in find_warps(repo, collection, members, cell).items():
        found = [repo.pin(DataId(collection, "streak_masks", join_key(name, cell), skycell)) for name in members]
        pins = [*warps, *(pin for pin in found if pin is not None)]
        stack = repo.manifest(DataId(collection, "stacks", partition, skycell))
        if stack is not None and stack.has_content and sorted(stack.inputs) == sorted(warps):
            pins.append(stack.pin)
        data_id = DataId(collection, "final_stacks", partition, skycell)
        tasks.append(Task(data_id, tuple(sorted(pins)), settings, {"band": band}))
    return tasks


def make(task: Task, repo: Repo) -> Output:
    """Refer to the first-pass stack, or stack the destreaked warps."""
    warps = task.pins("warps")
    if not warps:
        raise NoWork("no warp")
    streaks = {pin.data_id.parts[0]: repo.read_table(pin, "streaks.parquet") for pin in task.pins("streak_masks")}
    crossed = sorted(name for name, table in streaks.items() if len(table))
    first_pass = task.pins("stacks")
    if first_pass and not crossed:
        manifest = repo.manifest(first_pass[0].data_id)
        return Output({}, dict(manifest.metrics) | {"n_streaks": 0, "restacked": 0}, refers_to=first_pass[0])
    margin = task.settings.streak_masks.margin_px
    images = [mask_streaks(repo.read_image(pin), streaks.get(pin.data_id.parts[0]), margin) for pin in warps]
    stack, inputs = combine_warps(images, task.settings.stacks)
    inputs["n_streaks"] = [len(streaks.get(name, ())) for name in inputs["exposure"]]
    output = describe_stack(stack, inputs)
    output.metrics |= {"n_streaks": int(inputs["n_streaks"].sum()), "restacked": 1}
    if crossed:
        log.info("%s: trails of %s masked", task.data_id, ", ".join(crossed))
    return output


def mask_streaks(image: MaskedImage, streaks: pd.DataFrame | None, margin_px: float) -> MaskedImage:
    """The image with STREAK set on its trails; unchanged where there is none."""
    if streaks is not None and len(streaks):
        image.mask[draw_streaks(image.shape, streaks, margin_px)] |= _STREAK
    return image
