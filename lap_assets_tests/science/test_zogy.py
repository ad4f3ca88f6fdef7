"""ZOGY differences: noise, score, fluxes, exchange of the two images, registration, masks."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from lap_assets.model.image import Mask, MaskedImage
from lap_assets.science.diff import DiffLimits, subtract_images
from lap_assets.science.diff_sources import detect_sources
from lap_assets.science.psf_grid import PsfGrid
from lap_assets_tests.science.difference_fields import (
    DrawnPsf,
    draw_moffat,
    draw_psfs,
    force_fluxes,
    make_pair,
    read_covariances,
)
from lap_assets_tests.science.test_diff_sources import plain_wcs

PAIRS = [(3.2, 2.5), (2.5, 3.2), (3.0, 3.0)]
LIMITS = DiffLimits(method="zogy")


def subtract(science, template, widths):
    return subtract_images(science, template, *draw_psfs(*widths), LIMITS, read_covariances(science, template))


@pytest.mark.parametrize("widths", PAIRS)
def test_stars_vanish_and_noise_and_score_are_as_stated(widths):
    """LAP-30: sky χ and scatter of S_corr 1.00 ± 0.03, flux ratio to 0.5 %, stars gone into the noise."""
    science, template, _ = make_pair(*widths)
    difference = subtract(science, template, widths)
    image = difference.image
    assert difference.kernel_sum == pytest.approx(1.02, abs=0.005)
    assert difference.sky_chi == pytest.approx(1.0, abs=0.03)
    assert np.hypot(*difference.astrometric_offset_px) < 0.01
    assert 0.7 < difference.stamp_chi2 < 1.3
    assert 0.7 < difference.left_out_chi2 < 1.3
    sky = image.usable & (template.sci < 3 * np.sqrt(template.var))
    assert np.std(difference.score[sky]) == pytest.approx(1.0, abs=0.03)
    cores = image.usable & (template.sci > 30 * np.sqrt(template.var))
    assert np.std(image.sci[cores] / np.sqrt(image.var[cores])) < 1.2
    assert np.abs(difference.score[image.usable]).max() < 6.0


@pytest.mark.parametrize("widths", PAIRS)
def test_fluxes_of_empty_places_scatter_by_their_errors(widths):
    """LAP-30: mean pull 0 ± 0.1, width 1 ± 0.1."""
    science, template, _ = make_pair(*widths)
    difference = subtract(science, template, widths)
    gx, gy = (grid.ravel() for grid in np.meshgrid(np.arange(30, 370, 10), np.arange(30, 370, 10)))
    empty = template.sci[gy, gx] < 3 * np.sqrt(template.var[gy, gx])
    flux, error = force_fluxes(difference, gx[empty], gy[empty])
    assert np.mean(flux / error) == pytest.approx(0.0, abs=0.1)
    assert np.std(flux / error) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("widths", PAIRS)
def test_injected_sources_keep_their_flux_and_score(widths):
    """LAP-30: 40 sources of S/N 6.5 to 30: flux unbiased, S_corr that S/N, 95 % over 5 sigma."""
    rng = np.random.default_rng(3)
    gx, gy = (grid.ravel()[:40] for grid in np.meshgrid(np.arange(40, 361, 46), np.arange(44, 361, 60)))
    sign = rng.choice([-1.0, 1.0], gx.size)
    _, error = force_fluxes(subtract(*make_pair(*widths)[:2], widths), gx, gy)
    truth = sign * np.exp(rng.uniform(np.log(6.5), np.log(30), gx.size)) * error
    science, template, _ = make_pair(*widths, changes=np.column_stack([gx, gy, truth]))
    difference = subtract(science, template, widths)
    flux, error = force_fluxes(difference, gx, gy)
    pull = (flux - truth) / error
    assert np.mean(sign * pull) == pytest.approx(0.0, abs=0.3)
    assert np.std(pull) == pytest.approx(1.0, abs=0.25)
    score = sign * difference.score[gy, gx]
    assert np.mean(score > 5) >= 0.95
    assert np.median(score / (sign * flux / error)) == pytest.approx(1.0, abs=0.05)


def test_each_block_has_its_own_psfs():
    """LAP-30: seeing that changes by 20 % over two blocks: with the mean PSF everywhere stars leave at least twice the
    χ² excess that the PSFs of the places leave.
    """
    n, rng = 800, np.random.default_rng(8)
    x, y, flux = rng.uniform(15, n - 15, 250), rng.uniform(15, n - 15, 250), 10 ** rng.uniform(4, 5, 250)
    science = sum(
        draw_moffat(n, x[k : k + 1], y[k : k + 1], flux[k : k + 1], 3.0 * (1 + 0.2 * x[k] / n)) for k in range(250)
    )
    images = []
    for truth, sigma in ((science, 15.0), (draw_moffat(n, x, y, flux, 2.5), 5.0)):
        sci = truth + rng.normal(0, sigma, (n, n))
        images.append(MaskedImage(sci.astype("f4"), np.zeros((n, n), np.int16), np.full((n, n), sigma**2, "f4")))
    excess = []
    for psf in (DrawnPsf(3.0, slope=0.2 / n), DrawnPsf(3.3)):
        image = subtract_images(*images, psf, DrawnPsf(2.5), LIMITS).image
        good = image.usable
        excess.append(np.mean(image.sci[good] ** 2 / image.var[good]) - 1.0)
    assert excess[0] < 0.5 * excess[1]


def test_images_exchanged_change_the_sign():
    """LAP-30: a proper difference is antisymmetric (Zackay et al. 2016, section 3): template − science is its negative,
    in the template's flux.
    """
    widths = (3.2, 2.5)
    science, template, _ = make_pair(*widths)
    psfs, factors = draw_psfs(*widths), read_covariances(science, template)
    forth = subtract_images(science, template, *psfs, LIMITS, factors)
    back = subtract_images(template, science, *psfs[::-1], LIMITS, factors[::-1])
    good = forth.image.usable & back.image.usable
    away = (forth.score + back.score)[good]
    assert np.corrcoef(forth.score[good], back.score[good])[0, 1] < -0.999
    assert np.percentile(np.abs(away), 99) < 0.1
    assert forth.kernel_sum * back.kernel_sum == pytest.approx(1.0, abs=0.002)


def test_an_offset_of_the_template_is_measured_and_removed():
    """LAP-30: stars 0.3 px off leave no dipoles."""
    rng = np.random.default_rng(5)
    n, widths = 400, (3.0, 3.0)
    x, y, flux = rng.uniform(20, n - 20, 60), rng.uniform(20, n - 20, 60), 10 ** rng.uniform(4, 5, 60)
    science, template, _ = make_pair(*widths, n_stars=0)
    science.sci += draw_moffat(n, x + 0.3, y - 0.2, flux, 3.0, e=0.05).astype(np.float32)
    template.sci += draw_moffat(n, x, y, flux, 3.0, e=-0.04).astype(np.float32)
    difference = subtract(science, template, widths)
    assert difference.astrometric_offset_px == pytest.approx((0.3, -0.2), abs=0.01)
    cores = difference.image.usable & (template.sci > 30 * np.sqrt(template.var))
    assert np.abs(difference.score[cores]).max() < 7.0


def test_scatter_of_positions_weakens_the_score_of_bright_stars():
    """LAP-30: stars scattered by 0.1 px about their places (S/N of hundreds) leave dipoles; astrometric noise brings
    S_corr below half of what single pixels show.
    """
    rng = np.random.default_rng(6)
    n, widths = 400, (3.0, 3.0)
    x, y, flux = rng.uniform(20, n - 20, 50), rng.uniform(20, n - 20, 50), np.full(50, 1e5)
    science, template, _ = make_pair(*widths, n_stars=0)
    science.sci += draw_moffat(n, x + rng.normal(0, 0.1, 50), y + rng.normal(0, 0.1, 50), flux, 3.0, e=0.05).astype(
        np.float32
    )
    template.sci += draw_moffat(n, x, y, flux, 3.0, e=-0.04).astype(np.float32)
    difference = subtract(science, template, widths)
    cores = difference.image.usable & (template.sci > 30 * np.sqrt(template.var))
    image = difference.image
    pixels = np.abs(image.sci[cores] / np.sqrt(image.var[cores])).max()
    assert pixels > 15
    assert np.abs(difference.score[cores]).max() < 0.5 * pixels


@pytest.mark.parametrize("which", [0, 1])
def test_masked_pixels_do_not_spread(which):
    """LV-17: masked pixels of 1e6 in either image touch nothing that is usable."""
    widths = (3.2, 2.5)
    pair = make_pair(*widths)[:2]
    before = subtract(*pair, widths)
    rng = np.random.default_rng(4)
    for x, y in rng.integers(20, 380, (60, 2)):
        pair[which].sci[y, x] = 1e6
        pair[which].mask[y, x] |= int(Mask.BAD)
    after = subtract(*pair, widths)
    good = after.image.usable & before.image.usable
    assert good.sum() > 0.95 * before.image.usable.sum()
    sky = good & (pair[0].sci < 100)
    change = np.abs(after.image.sci - before.image.sci)[sky] / np.sqrt(before.image.var[sky])
    assert np.percentile(change, 99.9) < 1.0
    assert np.isfinite(after.score).all()


def test_scale_of_both_images_does_not_matter():
    """LAP-30: other units, the same score."""
    widths = (3.2, 2.5)
    science, template, _ = make_pair(*widths)
    plain = subtract(science, template, widths)
    times = subtract(*(replace(one, sci=one.sci * 64, var=one.var * 4096) for one in (science, template)), widths)
    assert np.abs(times.score - plain.score)[plain.image.usable].max() < 0.02


def cut_gaps(image, columns, rows):
    """Take the data out of bands of columns and rows, as gaps between chips do."""
    hole = np.zeros(image.shape, bool)
    for first, last in columns:
        hole[:, first:last] = True
    for first, last in rows:
        hole[first:last] = True
    image.sci[hole], image.var[hole] = 0.0, 0.0
    image.mask[hole] |= int(Mask.NO_DATA)
    return hole


@pytest.mark.parametrize("widths", PAIRS)
def test_beside_gaps_is_noise_and_what_reaches_them_is_flagged(widths):
    """LAP-30, LV-17: gaps in either image: pixels beside them have EDGE whichever lacks data, and within 20 px of them
    the score scatters by 1.00 ± 0.05 and no source, not of stars that a gap cuts either, is without a flag.
    """
    values, clean = [], 0
    for seed in range(1, 5):
        science, template, _ = make_pair(*widths, seed=seed)
        holes = cut_gaps(science, [(120, 140), (300, 302)], [(200, 215)])
        holes |= cut_gaps(template, [(60, 75), (240, 260)], [(330, 350)])
        difference = subtract(science, template, widths)
        usable, away = difference.image.usable, distance_transform_edt(~holes)
        inner = np.s_[25:-25, 25:-25]
        assert (difference.image.mask[inner] & int(Mask.EDGE) != 0)[away[inner] == 1].all()
        assert usable[inner][away[inner] > 5].mean() > 0.98
        sky = usable & (template.sci < 3 * np.sqrt(np.maximum(template.var, 1.0)))
        values.append(difference.score[inner][(sky & (away <= 20))[inner]])
        sources = detect_sources(difference, template, plain_wcs())
        near = away[sources.y.round().astype(int), sources.x.round().astype(int)] <= 20
        clean += int((near & (sources["flags"] == 0)).sum())
    assert np.std(np.concatenate(values)) == pytest.approx(1.0, abs=0.05)
    assert clean == 0


def test_a_psf_of_few_stars_leaves_no_rings_about_bright_ones():
    """LAP-30: PSFs with noise of 5e-5 of the flux in each pixel, as two dozen stars give it: 2 to 5 FWHM from stars of
    several thousand sigma no pixel of the score is over five.
    """
    widths, rng, half = (3.2, 2.5), np.random.default_rng(2), 14
    science, template, _ = make_pair(*widths, n_stars=0)
    x, y = (grid.ravel() for grid in np.meshgrid(np.arange(50, 400, 75), np.arange(50, 400, 75)))
    psfs = []
    for image, psf in zip((science, template), draw_psfs(*widths), strict=True):
        image.sci += draw_moffat(400, x, y, np.full(x.size, 1e6), psf.fwhm_px, e=psf.e).astype(np.float32)
        stamp = psf.evaluate(0, 0)[22 - half : 23 + half, 22 - half : 23 + half]
        stamps = (stamp + rng.normal(0, 5e-5, (2, 2, *stamp.shape))).astype(np.float32)
        psfs.append(PsfGrid(np.array([0.0, 399.0]), np.array([0.0, 399.0]), stamps))
    difference = subtract_images(science, template, *psfs, LIMITS, read_covariances(science, template))
    v, u = np.mgrid[:400, :400]
    away = np.min(np.hypot(u[..., None] - x, v[..., None] - y), axis=2)
    rings = difference.image.usable & (away > 2 * widths[0]) & (away < 5 * widths[0])
    assert rings.sum() > 10_000
    assert np.abs(difference.score[rings]).max() < 5.0
