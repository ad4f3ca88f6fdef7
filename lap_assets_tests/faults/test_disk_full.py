"""A disk that is full, or a limit on the size of files: an error, the old version, and no rubbish."""

import errno
import resource
import subprocess
from contextlib import contextmanager

import pytest

from lap_assets.store.repo import Repo
from lap_assets.store.verify import fsck, sweep
from lap_assets_tests.faults.actions import LATER, NEW, OLD
from lap_assets_tests.faults.tracing import FORK
from lap_assets_tests.store.samples import STACK, check_stack, make_stack, publish

BLOCK = 4096


@contextmanager
def small_disk(folder, size):
    """A tmpfs of `size` bytes; skips where mounting is not allowed (the limit on file sizes is tested everywhere)."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"mounting a small disk is not allowed here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def list_files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


def test_a_full_disk_costs_the_new_version_only(tmp_path):
    outcomes = []
    with small_disk(tmp_path, 2_000_000) as folder:
        repo = Repo(folder)
        publish(repo, STACK, make_stack(OLD))
        repo.append_journal({"n": 1})
        for free_blocks in range(16):
            filler = folder / "filler"
            fill_disk(filler, free_blocks)
            before = list_files(folder)
            try:
                publish(repo, STACK, make_stack(NEW))
                outcomes.append(True)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                outcomes.append(False)
                # a complete version without manifest may be left, nothing else; sweeping takes it
                assert not list(folder.rglob(".tmp*"))
                sweep(repo, now=LATER)
                assert list_files(folder) == before
            check_stack(repo, STACK, {NEW if outcomes[-1] else OLD})
            assert not fsck(repo, full=True).broken
            filler.unlink()
            if outcomes[-1]:
                break
        assert outcomes[-1] and outcomes.count(False) > 5
        publish(repo, STACK, make_stack(9))
        check_stack(repo, STACK, {9})


def test_a_full_disk_tears_no_journal(tmp_path):
    with small_disk(tmp_path, 64 * BLOCK) as folder:
        repo = Repo(folder)
        entry = {"text": "x" * 1000}
        written = 0
        with pytest.raises(OSError, match=r"No space left|only part"):
            while written < 1000:
                repo.append_journal(entry)
                written += 1
        assert repo.read_journal() == [entry] * written


def fill_disk(filler, free_blocks):
    """Fill the disk up to `free_blocks` blocks of 4 kB."""
    with filler.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(BLOCK))
        except OSError:
            pass
        size = stream.tell() // BLOCK * BLOCK
        stream.truncate(max(size - free_blocks * BLOCK, 0))


def publish_limited(root, limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        publish(Repo(root), STACK, make_stack(NEW))
    except OSError as error:
        raise SystemExit(7 if error.errno == errno.EFBIG else 8) from None


def test_a_limit_on_file_sizes_costs_the_new_version_only(folder):
    repo = Repo(folder)
    old = publish(repo, STACK, make_stack(OLD))
    largest = max(record.bytes for record in old.members.values())
    before = list_files(folder)
    for limit in (0, 1, 500, 2880, largest // 2, largest - 1):
        child = FORK.Process(target=publish_limited, args=(folder, limit))
        child.start()
        child.join()
        assert child.exitcode == 7, limit
        assert list_files(folder) == before
        check_stack(repo, STACK, {OLD})
    child = FORK.Process(target=publish_limited, args=(folder, largest))
    child.start()
    child.join()
    assert child.exitcode == 0
    check_stack(repo, STACK, {NEW})
