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
    again, block = np.full((2, ny, nx), np.nan, np.float32), np.empty((2, grid.side, grid.side), np.float32)
    for row, column in np.ndindex(grid.n_rows, grid.n_columns):
        grid.cut((image, -image), row, column, block)
        grid.paste(block, again, row, column)
    assert np.array_equal(again, [image, -image])
    cells = grid.join(2)
    assert [cells.bounds(row)[0] for row in range(cells.n_rows)] == [
        grid.bounds(row)[0] for row in range(0, grid.n_rows, 2)
    ]
    assert (cells.bounds(cells.n_rows - 1)[1], cells.columns(cells.n_columns - 1)[1]) == (ny, nx)


@pytest.mark.parametrize(("shape", "size"), [((300, 410), 13), ((97, 205), 5), ((640, 350), 8)])
def test_convolution_on_blocks_is_that_of_the_whole(shape, size):
    """Odd and even kernels, to rounding of float32; zero beyond the image."""
    rng = np.random.default_rng(1)
    image, kernel = rng.normal(size=shape).astype(np.float32), rng.normal(size=(size, size))
    grid = lay_blocks(shape, size, 120)
    transfer = transfer_functions(kernel[None], grid.side)
    out = np.empty_like(image)
    block = np.empty((1, grid.side, grid.side), np.float32)
    for row, column in np.ndindex(grid.n_rows, grid.n_columns):
        grid.cut((image,), row, column, block)
        grid.paste(fft.irfft2(fft.rfft2(block) * transfer, (grid.side,) * 2), (out,), row, column)
    centre = size // 2
    whole = fftconvolve(image, kernel)[centre : centre + shape[0], centre : centre + shape[1]]
    assert np.abs(out - whole).max() < 1e-4
