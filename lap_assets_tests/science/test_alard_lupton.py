"""Alard–Lupton differences: both directions, noise, fluxes, masks, varying PSFs, seeing far apart."""

from dataclasses import replace

import numpy as np
import pytest

from lap_assets.model.image import Mask, MaskedImage
from lap_assets.science.diff import DiffLimits, subtract_images
from lap_assets.science.matching_kernel import KernelLimits
from lap_assets_tests.science.difference_fields import (
    DrawnPsf,
    draw_moffat,
    draw_psfs,
    force_fluxes,
    make_pair,
    read_covariances,
)

# (seeing of science, of template): template convolved, science convolved, alike
PAIRS = [(3.2, 2.5), (2.5, 3.2), (3.0, 3.0)]


def subtract(science, template, widths, limits=None):
    return subtract_images(science, template, *draw_psfs(*widths), limits, read_covariances(science, template))


@pytest.mark.parametrize("widths", PAIRS)
@pytest.mark.parametrize("decorrelate", [True, False])
def test_stars_vanish_and_the_noise_is_as_stated(widths, decorrelate):
    """LAP-30: sky χ 1.00 ± 0.03, fluxes to 1.5 %, stars gone into the noise, those left out of the fit as well."""
    science, template, _ = make_pair(*widths)
    difference = subtract(science, template, widths, DiffLimits(decorrelate=decorrelate))
    image = difference.image
    ratio = difference.kernel_sum if difference.convolved == "template" else 1 / difference.kernel_sum
    assert difference.convolved == ("template" if widths[0] >= widths[1] else "science")
    assert ratio == pytest.approx(1.02, abs=0.015)
    assert difference.sky_chi == pytest.approx(1.0, abs=0.03)
    assert 0.7 < difference.stamp_chi2 < 1.3
    assert 0.7 < difference.left_out_chi2 < 1.3
    assert np.hypot(*difference.astrometric_offset_px) < 0.02
    cores = image.usable & (template.sci > 30 * np.sqrt(template.var))
    assert cores.sum() > 100
    left = np.std(image.sci[cores] / np.sqrt(image.var[cores]))
    plain = (science.sci - template.sci) / np.sqrt(science.var + template.var)
    assert left < 1.4
    assert np.std(plain[cores]) > 1.5 * left


@pytest.mark.parametrize("widths", PAIRS)
def test_fluxes_of_empty_places_scatter_by_their_errors(widths):
    """LAP-30: PSF fluxes where nothing changed have mean 0 ± 0.1 and width 1 ± 0.1 in units of their errors, with the
    correlation of the noise accounted for.
    """
    science, template, _ = make_pair(*widths)
    difference = subtract(science, template, widths)
    gx, gy = (grid.ravel() for grid in np.meshgrid(np.arange(30, 370, 10), np.arange(30, 370, 10)))
    empty = template.sci[gy, gx] < 3 * np.sqrt(template.var[gy, gx])
    flux, error = force_fluxes(difference, gx[empty], gy[empty])
    pull = flux / error
    assert np.mean(pull) == pytest.approx(0.0, abs=0.1)
    assert np.std(pull) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("widths", PAIRS)
def test_injected_sources_keep_their_flux(widths):
    """LAP-30: 40 new sources of both signs, S/N 6.5 to 30: mean pull 0 ± 0.3 (its error is 0.16), width 1 ± 0.25, and
    95 % over 5 sigma.
    """
    rng = np.random.default_rng(3)
    gx, gy = (grid.ravel() for grid in np.meshgrid(np.arange(40, 361, 46), np.arange(44, 361, 60)))
    gx, gy = gx[:40], gy[:40]
    sign = rng.choice([-1.0, 1.0], gx.size)
    _, template, _ = make_pair(*widths)
    quiet, _, _ = make_pair(*widths)
    _, error = force_fluxes(subtract(quiet, template, widths), gx, gy)
    snr = np.exp(rng.uniform(np.log(6.5), np.log(30), gx.size))
    truth = sign * snr * error
    science, template, _ = make_pair(*widths, changes=np.column_stack([gx, gy, truth]))
    flux, error = force_fluxes(subtract(science, template, widths), gx, gy)
    pull = (flux - truth) / error
    assert np.mean(sign * pull) == pytest.approx(0.0, abs=0.3)
    assert np.std(pull) == pytest.approx(1.0, abs=0.25)
    assert np.mean(sign * flux / error > 5) >= 0.95


def test_a_forced_wrong_direction_is_worse_and_finite():
    """LAP-30: the broader image convolved to match the sharper one leaves more of the stars, and says so."""
    widths = (3.6, 2.4)
    science, template, _ = make_pair(*widths)
    right, wrong = (subtract(science, template, widths, DiffLimits(convolve=one)) for one in ("auto", "science"))
    assert right.convolved == "template"
    assert wrong.convolved == "science"
    assert np.isfinite(wrong.image.sci).all()
    assert np.isfinite(wrong.image.var).all()
    cores = right.image.usable & wrong.image.usable & (template.sci > 30 * np.sqrt(template.var))
    left = [np.std((one.image.sci / np.sqrt(np.maximum(one.image.var, 1e-6)))[cores]) for one in (right, wrong)]
    assert left[1] > 1.5 * left[0]
    assert wrong.stamp_chi2 > 1.5 * right.stamp_chi2


