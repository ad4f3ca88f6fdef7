"""What a power cut would find: nothing is renamed into place before it is on disk, nothing returns before it is."""

import shutil
from pathlib import PurePath

import pytest

from lap_assets_tests.faults import actions
from lap_assets_tests.faults.tracing import Call, record


def find_unsynced(calls: list[Call]) -> list[tuple[str, str]]:
    """Replay calls; returns what was not on disk when something that needs it was renamed into place, or at the end.

    `("data", path)` waits for an fsync of the file, `("entry", path)` for one of the folder it stands in. What is
    removed or replaced needs none.
    """
    dirty: set[tuple[str, str]] = set()
    problems: list[tuple[str, str]] = []

    def below(path: str) -> set[tuple[str, str]]:
        inside = {one for one in dirty if PurePath(one[1]).is_relative_to(path)}
        return inside - {("entry", path)}

    for call in (call for call in calls if call.result >= 0):
        path = call.paths[0] if call.paths else call.opened
        if call.name in ("write", "pwrite64"):
            dirty.add(("data", path))
        elif call.name == "openat" and "O_CREAT" in call.arguments:
            dirty |= {("data", call.opened), ("entry", call.opened)}
        elif call.name in ("mkdir", "mkdirat"):
            dirty.add(("entry", path))
        elif call.name in ("link", "linkat"):
            dirty.add(("entry", call.paths[-1]))
        elif call.name in ("fsync", "fdatasync"):
            dirty -= {
                one
                for one in dirty
                if one == ("data", path) or (one[0] == "entry" and str(PurePath(one[1]).parent) == path)
            }
        elif call.name in ("unlink", "unlinkat", "rmdir"):
            dirty -= below(path) | {("entry", path)}
        elif call.name.startswith("rename"):
            source, target = call.paths
            # a manifest needs all it speaks of, anything else what is within it
            needed = dirty - {("entry", source)} if target.endswith(".json") else below(source)
            problems += sorted(needed)
            dirty = (dirty - below(source) - {("entry", source)}) | {("entry", target)}
    return problems + sorted(dirty)


@pytest.mark.parametrize(
    "action",
    [
        actions.publish_new,
        actions.publish_reference,
        actions.publish_result,
        actions.replace_refcat,
        actions.clean,
        actions.keep_settings,
    ],
)
def test_everything_is_on_disk_before_it_is_seen(folder, action):
    for name in ("whole", "scratch"):
        actions.publish_old(folder / name)
    calls = record(action, folder / "whole", folder / "scratch", folder / "log")
    assert find_unsynced(calls) == []


def test_new_folders_are_on_disk_too(folder):
    actions.publish_old(folder / "scratch")
    (folder / "whole").mkdir()
    calls = record(actions.publish_new, folder / "whole", folder / "scratch", folder / "log")
    assert sum(call.name == "mkdir" and call.result == 0 for call in calls) > 5
    assert find_unsynced(calls) == []


def test_the_check_itself_sees_each_missing_fsync(folder):
    """Leave out any one fsync of the record: the replay must complain."""
    for name in ("whole", "scratch"):
        actions.publish_old(folder / name)
    calls = record(actions.publish_new, folder / "whole", folder / "scratch", folder / "log")
    shutil.rmtree(folder / "whole")
    syncs = [call for call in calls if call.name == "fsync"]
    assert len(syncs) >= 6
    for left_out in syncs:
        assert find_unsynced([call for call in calls if call is not left_out])
