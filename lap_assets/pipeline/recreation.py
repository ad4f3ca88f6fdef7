"""Making a cleaned unit again as it was: from the inputs its manifest pins and the settings kept with it.

Whether that is possible, and why a unit made again differs from what was cleaned, is found here; the making itself is
`engine.py`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lap_assets.errors import BadInput, IntegrityError
from lap_assets.model.ids import DataId, Pin
from lap_assets.model.products import get_product
from lap_assets.pipeline.recipes import compute_recipe
from lap_assets.pipeline.stages import Stage
from lap_assets.pipeline.task import Task
from lap_assets.settings import Settings
from lap_assets.store.manifest import Manifest
from lap_assets.store.provenance import take_fingerprint
from lap_assets.store.repo import Repo


@dataclass(frozen=True)
class Recreation:
    """A cleaned unit that is to be made again, small enough to be sent to a worker.

    Attributes
    ----------
    task : Task
        As it was made, with today's paths; as it would be made today where the former cannot be.
    today : Task
        As it would be made today.
    content : str
        `content_sha256` it had.
    cause : str
        Why it cannot be made as it was; empty if it can.
    fingerprint : mapping
        The environment it was made in.
    """

    task: Task
    today: Task
    content: str
    cause: str = ""
    fingerprint: Mapping[str, Any] | None = None

    @property
    def data_id(self) -> DataId:
        return self.task.data_id

    @property
    def inputs(self) -> tuple[Pin, ...]:
        return self.task.inputs


def plan_recreation(stage: Stage, today: Task, manifest: Manifest, repo: Repo) -> Recreation:
    """How a cleaned unit is made again; `today` gives the facts from the survey, and where things lie."""
    known = Recreation(today, today, manifest.content_sha256, fingerprint=manifest.fingerprint)
    code = get_product(stage.product).code
    if manifest.code != code:
        return replace(known, cause=f"code: number {manifest.code} then, {code} now")
    settings = find_settings(stage, today.settings, manifest.config_sha256, repo)
    if settings is None:
        return replace(known, cause=f"settings: those of then ({manifest.config_sha256[:12]}) are not kept")
    task = replace(today, inputs=manifest.inputs, settings=settings)
    if compute_recipe(stage, task) != manifest.recipe:
        return replace(known, cause="inputs: the raw files, the camera or the sky cell are not what they were")
    lost = [pin for pin in manifest.inputs if not can_be_had(repo, pin)]
    if lost:
        first = f"{lost[0].data_id} as {lost[0].content[:12]}"
        return replace(known, cause=f"inputs: {len(lost)} are not to be had as they were, first {first}")
    return replace(known, task=task)


def find_settings(stage: Stage, today: Settings, config_sha256: str, repo: Repo) -> Settings | None:
    """The settings with this hash for a stage: today's, or those kept in the store; None if there are none."""
    if stage.config_sha256(today) == config_sha256:
        return today
    try:
        document = repo.read_config(config_sha256)
        return None if document is None else stage.restore_settings(today, document)
    except (BadInput, IntegrityError):
        return None  # damaged, or no settings of this version: as good as none


def can_be_had(repo: Repo, pin: Pin) -> bool:
    """Whether an input is there as it was pinned, or can be re-created first."""
    manifest = repo.manifest(pin.data_id)
    same = manifest is not None and manifest.has_content and manifest.content_sha256 == pin.content
    return same or repo.has_version(pin)


def explain_difference(recreation: Recreation, state: str, content: str) -> str:
    """One line: that a unit made again is not what it was, and why."""
    cause = recreation.cause or explain_environment(recreation.fingerprint or {})
    became = f"{recreation.content[:12]} → {content[:12]}" if content else f"it is {state} now"
    return f"re-created, but it differs from what was cleaned ({became}); {cause}"


def explain_environment(before: Mapping[str, Any]) -> str:
    """What of the environment is not as it was."""
    now = take_fingerprint()
    changed = [name for name in sorted(set(before) | set(now)) if before.get(name) != now.get(name) and name != "id"]
    if not changed:
        return "fingerprint: the same, so a file outside the store has changed, or the stage is not deterministic"
    first = changed[0]
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"fingerprint: {first} {before.get(first)} → {now.get(first)}{more}"
