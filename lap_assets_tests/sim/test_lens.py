"""The lens against formulas written down anew here: Wright & Brainerd (2000), and the table of expected S/N."""

import numpy as np
import pytest
from astropy import constants, units
from astropy.cosmology import FlatLambdaCDM

from lap_assets.sim.design import LensDesign, make_design
from lap_assets.sim.lens import Lens, deproject_tangent, predict_snr, project_tangent
from lap_assets.sim.sky import image_maps, lens_galaxies

LENS = Lens(LensDesign(), 150.0, 2.0)
COSMOLOGY = FlatLambdaCDM(H0=70.0, Om0=0.3)


def nfw(radius_arcsec, z_source, mass=1e15, c=4.0, z=0.2):
    """Convergence and mean convergence of an NFW halo (Wright & Brainerd 2000, eqs. 11 and 13)."""
    rho = COSMOLOGY.critical_density(z)
    r200 = (3 * mass * units.Msun / (4 * np.pi * 200 * rho)) ** (1 / 3)
    rs = (r200 / c).to(units.Mpc)
    delta = 200 / 3 * c**3 / (np.log(1 + c) - c / (1 + c))
    d_l, d_s = COSMOLOGY.angular_diameter_distance(z), COSMOLOGY.angular_diameter_distance(z_source)
    d_ls = d_s - d_l * (1 + z) / (1 + z_source)
    critical = constants.c**2 / (4 * np.pi * constants.G) * d_s / (d_l * d_ls)
    amplitude = float((rs * delta * rho / critical).to(1))
    x = radius_arcsec / 206264.806 * float(d_l / rs)
    inside = x < 1
    low, high = np.minimum(x, 0.999999), np.maximum(x, 1.000001)
    arc = np.where(
        inside,
        2 / np.sqrt(1 - low**2) * np.arctanh(np.sqrt((1 - low) / (1 + low))),
        2 / np.sqrt(high**2 - 1) * np.arctan(np.sqrt((high - 1) / (1 + high))),
    )
    kappa = 2 * amplitude / (x**2 - 1) * (1 - arc)
    return kappa, 4 * amplitude / x**2 * (arc + np.log(x / 2))


def test_convergence_and_shear_are_those_of_an_nfw_halo_of_1e15_msun():
    radius = np.array([20.0, 60.0, 150.0, 400.0, 900.0])
    kappa, gamma = LENS.compute_profile(radius, np.full(5, 0.8))
    expected, mean = nfw(radius, 0.8)
    np.testing.assert_allclose(kappa, expected, rtol=3e-3)
    np.testing.assert_allclose(gamma, mean - expected, rtol=3e-3)


def test_mass_is_not_that_of_a_halo_in_msun_per_h():
    """GalSim's NFWHalo wants Msun/h; handing it Msun would give a lens 1.43 times too heavy."""
    kappa, _ = LENS.compute_profile(np.array([150.0]), np.array([0.8]))
    wrong, _ = nfw(np.array([150.0]), 0.8, mass=1e15 / 0.7)
    assert abs(kappa[0] / wrong[0] - 1) > 0.15


def test_images_are_displaced_outwards_by_the_deflection():
    source = np.array([40.0, 100.0, 300.0])
    seen = LENS.displace(source, np.full(3, 0.9))
    _, mean = nfw(seen, 0.9)
    assert np.all(seen > source)
    np.testing.assert_allclose(seen - source, seen * mean, rtol=4e-3)
    assert 5.0 < seen[2] - source[2] < 40.0


def test_sources_in_front_of_the_lens_are_left_alone():
    z = np.array([0.1, 0.2])
    np.testing.assert_array_equal(LENS.compute_efficiency(z), 0.0)
    np.testing.assert_allclose(LENS.displace(np.array([30.0, 90.0]), z), [30.0, 90.0], atol=1e-6)


