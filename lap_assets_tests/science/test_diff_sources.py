"""Sources of a difference: found, measured and flagged, on differences drawn for the purpose with all truth known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lap_assets.model.image import Mask, MaskedImage
from lap_assets.science.diff_sources import (
    DIPOLE_COLUMNS,
    SourceFlag,
    SourceLimits,
    count_residual_stars,
    detect_sources,
)
from lap_assets.science.psf_grid import PsfGrid, lay_nodes
from lap_assets.science.source_search import correlated_gain, filter_coarsely, shift_stamp, tabulate_psf
from lap_assets_tests.science.difference_fields import draw_moffat

N, FWHM, SIGMA = 300, 3.3, 10.0


def make_grid(fwhm=FWHM, slope=0.0, shape=(N, N)):
    """PSF that widens by `slope` from left to right."""
    x, y = lay_nodes(shape)
    widths = fwhm * (1 + slope * x / (shape[1] - 1))
    stamps = np.array([draw_moffat(41, [20], [20], [1.0], width, half=20) for width in widths])
    stamps /= stamps.sum(axis=(1, 2), keepdims=True)
    return PsfGrid(x, y, np.tile(stamps[None], (len(y), 1, 1, 1)).astype(np.float32))


def make_difference(light, seed=1, psf=None, kernel=None, **fields):
    """What `detect_sources` reads of a `Difference`: white noise, or such convolved with `kernel`."""
    noise = np.random.default_rng(seed).normal(0, 1, light.shape)
    correlation = np.ones((1, 1))
    if kernel is not None:
        noise = ndimage.convolve(noise, kernel, mode="wrap")
        size = 2 * kernel.shape[0] - 1
        correlation = np.fft.fftshift(np.fft.irfft2(np.abs(np.fft.rfft2(kernel, (size, size))) ** 2, (size, size)))
        noise /= np.sqrt(correlation.max())
        correlation = correlation / correlation.max()
    image = MaskedImage(
        (light + SIGMA * noise).astype(np.float32), np.zeros(light.shape, np.int16),
        np.full(light.shape, SIGMA**2, np.float32),
    )  # fmt: skip
    known = {"image": image, "psf": psf or make_grid(), "correlation": correlation, "noisecov": 1.0, "score": None}
    return SimpleNamespace(**(known | fields))


def make_template(sci=None):
    sci = np.zeros((N, N)) if sci is None else sci
    return MaskedImage(sci.astype(np.float32), np.zeros((N, N), np.int16), np.full((N, N), 4.0, np.float32))


def plain_wcs():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.cd = np.diag([-0.3, 0.3]) / 3600
    wcs.wcs.set()
    return wcs


def find(difference, template=None, limits=None, stars=None):
    return detect_sources(difference, template or make_template(), plain_wcs(), limits, stars)


def lay_sources(n=8, seed=3):
    rng = np.random.default_rng(seed)
    gx, gy = np.meshgrid(np.linspace(25, N - 25, n), np.linspace(25, N - 25, n))
    x, y = gx.ravel() + rng.uniform(-0.5, 0.5, n * n), gy.ravel() + rng.uniform(-0.5, 0.5, n * n)
    return x, y, rng.choice([-1, 1], n * n) * rng.uniform(800, 4000, n * n)


SMOOTH = np.outer([0.25, 0.5, 0.25], [0.25, 0.5, 0.25])


@pytest.mark.parametrize("kernel", [None, SMOOTH], ids=["white", "correlated"])
def test_fluxes_are_unbiased_and_their_errors_true(kernel):
    """64 sources of both signs at any sub-pixel place, S/N 10 to 80: all found, pulls 0 ± 1, places to 0.1 px."""
    x, y, flux = lay_sources()
    flux = flux if kernel is None else 2.0 * flux  # whose errors are twice as large
    pulls, off = [], []
    for seed in range(4):
        sources = find(make_difference(draw_moffat(N, x, y, flux, FWHM, half=24), seed, kernel=kernel))
        distance = np.hypot(sources["x"].to_numpy()[:, None] - x, sources["y"].to_numpy()[:, None] - y)
        nearest = distance.argmin(axis=1)
        mine = distance.min(axis=1) < 1.5
        assert len(set(nearest[mine])) == 64
        assert (sources["flags"][mine] == 0).mean() > 0.96
        pulls += list(((sources["flux"] - flux[nearest]) / sources["flux_err"])[mine])
        off += list(distance.min(axis=1)[mine])
    # a maximum is chosen by its noise: fluxes are high by 1/(S/N), here 0.03 of the error on average
    assert np.mean(pulls) == pytest.approx(0.0, abs=0.25)
    assert np.std(pulls) == pytest.approx(1.0, abs=0.12)
    assert np.median(off) < 0.1


def test_noise_alone_gives_what_chance_does():
    """At 4 sigma in 24 fields of 300² px: as many as a Gaussian field of this filter has, both signs alike, to a third.

    Maxima above ν of a Gaussian field per area (Bond & Efstathiou 1987): κ ν exp(−ν²/2) / (2π)^1.5, κ the curvature of
    its correlation at 0, here taken from the filter's own autocorrelation.
    """
    sources = pd.concat(
        [find(make_difference(np.zeros((N, N)), seed), limits=SourceLimits(snr=4.0)) for seed in range(24)]
    )
    stamp = make_grid().evaluate(150, 150)
    auto = ndimage.convolve(stamp, stamp[::-1, ::-1], mode="constant")
    middle = auto.shape[0] // 2
    curvature = (auto[middle, middle] - auto[middle, middle + 1]) * 2 / auto[middle, middle]
    expected = 24 * N**2 * 2 * curvature * 4.0 * np.exp(-8.0) / (2 * np.pi) ** 1.5
    assert len(sources) == pytest.approx(expected, rel=0.33)
    assert (sources["snr"] > 0).mean() == pytest.approx(0.5, abs=0.15)


def test_noise_that_var_does_not_tell_raises_the_errors():
    """Correlations that nobody knows of (a template resampled twice): not more false ones, errors as the scatter is."""
    x, y, flux = lay_sources()
    light = draw_moffat(N, x, y, flux, FWHM, half=24)
    told = find(make_difference(light, kernel=SMOOTH))
    hidden = find(make_difference(light, kernel=SMOOTH, correlation=np.ones((1, 1))))
    assert len(hidden) <= 66
    assert hidden["flux_err"].median() == pytest.approx(told["flux_err"].median(), rel=0.08)


def test_the_psf_of_each_place_is_used():
    """A PSF that widens by 12 % across the image: with it, fluxes at both ends are right to 2 %; with the mean, not."""
    psf = make_grid(3.0, 0.12)
    x = np.array([30.0, 30.0, 30.0, 270.0, 270.0, 270.0])
    y = np.array([50.0, 150.0, 250.0] * 2)
    light = sum(
        draw_moffat(N, x[k : k + 1], y[k : k + 1], [30000.0], 3.0 * (1 + 0.12 * x[k] / (N - 1)), half=20)
        for k in range(6)
    )
    found = find(make_difference(light, psf=psf)).sort_values(["x", "y"])
    found = found[found["snr"] > 50]
    assert found["flux"].to_numpy() == pytest.approx(30000, rel=0.02)
    middle = find(make_difference(light, psf=make_grid(3.18)))
    middle = middle[middle["snr"] > 50]
    assert np.ptp(middle["flux"]) > 0.07 * 30000


def test_the_coarse_filter_loses_a_few_per_cent():
    """Of an elliptical PSF's signal to noise; what it gives of noise has unit width, correlated or not."""
    stamp = draw_moffat(41, [20], [20], [1.0], FWHM, e=0.15, half=20)
    grid = PsfGrid(np.zeros(1), np.zeros(1), (stamp / stamp.sum())[None, None].astype(np.float32))
    light = draw_moffat(N, [150], [150], [4000.0], FWHM, e=0.15, half=24)
    for kernel in (None, SMOOTH):
        difference = make_difference(light, psf=grid, kernel=kernel)
        local = tabulate_psf(grid, (N, N))
        coarse = filter_coarsely(difference.image, local, difference.correlation)
        assert np.std(coarse[:100]) == pytest.approx(1.0, abs=0.03)
        gain = correlated_gain(local.flat[0], difference.correlation)
        exact = light.sum() * np.sqrt(np.sum(local.flat[0] ** 2) / gain) / SIGMA
        clean = filter_coarsely(
            MaskedImage(light.astype(np.float32), difference.image.mask, difference.image.var), local,
            difference.correlation,
        )  # fmt: skip
        assert 0.94 * exact < clean.max() <= 1.001 * exact


