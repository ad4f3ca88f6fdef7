"""Resampling: positions, fluxes, noise and masks against formulas, drawn stars and the reproject package."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.model.image import NO_WEIGHT, Mask
from lap_assets.science import warp, warp_kernels
from lap_assets.science.pixel_map import map_pixels
from lap_assets_tests.science.warp_fields import (
    chip_wcs,
    draw_stars,
    map_columns,
    measure,
    resample,
    skycell_wcs,
    star_field,
)


def star_errors(kernel="lanczos3", **wcs_keys):
    """Relative flux errors and centroid errors (px) of stars of FWHM 3.8 px after resampling."""
    x, y, flux = star_field()
    wcs = chip_wcs(**wcs_keys)
    out, _ = resample(draw_stars(240, x, y, flux).astype(np.float32), wcs, kernel=kernel)
    tx, ty = skycell_wcs().all_world2pix(*wcs.all_pix2world(x, y, 0), 0)
    got = np.array([measure(out.sci, *one) for one in zip(tx, ty, strict=True)])
    return got[:, 0] / flux - 1, np.hypot(got[:, 1] - tx, got[:, 2] - ty)


@pytest.mark.parametrize("angle", [0.0, 0.03, 3.0, 30.0, 90.0])
def test_star_fluxes_and_places_survive_rotation_and_distortion(angle):
    """Flux to 3e-4 through the local Jacobian and centroids to 2 mpx; LV-16."""
    flux_error, shift = star_errors(angle_deg=angle, sip=3.0)
    assert np.abs(flux_error).max() < 3e-4
    assert shift.max() < 2e-3


@pytest.mark.parametrize(("kernel", "flux_limit", "shift_limit"), [("spline", 3e-4, 2e-3), ("bilinear", 3e-4, 0.02)])
def test_star_fluxes_and_places_survive_other_kernels(kernel, flux_limit, shift_limit):
    """LV-16: the spline as well as Lanczos; bilinear, which smooths by its phase, moves stars by 14 mpx."""
    flux_error, shift = star_errors(kernel, sip=3.0)
    assert np.abs(flux_error).max() < flux_limit
    assert shift.max() < shift_limit


def test_nearest_moves_pixels_and_changes_none():
    """Every output value is one of the chip's, times the area ratio."""
    rng = np.random.default_rng(2)
    sci = rng.integers(1, 1000, (240, 240)).astype(np.float32)
    wcs = chip_wcs(sip=0.0, angle_deg=10.0)
    out, pixel_map = resample(sci, wcs, kernel="nearest")
    good = out.mask == 0
    v, u = np.nonzero(good)
    px, py = wcs.all_world2pix(*skycell_wcs().all_pix2world(u.astype(float), v.astype(float), 0), 0)
    clear = (np.abs(px % 1 - 0.5) > 2e-3) & (np.abs(py % 1 - 0.5) > 2e-3)  # either neighbour will do halfway
    wanted = sci[np.rint(py).astype(int), np.rint(px).astype(int)] * pixel_map.interpolate(pixel_map.jacobian, u, v)
    assert out.sci[good][clear] == pytest.approx(wanted[clear], rel=1e-6)
    assert warp.covariance_factor(pixel_map, "nearest") == pytest.approx(1.0, abs=1e-3)


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
    phase = np.arange(warp_kernels.PHASES + 1)[:, None] / warp_kernels.PHASES
    offset = phase - np.arange(-2, 4)[None, :]
    kernel = np.sinc(offset) * np.sinc(offset / 3)
    table = np.zeros((warp_kernels.PHASES + 1, 8), np.float32)
    table[:, :6] = kernel / kernel.sum(axis=1, keepdims=True)
    ours = warp_kernels.kernel_table()
    assert np.abs(ours - table).max() < 0.01  # it is Lanczos-3 still
    monkeypatch.setattr(warp, "kernel_table", lambda kernel: table)
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
    area = pixel_map.interpolate(pixel_map.jacobian, u, v)
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


@pytest.mark.parametrize("kernel", warp_kernels.KERNELS)
def test_a_column_beyond_all_bounds_leaves_its_neighbours_alone(kernel):
    """1e5 and saturated, and a bad column, beside a sky of 100: unflagged pixels stay within 0.01 of it."""
    sci = np.full((240, 240), 100, np.float32)
    mask = np.zeros(sci.shape, np.int16)
    sci[:, 90], mask[:, 90] = 1e5, int(Mask.SATURATED | Mask.BLEED)
    sci[:, 150], mask[:, 150] = 1e5, int(Mask.BAD)
    out, _ = resample(sci, chip_wcs(sip=0.0), mask, kernel=kernel)
    plain = out.mask == 0
    assert plain.mean() > 0.85
    assert np.abs(out.sci[plain] - 100).max() < 0.01
    # at most four columns are lost to each
    assert (out.mask[100:140] & int(Mask.BAD | Mask.SATURATED) != 0).mean() < 8 / 240


