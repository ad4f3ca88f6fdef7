"""Shapes of stars (LV-12): adaptive moments as GalSim's, their errors the scatter, Moffat profiles found."""

import galsim
import numpy as np
import pytest

from lap_assets.science.star_shapes import fit_moffat, measure_moments


def draw(profile, size=41, method="auto", offset=(0.0, 0.0)):
    return profile.drawImage(nx=size, ny=size, scale=1.0, method=method, offset=offset)


@pytest.mark.parametrize("fwhm", [2.1, 3.3, 5.0])
@pytest.mark.parametrize(("g1", "g2"), [(0.0, 0.0), (0.06, -0.03), (-0.2, 0.25)])
def test_moments_are_those_of_galsim(fwhm, g1, g2):
    """LV-12: size to 1e-4, ellipticity to 1e-4, centre to 1 mpx, off the middle of the pixel."""
    image = draw(galsim.Moffat(beta=3.0, fwhm=fwhm).shear(g1=g1, g2=g2), offset=(0.31, -0.42))
    theirs = galsim.hsm.FindAdaptiveMom(image)
    x, y, trace, e1, e2, *_ = measure_moments(image.array[None])[0]
    assert (e1, e2) == pytest.approx((theirs.observed_e1, theirs.observed_e2), abs=1e-4)
    # GalSim's sigma is the fourth root of the determinant of the covariance
    determinant = 0.25 * trace**2 * (1.0 - e1**2 - e2**2)
    assert determinant**0.25 == pytest.approx(theirs.moments_sigma, rel=1e-4)
    assert (x + 21, y + 21) == pytest.approx((theirs.moments_centroid.x, theirs.moments_centroid.y), abs=1e-3)


def test_errors_are_the_scatter():
    """LV-12: 600 noisy copies scatter by what is stated, to 15 per cent."""
    rng = np.random.default_rng(3)
    star = 2e5 * draw(galsim.Moffat(beta=3.5, fwhm=3.4), 25).array.astype(float)
    var = star + 600.0
    stars = star + rng.normal(size=(600, 25, 25)) * np.sqrt(var)
    found = measure_moments(stars, np.broadcast_to(var, stars.shape))
    assert np.isfinite(found).all()
    assert np.std(found[:, 2]) / np.mean(found[:, 2]) == pytest.approx(np.mean(found[:, 5]), rel=0.15)
    assert np.std(found[:, 3:5], axis=0) == pytest.approx(np.mean(found[:, 6]), rel=0.15)


def test_what_is_no_star_has_no_moments():
    rng = np.random.default_rng(4)
    nothing = np.stack([np.zeros((25, 25)), -np.ones((25, 25)), rng.normal(size=(25, 25)) - 0.5])
    assert np.isnan(measure_moments(nothing)[:2]).all()
    assert np.isnan(fit_moffat(np.zeros((25, 25)))).all()


@pytest.mark.parametrize("fwhm", [2.4, 3.3, 5.0])
@pytest.mark.parametrize("beta", [2.5, 3.5, 6.0])
def test_a_moffat_profile_is_found_again(fwhm, beta):
    """LV-12: FWHM to 2 per mille and beta to 2 per cent, elliptical and off centre."""
    profile = galsim.Moffat(beta=beta, fwhm=fwhm).shear(g1=0.05, g2=-0.08)
    stamp = draw(profile, method="no_pixel", offset=(0.2, 0.4)).array.astype(float)
    found_fwhm, found_beta = fit_moffat(stamp)
    assert found_fwhm == pytest.approx(fwhm, rel=2e-3)
    assert found_beta == pytest.approx(beta, rel=0.02)


def test_the_fwhm_does_not_depend_on_the_scale_of_the_values():
    stamp = draw(galsim.Moffat(beta=3.0, fwhm=3.0), method="no_pixel").array.astype(float)
    assert fit_moffat(1e6 * stamp) == pytest.approx(fit_moffat(stamp), rel=1e-6)


def test_a_gaussian_is_a_moffat_profile_of_large_beta():
    fwhm, beta = fit_moffat(draw(galsim.Gaussian(fwhm=3.0), method="no_pixel").array.astype(float))
    assert fwhm == pytest.approx(3.0, rel=0.005)
    assert beta > 15
