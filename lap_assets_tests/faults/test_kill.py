"""SIGKILL before every system call of publishing, and of what tidies up; the calls are recorded, not guessed."""

import shutil
from pathlib import Path

import pytest

from lap_assets.errors import Cleaned, IntegrityError, NotFound
from lap_assets.store import configs
from lap_assets.store.repo import Repo
from lap_assets.store.verify import fsck, sweep
from lap_assets_tests.faults import actions
from lap_assets_tests.faults.actions import DOCUMENT, LATER, NEW, OLD
from lap_assets_tests.faults.tracing import kill_before, record
from lap_assets_tests.store.samples import FINAL, STACK, check_stack, make_stack, publish
from lap_assets_tests.store.test_refcat import make_refcat

pytestmark = pytest.mark.slow


def kill_everywhere(folder, action, prepare, inspect) -> tuple[list, list]:
    """Kill `action` before each of its calls, each time on a fresh copy.

    Returns the calls and what `inspect` saw when it was killed before each, and at last what it sees without a kill.
    """
    original, log = folder / "original", folder / "log"
    prepare(original)

    def copy(name: str) -> Path:
        shutil.rmtree(folder / name, ignore_errors=True)
        return shutil.copytree(original, folder / name)

    calls = record(action, copy("whole"), copy("scratch"), log)
    seen = []
    for call in calls:
        kill_before(call, action, copy("killed"), copy("scratch"), log)
        seen.append(inspect(folder / "killed"))
    seen.append(inspect(folder / "whole"))
    return calls, seen


def assert_switches_once(calls, seen, old, new, name="manifest.json"):
    """Only the old until the file `name` is renamed into place, only the new from then on."""
    switch = next(i for i, call in enumerate(calls) if call.name.startswith("rename") and call.paths[-1].endswith(name))
    assert seen == [old] * (switch + 1) + [new] * (len(calls) - switch)


def leave_no_trace(root: Path) -> None:
    """After a kill the check finds nothing broken and tidies up; the unit can be published again."""
    repo = Repo(root)
    report = fsck(repo, full=True, now=LATER)
    assert not report.broken
    sweep(repo, now=LATER)
    assert not [path for path in root.rglob(".tmp*")]
    publish(repo, STACK, make_stack(9))
    check_stack(repo, STACK, {9})


def read_version(root: Path) -> float:
    repo = Repo(root)
    value = check_stack(repo, STACK, {OLD, NEW})
    assert set(repo.read_table(STACK, "inputs.parquet")["weight"]) == {value}
    assert repo.has_files(STACK)
    leave_no_trace(root)
    return value


def test_killed_anywhere_the_old_version_is_intact_or_the_new_one_complete(folder):
    calls, seen = kill_everywhere(folder, actions.publish_new, actions.publish_old, read_version)
    assert_switches_once(calls, seen, OLD, NEW)
    assert len(calls) > 30  # it really was killed at every write and fsync of two members and a manifest


def test_killed_anywhere_a_first_version_is_absent_or_complete(folder):
    def inspect(root):
        value = check_stack(Repo(root), STACK, {NEW}) if Repo(root).manifest(STACK) else None
        leave_no_trace(root)
        return value

    assert_switches_once(*kill_everywhere(folder, actions.publish_new, Path.mkdir, inspect), None, NEW)


def test_killed_anywhere_a_result_without_members_replaces_whole(folder):
    def inspect(root):
        manifest = Repo(root).manifest(STACK)
        if manifest.state == "done":
            check_stack(Repo(root), STACK, {OLD})
        leave_no_trace(root)
        return manifest.state

    calls, seen = kill_everywhere(folder, actions.publish_result, actions.publish_old, inspect)
    assert_switches_once(calls, seen, "done", "no_work")


def test_killed_anywhere_a_reference_is_absent_or_complete_and_its_source_unharmed(folder):
    def inspect(root):
        check_stack(Repo(root), STACK, {OLD})
        value = check_stack(Repo(root), FINAL, {OLD}) if Repo(root).manifest(FINAL) else None
        leave_no_trace(root)
        return value

    calls, seen = kill_everywhere(folder, actions.publish_reference, actions.publish_old, inspect)
    assert_switches_once(calls, seen, None, OLD)


