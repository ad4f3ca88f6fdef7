"""What lies inside a cone, a box, a polygon; at RA 0, at the poles; and what is no region."""

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from hypothesis import given
from hypothesis import strategies as st

from lap_assets.errors import BadInput
from lap_assets.model.regions import Box, Cone, Polygon
from lap_assets.model.sphere import separation_deg, unit_vectors

ANYWHERE = np.random.default_rng(5)
RA = ANYWHERE.uniform(0.0, 360.0, 4000)
DEC = np.degrees(np.arcsin(ANYWHERE.uniform(-1.0, 1.0, 4000)))
ras, decs = st.floats(0.0, 360.0), st.floats(-90.0, 90.0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Cone(10.0, 2.0, 0.0), "give a radius > 0"), (lambda: Cone(10.0, 2.0, -1.0), "give a radius > 0"),
        (lambda: Cone(10.0, 95.0, 1.0), "Dec 95.0 lies outside"), (lambda: Cone(float("nan"), 0.0, 1.0), "no position"),
        (lambda: Cone(1.0, 1.0, float("inf")), "give a radius"), (lambda: Box(0.0, 10.0, 5.0, -5.0), "upside down"),
        (lambda: Box(0.0, 10.0, 5.0, 5.0), "upside down"), (lambda: Box(0.0, 10.0, -95.0, 5.0), "Dec -95.0"),
        (lambda: Box(10.0, 10.0, 0.0, 5.0), "two different edges"),
        (lambda: Box(0.0, 400.0, 0.0, 5.0), "within one turn"),
        (lambda: Polygon([(0.0, 0.0), (1.0, 0.0)]), "three"), (lambda: Polygon([]), "three"),
        (lambda: Polygon([(0.0, 0.0), (1.0, 0.0), (0.0, 91.0)]), "Dec 91.0"),
        (lambda: Polygon([(0.0, 0.0), (120.0, 0.0), (240.0, 0.0)]), "hemisphere"),
    ],
)  # fmt: skip
def test_what_is_no_region_is_said_in_one_line(make, said):
    """Radius 0 or negative, Dec 95, a box upside down (LAP-16)."""
    with pytest.raises(BadInput, match=said) as error:
        make()
    assert "\n" not in str(error.value)


@given(ras, decs, st.floats(0.01, 179.0))
def test_a_cone_holds_what_is_near(ra, dec, radius):
    """Against astropy's separation (LAP-10)."""
    apart = SkyCoord(RA[:200], DEC[:200], unit="deg").separation(SkyCoord(ra, dec, unit="deg")).deg
    clear = np.abs(apart - radius) > 1e-9
    assert (Cone(ra, dec, radius).contains(RA[:200], DEC[:200]) == (apart <= radius))[clear].all()


def test_a_box_may_cross_right_ascension_zero():
    box = Box(350.0, 10.0, -5.0, 5.0)
    ra = np.array([355.0, 5.0, 350.0, 10.0, 345.0, 15.0, 180.0, -3.0, 363.0])
    assert box.contains(ra, np.zeros(9)).tolist() == [True] * 4 + [False] * 3 + [True] * 2
    rest = Box(10.0, 350.0, -5.0, 5.0).contains(ra, np.zeros(9))
    assert rest.tolist() == [False] * 2 + [True] * 5 + [False] * 2
    assert Box(0.0, 360.0, 80.0, 90.0).contains(RA, np.full(4000, 85.0)).all()
    assert not box.contains(np.array([0.0, 0.0]), np.array([5.1, -5.1])).any()


@given(ras, st.floats(0.5, 60.0), st.floats(-80.0, 70.0), st.floats(0.5, 10.0))
def test_a_polygon_is_what_its_sides_enclose(ra, width, dec, height):
    """A square along meridians, its other sides great circles: the half-spaces of its sides (LAP-16)."""
    corners = [(ra, dec), (ra + width, dec), (ra + width, dec + height), (ra, dec + height)]
    vectors = unit_vectors(*np.array(corners).T)
    normals = np.cross(vectors, np.roll(vectors, -1, axis=0))
    local_ra, local_dec = ra + width * (RA / 180.0 - 0.5), dec + height * (DEC / 60.0 + 0.5)
    local_dec = np.clip(local_dec, -90.0, 90.0)
    heights = unit_vectors(local_ra, local_dec) @ normals.T
    clear = np.abs(heights).min(axis=1) > 1e-9
    inside = (heights > 0.0).all(axis=1)
    assert (Polygon(corners).contains(local_ra, local_dec) == inside)[clear].all()
    assert (Polygon(corners[::-1]).contains(local_ra, local_dec) == inside)[clear].all()


def test_a_polygon_may_hold_a_pole_and_be_hollow():
    pole = Polygon([(0.0, 80.0), (90.0, 80.0), (180.0, 80.0), (270.0, 80.0)])
    assert pole.contains(np.array([12.0, 12.0, 12.0]), np.array([90.0, 86.0, 70.0])).tolist() == [True, True, False]
    outline = [(0, 0), (10, 0), (10, 10), (8, 10), (8, 2), (2, 2), (2, 10), (0, 10)]
    inside = Polygon(outline).contains(np.array([1.0, 5.0, 9.0, 5.0]), np.array([8.0, 8.0, 8.0, 1.0]))
    assert inside.tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    "region",
    [
        Cone(359.9, 89.0, 3.0), Cone(10.0, -20.0, 100.0), Box(350.0, 10.0, -5.0, 5.0), Box(0.0, 90.0, 0.0, 90.0),
        Box(0.0, 360.0, -90.0, -60.0), Box(0.0, 200.0, -10.0, 30.0), Box(0.0, 300.0, -40.0, 10.0),
        Box(20.0, 109.0, -80.0, 10.0), Polygon([(358.0, -2.0), (3.0, -1.0), (1.0, 4.0)]),
    ],
)  # fmt: skip
def test_the_cap_of_a_region_holds_it(region):
    """So that nothing near is missed when exposures are looked for by Dec and RA alone."""
    centre, radius = region.cap
    inside = region.contains(RA, DEC)
    assert inside.any()
    assert separation_deg(unit_vectors(RA[inside], DEC[inside]), centre).max() <= radius + 1e-9
