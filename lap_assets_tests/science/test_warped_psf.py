"""The PSF of a warp against stars drawn on the chip and resampled with it (LV-16)."""

import numpy as np
import pytest

from lap_assets.science import warp
from lap_assets.science.moffat import MoffatPsf, stamp_size
from lap_assets.science.pixel_map import map_pixels
from lap_assets.science.psf import PsfModel, measure_shape, shift_stamps
from lap_assets.science.psf_grid import lay_nodes
from lap_assets.science.star_shapes import measure_moments
from lap_assets.science.warp_kernels import KERNELS
from lap_assets.science.warped_psf import ChipPsf, warp_psf
from lap_assets_tests.science.warp_fields import chip_wcs, skycell_wcs

N, STAMP, FLUX = 400, 25, 1e5


def make_model(fwhm=3.2, slope=0.4, drawn_out=0.1):
    """A PSF of `fwhm` px that widens by `slope` over half the chip and is drawn out along x, on stamps of 25 px."""
    half = STAMP // 2
    u = np.arange(-half, half + 1)
    x, y = np.meshgrid(u / np.sqrt(1 + drawn_out), u * np.sqrt(1 + drawn_out))

    def profile(width):
        alpha2 = (0.5 * width) ** 2 / (2 ** (1 / 3.5) - 1)
        return 2.5 / np.pi / alpha2 * (1 + (x**2 + y**2) / alpha2) ** -3.5

    basis = np.stack([profile(fwhm), 0.5 * (profile(fwhm + slope) - profile(fwhm - slope)), np.zeros_like(x)])
    return PsfModel(basis.astype(np.float32), 1, (0.5 * (N - 1), 0.5 * (N - 1), N / 2, N / 2), 50, 0.0)


def draw_chip(model, x, y):
    """Stars on a chip without noise, through the model with its wings continued."""
    sci = np.zeros((N, N))
    wide = stamp_size(3.2) // 2
    for px, py, stamp in zip(x, y, model.evaluate_many(x, y), strict=True):
        full = MoffatPsf(3.2).evaluate()
        edge = (len(full) - STAMP) // 2
        full *= stamp[0].mean() / full[edge].mean() if edge else 1.0
        full[edge : edge + STAMP, edge : edge + STAMP] = stamp
        ix, iy = round(px), round(py)
        drawn = shift_stamps(full[None], np.array([px - ix]), np.array([py - iy]))[0]
        sci[iy - wide : iy + wide + 1, ix - wide : ix + wide + 1] += FLUX * drawn / full.sum()
    return sci.astype(np.float32)


def make_pair(kernel="lanczos3", **wcs_keys):
    """The PSF grid and the warp of a chip with 25 stars, and where these lie."""
    wcs, target = chip_wcs(N, **wcs_keys), skycell_wcs(N)
    rng = np.random.default_rng(5)
    x, y = (z.ravel() + rng.uniform(-0.5, 0.5, 25) for z in np.meshgrid(*2 * [np.linspace(60, N - 60, 5)]))
    model = make_model()
    sci = draw_chip(model, x, y)
    pixel_map = map_pixels(wcs, sci.shape, target, (N, N))
    out = warp.make_empty_warp((N, N))
    warp.warp_chip(out, sci, np.zeros(sci.shape, np.int16), np.ones_like(sci), pixel_map, kernel=kernel)
    nodes = lay_nodes((N, N), 100.0)
    grid = warp_psf([ChipPsf(pixel_map, sci.shape, model, MoffatPsf(3.2))], *nodes, kernel, 100.0)
    tx, ty = target.all_world2pix(*wcs.all_pix2world(x, y, 0), 0)
    seen = (tx > 30) & (ty > 30) & (tx < N - 30) & (ty < N - 30)
    return grid, out, tx[seen], ty[seen]