def test_lensed_positions_lie_on_the_line_from_the_lens_and_shear_is_tangential():
    design = make_design("demo", 1)
    from lap_assets.sim.sky import _galaxy_table

    angle = np.radians(np.array([0.0, 45.0, 120.0, 200.0, 300.0]))
    east, north = 200.0 / 3600 * np.cos(angle), 200.0 / 3600 * np.sin(angle)
    before = _galaxy_table(design, east, north, np.full(5, 0.9), np.full(5, 0.5), np.full(5, 22.0))
    after = lens_galaxies(before, LENS)
    seen_east, seen_north = (3600 * v for v in project_tangent(after["ra"], after["dec"], 150.0, 2.0))
    np.testing.assert_allclose(np.arctan2(seen_north, seen_east) - angle, [0, 0, 0, -2 * np.pi, -2 * np.pi], atol=1e-6)
    radius = np.hypot(seen_east, seen_north)
    assert np.all(radius > 210.0)
    kappa, mean = nfw(radius, 0.9)
    # tangential and cross components in the (west, north) frame
    phi = np.arctan2(seen_north, -seen_east)
    tangential = -(after["g1"] * np.cos(2 * phi) + after["g2"] * np.sin(2 * phi))
    cross = after["g1"] * np.sin(2 * phi) - after["g2"] * np.cos(2 * phi)
    np.testing.assert_allclose(tangential, (mean - kappa) / (1 - kappa), rtol=5e-3)
    np.testing.assert_allclose(cross, 0.0, atol=1e-6)
    np.testing.assert_allclose(after["magnification"], 1 / ((1 - kappa) ** 2 - (mean - kappa) ** 2), rtol=5e-3)
    np.testing.assert_allclose(before["mag_r"] - after["mag_r"], 2.5 * np.log10(after["magnification"]), rtol=1e-9)


def test_images_have_the_shape_galsim_gives_them():
    galsim = pytest.importorskip("galsim")
    design = make_design("demo", 1)
    from lap_assets.sim.sky import _galaxy_table

    table = _galaxy_table(design, np.zeros(1), np.zeros(1), np.ones(1), np.array([0.7]), np.array([22.0]))
    table["e1"], table["e2"], table["g1"], table["g2"], table["magnification"] = 0.2, -0.3, 0.08, 0.05, 1.4
    theirs = galsim.Exponential(half_light_radius=1.0).dilate(0.7).shear(g1=0.2, g2=-0.3).lens(0.08, 0.05, 1.4)
    np.testing.assert_allclose(image_maps(table)[0], np.asarray(theirs.jac).reshape(2, 2), atol=1e-10)


def test_expected_snr_is_that_of_the_reference_table():
    """numbers.md: z = 0.2, 1e15 Msun, n = 20 per square arcmin, sigma_e = 0.3: 8.2 at 4', 10.5 at 8', 11.4 at 12'."""
    rng = np.random.default_rng(5)
    half, expected = 780.0, {4.0: 8.2, 8.0: 10.5, 12.0: 11.4}
    count = int(20 * (2 * half / 60) ** 2)
    radius = np.hypot(*rng.uniform(-half, half, (2, count)))
    kappa, gamma = LENS.compute_profile(np.maximum(radius, 15.0), np.full(count, 0.8))
    for arcmin, value in expected.items():
        assert predict_snr(radius, gamma / (1 - kappa), 0.3, 60 * arcmin) == pytest.approx(value, rel=0.06)


def test_tangent_plane_round_trip_at_any_declination():
    for dec0 in (-89.0, -30.0, 0.0, 60.0):
        ra, dec = deproject_tangent(np.array([0.3, -0.2]), np.array([0.1, 0.4]), 359.9, dec0)
        east, north = project_tangent(ra, dec, 359.9, dec0)
        np.testing.assert_allclose(east, [0.3, -0.2], atol=1e-12)
        np.testing.assert_allclose(north, [0.1, 0.4], atol=1e-12)