def test_varying_psf_needs_the_varying_kernel():
    """LAP-30: seeing that changes by 12 % over the science image: order 1 leaves less than half the χ² excess."""
    n = 400
    rng = np.random.default_rng(8)
    x, y, flux = rng.uniform(15, n - 15, 120), rng.uniform(15, n - 15, 120), 10 ** rng.uniform(4, 5.3, 120)
    science = sum(
        draw_moffat(n, x[k : k + 1], y[k : k + 1], flux[k : k + 1], 3.0 * (1 + 0.12 * x[k] / n)) for k in range(120)
    )
    template = draw_moffat(n, x, y, flux, 2.5)
    images = []
    for truth, sigma in ((science, 15.0), (template, 5.0)):
        variance = np.full((n, n), sigma**2)
        sci = truth + rng.normal(0, sigma, (n, n))
        images.append(MaskedImage(sci.astype(np.float32), np.zeros((n, n), np.int16), variance.astype(np.float32)))
    excess = []
    for order in (0, 1):
        limits = DiffLimits(kernel=KernelLimits(kernel_order=order))
        difference = subtract_images(*images, DrawnPsf(3.0, slope=0.12 / n), DrawnPsf(2.5), limits)
        image, good = difference.image, difference.image.usable
        excess.append(np.mean(image.sci[good] ** 2 / image.var[good]) - 1.0)
    assert excess[1] < 0.5 * excess[0]
    # the difference has the PSF of the science image, at its place
    middle = [difference.psf.evaluate(place, 200).max() for place in (20, 380)]
    assert middle[0] > 1.1 * middle[1]


def test_masked_pixels_of_the_convolved_image_do_not_spread():
    """LV-17: bad template pixels of 1e6 under 60 masks: nothing usable is touched by them."""
    widths = (3.2, 2.5)
    science, template, _ = make_pair(*widths)
    before = subtract(science, template, widths).image
    rng = np.random.default_rng(4)
    for x, y in rng.integers(20, 380, (60, 2)):
        template.sci[y, x] = 1e6
        template.mask[y, x] |= int(Mask.BAD)
    after = subtract(science, template, widths).image
    good = after.usable & before.usable
    assert good.sum() > 0.95 * before.usable.sum()
    sky = good & (science.sci < 100)
    change = np.abs(after.sci - before.sci)[sky] / np.sqrt(before.var[sky])
    assert np.percentile(change, 99.9) < 1.0
    assert np.isfinite(after.sci).all()
    assert np.isfinite(after.var).all()


def test_a_masked_cosmic_ray_of_the_science_image_stays_where_it_is():
    """LV-17: whitening spreads nothing from masked pixels of 1e6."""
    widths = (3.2, 2.5)
    science, template, _ = make_pair(*widths)
    before = subtract(science, template, widths).image
    science.sci[200, 190:193] = 1e6
    science.mask[200, 190:193] |= int(Mask.COSMIC_RAY)
    after = subtract(science, template, widths).image
    near = np.s_[185:216, 175:208]
    good = after.usable[near]
    assert (~good).sum() <= 3
    assert np.abs((after.sci - before.sci)[near][good]).max() < 0.5 * np.sqrt(before.var[near].max())


def test_variable_star_does_not_enter_the_kernel():
    """LAP-30: one bright star 30 % brighter in one image: the flux ratio of the rest stands, and its light is left."""
    widths = (3.2, 2.5)
    science, template, (x, y, flux) = make_pair(*widths)
    i = int(np.argmax(np.where((x > 40) & (x < 360) & (y > 40) & (y < 360), flux, 0)))
    science.sci += draw_moffat(400, [x[i]], [y[i]], [0.3 * flux[i]], 3.2, e=0.05).astype(np.float32)
    difference = subtract(science, template, widths)
    assert difference.kernel_sum == pytest.approx(1.02, abs=0.015)
    at = difference.image.sci[round(y[i]) - 3 : round(y[i]) + 4, round(x[i]) - 3 : round(x[i]) + 4]
    assert at.sum() > 0.15 * flux[i]


def test_seeing_far_apart_is_matched():
    """LAP-30: 0.7″ against 3″ (2.7 and 11.5 px): stars leave less than 2 % of their flux; noise as stated."""
    widths = (11.5, 2.7)
    science, template, (x, y, flux) = make_pair(*widths, n=600, n_stars=60, noise=(4.0, 2.0))
    difference = subtract(science, template, widths, DiffLimits(kernel=KernelLimits(min_stamp_snr=10)))
    image = difference.image
    assert difference.sky_chi == pytest.approx(1.0, abs=0.1)
    bright = [k for k in np.argsort(-flux)[:8] if 60 < x[k] < 540 and 60 < y[k] < 540]
    assert len(bright) >= 3
    for k in bright:
        cut = np.s_[round(y[k]) - 10 : round(y[k]) + 11, round(x[k]) - 10 : round(x[k]) + 11]
        assert abs(image.sci[cut].sum()) < 0.02 * flux[k] + 4 * np.sqrt(image.var[cut].sum() * difference.noisecov)


def test_scale_of_both_images_does_not_matter():
    """LAP-30: images and variances in other units give the same difference in these units."""
    widths = (3.2, 2.5)
    science, template, _ = make_pair(*widths)
    plain = subtract(science, template, widths)
    scaled = [replace(one, sci=one.sci * np.float32(64), var=one.var * np.float32(4096)) for one in (science, template)]
    times = subtract(*scaled, widths)
    assert times.kernel_sum == pytest.approx(plain.kernel_sum, rel=1e-6)
    away = np.abs(times.image.sci / 64 - plain.image.sci)[plain.image.usable]
    assert away.max() < 1e-2 * np.sqrt(np.median(plain.image.var))
