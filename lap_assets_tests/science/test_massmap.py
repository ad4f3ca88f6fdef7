"""Aperture-mass maps: filters, FFT against direct sums, expected S/N, peaks, and the B mode that must be empty."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from lap_assets.errors import BadInput, NoWork
from lap_assets.science.cosmology import lens_geometry
from lap_assets.science.massmap import (
    FILTERS,
    MapGrid,
    ShearSample,
    expected_aperture_snr,
    find_peaks,
    make_grid,
    map_aperture,
    measure_apertures,
    rotate_shears,
    spread_bilinear,
    weigh_gaussian,
    weigh_polynomial,
    weigh_schirmer,
)
from lap_assets_tests.science.lensing_fields import lensed_sample

RADIUS = 4.0


def compute_map(sample, radius=RADIUS, filter_name="schirmer", step=0.1, min_coverage=0.0):
    grid = make_grid(sample, step)
    return grid, map_aperture(sample, grid, radius, filter_name, min_coverage)


def test_schirmer_filter_has_the_values_of_its_formula():
    """numbers.md: tanh(x/0.15)/(x/0.15) / [1 + e^(6-150x) + e^(-47+50x)] / (pi R^2), at x = 0.1 and 0.5 by hand."""
    area = np.pi * RADIUS**2
    middle = np.tanh(2 / 3) / (2 / 3) / (1 + np.exp(-9.0) + np.exp(-42.0))
    outer = np.tanh(10 / 3) / (10 / 3) / (1 + np.exp(-69.0) + np.exp(-22.0))
    assert weigh_schirmer(np.array([0.4, 2.0]), RADIUS) * area == pytest.approx([middle, outer], rel=1e-9)
    assert weigh_schirmer(np.array([0.0, 4.01]), RADIUS) * area == pytest.approx([1 / (1 + np.exp(6.0)), 0.0], abs=1e-6)


@pytest.mark.parametrize("weigh", [weigh_gaussian, weigh_polynomial])
def test_filter_follows_from_its_convergence_filter(weigh):
    """Q(r) = 2/r^2 int_0^r s U(s) ds - U(r) with U a Gaussian, or the compensated polynomial of Schneider (1998)."""

    def kernel(s):
        x2 = (s / RADIUS) ** 2
        if weigh is weigh_gaussian:
            return np.exp(-x2) / (np.pi * RADIUS**2)
        return 9 / (np.pi * RADIUS**2) * (1 - x2) * (1 / 3 - x2)

    for r in (0.01, 0.5, 2.0, 3.9):
        q = 2 / r**2 * quad(lambda s: s * kernel(s), 0, r)[0] - kernel(r)
        assert weigh(np.array([r]), RADIUS)[0] == pytest.approx(q, rel=1e-4)


def test_unknown_filter_names_those_there_are():
    with pytest.raises(BadInput, match="schirmer, gaussian, polynomial"):
        expected_aperture_snr(4.0, 1e15, 4.0, lens_geometry(0.2, 0.8), 20.0, 0.3, "wavelet")


@pytest.mark.parametrize("filter_name", FILTERS)
def test_fft_map_equals_the_direct_sum(filter_name):
    """LV-22: within 1 % of the map's highest value, E and B, S/N and amplitude, edges included."""
    sample = lensed_sample(np.random.default_rng(1), 20.0, 30.0, 1e15, 0.3)
    sample = ShearSample(
        sample.x, sample.y, sample.g1, sample.g2, np.random.default_rng(2).uniform(0.5, 1.5, len(sample.x))
    )
    grid, maps = compute_map(sample, filter_name=filter_name)
    rng = np.random.default_rng(3)
    i, j = rng.integers(0, grid.nx, 60), rng.integers(0, grid.ny, 60)
    i[0], j[0] = grid.nx // 2, grid.ny // 2
    direct = measure_apertures(sample, grid.x0 + i * grid.step, grid.y0 + j * grid.step, RADIUS, filter_name)
    for name in ("e_mode", "b_mode", "snr", "snr_b"):
        scale = np.abs(getattr(maps, name.replace("b_mode", "e_mode").replace("_b", ""))).max()
        assert np.abs(getattr(maps, name)[j, i] - direct[name]).max() < 0.01 * scale