def test_masked_pixels_hold_no_flux_and_are_flagged():
    """A core of 5x5 px masked: too little is left. A column 3 px off: the flux is right without it."""
    x, y = np.array([80.0, 200.0]), np.array([80.0, 200.0])
    difference = make_difference(draw_moffat(N, x, y, [4000.0, 4000.0], FWHM))
    image = difference.image
    for box, bit in ((np.s_[78:83, 78:83], Mask.COSMIC_RAY), (np.s_[190:211, 203], Mask.BAD)):
        image.mask[box] |= int(bit)
        image.sci[box] = 1e6
    sources = find(difference)
    assert not ((sources["flags"] == 0) & (np.hypot(sources["x"] - 80, sources["y"] - 80) < 4)).any()
    (beside,) = sources[np.hypot(sources["x"] - 200, sources["y"] - 200) < 1.5].itertuples()
    assert beside.flux == pytest.approx(4000, abs=3.5 * beside.flux_err)


def test_cosmic_rays_and_bad_backgrounds_are_unlike_a_psf():
    """One pixel, and a plateau of 20 px: found, not believed; a source of the same S/N is."""
    light = draw_moffat(N, [220.0], [220.0], [2500.0], FWHM)
    light[80, 80] += 800
    v, u = np.mgrid[0:N, 0:N]
    light += 25 * np.exp(-(((u - 80) ** 2 + (v - 200) ** 2) / 2 / 10.0**2))
    sources = find(make_difference(light))
    (ray,) = sources[np.hypot(sources["x"] - 80, sources["y"] - 80) < 2].itertuples()
    assert ray.flags & int(SourceFlag.NOT_PSF)
    assert ray.sharpness > 2
    plateau = sources[np.hypot(sources["x"] - 80, sources["y"] - 200) < 15]
    assert len(plateau) and (plateau["flags"] & int(SourceFlag.NOT_PSF)).mean() > 0.5
    (real,) = sources[np.hypot(sources["x"] - 220, sources["y"] - 220) < 2].itertuples()
    assert real.flags == 0


