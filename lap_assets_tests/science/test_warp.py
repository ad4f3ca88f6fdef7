"""Resampling: positions, fluxes, noise and masks against formulas, drawn stars and the reproject package."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, Sip
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.errors import UnprocessableData
from lap_assets.model.image import NO_WEIGHT, Mask
from lap_assets.science import warp

SCALE = 0.4


def skycell_wcs(n=240, scale=SCALE, ra=150.0, dec=2.0):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [n / 2 + 0.5, n / 2 + 0.5]
    wcs.wcs.cd = np.diag([-scale, scale]) / 3600
    wcs.wcs.set()
    return wcs


def chip_wcs(n=240, angle_deg=3.0, scale=SCALE, dx=0.3, dy=-0.2, sip=1.0, ra=150.0, dec=2.0):
    """A turned chip with quadratic and cubic distortion (`sip` times 1e-5, 1e-8)."""
    wcs = skycell_wcs(n, scale, ra, dec)
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    wcs.wcs.cd = np.array([[-c, s], [s, c]]) * scale / 3600
    wcs.wcs.crpix = [n / 2 + 0.5 + dx, n / 2 + 0.5 + dy]
    if sip:
        a, b = np.zeros((4, 4)), np.zeros((4, 4))
        a[2, 0], a[1, 1], a[3, 0], a[1, 2] = 1e-5 * sip, -6e-6 * sip, 1e-8 * sip, 1e-8 * sip
        b[0, 2], b[1, 1], b[0, 3], b[2, 1] = -8e-6 * sip, 5e-6 * sip, 1e-8 * sip, 1e-8 * sip
        wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


def draw_stars(n, x, y, flux, sigma=1.6):
    v, u = np.mgrid[0:n, 0:n]
    image = np.zeros((n, n))
    for one in zip(x, y, flux, strict=True):
        r2 = (u - one[0]) ** 2 + (v - one[1]) ** 2
        image += one[2] * np.exp(-0.5 * r2 / sigma**2) / (2 * np.pi * sigma**2)
    return image


def resample(sci, wcs, mask=None, var=None, n_out=240, **keys):
    mask = np.zeros(sci.shape, np.int16) if mask is None else mask
    var = np.ones(sci.shape, np.float32) if var is None else var
    target = skycell_wcs(n_out)
    out = warp.make_empty_warp((n_out, n_out))
    pixel_map = warp.map_pixels(wcs, sci.shape, target, out.shape)
    warp.warp_chip(out, sci, mask, var, pixel_map, **keys)
    return out, pixel_map


def measure(image, x, y, radius=9):
    """Flux in a box and centroid under a Gaussian window (iterated)."""
    ix, iy = round(float(x)), round(float(y))
    v, u = np.mgrid[iy - radius : iy + radius + 1, ix - radius : ix + radius + 1]
    cut = image[iy - radius : iy + radius + 1, ix - radius : ix + radius + 1].astype(float)
    cx, cy = float(x), float(y)
    for _ in range(12):
        window = np.exp(-0.5 * ((u - cx) ** 2 + (v - cy) ** 2) / 2.0**2) * cut
        cx += 2.0 * np.sum(window * (u - cx)) / window.sum()
        cy += 2.0 * np.sum(window * (v - cy)) / window.sum()
    return cut.sum(), cx, cy


def star_field():
    rng = np.random.default_rng(7)
    gx, gy = np.meshgrid(np.linspace(40, 200, 6), np.linspace(40, 200, 6))
    return gx.ravel() + rng.uniform(-1, 1, 36), gy.ravel() + rng.uniform(-1, 1, 36), np.full(36, 1e5)


def star_errors(**wcs_keys):
    """Relative flux errors and centroid errors (px) of stars of FWHM 3.8 px after resampling."""
    x, y, flux = star_field()
    wcs = chip_wcs(**wcs_keys)
    out, _ = resample(draw_stars(240, x, y, flux).astype(np.float32), wcs)
    tx, ty = skycell_wcs().all_world2pix(*wcs.all_pix2world(x, y, 0), 0)
    got = np.array([measure(out.sci, *one) for one in zip(tx, ty, strict=True)])
    return got[:, 0] / flux - 1, np.hypot(got[:, 1] - tx, got[:, 2] - ty)


@pytest.mark.parametrize("angle", [0.0, 0.03, 3.0, 30.0, 90.0])
def test_star_fluxes_and_places_survive_rotation_and_distortion(angle):
    """Flux to 3e-4 through the local Jacobian and centroids to 2 mpx; LV-16."""
    flux_error, shift = star_errors(angle_deg=angle, sip=3.0)
    assert np.abs(flux_error).max() < 3e-4
    assert shift.max() < 2e-3


@pytest.mark.parametrize("scale", [0.36, 0.44])
def test_star_fluxes_survive_another_pixel_scale(scale):
    flux_error, shift = star_errors(angle_deg=0.0, sip=0.0, scale=scale)
    assert np.std(flux_error) < 1e-3
    assert abs(np.mean(flux_error)) < 1e-4
    assert shift.max() < 5e-3


def test_bare_lanczos_moves_stars(monkeypatch):
    """The negative of the moment correction: with plain normalised Lanczos-3 weights the same stars move by over 6
    mpx.
    """
    phase = np.arange(warp.PHASES + 1)[:, None] / warp.PHASES
    offset = phase - np.arange(-2, 4)[None, :]
    kernel = np.sinc(offset) * np.sinc(offset / 3)
    table = np.zeros((warp.PHASES + 1, 8), np.float32)
    table[:, :6] = kernel / kernel.sum(axis=1, keepdims=True)
    ours = warp.lanczos_table()[0]
    assert np.abs(ours - table).max() < 0.01  # it is Lanczos-3 still
    monkeypatch.setattr(warp, "lanczos_table", lambda: (table, table**2))
    _, shift = star_errors(angle_deg=3.0, sip=0.0)
    assert shift.max() > 6e-3


def test_without_the_jacobian_fluxes_would_be_off():
    """The same field, divided by the area ratio again: surface brightness is kept and fluxes miss by the ratio."""
    x, y, flux = star_field()
    wcs = chip_wcs(scale=0.36, sip=3.0)
    out, pixel_map = resample(draw_stars(240, x, y, flux).astype(np.float32), wcs)
    tx, ty = skycell_wcs().all_world2pix(*wcs.all_pix2world(x, y, 0), 0)
    bare = np.array([measure(out.sci / pixel_map.jacobian.mean(), *one)[0] for one in zip(tx, ty, strict=True)])
    assert np.abs(bare / flux - 1).min() > 0.15
    assert np.ptp(pixel_map.jacobian) > 0.005  # and a constant would not do either


def test_agrees_with_reproject_and_the_truth():
    """Against the analytic stars at their true places and reproject_interp (cubic spline) times the area ratio."""
    reproject = pytest.importorskip("reproject")
    x, y, flux = star_field()
    wcs, target = chip_wcs(), skycell_wcs()
    image = draw_stars(240, x, y, flux).astype(np.float32)
    out, pixel_map = resample(image, wcs)
    theirs, _ = reproject.reproject_interp((image, wcs), target, shape_out=out.shape, order="bicubic")
    good = (out.mask & int(NO_WEIGHT)) == 0
    v, u = np.nonzero(good)
    step = pixel_map.step_px
    area = warp._bilinear(pixel_map.jacobian, (u - pixel_map.x0) / step, (v - pixel_map.y0) / step)
    px, py = wcs.all_world2pix(*target.all_pix2world(u.astype(float), v.astype(float), 0), 0)
    truth = np.zeros(len(px))
    for one in zip(x, y, flux, strict=True):
        r2 = (px - one[0]) ** 2 + (py - one[1]) ** 2
        truth += one[2] * np.exp(-0.5 * r2 / 1.6**2) / (2 * np.pi * 1.6**2) * area
    error = out.sci[good] - truth
    assert good.mean() > 0.8
    assert np.abs(out.sci[good] - theirs[good] * area).max() < 0.02 * image.max()
    assert np.abs(error).max() < 0.01 * image.max()
    assert error.std() < 5e-4 * image.max()


def test_pixel_map_is_within_its_stated_error_and_refined_where_needed():
    target = skycell_wcs(600)
    wcs = chip_wcs(600, sip=3.0)
    coarse = warp.map_pixels(wcs, (600, 600), target, (600, 600), step_px=128, tolerance_px=5e-4)
    assert coarse.step_px < 128
    assert coarse.error_px <= 5e-4
    # at random places, not only where it was checked
    rng = np.random.default_rng(1)
    px, py = rng.uniform(60, 540, (2, 500))
    true_x, true_y = wcs.all_world2pix(*target.all_pix2world(px, py, 0), 0)
    gx, gy = (px - coarse.x0) / coarse.step_px, (py - coarse.y0) / coarse.step_px
    error = np.hypot(warp._bilinear(coarse.x, gx, gy) - true_x, warp._bilinear(coarse.y, gx, gy) - true_y)
    assert error.max() < 6e-4
    # without the refinement it would not be
    loose = warp.map_pixels(wcs, (600, 600), target, (600, 600), step_px=128, tolerance_px=1.0)
    assert loose.error_px > 2e-3


def test_a_wcs_that_is_not_smooth_is_refused():
    wcs = chip_wcs(240, sip=25.0)
    with pytest.raises(UnprocessableData, match="pixel map wrong by"):
        warp.map_pixels(wcs, (240, 240), skycell_wcs(), (240, 240))


def test_chip_elsewhere_gives_no_map():
    assert warp.map_pixels(chip_wcs(ra=151.0), (240, 240), skycell_wcs(), (240, 240)) is None
    assert warp.map_pixels(chip_wcs(ra=330.0, dec=-2.0), (240, 240), skycell_wcs(), (240, 240)) is None  # antipode


def test_variance_plane_and_covariance_factor_are_the_noise():
    """Pixel χ is 1, and the scatter of 12×12 sums is VAR times NOISECOV; without the factor it would be 1.3 times
    off.
    """
    rng = np.random.default_rng(3)
    n = 900
    sci = rng.normal(0, 10, (n, n)).astype(np.float32)
    out, pixel_map = resample(sci, chip_wcs(n), var=np.full((n, n), 100, np.float32), n_out=n)
    factor = warp.covariance_factor(pixel_map)
    inner = np.s_[60:840, 60:840]
    assert (out.mask[inner] == 0).all()
    assert np.std(out.sci[inner] / np.sqrt(out.var[inner])) == pytest.approx(1.0, abs=0.006)
    sums = out.sci[inner].astype(float).reshape(65, 12, 65, 12).sum(axis=(1, 3))
    variances = out.var[inner].astype(float).reshape(65, 12, 65, 12).sum(axis=(1, 3))
    ratio = np.mean(sums**2 / variances)  # 4225 sums: ± 2.2 %
    # noise carried over the border of a 12 px box lowers the sum's variance by a few per cent of the factor
    assert ratio == pytest.approx(factor, rel=0.08)
    assert factor > 1.25


def test_correlation_table_matches_noise():
    rng = np.random.default_rng(4)
    sci = rng.normal(0, 1, (900, 900)).astype(np.float32)
    out, _ = resample(sci, chip_wcs(900), n_out=900)
    inner = out.sci[60:840, 60:840]
    rho = warp.noise_correlation()
    assert rho[5] == 1.0
    for lag in (1, 2, 3):
        measured = np.mean(inner[:, lag:] * inner[:, :-lag]) / np.mean(inner**2)
        assert measured == pytest.approx(rho[5 + lag], abs=0.01)


def test_bad_pixels_do_not_ring():
    """Bad pixels of 1e6 on a flat sky of 100 leave every unmasked pixel at 100; without the mask they do not."""
    rng = np.random.default_rng(5)
    sci = np.full((240, 240), 100, np.float32)
    mask = np.zeros(sci.shape, np.int16)
    hit = rng.random(sci.shape) < 0.003
    hit[:, 77] = True
    sci[hit] = 1e6
    mask[hit] = int(Mask.COSMIC_RAY)
    sci[30, 30] = np.nan
    wcs = chip_wcs(sip=0.0)
    out, _ = resample(sci, wcs, mask)
    good = (out.mask & int(NO_WEIGHT)) == 0
    assert np.abs(out.sci[good] - 100).max() < 0.01
    assert np.isfinite(out.sci).all()
    assert np.isfinite(out.var).all()
    # each isolated bad pixel costs about its four neighbours, not its whole 36-pixel footprint
    flagged = (out.mask & int(Mask.COSMIC_RAY)) != 0
    assert 2.0 < flagged.sum() / hit.sum() < 7.0
    ringing, _ = resample(np.nan_to_num(sci, nan=100), wcs)
    usable = (ringing.mask & int(NO_WEIGHT)) == 0
    assert np.abs(ringing.sci[usable & good] - 100).max() > 1e3


def test_saturated_pixels_are_flagged_and_do_not_ring():
    sci = np.full((240, 240), 50, np.float32)
    mask = np.zeros(sci.shape, np.int16)
    sci[118:122, 118:122] = 60000
    mask[118:122, 118:122] = int(Mask.SATURATED)
    out, _ = resample(sci, chip_wcs(sip=0.0), mask)
    flagged = (out.mask & int(Mask.SATURATED)) != 0
    assert 16 <= flagged.sum() <= 45
    inside = out.mask == 0
    assert np.abs(out.sci[inside] - 50).max() < 0.01
    assert out.sci[flagged].max() > 50000  # the core is still there to be looked at


def test_flags_of_central_pixels_propagate():
    mask = np.zeros((240, 240), np.int16)
    mask[100:104, 100:104] = int(Mask.SUSPECT)
    sci = np.ones((240, 240), np.float32)
    out, _ = resample(sci, chip_wcs(sip=0.0, angle_deg=0.0), mask)
    flagged = (out.mask & int(Mask.SUSPECT)) != 0
    assert 16 <= flagged.sum() <= 36
    assert (out.mask[flagged] == int(Mask.SUSPECT)).all()


def test_edge_and_outside():
    out, _ = resample(np.ones((200, 200), np.float32), chip_wcs(200, angle_deg=0.0, sip=0.0, dx=0.3, dy=0.3))
    outside = (out.mask & int(Mask.NO_DATA)) != 0
    edge = (out.mask & int(Mask.EDGE)) != 0
    assert (out.sci[outside] == 0).all()
    assert (out.var[outside] == 0).all()
    good = (out.mask & int(NO_WEIGHT)) == 0
    assert 194**2 <= good.sum() <= 196**2
    assert (edge | good).sum() == pytest.approx(200**2, abs=400)
    assert not (edge & good).any()


def test_two_chips_on_one_skycell():
    """Chips side by side: both land, and one does not erase the other."""
    out = warp.make_empty_warp((240, 240))
    for dx, level in ((70.0, 5.0), (-70.0, 9.0)):
        wcs = chip_wcs(130, angle_deg=0.0, sip=0.0, dx=dx, dy=0.2)
        pixel_map = warp.map_pixels(wcs, (130, 130), skycell_wcs(), out.shape)
        sci, var = np.full((130, 130), level, np.float32), np.full((130, 130), 4, np.float32)
        written = warp.warp_chip(out, sci, np.zeros((130, 130), np.int16), var, pixel_map, scale=2.0)
        assert written > 120 * 110
    levels = out.sci[(out.mask & int(NO_WEIGHT)) == 0]
    assert (np.abs(levels - 10) < 1e-3).sum() > 120 * 110
    assert (np.abs(levels - 18) < 1e-3).sum() > 120 * 110


def test_background_and_scale():
    v, u = np.mgrid[0:240, 0:240]
    sky = (100 + 0.05 * u + 0.02 * v).astype(np.float32)
    x, y, flux = star_field()
    sci = (draw_stars(240, x, y, flux) + sky).astype(np.float32)
    out, _ = resample(sci, chip_wcs(sip=0.0), background=sky, scale=3.0, var=np.full(sci.shape, 2, np.float32))
    tx, ty = skycell_wcs().all_world2pix(*chip_wcs(sip=0.0).all_pix2world(x, y, 0), 0)
    got = np.array([measure(out.sci, *one)[0] for one in zip(tx, ty, strict=True)])
    assert np.abs(got / 3e5 - 1).max() < 2e-3
    inner = out.var[60:180, 60:180]
    assert 0.4 < np.mean(inner) / 18.0 < 1.0  # 9 · 2 · ⟨Σw²⟩


@settings(max_examples=15, deadline=None)
@given(
    angle=st.floats(0, 360), dec=st.sampled_from([-89.9, -30.0, 0.0, 60.0, 89.9]),
    ra=st.sampled_from([0.0, 0.001, 359.99, 123.0]), dx=st.floats(-30, 30), dy=st.floats(-30, 30),
)  # fmt: skip
def test_flat_sky_stays_flat_anywhere(angle, dec, ra, dx, dy):
    """Any rotation, RA 0/360, next to the poles: constant surface brightness, and coverage is the chip's area."""
    wcs = chip_wcs(150, angle_deg=angle, sip=0.0, dx=dx, dy=dy, ra=ra, dec=dec)
    out = warp.make_empty_warp((300, 300))
    pixel_map = warp.map_pixels(wcs, (150, 150), skycell_wcs(300, ra=ra, dec=dec), out.shape)
    sci = np.full((150, 150), 7.0, np.float32)
    warp.warp_chip(out, sci, np.zeros(sci.shape, np.int16), sci, pixel_map)
    seen = (out.mask & int(Mask.NO_DATA)) == 0
    assert np.abs(out.sci[seen] - 7.0).max() < 1e-3
    assert seen.sum() == pytest.approx(150**2, rel=0.01)