def test_a_grid_too_coarse_for_the_filter_would_not_equal_the_direct_sum(monkeypatch):
    """Negative: without the finer grid the sharp centre of the Schirmer filter is missed by more than 1 %."""
    coarse = dataclasses.replace(FILTERS["schirmer"], finest=1.0)
    monkeypatch.setitem(FILTERS, "schirmer", coarse)
    sample = lensed_sample(np.random.default_rng(1), 20.0, 30.0, 1e15, 0.3)
    grid, maps = compute_map(sample, step=0.2)
    j, i = np.mgrid[0 : grid.ny : 5, 0 : grid.nx : 5].reshape(2, -1)
    direct = measure_apertures(sample, grid.x0 + i * grid.step, grid.y0 + j * grid.step, RADIUS)
    assert np.abs(maps.snr[j, i] - direct["snr"]).max() > 0.015 * maps.snr.max()


@pytest.mark.parametrize(
    "z, mass, radius, expected",
    [
        (0.2, 1e15, 4, 8.2), (0.2, 1e15, 12, 11.4), (0.2, 1e15, 30, 12.0),
        (0.1, 1e15, 8, 9.2), (0.1, 3e14, 4, 3.4), (0.1, 3e14, 30, 6.2),
    ],
)  # fmt: skip
def test_expected_snr_is_that_of_the_reference_table(z, mass, radius, expected):
    """numbers.md, lensing reference values: n = 20, sigma = 0.3, c = 4, z_s = 0.8; x 0.71 for n = 10."""
    geometry = lens_geometry(z, 0.8)
    assert expected_aperture_snr(radius, mass, 4.0, geometry, 20.0, 0.3) == pytest.approx(expected, abs=0.06)
    half = expected_aperture_snr(radius, mass, 4.0, geometry, 10.0, 0.3)
    assert half == pytest.approx(0.7071 * expected_aperture_snr(radius, mass, 4.0, geometry, 20.0, 0.3), rel=1e-4)


def test_snr_at_the_lens_averages_to_the_expected():
    """Forty fields: mean within 3 standard errors, scatter 1 (S/N is in units of its own noise); B averages to 0."""
    geometry = lens_geometry(0.2, 0.8)
    rows = []
    for seed in range(40):
        sample = lensed_sample(np.random.default_rng(seed), 9.0, 20.0, 1e15, 0.3)
        rows.append(measure_apertures(sample, np.zeros(1), np.zeros(1), RADIUS).iloc[0])
    snr, b = np.array([row["snr"] for row in rows]), np.array([row["snr_b"] for row in rows])
    expected = expected_aperture_snr(RADIUS, 1e15, 4.0, geometry, 20.0, 0.3)
    assert abs(snr.mean() - expected) < 3 / np.sqrt(40)
    assert 0.7 < snr.std() < 1.3
    assert abs(b.mean()) < 3 / np.sqrt(40)


def test_peak_lies_at_the_lens_and_b_mode_is_noise():
    """Field of the demo (13.6', 30 per arcmin^2): highest peak within 0.5' of the lens, B mode as without any lens."""
    sample = lensed_sample(np.random.default_rng(5), 13.6, 30.0, 1e15, 0.3, x0=0.7, y0=-1.1)
    grid, maps = compute_map(sample, 6.0, min_coverage=0.3)
    peak = find_peaks(maps.snr, 3.5, 10.0).iloc[0]
    x, y = grid.x0 + grid.step * peak["x"], grid.y0 + grid.step * peak["y"]
    assert peak["snr"] > 8
    assert np.hypot(x - 0.7, y + 1.1) < 0.5
    empty = lensed_sample(np.random.default_rng(5), 13.6, 30.0, 0.0, 0.3)
    _, noise = compute_map(empty, 6.0, min_coverage=0.3)
    covered = maps.coverage > 0.3
    assert maps.snr_b[covered].std() == pytest.approx(noise.snr_b[covered].std(), abs=0.15)
    assert np.abs(maps.snr_b).max() < 4.5


def test_shapes_turned_by_45_degrees_swap_e_and_b():
    """Negative of the B-mode test: what is no lensing shows in B."""
    sample = lensed_sample(np.random.default_rng(5), 10.0, 30.0, 1e15, 0.1)
    turned = ShearSample(sample.x, sample.y, -sample.g2, sample.g1, sample.weight)
    _, maps = compute_map(sample)
    _, swapped = compute_map(turned)
    assert maps.snr.max() > 10
    assert swapped.snr_b == pytest.approx(maps.snr, abs=1e-9)
    assert swapped.snr == pytest.approx(-maps.snr_b, abs=1e-9)