@pytest.mark.parametrize("kernel", warp_kernels.KERNELS)
@pytest.mark.parametrize(
    "spoil",
    ["masked", "nan", "infinite_variance", "zero_variance", "negative_variance", "huge", "tiny_variance", "constant"],
)
def test_bad_chips_give_finite_masked_pixels(kernel, spoil):
    """Half of the chip is spoilt (all of it where masked): what is unmasked is finite with a finite positive weight."""
    sci, var, mask = (
        np.full((240, 240), 5, np.float32),
        np.full((240, 240), 4, np.float32),
        np.zeros((240, 240), np.int16),
    )
    part = np.s_[:120]
    values = {"nan": np.nan, "huge": 3e38, "infinite_variance": np.inf, "zero_variance": 0.0,
              "negative_variance": -1.0, "tiny_variance": 1e-42}  # fmt: skip
    if spoil == "masked":
        mask[:] = int(Mask.BAD)
    elif spoil != "constant":
        (var if "variance" in spoil else sci)[part] = values[spoil]
    out = warp.make_empty_warp((240, 240))
    pixel_map = map_pixels(chip_wcs(sip=0.0), sci.shape, skycell_wcs(), out.shape)
    written = warp.warp_chip(out, sci, mask, var, pixel_map, scale=3.0, kernel=kernel)
    good = (out.mask & int(NO_WEIGHT)) == 0
    assert np.isfinite(out.sci).all() and np.isfinite(out.var).all()
    assert written == good.sum()
    assert good.mean() == pytest.approx({"masked": 0.0, "constant": 0.94}.get(spoil, 0.45), abs=0.06)
    with np.errstate(all="raise"):
        weight = 1.0 / out.var[good]
    assert np.isfinite(weight).all()
    assert out.sci[good] == pytest.approx(15.0, rel=1e-4)


def test_islands_of_nan_cost_no_more_than_a_kernel():
    rng = np.random.default_rng(8)
    sci = np.full((240, 240), 100, np.float32)
    hit = rng.random(sci.shape) < 0.01
    sci[hit] = np.nan
    out, _ = resample(sci, chip_wcs(sip=0.0))
    lost = (out.mask[30:-30, 30:-30] & int(NO_WEIGHT)) != 0
    assert lost.mean() < 7 * hit.mean()
    assert np.abs(out.sci[30:-30, 30:-30][~lost] - 100).max() < 0.01


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
        pixel_map = map_pixels(wcs, (130, 130), skycell_wcs(), out.shape)
        sci, var = np.full((130, 130), level, np.float32), np.full((130, 130), 4, np.float32)
        written = warp.warp_chip(out, sci, np.zeros((130, 130), np.int16), var, pixel_map, scale=2.0)
        assert written > 120 * 110
    levels = out.sci[(out.mask & int(NO_WEIGHT)) == 0]
    assert (np.abs(levels - 10) < 1e-3).sum() > 120 * 110
    assert (np.abs(levels - 18) < 1e-3).sum() > 120 * 110


def test_background_and_scale():
    """Sky and scale are given at the nodes: a tilted sky goes to 0, a scale that doubles over the field is applied."""
    v, u = np.mgrid[0:240, 0:240]
    x, y, flux = star_field()
    wcs = chip_wcs(sip=0.0)
    pixel_map = map_pixels(wcs, (240, 240), skycell_wcs(), (240, 240))
    sci = (draw_stars(240, x, y, flux) + 100 + 0.05 * u + 0.02 * v).astype(np.float32)
    out = warp.make_empty_warp((240, 240))
    warp.warp_chip(
        out, sci, np.zeros(sci.shape, np.int16), np.full(sci.shape, 2, np.float32), pixel_map,
        background=100 + 0.05 * pixel_map.x + 0.02 * pixel_map.y, scale=3.0 * (1.0 + pixel_map.x / 240),
    )  # fmt: skip
    tx, ty = skycell_wcs().all_world2pix(*wcs.all_pix2world(x, y, 0), 0)
    got = np.array([measure(out.sci, *one)[0] for one in zip(tx, ty, strict=True)])
    assert got / (3e5 * (1 + x / 240)) == pytest.approx(1.0, abs=2e-3)
    assert abs(np.median(out.sci[out.mask == 0])) < 1e-3
    inner = out.var[60:180, 60:180] / (1 + map_columns(pixel_map, 60, 180) / 240) ** 2
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
    pixel_map = map_pixels(wcs, (150, 150), skycell_wcs(300, ra=ra, dec=dec), out.shape)
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
    pixel_map = map_pixels(wcs, sci.shape, target, (340, 340))
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
