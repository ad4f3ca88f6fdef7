"""Bringing images to one PSF: kernels, widths and fluxes of stars, noise, masks (LV-16)."""

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import fftconvolve

from lap_assets.errors import NoWork
from lap_assets.model.image import NO_WEIGHT, Mask, MaskedImage
from lap_assets.science.moffat import MoffatPsf
from lap_assets.science.psf import measure_shape, shift_stamps
from lap_assets.science.psf_grid import PsfGrid, lay_nodes
from lap_assets.science.psf_matching import choose_target, homogenise, matching_kernel, measure_width
from lap_assets.science.warp_kernels import noise_correlation
from lap_assets_tests.science.test_psf_grid import cut, make_grid

SHAPE = (600, 900)


def shear(stamp, ellipticity):
    """A stamp stretched along x and squeezed along y, by area-true interpolation of an oversampled drawing."""
    half = len(stamp) // 2
    u = np.arange(-half, half + 1)
    x, y = np.meshgrid(u / np.sqrt(1 + ellipticity), u * np.sqrt(1 + ellipticity))
    alpha2 = (0.5 * 3.4) ** 2 / (2 ** (1 / 3.5) - 1)
    drawn = (1 + (x**2 + y**2) / alpha2) ** -3.5
    return drawn / drawn.sum()


def make_image(noise=0.0, seed=1):
    """Stars of 1e5 nJy through a PSF of 3.0 to 3.2 px, on a grid of places."""
    grid, rng = make_grid(slope=0.2), np.random.default_rng(seed)
    sci = rng.normal(0, noise, SHAPE) if noise else np.zeros(SHAPE)
    x, y = (z.ravel() for z in np.meshgrid(np.arange(60, 860, 100.0), np.arange(60, 560, 100.0)))
    for px, py, stamp in zip(x, y, grid.evaluate_many(x, y), strict=True):
        sci[int(py) - 14 : int(py) + 15, int(px) - 14 : int(px) + 15] += 1e5 * stamp
    image = MaskedImage(
        sci.astype(np.float32), np.zeros(SHAPE, np.int16), np.full(SHAPE, max(noise, 1.0) ** 2, np.float32),
        fits.Header([("NOISECOV", 1.0)]),
    )  # fmt: skip
    return image, grid, x.astype(int), y.astype(int)


def test_the_target_is_round_and_broader_than_all():
    grid = PsfGrid(*lay_nodes(SHAPE, 900.0), np.tile(shear(np.zeros((31, 31)), 0.2).astype(np.float32), (2, 2, 1, 1)))
    target = choose_target([make_grid(), grid, 2.0])
    shape = measure_shape(target)
    assert shape.ellipticity < 1e-6
    assert grid.fwhm_px * 1.03 < shape.fwhm_px < grid.fwhm_px * 1.08
    assert target.sum() == pytest.approx(1.0) and target.shape[0] % 2 == 1
    assert measure_shape(choose_target([2.5, 4.0], widen=1.0)).fwhm_px == pytest.approx(4.05, abs=0.1)
    for nothing in ([], [float("nan")]):
        with pytest.raises(NoWork, match="no PSF"):
            choose_target(nothing)


