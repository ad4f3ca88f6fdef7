"""Bytes that rot: cuts at every block, flipped bits, missing HDUs. Never a wrong picture, never a lost good version."""

import numpy as np
import pytest

from lap_assets.errors import IntegrityError
from lap_assets.store.fits_format import BLOCK
from lap_assets.store.repo import Repo
from lap_assets.store.verify import fsck
from lap_assets_tests.faults.actions import NEW, OLD
from lap_assets_tests.store.samples import STACK, check_stack, make_stack, publish


def make_noisy() -> dict:
    """Members of a stack of less than 200 kB with noise in it."""
    members = make_stack(NEW, shape=(100, 90))
    members["image.fits"].sci += np.random.default_rng(1).normal(size=(100, 90)).astype(np.float32)
    return members


@pytest.fixture
def product(folder):
    """A noisy stack and an older good version beside it: (repo, path of the image, its bytes)."""
    repo = Repo(folder)
    publish(repo, STACK, make_stack(OLD))
    publish(repo, STACK, make_noisy())
    path = repo.path(STACK, "image.fits")
    data = path.read_bytes()
    assert 30 * BLOCK < len(data) <= 200_000
    return repo, path, data


def refuses(repo) -> bool:
    with pytest.raises(IntegrityError) as caught:
        repo.read_image(STACK)
    message = str(caught.value)
    assert str(STACK) in message and "image.fits" in message and "lap run --select" in message
    return True


def test_a_file_cut_at_any_block_is_refused_and_seen_by_the_quick_check(product):
    repo, path, data = product
    for end in range(0, len(data), BLOCK):
        path.write_bytes(data[:end])
        assert refuses(repo)
        assert not repo.has_files(STACK)
    path.write_bytes(data + bytes(BLOCK))
    assert refuses(repo)
    path.write_bytes(data)
    repo.read_image(STACK, full=True)


def test_every_cut_is_quarantined_and_the_unit_made_again(product):
    repo, path, data = product
    for count, end in enumerate(range(0, len(data), BLOCK), start=1):
        path.write_bytes(data[:end])
        report = fsck(repo)
        assert list(report.broken) == [STACK] and "bytes on disk" in report.lines[0]
        assert repo.manifest(STACK) is None
        assert len(list(repo.layout.quarantine_dir(STACK).iterdir())) == count
        publish(repo, STACK, make_noisy())
        assert path.read_bytes() == data
    publish(repo, STACK, make_stack(OLD))  # the old good version is there all the while
    check_stack(repo, STACK, {OLD})


def test_a_flipped_bit_is_refused_and_found_by_the_full_check(product):
    repo, path, data = product
    rng = np.random.default_rng(2)
    for position in (*range(0, BLOCK, 97), *rng.choice(len(data), 300, replace=False)):
        bad = bytearray(data)
        bad[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(bad))
        assert refuses(repo)
    report = fsck(repo, full=True)
    assert list(report.broken) == [STACK] and "sha256" in report.lines[0]
    publish(repo, STACK, make_stack(OLD))
    check_stack(repo, STACK, {OLD})


@pytest.mark.parametrize("name", ["SCI", "MASK", "VAR", "NINPUT"])
def test_a_missing_hdu_is_refused_and_quarantined(product, name):
    repo, path, data = product
    start = data.index(f"EXTNAME = '{name:8}'".encode()) // BLOCK * BLOCK
    end = data.find(b"XTENSION", start + 80)
    path.write_bytes(data[:start] + (data[end:] if end > 0 else b""))
    assert refuses(repo)
    assert list(fsck(repo).broken) == [STACK]
    publish(repo, STACK, make_stack(OLD))
    check_stack(repo, STACK, {OLD})


def test_two_files_exchanged_are_not_mistaken_for_each_other(product):
    repo, _, data = product
    publish(repo, STACK, make_stack(6, shape=(100, 90)))
    other = repo.path(STACK, "image.fits")
    assert len(other.read_bytes()) == len(data)
    other.write_bytes(data)
    with pytest.raises(IntegrityError):
        repo.read_image(STACK, full=True)
    assert list(fsck(repo, full=True).broken) == [STACK]