def test_header_is_kept_and_repeat_is_identical():
    x, y, flux = star_field()
    image = draw_stars(240, x, y, flux).astype(np.float32)
    first, second = (resample(image, chip_wcs())[0] for _ in range(2))
    assert first.sci.tobytes() == second.sci.tobytes()
    assert warp.make_empty_warp((3, 4), fits.Header({"A": 1})).header["A"] == 1


DECAM = Path(__file__).parents[3] / "shared" / "data" / "decam_cutouts"


@pytest.mark.skipif(not DECAM.is_dir(), reason="no real DECam cutouts: ../shared/data/decam_cutouts is absent")
def test_decam_tpv_cutout_keeps_its_star():
    """A real frame with TPV distortion: the map inverts it to 1 mpx, the brightest star keeps its flux and place (2
    mas).
    """
    path = next(DECAM.glob("images/**/c4d_180128_083845_ooi_r_ls9.N3.fits"))
    with fits.open(path) as hdus:
        hdu = next(one for one in hdus if one.data is not None)
        sci, wcs = hdu.data.astype(np.float32), WCS(hdu.header)
    sci -= np.median(sci)
    ny, nx = sci.shape
    ra, dec = (float(v) for v in wcs.all_pix2world(nx / 2, ny / 2, 0))
    target = skycell_wcs(340, 0.262, ra, dec)
    pixel_map = warp.map_pixels(wcs, sci.shape, target, (340, 340))
    assert pixel_map.error_px < 5e-4
    rows, columns = np.indices(pixel_map.x.shape) * pixel_map.step_px
    tx, ty = target.all_world2pix(*wcs.all_pix2world(pixel_map.x.ravel(), pixel_map.y.ravel(), 0), 0)
    assert np.hypot(tx - columns.ravel() - pixel_map.x0, ty - rows.ravel() - pixel_map.y0).max() < 1e-3
    out = warp.make_empty_warp((340, 340))
    warp.warp_chip(out, sci, np.zeros(sci.shape, np.int16), np.ones_like(sci), pixel_map)
    inner = sci[30:-30, 30:-30]
    y, x = np.add(np.unravel_index(np.argmax(inner), inner.shape), 30)
    before = measure(sci, x, y, 12)
    sx, sy = target.all_world2pix(*wcs.all_pix2world(before[1], before[2], 0), 0)
    after = measure(out.sci, float(sx), float(sy), 12)
    assert np.hypot(after[1] - sx, after[2] - sy) * 0.262 < 0.002
    assert after[0] == pytest.approx(before[0], rel=0.01)
