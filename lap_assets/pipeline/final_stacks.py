"""Stage `final_stacks`: the complete set of stacks, without trails.

A skycell whose first-pass stack is good and none of whose inputs has a trail refers to that stack; the others are
stacked (again) from all warps there are, trails masked. Where no difference could be made, the plain warps are used.
"""

import logging

from lap_assets.errors import NoWork
from lap_assets.model.ids import DataId, Pin, join_key
from lap_assets.model.survey import Survey
from lap_assets.pipeline.stack_inputs import open_inputs, read_used
from lap_assets.pipeline.stacks import Stack, combine_inputs, correct_sky, describe_stack
from lap_assets.pipeline.task import Output, Task
from lap_assets.pipeline.warps import find_warps
from lap_assets.settings import Settings
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)


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
        return refer_to_stack(task, repo, first_pass[0])
    with open_inputs(repo, warps, streaks, task.settings.streak_masks.margin_px) as inputs:
        stack = combine_inputs(inputs, task.settings.stacks)
        if task.settings.stacks.sky_corrected:
            stack.flavours |= correct_sky(stack, inputs)
    output = describe_stack(stack)
    output.metrics |= {"n_streaks": int(stack.inputs["n_streaks"].sum()), "n_restacked": 1}
    if crossed:
        log.info("%s: trails of %s masked", task.data_id, ", ".join(crossed))
    return output


def refer_to_stack(task: Task, repo: Repo, pin: Pin) -> Output:
    """The first-pass stack as it is, and the flavour of it that only final stacks have."""
    members: dict = {}
    if task.settings.stacks.sky_corrected:
        table, used = repo.read_table(pin, "inputs.parquet"), read_used(repo, pin)
        with open_inputs(repo, task.pins("warps")) as inputs:
            members = correct_sky(Stack(repo.read_image(pin), table, used), inputs)
    metrics = dict(repo.manifest(pin.data_id).metrics) | {"n_streaks": 0, "n_restacked": 0}
    return Output(members, metrics, refers_to=pin)
