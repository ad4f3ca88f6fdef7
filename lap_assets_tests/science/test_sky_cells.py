"""Clipped cells and splines: levels are right to 2 per cent of the noise, under sources too; splines are FITPACK's."""

import numpy as np
import pytest
from scipy.interpolate import RectBivariateSpline

from lap_assets.science.sky_cells import clip_cells, spline_matrix
from lap_assets_tests.science.star_fields import star_field

EDGES = np.arange(0, 513, 128)


def test_level_and_noise_of_a_plain_sky():
    rng = np.random.default_rng(1)
    sky = rng.normal(400.0, 20.0, (512, 512)).astype(np.float32)
    level, noise = clip_cells(sky, np.ones(sky.shape, bool), EDGES, EDGES, 0.2)
    assert np.abs(level - 400.0).max() < 0.03 * 20.0
    # clipping at 3 sigma takes 1.3 per cent of the width of a Gaussian
    assert noise == pytest.approx(0.987 * 20.0, rel=0.02)


def test_stars_hardly_raise_the_level():
    """LV-11: 80 stars per 512 x 512 raise the plain mean by 2 sigma, the clipped level by less than 0.1."""
    rng = np.random.default_rng(2)
    stars, *_ = star_field(rng, (512, 512), 80, 3.0, flux=(1e4, 1e6))
    sky = (stars + rng.normal(400.0, 20.0, stars.shape)).astype(np.float32)
    level, _ = clip_cells(sky, np.ones(sky.shape, bool), EDGES, EDGES, 0.2)
    assert sky.mean() - 400.0 > 2.0 * 20.0
    assert np.median(level) - 400.0 < 0.1 * 20.0


def test_cells_with_too_few_pixels_and_constant_cells():
    sky = np.full((256, 256), 7.5, np.float32)
    usable = np.ones(sky.shape, bool)
    usable[:128, :120] = False
    level, noise = clip_cells(sky, usable, EDGES[:3], EDGES[:3], 0.2)
    assert np.isnan(level[0, 0]) and np.isnan(noise[0, 0])
    assert level[1:, :] == pytest.approx(7.5) and noise[1, 1] == pytest.approx(0.0, abs=1e-4)
    assert np.isnan(clip_cells(sky, np.zeros_like(usable), EDGES[:3], EDGES[:3], 0.0)[0]).all()


@pytest.mark.parametrize("n", [2, 3, 4, 9])
def test_two_matrices_are_the_spline_of_fitpack(n):
    rng = np.random.default_rng(n)
    mesh, positions = rng.normal(size=(n, n)), np.linspace(-10.0, 110.0, n)
    matrix = spline_matrix(positions, np.arange(100))
    degree = min(3, n - 1)
    theirs = RectBivariateSpline(positions, positions, mesh, kx=degree, ky=degree, s=0)(np.arange(100), np.arange(100))
    assert matrix @ mesh @ matrix.T == pytest.approx(theirs, abs=1e-4)