def test_dipoles_are_flagged_and_measured():
    """A star of 40000 nJy misplaced by 0.5 px along a known direction: both residuals flagged, separation to 25 %."""
    angle = np.radians(35.0)
    light = draw_moffat(N, [150 + 0.5 * np.cos(angle)], [150 + 0.5 * np.sin(angle)], [40000.0], FWHM)
    light -= draw_moffat(N, [150], [150], [40000.0], FWHM)
    template = make_template(draw_moffat(N, [150], [150], [40000.0], FWHM))
    sources = find(make_difference(light), template)
    pair = sources[np.hypot(sources["x"] - 150, sources["y"] - 150) < 6]
    assert len(pair) == 2 and set(np.sign(pair["flux"])) == {-1, 1}
    assert (pair["flags"] & int(SourceFlag.DIPOLE)).all()
    assert pair["dipole_separation_px"].to_numpy() == pytest.approx(0.5, rel=0.25)
    assert pair["dipole_angle_deg"].to_numpy() == pytest.approx(35.0, abs=4)
    assert pair["dipole_flux_neg"].to_numpy() == pytest.approx(-40000, rel=0.25)
    assert pair["dipole_flux_pos"].to_numpy() + pair["dipole_flux_neg"].to_numpy() == pytest.approx(0, abs=600)
    alone = find(make_difference(draw_moffat(N, [150], [150], [4000.0], FWHM)))
    assert alone[list(DIPOLE_COLUMNS)].isna().all(axis=None)


def test_residuals_on_bright_things_and_beside_saturated_ones_are_flagged():
    """5 % of a star's light at its place and 1 FWHM beside it; near a saturated core; away from both nothing is."""
    x, y = np.array([80.0, 153.0, 220.0, 250.0]), np.array([80.0, 150.0, 220.0, 60.0])
    difference = make_difference(draw_moffat(N, x, y, [5000.0, 4000.0, 4000.0, 4000.0], FWHM))
    template = make_template(draw_moffat(N, [80, 150], [80, 150], [100000.0, 300000.0], FWHM))
    difference.image.mask[225:228, 225:228] |= int(Mask.SATURATED)
    sources = find(difference, template)

    def flags_at(k):
        (one,) = sources[np.hypot(sources["x"] - x[k], sources["y"] - y[k]) < 1.5].itertuples()
        return one.flags

    assert flags_at(0) & int(SourceFlag.BRIGHT_CORE) and flags_at(1) & int(SourceFlag.BRIGHT_CORE)
    assert flags_at(2) & int(SourceFlag.NEAR_SATURATED)
    assert flags_at(3) == 0