@pytest.mark.parametrize(
    ("kernel", "scatter", "keys"),
    [
        ("lanczos3", 0.01, {"angle_deg": 3.0}),
        ("lanczos3", 0.01, {"angle_deg": 37.0, "scale": 0.36}),
        ("spline", 0.01, {}),
        ("bilinear", 0.05, {}),
    ],
)
def test_the_psf_is_that_of_the_stars_on_the_warp(kernel, scatter, keys):
    """Sizes to 0.3 % of FWHM, ellipticities to 2e-3, PSF-fitted fluxes to 0.3 % in the mean of the stars.

    Single stars scatter about it: what a kernel does to them depends on their phase, with bilinear by some per cent.
    """
    grid, out, x, y = make_pair(kernel, **keys)
    half = grid.stamp_px // 2
    rows = []
    for px, py in zip(x, y, strict=True):
        ix, iy = round(float(px)), round(float(py))
        seen = out.sci[iy - half : iy + half + 1, ix - half : ix + half + 1].astype(float)
        told = shift_stamps(grid.evaluate(px, py)[None], np.array([px - ix]), np.array([py - iy]))[0]
        star, psf = measure_moments(np.stack([seen, told]))
        flux = np.sum(seen * told) / np.sum(told**2) / FLUX
        rows.append((np.sqrt(star[2] / psf[2]), flux, star[3] - psf[3], star[4] - psf[4]))
    sizes, fluxes, e1, e2 = np.array(rows).T
    assert len(x) > 12
    assert sizes == pytest.approx(1.0, abs=scatter) and fluxes == pytest.approx(1.0, abs=scatter)
    assert (np.mean(sizes), np.mean(fluxes)) == pytest.approx((1.0, 1.0), abs=3e-3)
    assert np.hypot(e1.mean(), e2.mean()) < 2e-3


def test_kernels_broaden_by_what_they_are():
    """Nearest and bilinear by 1/12 and 1/6 px² and, as the core tells, somewhat more; the sharp ones hardly."""
    widths = {kernel: make_pair(kernel, sip=0.0)[0].fwhm_px for kernel in KERNELS}
    sigma2 = {name: (width / 2.3548) ** 2 for name, width in widths.items()}
    assert 1 / 12 < sigma2["nearest"] - sigma2["lanczos3"] < 2 / 12
    assert 1 / 6 < sigma2["bilinear"] - sigma2["lanczos3"] < 2 / 6
    assert 0 < sigma2["spline"] - sigma2["lanczos3"] < 0.05


def test_nodes_beyond_a_chip_take_the_nearest_place_on_it_and_far_ones_nothing():
    wcs, target = chip_wcs(N, angle_deg=0.0, sip=0.0), skycell_wcs(1000)
    pixel_map = map_pixels(wcs, (N, N), target, (1000, 1000))
    x, y = lay_nodes((1000, 1000), 111.0)
    grid = warp_psf([ChipPsf(pixel_map, (N, N), make_model(), MoffatPsf(3.2))], x, y, "lanczos3", 150.0)
    assert not grid.known[0].any() and not grid.known[:, 0].any()
    assert grid.known[4:6, 4:6].all() and grid.known[2, 4]
    assert grid.stamps[grid.known].sum(axis=(1, 2)) == pytest.approx(1.0, abs=1e-5)
    inner = grid.evaluate(500, 320)
    assert measure_shape(grid.evaluate(500, 222)).fwhm_px == pytest.approx(measure_shape(inner).fwhm_px, rel=0.02)


def test_each_node_is_that_of_its_own_chip():
    """Two chips side by side, of 2.8 and 3.6 px."""
    target, chips = skycell_wcs(900), []
    for dx, fwhm in ((200.0, 2.8), (-200.0, 3.6)):
        wcs = chip_wcs(N, angle_deg=0.0, sip=0.0, dx=dx)
        pixel_map = map_pixels(wcs, (N, N), target, (900, 900))
        chips.append(ChipPsf(pixel_map, (N, N), make_model(fwhm, 0.0), MoffatPsf(fwhm)))
    grid = warp_psf(chips, *lay_nodes((900, 900), 100.0), "lanczos3", 100.0)
    widths = [measure_shape(grid.evaluate(x, 450.0)).fwhm_px for x in (250.0, 650.0)]
    assert abs(widths[0] - widths[1]) > 0.6
    assert sorted(widths) == pytest.approx([2.85, 3.65], abs=0.2)
