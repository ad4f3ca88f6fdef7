"""Geometry on the sphere: against astropy, by hand, and by invariants."""

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from hypothesis import given
from hypothesis import strategies as st

from lap_assets.errors import BadInput
from lap_assets.model.sphere import (
    bounding_cap,
    clip_half_space,
    deproject_tan,
    planar_area,
    positions,
    project_tan,
    separation_deg,
    tangent_basis,
    unit_vectors,
)

RNG = np.random.default_rng(3)
RA = RNG.uniform(-400, 400, 300)
DEC = np.concatenate([RNG.uniform(-90, 90, 296), [90.0, -90.0, 0.0, 89.99999]])


def test_positions_invert_unit_vectors():
    ra, dec = positions(unit_vectors(RA, DEC) * 3.0)
    assert ((ra >= 0.0) & (ra < 360.0)).all()
    np.testing.assert_allclose(unit_vectors(ra, dec), unit_vectors(RA, DEC), atol=1e-15)


def test_separations_agree_with_astropy_at_all_angles():
    """Arc cosines lose a mas at 20 arcsec; half chords lose nothing, from 1 µas to the antipode."""
    for offset in (1e-9, 1e-3, 1.0, 100.0, 179.9999):
        dec = np.clip(DEC + RNG.uniform(-offset, offset, 300), -90, 90)
        ra = RA + RNG.uniform(-offset, offset, 300)
        truth = SkyCoord(RA, DEC, unit="deg").separation(SkyCoord(ra, dec, unit="deg")).deg
        np.testing.assert_allclose(separation_deg(unit_vectors(RA, DEC), unit_vectors(ra, dec)), truth, atol=3e-13)


def test_tangent_plane_is_orthonormal_and_inverts():
    for ra, dec in [(0.0, 0.0), (359.9, 89.9), (12.0, 90.0), (200.0, -90.0)]:
        basis = tangent_basis(ra, dec)
        np.testing.assert_allclose(basis @ basis.T, np.eye(3), atol=1e-15)
        xi, eta = RNG.uniform(-1, 1, (2, 50))
        back = project_tan(deproject_tan(xi, eta, basis), basis)
        np.testing.assert_allclose(back, (xi, eta), atol=1e-13)


def test_tangent_plane_has_east_and_north_the_right_way():
    basis = tangent_basis(10.0, 40.0)
    xi, eta = project_tan(unit_vectors([10.001, 10.0], [40.0, 40.001]), basis)
    np.testing.assert_allclose(xi, [np.radians(0.001) * np.cos(np.radians(40.0)), 0.0], atol=1e-9)
    np.testing.assert_allclose(eta, [0.0, np.radians(0.001)], atol=1e-9)


def test_far_hemisphere_has_no_projection():
    xi, eta = project_tan(unit_vectors([180.0, 90.0, 10.0], [0.0, 0.0, 0.0]), tangent_basis(0.0, 0.0))
    assert np.isnan(xi[:2]).all() and np.isnan(eta[:2]).all() and np.isfinite(xi[2])


def test_bounding_cap_holds_the_polygon():
    polygon = [(359.0, 10.0), (1.0, 10.0), (1.0, 12.0), (359.0, 12.0)]
    centre, radius = bounding_cap(polygon)
    assert separation_deg(centre, unit_vectors(0.0, 11.0)) < 0.01
    assert radius == pytest.approx(np.hypot(1.0 * np.cos(np.radians(11.0)), 1.0), abs=0.02)


@pytest.mark.parametrize(
    ("polygon", "said"),
    [
        ([(0.0, 0.0), (1.0, 0.0)], "at least three"),
        ([(0.0, 0.0), (1.0, 0.0), (np.nan, 1.0)], "finite"),
        ([(0.0, 0.0), (1.0, 0.0), (1.0, 91.0)], "at most 90"),
        ([(0.0, 0.0), (120.0, 0.0), (240.0, 0.0)], "hemisphere"),
    ],
)
def test_polygons_that_are_none(polygon, said):
    with pytest.raises(BadInput, match=said):
        bounding_cap(polygon)


def test_clipping_an_octant_halves_it():
    """The octant x, y, z > 0 cut at x > y: the new corner lies half-way between x and y."""
    octant = list(np.eye(3))
    half = np.array(clip_half_space(octant, np.array([1.0, -1.0, 0.0]) / np.sqrt(2)))
    unit = {tuple(np.round(v / np.linalg.norm(v), 12)) for v in half}
    middle = round(np.sqrt(0.5), 12)
    assert unit == {(1.0, 0.0, 0.0), (middle, middle, 0.0), (0.0, 0.0, 1.0)}
    assert clip_half_space(octant, np.array([-1.0, -1.0, -1.0])) == []


@given(st.floats(0, 2 * np.pi), st.lists(st.tuples(st.floats(0.1, 1.0), st.floats(0.0, 1.0)), min_size=4, max_size=8))
def test_both_sides_of_a_cut_add_up(angle, spokes):
    """A star-shaped (mostly concave) polygon cut along a line: the parts have the area of the whole."""
    angles = np.sort([2 * np.pi * (i + 0.9 * t) / len(spokes) for i, (_, t) in enumerate(spokes)])
    radii = np.array([r for r, _ in spokes]) * 0.05
    x, y = radii * np.cos(angles), radii * np.sin(angles)
    basis = tangent_basis(80.0, 70.0)
    polygon = list(deproject_tan(x, y, basis))
    normal = basis[0] * np.cos(angle) + basis[1] * np.sin(angle) + 0.01 * basis[2]
    areas = []
    for side in (normal, -normal):
        part = clip_half_space(polygon, side)
        areas.append(planar_area(*project_tan(np.array(part), basis)) if part else 0.0)
    assert sum(areas) == pytest.approx(planar_area(x, y), abs=1e-12)
