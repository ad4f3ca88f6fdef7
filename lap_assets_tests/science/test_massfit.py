"""Shear profiles and NFW masses: exact on noiseless data, unbiased with honest errors on noisy fields."""

import numpy as np
import pandas as pd
import pytest

from lap_assets.errors import UnprocessableData
from lap_assets.science.cosmology import lens_geometry
from lap_assets.science.massfit import fit_halo, measure_profile
from lap_assets.science.massmap import ShearSample
from lap_assets.science.nfw import mean_concentration, reduced_shear, shear
from lap_assets_tests.science.lensing_fields import lensed_sample

GEOMETRY = lens_geometry(0.2, 0.8)
EDGES = np.geomspace(0.2, 2.0, 9)


def perfect_profile(mass, c, formula=reduced_shear, error=0.01):
    radius = np.sqrt(EDGES[1:] * EDGES[:-1])
    return pd.DataFrame({"radius_mpc": radius, "gamma_t": formula(radius, mass, c, GEOMETRY), "gamma_err": error})


@pytest.mark.parametrize("mass", [2e14, 1e15, 3e15])
def test_fit_returns_the_mass_that_made_the_profile(mass):
    """LV-23: to 1e-3, with the concentration fixed, tied to the mass, or free (then it too)."""
    fixed = fit_halo(perfect_profile(mass, 4.0), GEOMETRY, 4.0)
    tied = fit_halo(perfect_profile(mass, mean_concentration(mass, 0.2)), GEOMETRY)
    free = fit_halo(perfect_profile(mass, 6.0), GEOMETRY, "free")
    assert fixed.m200c_msun == pytest.approx(mass, rel=1e-3)
    assert tied.m200c_msun == pytest.approx(mass, rel=1e-3)
    assert free.m200c_msun == pytest.approx(mass, rel=1e-2)
    assert free.c200c == pytest.approx(6.0, rel=1e-2)
    assert (fixed.dof, free.dof) == (7, 6)
    assert fixed.snr == pytest.approx(np.sqrt(fixed.chi2_null - fixed.chi2))


def test_fitting_shear_as_if_it_were_reduced_is_biased():
    """Negative: galaxies show g = gamma / (1 - kappa); a profile of gamma alone gives 5 % less at least."""
    fit = fit_halo(perfect_profile(1e15, 4.0, shear), GEOMETRY, 4.0)
    assert fit.m200c_msun < 0.95e15


def test_profile_of_a_noiseless_field_is_the_halos():
    """Rings' means over 10^5 galaxies drawn by GalSim: tangential within 1 %, no cross shear."""
    sample = lensed_sample(np.random.default_rng(1), 22.0, 250.0, 1e15, 1e-9, x0=0.4, y0=-0.3)
    profile = measure_profile(sample, 0.4, -0.3, EDGES, GEOMETRY.mpc_per_arcmin)
    expected = reduced_shear(profile["radius_mpc"].to_numpy(), 1e15, 4.0, GEOMETRY)
    assert profile["gamma_t"].to_numpy() == pytest.approx(expected, rel=0.01)
    assert np.abs(profile["gamma_x"]).max() < 1e-6
    inside = np.hypot(sample.x - 0.4, sample.y + 0.3) * GEOMETRY.mpc_per_arcmin
    assert profile["n"].sum() == np.count_nonzero((inside >= EDGES[0]) & (inside < EDGES[-1]))


def test_masses_are_unbiased_and_errors_are_honest():
    """Forty fields of the demo's size: mean within 3 standard errors, scatter and chi2 as the errors say."""
    fits = []
    for seed in range(40):
        sample = lensed_sample(np.random.default_rng(100 + seed), 13.6, 30.0, 1e15, 0.3)
        profile = measure_profile(sample, 0.0, 0.0, EDGES, GEOMETRY.mpc_per_arcmin)
        fits.append(fit_halo(profile, GEOMETRY, 4.0))
    mass = np.array([fit.m200c_msun for fit in fits])
    error = np.array([(fit.m200c_plus_msun + fit.m200c_minus_msun) / 2 for fit in fits])
    assert abs(mass.mean() - 1e15) < 3 * mass.std() / np.sqrt(40)
    assert 0.75 < np.std((mass - 1e15) / error) < 1.3
    assert np.mean([fit.chi2 for fit in fits]) == pytest.approx(7.0, abs=3 * np.sqrt(14 / 40))


def test_a_field_without_a_lens_gives_no_significant_mass():
    sample = lensed_sample(np.random.default_rng(3), 13.6, 30.0, 0.0, 0.3)
    fit = fit_halo(measure_profile(sample, 0.0, 0.0, EDGES, GEOMETRY.mpc_per_arcmin), GEOMETRY)
    assert fit.snr < 3
    assert fit.m200c_msun < 4e14


def test_errors_of_rings_come_from_the_galaxies_and_follow_weights():
    """Doubling all weights changes nothing; galaxies of weight zero count for nothing."""
    sample = lensed_sample(np.random.default_rng(4), 10.0, 20.0, 1e15, 0.3)
    double = ShearSample(sample.x, sample.y, sample.g1, sample.g2, 2 * sample.weight)
    a, b = (measure_profile(s, 0.0, 0.0, EDGES, GEOMETRY.mpc_per_arcmin) for s in (sample, double))
    pd.testing.assert_frame_equal(a, b)
    assert a["gamma_err"].to_numpy() == pytest.approx(0.3 / np.sqrt(a["n"]), rel=0.35)
    none = ShearSample(sample.x, sample.y, sample.g1, sample.g2, 0 * sample.weight)
    assert not len(measure_profile(none, 0.0, 0.0, EDGES, GEOMETRY.mpc_per_arcmin))


def test_too_few_rings_are_unprocessable():
    with pytest.raises(UnprocessableData, match="2 rings, 3 are needed"):
        fit_halo(perfect_profile(1e15, 4.0).head(2), GEOMETRY)
