"""The NFW lens against a projection done by quadrature, and against GalSim."""

import numpy as np
import pytest
from astropy import constants, units
from astropy.cosmology import FlatLambdaCDM
from scipy.integrate import quad

from lap_assets.errors import BadInput
from lap_assets.science.cosmology import lens_geometry
from lap_assets.science.nfw import convergence, mean_concentration, r200c_mpc, reduced_shear, shear
from lap_assets_tests.science.lensing_fields import GALSIM_ROUNDING, Z_SOURCE, galsim_halo

RADII = np.array([0.05, 0.2, 0.45, 0.483, 0.6, 1.0, 2.0, 3.0])
GEOMETRY = lens_geometry(0.2, Z_SOURCE)


def project_by_quadrature(radius, mass, c, geometry):
    """Surface density of rho_s / (x (1 + x)^2) along the line of sight, in units of the critical one."""
    rs = r200c_mpc(mass, geometry) / c
    rho_s = 200 / 3 * c**3 / (np.log(1 + c) - c / (1 + c)) * geometry.rho_crit_msun_mpc3

    def density(t):
        x = radius * np.cosh(t) / rs  # line of sight z = R sinh t
        return rho_s / (x * (1 + x) ** 2) * radius * np.cosh(t)

    return 2 * quad(density, 0, 20, epsrel=1e-9)[0] / geometry.sigma_crit_msun_mpc2


def test_geometry_is_astropys():
    universe = FlatLambdaCDM(H0=70, Om0=0.3)
    d_l, d_s = (universe.angular_diameter_distance(z) for z in (0.2, 0.8))
    d_ls = (universe.comoving_distance(0.8) - universe.comoving_distance(0.2)) / 1.8
    critical = constants.c**2 / (4 * np.pi * constants.G) * d_s / (d_l * d_ls)
    assert GEOMETRY.sigma_crit_msun_mpc2 == pytest.approx(critical.to_value(units.Msun / units.Mpc**2), rel=1e-9)
    assert GEOMETRY.mpc_per_arcmin == pytest.approx(0.19798, rel=1e-4)  # 3.3 kpc per arcsec


@pytest.mark.parametrize("z_lens, z_source", [(0.8, 0.2), (0.0, 0.8), (0.3, 0.3)])
def test_sources_in_front_of_the_lens_are_refused(z_lens, z_source):
    with pytest.raises(BadInput, match="lens redshift"):
        lens_geometry(z_lens, z_source)


def test_convergence_is_the_projected_density():
    expected = [project_by_quadrature(r, 1e15, 4.0, GEOMETRY) for r in RADII]
    assert convergence(RADII, 1e15, 4.0, GEOMETRY) == pytest.approx(expected, rel=1e-6)


def test_shear_is_mean_minus_local_convergence():
    for radius in RADII:
        mean = 2 / radius**2 * quad(lambda r: r * convergence(np.array([r]), 1e15, 4.0, GEOMETRY)[0], 0, radius)[0]
        local = convergence(np.array([radius]), 1e15, 4.0, GEOMETRY)[0]
        assert shear(np.array([radius]), 1e15, 4.0, GEOMETRY)[0] == pytest.approx(mean - local, rel=1e-5)


@pytest.mark.filterwarnings("ignore:'where' used without 'out'")  # GalSim's own use of numpy
@pytest.mark.parametrize("mass, c, z", [(1e15, 4.0, 0.2), (3e14, 5.0, 0.1), (2e14, 3.0, 0.5)])
def test_profiles_are_galsims_up_to_its_rounded_constants(mass, c, z):
    """GalSim's mass is Msun/h. The shape agrees twice as well as the amplitude."""
    geometry = lens_geometry(z, Z_SOURCE)
    halo = galsim_halo(mass, c, z)
    arcsec = RADII / geometry.mpc_per_arcmin * 60
    along, zero = [arcsec, np.zeros_like(arcsec)], np.zeros_like(arcsec)
    kappa = convergence(RADII, mass, c, geometry) / halo.getConvergence(along, Z_SOURCE)
    gamma = shear(RADII, mass, c, geometry) / -halo.getShear(along, Z_SOURCE, reduced=False)[0]
    g = reduced_shear(RADII, mass, c, geometry) / -halo.getShear(along, Z_SOURCE, reduced=True)[0]
    for ratio in (kappa, gamma, g):
        assert ratio == pytest.approx(1.0 + zero, abs=GALSIM_ROUNDING)
        assert np.ptp(ratio) < 1e-3


@pytest.mark.parametrize("profile", [shear, convergence])
def test_profiles_are_smooth_through_the_scale_radius(profile):
    """The closed forms are 0/0 there; steps of 1e-5 across the seams to the series stay equal to 1 %."""
    rs = r200c_mpc(1e15, GEOMETRY) / 4.0
    steps = np.diff(profile(rs * (1 + np.arange(-120, 121) * 1e-5), 1e15, 4.0, GEOMETRY))
    assert np.all(steps < 0)
    assert np.ptp(steps) < 0.01 * np.abs(steps.mean())


def test_concentration_of_a_cluster_is_about_four():
    """Dutton & Maccio (2014), figure 10: c200 = 4.0 at 1e15 Msun, 8.5 at 1e12/h, z = 0."""
    assert mean_concentration(1e15, 0.2) == pytest.approx(3.98, abs=0.02)
    assert mean_concentration(1e12 / 0.7, 0.0) == pytest.approx(10**0.905, rel=1e-6)