def test_amplitude_does_not_depend_on_coverage():
    """Half of the field thinned out to a quarter: E mode at the lens the same within its noise, S/N lower."""
    rng = np.random.default_rng(8)
    full = lensed_sample(rng, 10.0, 200.0, 1e15, 0.05)
    keep = (full.x < 0) | (rng.uniform(size=len(full.x)) < 0.25)
    thin = ShearSample(*(getattr(full, k)[keep] for k in ("x", "y", "g1", "g2", "weight")))
    a, b = (measure_apertures(s, np.zeros(1), np.zeros(1), RADIUS).iloc[0] for s in (full, thin))
    assert b["e_mode"] == pytest.approx(a["e_mode"], rel=0.02)
    assert b["snr"] < 0.9 * a["snr"]


def test_points_with_too_little_coverage_are_zero_and_all_is_finite():
    sample = lensed_sample(np.random.default_rng(9), 10.0, 20.0, 1e15, 0.3)
    hole = np.hypot(sample.x - 3, sample.y - 3) > 3.0
    sample = ShearSample(*(getattr(sample, k)[hole] for k in ("x", "y", "g1", "g2", "weight")))
    grid, maps = compute_map(sample, 1.0, min_coverage=0.3)
    i, j = round((3 - grid.x0) / grid.step), round((3 - grid.y0) / grid.step)
    for plane in (maps.e_mode, maps.b_mode, maps.snr, maps.snr_b):
        assert np.isfinite(plane).all()
        assert plane[j, i] == 0.0
    assert np.count_nonzero(maps.snr) > 0.5 * maps.snr.size


def test_no_galaxy_is_no_work():
    nothing = np.zeros(0)
    with pytest.raises(NoWork, match="no background galaxy"):
        make_grid(ShearSample(nothing, nothing, nothing, nothing, nothing), 0.1)


def test_one_galaxy_makes_a_finite_map():
    one = np.array([0.31])
    _, maps = compute_map(ShearSample(one, one, one * 0.1, one * 0.1, one))
    assert np.isfinite(maps.snr).all()


@settings(deadline=None)
@given(angle=st.floats(0, 2 * np.pi), radius=st.floats(0.01, 100), strength=st.floats(0.001, 0.9))
def test_tangential_stretch_is_positive_at_every_angle(angle, radius, strength):
    """A galaxy stretched at right angles to the line to the lens has g_t = g, g_x = 0."""
    along = angle + np.pi / 2
    g1, g2 = strength * np.cos(2 * along), strength * np.sin(2 * along)
    offset = np.array([radius * np.cos(angle)]), np.array([radius * np.sin(angle)])
    tangential, cross = rotate_shears(*offset, np.array([g1]), np.array([g2]))
    assert tangential[0] == pytest.approx(strength, rel=1e-6)
    assert cross[0] == pytest.approx(0.0, abs=1e-6 * strength)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 4), st.floats(-5, 5)), min_size=1, max_size=20))
def test_spreading_keeps_sums_and_first_moments(points):
    x, y, value = np.array(points).T
    grid = MapGrid(0.0, 0.0, 0.5, 19, 9)
    plane = spread_bilinear(x, y, value, grid)
    yy, xx = np.mgrid[0:9, 0:19] * 0.5
    assert plane.sum() == pytest.approx(value.sum(), abs=1e-9)
    assert (plane * xx).sum() == pytest.approx((value * x).sum(), abs=1e-8)
    assert (plane * yy).sum() == pytest.approx((value * y).sum(), abs=1e-8)


def test_peaks_are_found_at_sub_pixel_places_highest_first():
    yy, xx = np.mgrid[0:60, 0:80]
    plane = sum(
        a * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / 50.0)
        for x, y, a in ((20.3, 30.7, 5), (60.0, 15.4, 8), (40, 50, 2))
    )
    peaks = find_peaks(plane, 3.0, 10.0)
    assert peaks["x"].to_numpy() == pytest.approx([60.0, 20.3], abs=0.05)
    assert peaks["y"].to_numpy() == pytest.approx([15.4, 30.7], abs=0.05)
    assert len(find_peaks(plane, 9.0, 10.0)) == 0


def test_a_peak_at_the_border_is_kept_in_the_map():
    plane = np.zeros((10, 10))
    plane[0, 9] = 5.0
    peaks = find_peaks(plane, 3.0, 2.0)
    assert peaks[["x", "y"]].to_numpy().tolist() == [[9.0, 0.0]]