def test_the_nearest_bright_star_is_told():
    """Faint ones do not count; without a table, or without a bright one, it is not known."""
    difference = make_difference(draw_moffat(N, [150.0], [150.0], [4000.0], FWHM))
    stars = pd.DataFrame({"x": [153.0, 180.0], "y": [150.0, 190.0], "flux_njy": [1e3, 1e6], "snr": [50.0, 5000.0]})
    (one,) = find(difference, stars=stars).itertuples()
    assert one.star_distance_px == pytest.approx(50.0, abs=0.3)
    assert one.star_flux == 1e6
    for few in (None, stars.iloc[:1], stars.iloc[:0]):
        assert np.isnan(find(difference, stars=few)["star_distance_px"]).all()


def test_a_score_decides_where_there_is_one():
    """What the score leaves out (astrometric noise) is no source; signal to noise is the score's."""
    x, y = np.array([80.0, 200.0]), np.array([80.0, 200.0])
    light = draw_moffat(N, x, y, [4000.0, 4000.0], FWHM)
    score = np.random.default_rng(5).normal(0, 1, (N, N)).astype(np.float32)
    score = ndimage.gaussian_filter(score, 1.4)
    score /= score.std()
    score += 20 * draw_moffat(N, x[:1], y[:1], [1.0], FWHM).astype(np.float32) / 0.06
    sources = find(make_difference(light, score=score))
    (one,) = sources[sources["snr"] > 10].itertuples()
    assert np.hypot(one.x - 80, one.y - 80) < 1.5
    assert one.snr == pytest.approx(score[78:83, 78:83].max(), rel=0.1)
    assert one.flux == pytest.approx(4000, rel=0.1)


@pytest.mark.parametrize("mask", [int(Mask.NO_DATA), 0])
def test_nothing_usable_gives_an_empty_table(mask):
    """All masked, or no variance anywhere: no source, all columns there."""
    difference = make_difference(np.zeros((N, N)))
    difference.image.mask[:] = mask
    difference.image.var[:] = 0
    sources = find(difference)
    assert len(sources) == 0
    assert {"x", "ra", "flux", "snr", "flags", "star_distance_px", *DIPOLE_COLUMNS} <= set(sources.columns)


@settings(max_examples=25, deadline=None)
@given(dx=st.floats(-0.5, 0.5), dy=st.floats(-0.5, 0.5))
def test_a_shifted_stamp_measures_what_stands_there(dx, dy):
    """A PSF of 3.3 px moved by any part of a pixel: the flux of a source drawn there to 0.3 %, the sum kept to 1e-3."""
    stamp = draw_moffat(31, [15], [15], [1.0], FWHM, half=15)
    out = np.empty_like(stamp)
    shift_stamp(stamp, dx, dy, out)
    drawn = draw_moffat(31, [15 + dx], [15 + dy], [1.0], FWHM, half=16)
    assert np.sum(out * drawn) / np.sum(out**2) == pytest.approx(1.0, abs=0.003)
    assert out.sum() == pytest.approx(stamp.sum(), rel=1e-3)


def test_stars_that_leave_something_are_counted():
    """LAP-30: of four stars of which a tenth would be found, one has a source, one a ring 9 px off, one a flagged
    source and one nothing; a fainter star does not count, whatever stands on it.
    """
    stars = pd.DataFrame({"x": [50.0, 100, 150, 200, 250], "y": 80.0, "snr": [60.0, 500, 60, 60, 49]})
    sources = pd.DataFrame({"x": [51.0, 109, 150, 250], "y": 80.0, "flags": [0, 0, 1, 0]})
    assert count_residual_stars(sources, stars, SourceLimits(), FWHM) == (2, 4)
    assert count_residual_stars(sources[:0], stars, SourceLimits(), FWHM) == (0, 4)
    assert count_residual_stars(sources, stars[:0], SourceLimits(), FWHM) == (0, 0)
