"""Differences: kernel and background, both directions, noise, masks, sources, and a real DECam pair."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from lap_assets.errors import UnprocessableData
from lap_assets.model.image import Mask, MaskedImage
from lap_assets.science.diff import subtract_images
from lap_assets.science.diff_sources import MoffatPsf, SourceFlag, detect_sources, filter_image, measure_psf
from lap_assets.science.matching_kernel import KernelLimits, make_basis
from lap_assets_tests.science.difference_fields import add_cosmic_rays, draw_moffat, make_pair

DECAM = Path(__file__).parents[3] / "shared" / "data" / "decam_stack_diff"
# (seeing of science, of template): template convolved, science convolved, alike
PAIRS = [(3.2, 2.5), (2.5, 3.2), (3.0, 3.0)]


def plain_wcs():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.cd = np.diag([-0.4, 0.4]) / 3600
    wcs.wcs.set()
    return wcs


def find(science, template, widths, limits=None):
    difference = subtract_images(science, template, *widths, limits)
    broad = science if difference.convolved == "template" else template
    psf = measure_psf(broad, max(widths))
    return difference, psf, detect_sources(difference, template, psf, plain_wcs())


def test_basis_sums():
    """The first member has sum 1, the others 0: only one coefficient carries flux (Alard 2000)."""
    members = make_basis(1.5).images
    assert members.shape[0] == 31
    sums = members.sum(axis=(1, 2))
    assert sums[0] == pytest.approx(1.0)
    assert np.abs(sums[1:]).max() < 1e-12


@pytest.mark.parametrize("widths", PAIRS)
def test_stars_vanish_and_the_noise_is_as_stated(widths):
    """Sky χ 1.00 ± 0.05 with correlated noise, flux ratio to 1 %, stars gone into the noise; LV-17."""
    science, template, _ = make_pair(*widths)
    difference = subtract_images(science, template, *widths)
    image = difference.image
    ratio = difference.kernel_sum if difference.convolved == "template" else 1 / difference.kernel_sum
    assert ratio == pytest.approx(1.02, abs=0.01)
    assert difference.convolved == ("template" if widths[0] >= widths[1] else "science")
    assert difference.sky_chi == pytest.approx(1.0, abs=0.05)
    good = image.usable
    chi = image.sci[good] / np.sqrt(image.var[good])
    assert np.std(chi) == pytest.approx(1.0, abs=0.07)
    # on bright stars too, where plain subtraction does not
    cores = good & (template.sci > 30 * np.sqrt(template.var))
    plain = (science.sci - template.sci) / np.sqrt(science.var + template.var)
    assert cores.sum() > 100
    left = np.std(image.sci[cores] / np.sqrt(image.var[cores]))
    assert left < 1.3
    assert np.std(plain[cores]) > 1.5 * left
    # a constant sky difference is gone
    assert abs(np.median(image.sci[good])) < 0.5
    psf = MoffatPsf(difference.fwhm_px, 3.5)
    _, snr = filter_image(image, psf, difference.correlation)
    assert 1.4826 * np.median(np.abs(snr[good])) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("widths", PAIRS)
def test_injected_sources_are_found_with_their_flux(widths):
    """25 new sources of both signs at S/N > 8, away from bright stars: all but one found, unflagged, right flux; ≤ 3
    false.
    """
    rng = np.random.default_rng(3)
    _, _, (x, y, flux) = make_pair(*widths)
    gx, gy = np.meshgrid(np.linspace(40, 360, 9), np.linspace(40, 360, 9))
    places = np.column_stack([gx.ravel(), gy.ravel()]) + rng.uniform(-3, 3, (81, 2))
    far = cKDTree(np.column_stack([x, y])[flux > 3000]).query(places)[0] > 12
    places = places[far][:25]
    assert len(places) == 25
    amplitude = rng.choice([-1, 1], 25) * rng.uniform(1500, 6000, 25)
    science, template, _ = make_pair(*widths, changes=np.column_stack([places, amplitude]))
    difference, _, sources = find(science, template, widths)
    clean = sources[sources["flags"] == 0]
    distance, index = cKDTree(places).query(clean[["x", "y"]].to_numpy())
    mine = distance < 1.2
    assert len(set(index[mine])) >= 24
    assert (~mine).sum() <= 3
    truth = amplitude[index[mine]]
    if difference.convolved == "science":
        truth = truth * difference.kernel_sum
    found = clean[mine]
    assert np.median(found["flux"] / truth) == pytest.approx(1.0, abs=0.03)
    pull = (found["flux"] - truth) / found["flux_err"]
    assert np.sqrt(np.mean(np.clip(pull, -5, 5) ** 2)) < 1.6
    assert (np.sign(found["snr"]) == np.sign(truth)).all()


def test_masked_cosmic_rays_make_no_sources_unmasked_ones_are_flagged():
    for masked in (True, False):
        science, template, _ = make_pair(3.2, 2.5)
        add_cosmic_rays(science, masked=masked)
        _, _, sources = find(science, template, (3.2, 2.5))
        bright = sources[sources["snr"] > 8]
        clean = bright[bright["flags"] == 0]
        if masked:
            assert len(clean) <= 1
        else:
            assert len(bright) > 40
            unlike = (bright["flags"] & (int(SourceFlag.NOT_PSF) | int(SourceFlag.DIPOLE))) > 0
            assert unlike.mean() > 0.9


def test_masked_pixels_of_the_convolved_image_do_not_spread():
    """Bad template pixels of 1e6 under 60 masks: nothing usable is touched by them."""
    science, template, _ = make_pair(3.2, 2.5)
    before = subtract_images(science, template, 3.2, 2.5).image
    rng = np.random.default_rng(4)
    for x, y in rng.integers(20, 380, (60, 2)):
        template.sci[y, x] = 1e6
        template.mask[y, x] |= int(Mask.BAD)
    after = subtract_images(science, template, 3.2, 2.5).image
    good = after.usable & before.usable
    assert good.sum() > 0.95 * before.usable.sum()
    sky = good & (science.sci < 100)
    change = np.abs(after.sci - before.sci)[sky] / np.sqrt(before.var[sky])
    assert np.percentile(change, 99.9) < 1.0
    assert np.isfinite(after.sci).all()
    assert np.isfinite(after.var).all()


def test_residuals_beside_saturated_stars_and_on_bright_cores_are_flagged():
    science, template, (x, y, flux) = make_pair(3.2, 2.5)
    inside = [i for i in np.argsort(-flux)[:12] if 30 < x[i] < 370 and 30 < y[i] < 370]
    saturated, varied = inside[0], inside[1]
    ix, iy = round(x[saturated]), round(y[saturated])
    science.mask[iy - 1 : iy + 2, ix - 1 : ix + 2] |= int(Mask.SATURATED)
    extra = [(ix + 6.0, iy, 4000.0), (x[varied], y[varied], 0.03 * flux[varied])]
    science.sci += draw_moffat(400, *np.array(extra).T, 3.2, e=0.03).astype(np.float32)
    _, _, sources = find(science, template, (3.2, 2.5))
    for (px, py, _), flag in zip(extra, (SourceFlag.NEAR_SATURATED, SourceFlag.BRIGHT_CORE), strict=True):
        near = sources[np.hypot(sources["x"] - px, sources["y"] - py) < 2]
        assert len(near) == 1
        assert near["flags"].iloc[0] & int(flag)


def test_misplaced_star_is_a_dipole():
    science, template, _ = make_pair(3.0, 3.0, changes=[(200.8, 150.0, 20000)])
    template.sci += draw_moffat(400, [200.0], [150.0], [20000], 3.0).astype(np.float32)
    _, _, sources = find(science, template, (3.0, 3.0))
    near = np.hypot(sources["x"] - 200.4, sources["y"] - 150) < 5
    assert near.sum() >= 2
    assert (sources["flags"][near] & int(SourceFlag.DIPOLE)).all()


def test_variable_star_does_not_enter_the_kernel():
    """One bright star 30 % brighter in one image: its stamps are rejected, the flux ratio of the rest stands."""
    science, template, (x, y, flux) = make_pair(3.2, 2.5)
    i = int(np.argmax(np.where((x > 40) & (x < 360) & (y > 40) & (y < 360), flux, 0)))
    science.sci += draw_moffat(400, [x[i]], [y[i]], [0.3 * flux[i]], 3.2, e=0.03).astype(np.float32)
    difference = subtract_images(science, template, 3.2, 2.5)
    assert difference.n_rejected >= 1
    assert difference.kernel_sum == pytest.approx(1.02, abs=0.01)
    at = difference.image.sci[round(y[i]) - 3 : round(y[i]) + 4, round(x[i]) - 3 : round(x[i]) + 4]
    assert at.sum() > 0.15 * flux[i]


def test_varying_psf_needs_the_varying_kernel():
    """Seeing that changes by 12 % across the science image: order 1 leaves less than half the χ² excess of order 0."""
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
        image = subtract_images(*images, 3.2, 2.5, KernelLimits(kernel_order=order)).image
        good = image.usable
        excess.append(np.mean(image.sci[good] ** 2 / image.var[good]) - 1.0)
    assert excess[1] < 0.5 * excess[0]


def test_nothing_in_common_is_said():
    science, template, _ = make_pair(3.0, 2.5)
    template.mask[:] = int(Mask.NO_DATA)
    template.var[:] = 0
    with pytest.raises(UnprocessableData, match="no unsaturated object"):
        subtract_images(science, template, 3.0, 2.5)


def test_psf_of_stars_among_galaxies():
    rng = np.random.default_rng(6)
    n = 400
    gx, gy = np.meshgrid(np.linspace(30, 370, 8), np.linspace(30, 370, 8))
    x, y = gx.ravel() + rng.uniform(-4, 4, 64), gy.ravel() + rng.uniform(-4, 4, 64)
    truth = draw_moffat(n, x[:40], y[:40], np.full(40, 5e4), 2.8)
    for k, width in enumerate(np.linspace(3.6, 7.0, 24)):
        truth += draw_moffat(n, x[40 + k : 41 + k], y[40 + k : 41 + k], [8e4], width)
    sci = (truth + rng.normal(0, 10, (n, n))).astype(np.float32)
    psf = measure_psf(MaskedImage(sci, np.zeros((n, n), np.int16), np.full((n, n), 100, np.float32)), 3.2)
    assert psf.n_stars >= 15
    assert psf.fwhm_px == pytest.approx(2.8, rel=0.03)
    blank = MaskedImage(np.zeros((99, 99), np.float32), np.zeros((99, 99), np.int16), np.ones((99, 99), np.float32))
    assert measure_psf(blank, 3.2) == MoffatPsf(3.2, 3.5)


def read_decam(name):
    sci = fits.getdata(DECAM / "4check" / f"Stack-DEC-{name}.fits").astype(np.float32)
    sigma = 1.4826 * np.median(np.abs(sci - np.median(sci)))
    variance = sigma**2 + np.clip(sci, 0, None) / 16.0
    return MaskedImage(sci, np.zeros(sci.shape, np.int16), variance.astype(np.float32))


@pytest.mark.skipif(not DECAM.is_dir(), reason="no real DECam frames: ../shared/data/decam_stack_diff is absent")
def test_decam_residual_is_found():
    """The real source at (128.6, 127.6): over 5σ, unflagged, upstream's sign, flux within 10 % of upstream's
    difference.
    """
    old, new = read_decam("OBS04"), read_decam("OBS18")
    widths = measure_psf(old, 4.5).fwhm_px, measure_psf(new, 4.5).fwhm_px
    difference, psf, sources = find(old, new, widths)
    upstream = fits.getdata(DECAM / "4check" / "FinalDifference.fits").astype(np.float32)
    theirs = MaskedImage(upstream, np.zeros(upstream.shape, np.int16), np.full(upstream.shape, 100, np.float32))
    expected, _ = filter_image(theirs, psf, difference.correlation)
    clean = sources[sources["flags"] == 0]
    assert len(clean) <= 8  # upstream's difference has dipoles at three bright stars
    at = np.hypot(clean["x"] - 128.6, clean["y"] - 127.6)
    source = clean.loc[at.idxmin()]
    assert at.min() < 0.5
    assert source["snr"] > 20
    assert source["flux"] == pytest.approx(float(expected[126:130, 127:131].max()), rel=0.1)
