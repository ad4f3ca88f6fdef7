"""Sky background: a sloping sky is recovered to a small part of its noise, with stars in it and at the edges too."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.errors import UnprocessableData
from lap_assets.science.background import evaluate_background, measure_background, sample_background
from lap_assets_tests.science.star_fields import observe, star_field


def slope(shape):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return 500.0 + 0.06 * x - 0.03 * y + 10.0 * (x / shape[1]) ** 2


@pytest.mark.parametrize("shape", [(512, 512), (250, 181), (384, 500)])
def test_sloping_sky_is_recovered_to_the_corners(shape):
    rng = np.random.default_rng(1)
    image = observe(rng, np.zeros(shape), slope(shape))
    background = measure_background(image, np.ones(shape, bool), 64)
    error = evaluate_background(background.mesh, shape) - slope(shape)
    # a cell of 64² pixels knows its mean to 23/64 = 0.36 electrons
    assert np.sqrt(np.mean(error**2)) < 0.6
    assert np.abs(error).max() < 3.0
    assert background.noise == pytest.approx(np.sqrt(slope(shape).mean() + 25.0), rel=0.03)


def test_stars_bias_the_sky_little_and_masked_ones_not_at_all():
    rng = np.random.default_rng(2)
    stars, *_ = star_field(rng, (512, 512), 120, 3.0, flux=(3e3, 5e5))
    image = observe(rng, stars, 500.0)
    raised = measure_background(image, np.ones(image.shape, bool), 128)
    masked = measure_background(image, stars < 0.5, 128)
    assert image.mean() - 500.0 > 10.0
    assert 0.0 < raised.level - 500.0 < 3.0
    assert abs(masked.level - 500.0) < 0.4


def test_cells_without_sky_are_filled_from_their_neighbours_and_none_at_all_is_unprocessable():
    image = np.full((256, 256), 300.0, np.float32)
    usable = np.ones(image.shape, bool)
    usable[64:128, 64:128] = False
    image[64:128, 64:128] = 9e9
    background = measure_background(image, usable, 64)
    assert np.allclose(evaluate_background(background.mesh, image.shape), 300.0, atol=1e-3)
    with pytest.raises(UnprocessableData):
        measure_background(image, np.zeros_like(usable), 64)


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 200), st.integers(20, 200), st.floats(-2, 2), st.floats(-2, 2))
def test_a_plane_is_reproduced_by_any_shape_and_mesh(ny, nx, a, b):
    """Cells of unequal size shift the centres by half a pixel at most."""
    y, x = np.mgrid[:ny, :nx]
    plane = (1000.0 + a * x + b * y).astype(np.float32)
    mesh = measure_background(plane, np.ones(plane.shape, bool), 32, filter_cells=1).mesh
    flat_x, flat_y = mesh.shape[1] == 1, mesh.shape[0] == 1
    allowed = 0.2 + (abs(a) * nx / 2 if flat_x else 0.0) + (abs(b) * ny / 2 if flat_y else 0.0)
    assert np.abs(evaluate_background(mesh, plane.shape) - plane).max() <= allowed + 0.6 * (abs(a) + abs(b))


def test_single_places_have_the_sky_of_the_whole_image():
    """Within 0.5 % of what the mesh rises and falls by, at pixels; NaN and far places give something finite."""
    rng = np.random.default_rng(11)
    mesh = 100 + rng.normal(0, 1, (9, 6)).astype(np.float32)
    shape = (1150, 770)
    whole = evaluate_background(mesh, shape)
    x, y = rng.integers(0, 770, 400), rng.integers(0, 1150, 400)
    assert np.abs(sample_background(mesh, shape, x, y) - whole[y, x]).max() < 0.03
    away = sample_background(mesh, shape, np.array([np.nan, -1e6, 769.0]), np.array([5.0, 5.0, 1e9]))
    assert np.isfinite(away).all() and np.abs(away - 100).max() < 10
    # continued linearly a little beyond the edges
    ramp = np.repeat(np.arange(8.0)[None], 8, axis=0)
    assert sample_background(ramp, (800, 800), np.array([-20.0]), np.array([400.0])) == pytest.approx(
        -20 / 100 - 0.495, abs=0.01
    )
    assert (sample_background(np.full((1, 1), 7.0), shape, x, y) == 7.0).all()
