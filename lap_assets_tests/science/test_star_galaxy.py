"""Stars and galaxies told apart by the spread model; PSF stars chosen from the stellar locus."""

import galsim
import numpy as np
import pytest

from lap_assets.model.objects import Extendedness
from lap_assets.science.forced import cut_stamps, render_psfs
from lap_assets.science.star_galaxy import (
    classify_extendedness,
    combine_spreads,
    convolve_disk,
    find_locus,
    measure_spread,
    select_psf_stars,
)
from lap_assets_tests.science.lensing_fields import StampPsf
from lap_assets_tests.science.test_forced import SCALE, draw_field

PSF = galsim.Moffat(beta=3, fwhm=1.0).shear(e1=0.05)
FWHM_PX = 2.6


def spread_of(profile, snr, n=100, seed=1):
    """Spread model of n copies of a profile at a matched-filter S/N."""
    seen = galsim.Convolve(profile, PSF) if profile else PSF
    stamp = seen.drawImage(nx=31, ny=31, scale=SCALE).array
    image, var, x, y = draw_field(profile, PSF, snr / np.sqrt(np.sum(stamp**2)), n=n, noise=1.0, seed=seed)
    empty, segments = np.zeros(image.shape, bool), np.zeros(image.shape, np.int32)
    stamps = cut_stamps(image, var, empty, segments, np.zeros(len(x), np.int64), x, y, 31)
    return measure_spread(*stamps, render_psfs(StampPsf(PSF, SCALE), x, y), FWHM_PX)


def test_convolution_with_the_disk_is_galsims():
    disk = galsim.Exponential(scale_radius=0.16 * SCALE)
    expected = StampPsf(galsim.Convolve(PSF, disk), SCALE).stamp
    ours = convolve_disk(StampPsf(PSF, SCALE).stamp[None], 0.16)[0]
    assert ours == pytest.approx(expected, abs=2e-4)
    assert ours.max() < StampPsf(PSF, SCALE).stamp.max()


def test_spread_of_stars_is_zero_within_errors_that_are_honest():
    spread, error = spread_of(None, 20.0)
    pulls = spread / error
    assert abs(pulls.mean()) < 0.3
    assert 0.8 < pulls.std() < 1.25


@pytest.mark.parametrize("radius, snr, sure", [(0.3, 40.0, True), (0.5, 20.0, False), (0.8, 20.0, False)])
def test_galaxies_are_galaxies_and_stars_stars(radius, snr, sure):
    """At S/N 40 at least 95 % of both are right; at S/N 20 of galaxies, and at most 5 % of stars are sure galaxies."""
    stars = classify_extendedness(*spread_of(None, snr))
    galaxies = classify_extendedness(*spread_of(galsim.Exponential(half_light_radius=radius), snr))
    assert np.mean(galaxies >= Extendedness.LIKELY_GALAXY) >= 0.95
    assert np.mean(stars <= (Extendedness.LIKELY_STAR if sure else Extendedness.LIKELY_GALAXY)) >= 0.95


def test_what_cannot_be_told_is_not_called_sure():
    """Negative: galaxies of 0.1" at S/N 10 look like stars; hardly any is called a sure galaxy."""
    classes = classify_extendedness(*spread_of(galsim.Exponential(half_light_radius=0.1), 10.0))
    assert np.mean(classes == Extendedness.GALAXY) < 0.2


def test_sharper_than_the_psf_is_negative():
    spread, error = spread_of(None, 100.0)
    hit = np.zeros((1, 31, 31), np.float32)
    hit[0, 15, 15] = 100.0
    sharp, _ = measure_spread(hit, hit * 0 + 1, hit.astype(np.uint8) * 0, StampPsf(PSF, SCALE).stamp[None], FWHM_PX)
    assert sharp[0] < -10 * error.mean() < spread.mean() + 1


def test_unknown_stays_unknown():
    classes = classify_extendedness(np.array([np.nan, 0.0]), np.array([0.1, np.nan]))
    assert classes.tolist() == [Extendedness.UNKNOWN, Extendedness.UNKNOWN]


def test_bands_are_combined_by_inverse_variance():
    spreads, errors = (
        np.array([[1.0, np.nan, np.nan], [3.0, 2.0, np.nan]]),
        np.array([[1.0, 1.0, 1.0], [0.5, 0.1, 1.0]]),
    )
    mean, error = combine_spreads(spreads, errors)
    assert mean[:2] == pytest.approx([(1 + 12) / 5, 2.0])
    assert error[:2] == pytest.approx([np.sqrt(1 / 5), 0.1])
    assert np.isnan(mean[2])


def test_psf_stars_come_from_the_locus_and_not_from_the_galaxies():
    """40 stars among 300 larger galaxies: at least 90 % of the chosen are stars, and 60 % of the stars there are."""
    rng = np.random.default_rng(2)
    size = np.concatenate([rng.normal(1.5, 0.02, 40), 1.5 * np.sqrt(1 + rng.uniform(0.2, 4.0, 300))])
    snr = rng.uniform(20, 500, 340)
    clean = rng.uniform(size=340) < 0.9
    chosen = select_psf_stars(size, snr, clean, 50.0)
    candidates = np.flatnonzero(clean & (snr >= 50) & (np.arange(340) < 40))
    assert np.mean(chosen < 40) >= 0.9
    assert len(set(chosen) & set(candidates)) >= 0.6 * len(candidates)
    assert clean[chosen].all() and (snr[chosen] >= 50).all()
    assert (np.diff(snr[chosen]) <= 0).all()
    assert len(select_psf_stars(size, snr, clean, 1e4)) == 0


def test_locus_is_the_first_crowd_and_not_the_largest():
    """60 stars at 0.4, a hundred larger galaxies, three hot pixels below."""
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(0.4, 0.01, 60), rng.uniform(0.5, 1.2, 100), [0.01, 0.1, 0.3]])
    assert find_locus(values) == pytest.approx(0.4, abs=0.01)
    assert np.median(values) > 0.5
    assert find_locus(np.array([2.0])) == 2.0