def test_killed_anywhere_quarantine_never_shows_or_loses_the_broken_bytes(folder):
    broken = []

    def prepare(root):
        actions.publish_old(root)
        path = Repo(root).path(STACK, "image.fits")
        data = bytearray(path.read_bytes())
        data[-3000] ^= 1
        path.write_bytes(bytes(data))
        broken.append(bytes(data))

    def inspect(root):
        repo = Repo(root)
        with pytest.raises((IntegrityError, NotFound)):
            repo.read_image(STACK)
        fsck(repo, full=True)
        assert repo.manifest(STACK) is None
        assert broken[0] in [path.read_bytes() for path in root.rglob("image.fits")]
        publish(repo, STACK, make_stack(OLD))
        check_stack(repo, STACK, {OLD})
        leave_no_trace(root)
        return "repaired"

    calls, _ = kill_everywhere(folder, actions.check_and_quarantine, prepare, inspect)
    assert [call.name for call in calls].count("rename") == 2


def test_killed_anywhere_the_sweep_leaves_the_current_version(folder):
    def prepare(root):
        actions.publish_old(root)
        actions.publish_new(root)

    def inspect(root):
        value = check_stack(Repo(root), STACK, {NEW})
        leave_no_trace(root)
        return value

    calls, seen = kill_everywhere(folder, actions.sweep_all, prepare, inspect)
    assert set(seen) == {NEW}
    assert "unlinkat" in {call.name for call in calls} or "unlink" in {call.name for call in calls}


def test_killed_anywhere_a_cleaned_unit_is_full_or_cleaned_and_cleaning_goes_on(folder):
    """LAP-33: the manifest first, then the files; what a kill leaves of them goes with the next cleaning or check."""

    def inspect(root):
        repo = Repo(root)
        manifest = repo.manifest(STACK)
        if manifest.state == "done":
            check_stack(repo, STACK, {OLD})
        else:
            assert manifest.pin == pinned and manifest.directory == "" and set(manifest.members) == members
            with pytest.raises(Cleaned, match="lap recreate"):
                repo.read_image(STACK)
        actions.clean(root)
        assert repo.manifest(STACK).state == "cleaned" and repo.layout.find_versions(STACK) == []
        assert repo.clean(STACK) == 0
        leave_no_trace(root)
        return manifest.state

    actions.publish_old(folder / "reference")
    pinned, members = Repo(folder / "reference").pin(STACK), set(Repo(folder / "reference").manifest(STACK).members)
    calls, seen = kill_everywhere(folder, actions.clean, actions.publish_old, inspect)
    assert_switches_once(calls, seen, "done", "cleaned")
    assert [call.name for call in calls].count("rename") == 2  # the manifest, then the folder that goes


def test_killed_anywhere_a_cleaned_unit_comes_back_whole(folder):
    def prepare(root):
        actions.publish_old(root)
        actions.clean(root)

    def inspect(root):
        manifest = Repo(root).manifest(STACK)
        if manifest.state == "done":
            check_stack(Repo(root), STACK, {OLD})
        leave_no_trace(root)
        return manifest.state

    calls, seen = kill_everywhere(folder, actions.publish_old, prepare, inspect)
    assert_switches_once(calls, seen, "cleaned", "done")


def test_killed_anywhere_kept_settings_are_absent_or_whole(folder):
    def inspect(root):
        repo = Repo(root)
        kept = [repo.read_config(name) for name in configs.find_configs(repo.layout)]
        actions.keep_settings(root)
        assert [repo.read_config(name) for name in configs.find_configs(repo.layout)] == [DOCUMENT]
        assert fsck(repo, now=LATER).damaged == [] and not [path for path in root.rglob(".tmp*")]
        return kept

    calls, seen = kill_everywhere(folder, actions.keep_settings, Path.mkdir, inspect)
    assert_switches_once(calls, seen, [], [DOCUMENT], ".json")


def test_killed_anywhere_the_journal_keeps_what_was_in_it(folder):
    first = {"kind": "sequence", "name": "3pi.v1"}

    def inspect(root):
        entries = Repo(root).read_journal()
        assert entries[0] == first
        Repo(root).append_journal({"n": 2})
        assert Repo(root).read_journal() == [*entries, {"n": 2}]
        return len(entries)

    calls, seen = kill_everywhere(folder, actions.append_to_journal, lambda r: Repo(r).append_journal(first), inspect)
    assert seen == [1] * (1 + [call.name for call in calls].index("write")) + [2] * (len(seen) - seen.count(1))


def test_killed_anywhere_a_reference_catalogue_is_the_old_or_the_new_one(folder):
    def prepare(root):
        Repo(root).write_refcat("gaia", make_refcat([10.0], [0.0]))

    def inspect(root):
        rows = len(Repo(root).read_refcat("gaia", 15.0, 0.0, 9.0))
        actions.replace_refcat(root)
        assert len(Repo(root).read_refcat("gaia", 15.0, 0.0, 9.0)) == 2
        return rows

    assert_switches_once(*kill_everywhere(folder, actions.replace_refcat, prepare, inspect), 1, 2, "refcat.json")
