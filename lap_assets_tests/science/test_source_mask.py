"""Sources left out of object frames (LV-11): stars and their wings are found, sky, gradients and fringes stay."""

import numpy as np
import pytest

from lap_assets.science.source_mask import BIN_PX, bin_rows, find_sources, measure_smooth, spread_blocks

SKY, N = 800.0, 512


def field(seed=1, stars=40, fringe_e=0.0):
    """Sky with a gradient, fringes and stars; and the pixels that stars light by more than a tenth of the noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:N, :N]
    sky = SKY * (1.0 + 0.05 * x / N) + fringe_e * np.sin(x / 7.0) * np.cos(y / 15.0)
    light = np.zeros((N, N))
    for _ in range(stars):
        u, v, flux = *rng.uniform(0, N, 2), 10 ** rng.uniform(3.5, 5.0)
        light += flux / (2 * np.pi * 4.0) * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 8.0)
    return rng.poisson(sky + light).astype(np.float32), light > 0.1 * np.sqrt(SKY), sky


def test_sources_are_left_out_with_their_wings_and_most_of_the_sky_stays():
    image, lit, sky = field()
    binned = bin_rows(image)
    found = spread_blocks(find_sources(binned, 3.0, 12.0), 0, N, N)
    assert (lit & ~found).sum() / lit.sum() < 0.01
    assert found.mean() < 0.25
    free = image - sky
    assert abs(free[~found].mean()) < 0.1
    assert free.mean() > 4.0  # with the sources in it


def test_fringes_are_no_sources():
    image, _, _ = field(stars=0, fringe_e=60.0)
    assert find_sources(bin_rows(image), 3.0, 0.0).mean() < 0.01


def test_an_empty_field_is_nearly_all_sky_and_a_dead_frame_all_masked():
    image, _, _ = field(stars=0)
    assert find_sources(bin_rows(image), 3.0, 12.0).mean() < 0.1
    assert find_sources(np.full((40, 40), np.nan, np.float32), 3.0, 12.0).all()


def test_smooth_sky_is_that_between_the_sources_to_the_edges():
    image, _, sky = field(stars=30)
    binned = bin_rows(image)
    smooth = spread_blocks(measure_smooth(binned, ~find_sources(binned, 3.0, 12.0), 32), 0, N, N)
    assert np.abs(smooth - sky).max() < 0.01 * SKY and np.abs(smooth - sky).mean() < 0.002 * SKY


def test_blocks_are_means_of_what_is_finite():
    image = np.arange(9 * 10, dtype=np.float32).reshape(9, 10)
    image[0, 0] = np.nan
    binned = bin_rows(image)
    assert binned.shape == (2, 2) and binned[1, 1] == pytest.approx(image[4:8, 4:8].mean())
    assert binned[0, 0] == pytest.approx(np.nanmean(image[:4, :4]))
    image[:2, :4] = np.nan
    assert np.isfinite(bin_rows(image)[0, 0])  # half of them are there
    image[2, 0] = np.nan
    assert np.isnan(bin_rows(image)[0, 0])
    assert np.array_equal(spread_blocks(np.array([[1, 2], [3, 4]]), 3, 6, 10)[:, [0, 4, 9]],
                          [[1, 2, 2], *[[3, 4, 4]] * 5])  # fmt: skip
    assert BIN_PX == 4