@settings(max_examples=20, deadline=None)
@given(fwhm=st.floats(2.6, 4.5), ratio=st.floats(1.05, 2.0))
def test_psf_through_its_kernel_is_the_target(fwhm, ratio):
    """To 1 % of the target's peak with a kernel of 2.5 FWHM, flux exactly."""
    radius = int(np.ceil(2.5 * fwhm * ratio))
    psf, target = MoffatPsf(fwhm).evaluate(), MoffatPsf(fwhm * ratio).evaluate()
    kernel = matching_kernel(psf, target, radius)
    assert kernel.sum() == pytest.approx(1.0, abs=1e-9)
    size = 61
    made = fftconvolve(np.pad(psf, (size - len(psf)) // 2 + 23), kernel, mode="same")[23:-23, 23:-23]
    wanted = np.pad(target, max(0, (size - len(target)) // 2))
    edge = (len(wanted) - len(made)) // 2
    wanted = wanted[edge : edge + len(made), edge : edge + len(made)] if edge > 0 else wanted
    assert np.abs(made - wanted).max() < 0.01 * target.max()


def test_kernel_straightens_a_drawn_out_psf():
    """0.7 px of seeing more and no ellipticity left; unmatched it is 0.18."""
    psf, target = shear(np.zeros((41, 41)), 0.2), MoffatPsf(4.1).evaluate()
    assert measure_shape(psf).ellipticity > 0.15
    made = fftconvolve(np.pad(psf, 12), matching_kernel(psf, target, 10), mode="same")
    assert measure_shape(made[12:-12, 12:-12]).ellipticity < 2e-3


def test_the_same_psf_needs_no_kernel():
    """Its peak stands out, and almost nothing around it: where the PSF has no power nothing is restored."""
    psf = MoffatPsf(3.0).evaluate()
    made = fftconvolve(psf, matching_kernel(psf, psf, 10), mode="same")
    assert made == pytest.approx(psf, abs=2e-3 * psf.max())


def test_quick_width_is_the_width():
    for fwhm in (2.5, 3.8, 6.0):
        stamp = MoffatPsf(fwhm).evaluate()
        assert measure_width(stamp) == pytest.approx(measure_shape(stamp).fwhm_px, rel=0.03)


def test_stars_of_a_varying_psf_become_alike():
    """Before, FWHM differ by 5 %; after, all are the target's to 0.5 % and fluxes stay to 1e-3."""
    image, grid, x, y = make_image()
    target = choose_target([grid, 3.6])
    out = homogenise(image, grid, target)
    widths, fluxes, before = [], [], []
    for px, py in zip(x, y, strict=True):
        before.append(measure_shape(image.sci[py - 14 : py + 15, px - 14 : px + 15].astype(float)).fwhm_px)
        widths.append(measure_shape(out.sci[py - 20 : py + 21, px - 20 : px + 21].astype(float)).fwhm_px)
        fluxes.append(out.sci[py - 25 : py + 26, px - 25 : px + 26].sum())
    assert np.ptp(before) / np.mean(before) > 0.045
    assert np.array(widths) == pytest.approx(measure_shape(target).fwhm_px, rel=5e-3)
    assert np.array(fluxes) == pytest.approx(1e5, rel=1e-3)
    assert out.sci.dtype == np.float32 and image.sci.max() > out.sci.max()


def test_seeing_of_0_7_arcsec_is_brought_to_that_of_3():
    """2.7 px to 12 px: FWHM to 1 %, flux to 3e-3."""
    grid = make_grid(slope=0.0, fwhm=2.7)
    image = MaskedImage(np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.int16), np.ones(SHAPE, np.float32))
    image.sci[300 - 14 : 300 + 15, 450 - 14 : 450 + 15] = 1e5 * grid.evaluate(450, 300)
    target = choose_target([grid, 11.5])
    out = homogenise(image, grid, target)
    box = out.sci[240:361, 390:511].astype(float)
    assert measure_shape(box[20:-20, 20:-20]).fwhm_px == pytest.approx(measure_shape(target).fwhm_px, rel=0.01)
    assert box.sum() == pytest.approx(1e5, rel=3e-3)
    assert np.isfinite(out.sci).all() and (out.var > 0).all()


@pytest.mark.parametrize("correlated", [False, True])
def test_variance_is_that_of_the_pixels(correlated):
    """χ = 1 ± 0.03 for white noise, and for the noise a warp has when its correlation is given."""
    image, grid, *_ = make_image()
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 1, SHAPE)
    rho = None
    if correlated:
        rho = noise_correlation()
        root = np.fft.irfft2(  # a filter whose autocorrelation is that of the resampled noise
            np.sqrt(np.maximum(np.fft.rfft2(np.fft.ifftshift(np.pad(np.outer(rho, rho), 26)[:-1, :-1])).real, 0)),
            (62, 62),
        )
        noise = fftconvolve(noise, np.fft.fftshift(root), mode="same")
        noise /= noise.std()
    image.sci[:] = 10 * noise
    image.var[:] = 100
    out = homogenise(image, grid, choose_target([grid, 3.6]), correlation=rho)
    inner = np.s_[50:-50, 50:-50]
    chi = np.std(out.sci[inner] / np.sqrt(out.var[inner]))
    assert chi == pytest.approx(1.0, abs=0.03)
    assert out.header["NOISECOV"] > 3.0  # neighbours have become alike


def test_bad_pixels_do_not_spread():
    """A column of 1e6, NaN, infinite variances: all finite, nothing beyond 1e-3 nJy, masked where little was left."""
    image, grid, *_ = make_image()
    image.sci[:] = 0
    image.sci[:, 450], image.mask[:, 450] = 1e6, int(Mask.BAD)
    image.sci[100:120, 100:120] = np.nan
    image.var[200:210, 300:310] = np.inf
    image.var[300, 300], image.var[300, 301] = -1.0, 0.0
    out = homogenise(image, grid, choose_target([grid, 3.6]))
    assert np.isfinite(out.sci).all() and np.isfinite(out.var).all()
    assert np.abs(out.sci).max() < 1e-3
    lost = (out.mask & int(Mask.EDGE)) != 0
    assert lost[105:115, 105:115].all() and lost[205, 305] and lost[300, 450]
    assert 0.001 < lost[20:-20, 20:-20].mean() < 0.02
    assert (out.mask[:, 450] & int(Mask.BAD)).all()
    assert (out.var[(out.mask & int(NO_WEIGHT)) == 0] > 0).all()


def test_an_image_without_data_stays_without():
    image, grid, *_ = make_image()
    image.mask[:] = int(Mask.NO_DATA)
    out = homogenise(image, grid, choose_target([grid]))
    assert not out.sci.any() and not out.var.any()
    assert out.header["NOISECOV"] == 1.0


def test_fluxes_of_shifted_stars_survive():
    """Sub-pixel places: a star at (0.3, −0.4) px from a pixel's middle keeps its centroid to 2 mpx."""
    image, grid, *_ = make_image()
    image.sci[:] = 0
    stamp = shift_stamps(np.pad(grid.evaluate(450, 300), 6)[None], np.array([0.3]), np.array([-0.4]))[0]
    image.sci[300 - 20 : 300 + 21, 450 - 20 : 450 + 21] = 1e5 * stamp
    out = homogenise(image, grid, choose_target([grid, 3.8]))
    v, u = np.mgrid[-20:21, -20:21]
    box = out.sci[280:321, 430:471].astype(float)
    window = box * np.exp(-0.5 * (u**2 + v**2) / 9.0)
    before = stamp * np.exp(-0.5 * (u**2 + v**2) / 9.0)
    for axis in (u, v):
        # the window pulls both towards the pixel's middle, the broader star more
        pull = np.sum(before * axis) / before.sum()
        assert np.sum(window * axis) / window.sum() == pytest.approx(pull, abs=0.06)
    assert box.sum() == pytest.approx(1e5 * stamp.sum(), rel=2e-3)
    assert cut(box, 29).sum() == pytest.approx(1.0)
