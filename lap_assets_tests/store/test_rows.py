"""Rows of published images: those of the whole image, in any order, and what is damaged is noticed."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.errors import Conflict, IntegrityError, NotFound
from lap_assets.model.ids import Pin
from lap_assets.store.fits_format import BLOCK
from lap_assets.store.repo import Repo
from lap_assets_tests.store.samples import FINAL, STACK, WARP, make_image, make_stack, publish

SHAPE = (37, 11)  # odd, so that rows of two bytes begin within a word of the checksum
PLANES = ("SCI", "MASK", "VAR")


def make_noisy():
    image, rng = make_image(3.0, SHAPE), np.random.default_rng(3)
    image.sci[:] = rng.normal(size=SHAPE)
    image.mask[:] = rng.integers(-(2**15), 2**15, SHAPE)
    image.var[:] = rng.uniform(1, 2, SHAPE)
    return image


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    repo = Repo(tmp_path_factory.mktemp("rows"))
    publish(repo, WARP, {"image.fits": make_noisy()})
    return repo


def test_rows_are_those_of_the_image(repo):
    whole = make_noisy()
    with repo.open_rows(repo.pin(WARP), "image.fits", PLANES) as rows:
        assert rows.shape == SHAPE and rows.header["VALUE"] == 3.0 and rows.header["NAXIS1"] == 11
        for got, want in zip(rows.read(5, 21), (whole.sci, whole.mask, whole.var), strict=True):
            assert got.dtype == want.dtype and got.dtype.isnative
            np.testing.assert_array_equal(got, want[5:21])


def test_rows_are_read_into_arrays_that_are_there(repo):
    whole, band = make_noisy(), [np.zeros((20, 11), dtype) for dtype in (np.float32, np.int16)]
    with repo.open_rows(WARP, "image.fits", ("SCI", "MASK")) as rows:
        got = rows.read(7, 12, [one[4:9] for one in band])
        rows.read(0, 37)  # and count once in the sum
        assert all(np.shares_memory(one, into) for one, into in zip(got, band, strict=True))
        for one, want in zip(band, (whole.sci, whole.mask), strict=True):
            assert np.array_equal(one[4:9], want[7:12]) and not one[:4].any() and not one[9:].any()
        for wrong in (band[:1], [band[1], band[0]], [one[:4] for one in band], [one[:10:2] for one in band]):
            with pytest.raises(ValueError, match=r"rows of|shorter"):
                rows.read(0, 5, wrong)


@given(st.lists(st.tuples(st.integers(0, 36), st.integers(1, 37)), max_size=12))
@settings(deadline=None, max_examples=60)
def test_any_stretches_in_any_order_pass_the_check(repo, stretches):
    """Halos are read twice and the sum still counts each row once (LAP-29)."""
    whole = make_noisy()
    with repo.open_rows(WARP, "image.fits", ("MASK", "SCI")) as rows:
        for first, count in [*stretches, (0, 37)]:
            last = min(first + count, SHAPE[0])
            mask, sci = rows.read(first, last)
            assert np.array_equal(mask, whole.mask[first:last]) and np.array_equal(sci, whole.sci[first:last])


def damage(repo, plane, byte):
    """Flip a bit of a plane's pixels."""
    path = repo.path(WARP, "image.fits")
    data = bytearray(path.read_bytes())
    start = data.index(f"EXTNAME = '{plane:8}'".encode()) // BLOCK * BLOCK + BLOCK
    data[start + byte] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("plane", PLANES)
def test_a_flipped_bit_is_noticed_when_all_rows_were_read(tmp_path, plane):
    repo = Repo(tmp_path)
    publish(repo, WARP, {"image.fits": make_noisy()})
    damage(repo, plane, 201)
    with (
        pytest.raises(IntegrityError, match=rf"warps.*image.fits: HDU {plane}: the data differ .*lap run --select"),
        repo.open_rows(WARP, "image.fits", PLANES) as rows,
    ):
        for first in range(0, 37, 5):
            rows.read(first, min(first + 6, 37))
    # nothing is known of a plane that was read in part, and an error on the way is not hidden by this one
    with repo.open_rows(WARP, "image.fits", PLANES) as rows:
        rows.read(0, 36)
    with pytest.raises(ZeroDivisionError), repo.open_rows(WARP, "image.fits", PLANES) as rows:
        rows.read(0, 37)
        raise ZeroDivisionError


def test_a_file_cut_while_it_is_read_is_named(tmp_path):
    repo = Repo(tmp_path)
    publish(repo, WARP, {"image.fits": make_noisy()})
    with repo.open_rows(WARP, "image.fits", ("VAR",)) as rows:
        os.truncate(repo.path(WARP, "image.fits"), 4 * BLOCK)
        with pytest.raises(IntegrityError, match=r"image.fits: the file ends within HDU VAR"):
            rows.read(0, 37)


def test_what_cannot_be_read_by_rows_is_refused_by_name(tmp_path):
    repo = Repo(tmp_path)
    publish(repo, WARP, {"image.fits": make_noisy()})
    publish(repo, FINAL, make_stack(3))
    with pytest.raises(NotFound, match="missing"):
        repo.open_rows(STACK, "image.fits", PLANES)
    with pytest.raises(IntegrityError, match="no HDU NINPUT"):
        repo.open_rows(WARP, "image.fits", ("SCI", "NINPUT"))
    with pytest.raises(IntegrityError, match="HDU SCI is compressed"):
        repo.open_rows(FINAL, "image.fits", PLANES)
    with pytest.raises(ValueError, match="rows 30:38"), repo.open_rows(WARP, "image.fits", PLANES) as rows:
        rows.read(30, 38)


def test_a_pinned_version_is_read_while_it_is_replaced(tmp_path):
    repo = Repo(tmp_path)
    publish(repo, WARP, {"image.fits": make_noisy()})
    old = repo.pin(WARP)
    with repo.open_rows(old, "image.fits", ("SCI",)) as rows:
        publish(repo, WARP, {"image.fits": make_image(5.0, SHAPE)})
        assert np.array_equal(rows.read(0, 37)[0], make_noisy().sci)
    with repo.open_rows(old, "image.fits", ("SCI",)) as rows:
        assert np.array_equal(rows.read(0, 37)[0], make_noisy().sci)
    with pytest.raises(Conflict, match="replaced"):
        repo.open_rows(Pin(WARP, "0" * 64), "image.fits", ("SCI",))


def test_forty_eight_images_cost_the_memory_of_their_bands(tmp_path):
    """What is held is what was read last, not the images (LAP-29)."""
    import tracemalloc

    repo = Repo(tmp_path)
    publish(repo, WARP, {"image.fits": make_image(1.0, (2000, 500))})
    tracemalloc.start()
    opened = [repo.open_rows(WARP, "image.fits", PLANES) for _ in range(48)]
    for first in range(0, 64, 16):
        bands = [rows.read(first, first + 16) for rows in opened]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    for rows in opened:
        rows.close()
    assert len(bands) == 48 and peak < 3 * 48 * 16 * 500 * 10 < 48 * 2000 * 500 * 10 / 20
