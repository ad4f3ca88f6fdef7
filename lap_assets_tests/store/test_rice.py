"""Rice coding: what is coded comes back to the bit, here and in astropy; damaged rows are refused."""

import io

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lap_assets.store.rice import count_spare, decode_rows, encode_rows


def compress(image):
    """Compressed bytes, where each row begins and how long it is, from a file that astropy wrote."""
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(image, compression_type="RICE_1")]).writeto(stream)
    content = stream.getvalue()
    with fits.open(io.BytesIO(content), disable_image_compression=True) as hdus:
        header, place = hdus[1].header, hdus[1].fileinfo()["datLoc"]
        named = {header[f"ZNAME{k}"]: header[f"ZVAL{k}"] for k in (1, 2)}
        ny, nx = header["NAXIS2"], header["ZNAXIS1"]
    data = np.frombuffer(content, np.uint8, offset=place)
    pairs = data[: 8 * ny].view(">i4").reshape(ny, 2).astype(np.int64)
    return data[8 * ny :], pairs[:, 1], pairs[:, 0], nx, named["BYTEPIX"], named["BLOCKSIZE"]


def frames():
    rng = np.random.default_rng(1)
    noise = rng.normal(1000, 4, (20, 333))
    spiky = noise + 30000.0 * (rng.random(noise.shape) < 0.01)
    return {
        "noise": noise.astype(np.int16),
        "flat": np.full((3, 64), -7, np.int16),
        "spikes": spiky.astype(np.int16),
        "anything": rng.integers(-(2**15), 2**15, (9, 100)).astype(np.int16),
        "long": rng.integers(-(2**31), 2**31, (5, 77)).astype(np.int32),
        "calm long": (noise * 1000).astype(np.int32),
        "steps": np.repeat(rng.integers(-(2**31), 2**31, (6, 5)), 40, axis=1).astype(np.int32),
        "bytes": rng.integers(0, 256, (7, 65)).astype(np.uint8),
        "calm bytes": rng.normal(100, 2, (7, 65)).astype(np.uint8),
        "one column": rng.integers(-100, 100, (6, 1)).astype(np.int16),
    }


@pytest.mark.parametrize("name", frames())
def test_what_was_compressed_comes_back(name):
    image = frames()[name]
    rows = decode_rows(*compress(image))
    assert rows.dtype == image.dtype and np.array_equal(rows, image)


@pytest.mark.parametrize("name", frames())
def test_rows_are_coded_as_compactly_as_by_others(name):
    image = frames()[name]
    data, sizes = encode_rows(image)
    assert np.array_equal(decode_rows(data, np.cumsum(sizes) - sizes, sizes, image.shape[1], image.itemsize, 32), image)
    assert data.size <= compress(image)[0].size + 2880


integers = st.sampled_from([np.uint8, np.int16, np.int32]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=2, max_side=70))
)


@given(integers, st.sampled_from([1, 3, 32, 64]))
@settings(deadline=None)
def test_any_integers_come_back(image, block):
    """Also with what lies behind a row being anything, as it does in a file."""
    data, sizes = encode_rows(image, block)
    longest = image.itemsize * (1 + image.shape[1]) + 2 * (1 + image.shape[1] // block) + 8
    assert sizes.sum() == data.size and sizes.max() <= longest
    behind = np.concatenate([data, np.full(count_spare(image.shape[1], block), 255, np.uint8)])
    starts = np.cumsum(sizes) - sizes
    assert np.array_equal(decode_rows(behind, starts, sizes, image.shape[1], image.itemsize, block), image)


def test_some_rows_can_be_had_alone():
    image = frames()["spikes"]
    data, starts, sizes, *rest = compress(image)
    assert np.array_equal(decode_rows(data, starts[7:9], sizes[7:9], *rest), image[7:9])


def test_rows_that_are_cut_short_or_lie_elsewhere_are_refused():
    data, starts, sizes, *rest = compress(frames()["anything"])
    with pytest.raises(ValueError, match="outside"):
        decode_rows(data, starts + data.size, sizes, *rest)
    with pytest.raises(ValueError, match="cut short"):
        decode_rows(data, starts, np.full_like(sizes, 9), *rest)
    # a code for a block, and then zeros without the one that ends them
    endless = np.array([0, 0, 0x20, *([0] * 300)], np.uint8)
    with pytest.raises(ValueError, match="cut short"):
        decode_rows(endless, np.array([0]), np.array([40]), 10**4, 2, 32)
