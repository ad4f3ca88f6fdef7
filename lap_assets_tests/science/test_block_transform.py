"""Blocks of an image: they cover it once, and convolve as the whole does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft
from scipy.signal import fftconvolve

from lap_assets.science.block_transform import lay_blocks, transfer_functions


@settings(max_examples=25, deadline=None)
@given(ny=st.integers(20, 700), nx=st.integers(20, 700), halo=st.integers(1, 20))
def test_inner_parts_cover_every_pixel_once(ny, nx, halo):
    image = np.arange(ny * nx, dtype=np.float32).reshape(ny, nx)
    grid = lay_blocks((ny, nx), halo, 160)
    again = np.full_like(image, np.nan)
    for row in range(grid.n_rows):
        first, last = grid.bounds(row)
        grid.paste(grid.cut(image, row), row, again[first:last])
    assert np.array_equal(image, again)


@pytest.mark.parametrize(("shape", "size"), [((300, 410), 13), ((97, 205), 5), ((640, 350), 8)])
def test_convolution_on_blocks_is_that_of_the_whole(shape, size):
    """Odd and even kernels, to rounding of float32; zero beyond the image."""
    rng = np.random.default_rng(1)
    image, kernel = rng.normal(size=shape).astype(np.float32), rng.normal(size=(size, size))
    grid = lay_blocks(shape, size, 120)
    transfer = transfer_functions(kernel[None], grid.side)
    out = np.empty_like(image)
    for row in range(grid.n_rows):
        first, last = grid.bounds(row)
        grid.paste(fft.irfft2(fft.rfft2(grid.cut(image, row)) * transfer, (grid.side,) * 2), row, out[first:last])
    centre = size // 2
    whole = fftconvolve(image, kernel)[centre : centre + shape[0], centre : centre + shape[1]]
    assert np.abs(out - whole).max() < 1e-4
