"""What the children of the fault tests do: each an action on the repository at `root`."""

from pathlib import Path

from lap_assets.errors import Conflict
from lap_assets.store.repo import Repo
from lap_assets.store.verify import fsck, sweep
from lap_assets_tests.faults.tracing import Refused
from lap_assets_tests.store.samples import FINAL, STACK, make_stack, publish
from lap_assets_tests.store.test_refcat import make_refcat

OLD, NEW = 3, 4
DOCUMENT = b'{"stacks": {"min_inputs": 6}}'
LATER = 4e9  # seconds since the epoch: everything is old by then


def publish_old(root: Path) -> None:
    publish(Repo(root), STACK, make_stack(OLD))


def publish_new(root: Path) -> None:
    publish(Repo(root), STACK, make_stack(NEW))


def publish_result(root: Path) -> None:
    publish(Repo(root), STACK, {}, state="no_work", reason="too few inputs")


def publish_reference(root: Path) -> None:
    repo = Repo(root)
    publish(repo, FINAL, {}, refers_to=repo.pin(STACK))


def publish_with_low_fence(root: Path) -> None:
    try:
        publish(Repo(root), STACK, make_stack(NEW), fence=1)
    except Conflict:
        raise Refused from None


def check_and_quarantine(root: Path) -> None:
    fsck(Repo(root), full=True)


def sweep_all(root: Path) -> None:
    sweep(Repo(root), now=LATER)


def append_to_journal(root: Path) -> None:
    Repo(root).append_journal({"kind": "sequence", "name": "3pi.v2"})


def replace_refcat(root: Path) -> None:
    Repo(root).write_refcat("gaia", make_refcat([10.0, 20.0], [0.0, 0.0]))


def clean(root: Path) -> None:
    Repo(root).clean(STACK, "nothing needs it")


def keep_settings(root: Path) -> None:
    Repo(root).keep_config(DOCUMENT)
