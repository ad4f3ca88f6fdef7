"""Batched stamps against GalSim's own drawing."""

import galsim
import numpy as np
import pytest

from lap_assets.sim.optics import shear_matrices
from lap_assets.sim.stamps import draw_stamps, tabulate_profile

FINE = galsim.GSParams(folding_threshold=1e-4, maxk_threshold=1e-5, kvalue_accuracy=1e-7, maximum_fft_size=16384)
TO_PIXELS = np.array([[2.5, 0.03], [-0.02, 2.5]])


def draw_with_galsim(size, dx, dy, psf_map, index, map_):
    shapes = {0.0: None, 1.0: galsim.Exponential(half_light_radius=1.0, gsparams=FINE)}
    shapes[2.5] = galsim.Sersic(2.5, half_light_radius=1.0, gsparams=FINE)
    light = galsim.Transform(galsim.Moffat(beta=3.3, fwhm=1.0, gsparams=FINE), jac=psf_map).withFlux(1.0)
    if shapes[index] is not None:
        light = galsim.Convolve([galsim.Transform(shapes[index], jac=map_).withFlux(1.0), light])
    image = galsim.ImageD(size + 1, size + 1)
    light.drawImage(image, scale=1.0, offset=(dx, dy))
    return image.array[:size, :size]


@pytest.mark.parametrize("index", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("fwhm", [0.85, 1.2])
def test_stamp_equals_galsim(index, fwhm):
    psf_map = TO_PIXELS @ shear_matrices(np.array([0.03]), np.array([-0.02]))[0] * fwhm
    map_ = TO_PIXELS @ shear_matrices(np.array([0.3]), np.array([0.2]))[0] * 0.5
    theirs = draw_with_galsim(64, 0.3, -0.2, psf_map, index, map_)
    profile = tabulate_profile("sersic", index) if index else None
    ours = draw_stamps(
        64, np.array([0.3]), np.array([-0.2]), np.ones(1), tabulate_profile("moffat", 3.3), psf_map[None], profile,
        map_[None],
    )[0]  # fmt: skip
    assert np.abs(ours - theirs).max() < 2e-4 * theirs.max()
    assert ours.sum() == pytest.approx(1.0, abs=1e-9)


def test_stamps_of_a_batch_do_not_depend_on_each_other():
    rng = np.random.default_rng(2)
    maps = np.repeat(TO_PIXELS[None], 5, axis=0)
    dx, dy, flux = rng.uniform(-0.5, 0.5, 5), rng.uniform(-0.5, 0.5, 5), rng.uniform(1.0, 9.0, 5)
    table = tabulate_profile("moffat", 3.1)
    together = draw_stamps(32, dx, dy, flux, table, maps)
    alone = draw_stamps(32, dx[3:4], dy[3:4], flux[3:4], table, maps[3:4])
    np.testing.assert_array_equal(together[3], alone[0])


def test_ellipticity_points_along_its_axis():
    """e1 > 0 lies along the first axis (columns), e2 > 0 along the diagonal."""
    maps = shear_matrices(np.array([0.3, 0.0]), np.array([0.0, 0.3])) * 3.0
    stamps = draw_stamps(64, np.zeros(2), np.zeros(2), np.ones(2), tabulate_profile("moffat", 3.3), maps)
    y, x = np.mgrid[-32:32, -32:32]
    core = np.hypot(x, y) < 12
    xx, yy, xy = ((stamps * core * w).sum(axis=(1, 2)) for w in (x * x, y * y, x * y))
    assert xx[0] > 1.5 * yy[0] and abs(xy[0]) < 1e-6 * xx[0]
    assert xy[1] > 0.2 * xx[1] and xx[1] == pytest.approx(yy[1], rel=1e-6)
