"""Sky background: a sloping sky is recovered to a small part of its noise, with stars in it and at the edges too."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.errors import UnprocessableData
from lap_assets.science.background import evaluate_background, measure_background
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
