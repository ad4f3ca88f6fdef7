"""Writers that raise, collide, or come too late; readers while writers replace."""

import shutil

import pytest

from lap_assets.errors import Conflict, PermanentFailure
from lap_assets.store import files
from lap_assets.store.repo import Repo
from lap_assets.store.verify import fsck
from lap_assets_tests.faults import actions
from lap_assets_tests.faults.actions import LATER, NEW, OLD
from lap_assets_tests.faults.tracing import FORK, record, stop_after
from lap_assets_tests.store.samples import STACK, check_stack, make_stack, publish

N_REPLACEMENTS = 200


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError, PermanentFailure])
def test_a_writer_that_raises_midway_leaves_the_good_version(folder, monkeypatch, error):
    """The first member is on disk, the second raises: nothing of it is seen, nothing is left."""
    repo = Repo(folder)
    publish(repo, STACK, make_stack(OLD))
    before = sorted(folder.rglob("*"))
    written = []

    def encode_and_fail(table):
        written.extend(path for path in folder.rglob(".tmp-*/image.fits"))
        raise error("midway")

    monkeypatch.setattr(files.table_format, "encode_table", encode_and_fail)
    with pytest.raises(error):
        publish(repo, STACK, make_stack(NEW))
    assert len(written) == 1
    assert sorted(folder.rglob("*")) == before
    check_stack(repo, STACK, {OLD})


def test_a_late_writer_is_refused_wherever_it_was_held_up(folder):
    """Stop a writer after each of its calls, let one with a higher fence publish, go on: the later one stands.

    One gap is known and left out: held up between its last look at the manifest and the rename that follows (the
    ledger's lease is what keeps two writers apart for so long).
    """
    original, log = folder / "original", folder / "log"
    actions.publish_old(original)

    def copy(name):
        shutil.rmtree(folder / name, ignore_errors=True)
        return shutil.copytree(original, folder / name)

    calls = record(actions.publish_with_low_fence, copy("whole"), copy("scratch"), log)
    last_look = max(
        i for i, call in enumerate(calls) if call.name == "openat" and call.paths[-1].endswith("manifest.json")
    )
    switch = next(
        i for i, call in enumerate(calls) if call.name == "rename" and call.paths[-1].endswith("manifest.json")
    )
    assert last_look == switch - 1
    refused = []
    for i, call in enumerate(calls):
        if i == last_look:
            continue
        root = copy("held")
        repo = Repo(root)

        def publish_later(repo=repo):
            publish(repo, STACK, make_stack(9), fence=2)

        finished = stop_after(call, actions.publish_with_low_fence, root, copy("scratch"), log, publish_later)
        check_stack(repo, STACK, {9})
        assert repo.manifest(STACK).fence == 2
        assert finished is (i >= switch)
        refused.append(not finished)
        assert not fsck(repo, full=True, now=LATER).broken
    assert sum(refused) > 20


def replace_many_times(root, values, fence):
    for value in values:
        try:
            publish(Repo(root), STACK, make_stack(value), fence=fence)
        except Conflict:
            return


def test_a_reader_during_many_replacements_sees_whole_versions_in_order(folder):
    repo = Repo(folder)
    publish(repo, STACK, make_stack(1))
    values = range(2, 2 + N_REPLACEMENTS)
    writer = FORK.Process(target=replace_many_times, args=(folder, values, 0))
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(check_stack(repo, STACK, {1, *values}))
        table = repo.read_table(STACK, "inputs.parquet")
        assert len(set(table["weight"])) == 1
        pin = repo.pin(STACK)
        assert repo.read_image(pin).header["VALUE"] == repo.read_table(pin, "inputs.parquet")["weight"][0]
    assert writer.exitcode == 0
    assert check_stack(repo, STACK, {max(values)})
    assert seen == sorted(seen)
    assert len(set(seen)) > 5
    assert len(repo.layout.find_versions(STACK)) == N_REPLACEMENTS + 1  # none went while someone may read it


def test_two_writers_of_one_product_end_with_one_whole_version(folder):
    """Without leases even: whatever two writers of equal right do to each other, no mixture is ever published."""
    repo = Repo(folder)
    publish(repo, STACK, make_stack(1))
    choices = {1, *range(100, 160), *range(200, 260)}
    writers = [FORK.Process(target=replace_many_times, args=(folder, range(n, n + 60), 0)) for n in (100, 200)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        check_stack(repo, STACK, choices)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert check_stack(repo, STACK, {159, 259})
    report = fsck(repo, full=True, now=LATER)
    assert not report.broken and not report.removed


def test_two_writers_of_the_same_content_share_one_version(folder):
    repo = Repo(folder)
    writers = [FORK.Process(target=replace_many_times, args=(folder, [7] * 40, 0)) for _ in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(repo.layout.find_versions(STACK)) == 1
    check_stack(repo, STACK, {7})
