"""Tangent planes: positions against astropy, and shapes whose direction on the sky must survive every turn."""

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.science.plane import project_positions, turn_to_plane, turn_to_sky, unproject_positions


def tan_wcs(ra0, dec0, mirrored=True, rotation_deg=0.0):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra0, dec0]
    wcs.wcs.crpix = [500.5, 500.5]
    step = 0.4 / 3600
    turn = np.radians(rotation_deg)
    axes = np.array([[-step if mirrored else step, 0], [0, step]])
    wcs.wcs.cd = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ axes
    return wcs


@settings(deadline=None)
@given(ra0=st.floats(0, 359.9), dec0=st.floats(-89, 89), x=st.floats(-100, 100), y=st.floats(-100, 100))
def test_projection_is_inverted(ra0, dec0, x, y):
    ra, dec = unproject_positions(np.array([x]), np.array([y]), ra0, dec0)
    back = project_positions(ra, dec, ra0, dec0)
    assert 0 <= ra[0] < 360
    assert [back[0][0], back[1][0]] == pytest.approx([x, y], abs=1e-7)


def test_projection_is_astropys():
    ra, dec = np.array([359.5, 0.7, 1.4]), np.array([60.5, 61.0, 59.3])
    x, y, _ = project_positions(ra, dec, 0.2, 60.0)
    px, py = tan_wcs(0.2, 60.0).all_world2pix(ra, dec, 0)
    assert x * 60 == pytest.approx(-(px - 499.5) * 0.4, abs=1e-5)
    assert y * 60 == pytest.approx((py - 499.5) * 0.4, abs=1e-5)


@pytest.mark.parametrize("ra, dec", [(1.9, 61.0), (358.0, 59.0), (0.2, 61.9)])
def test_direction_of_north_is_that_of_a_short_step(ra, dec):
    x, y, angle = project_positions(np.array([ra, ra]), np.array([dec, dec + 1e-4]), 0.2, 60.0)
    assert angle[0] == pytest.approx(np.arctan2(x[1] - x[0], y[1] - y[0]), abs=1e-5)


@pytest.mark.parametrize("mirrored, rotation", [(True, 0.0), (False, 0.0), (True, 30.0), (True, 200.0)])
def test_shape_along_a_known_direction_on_the_sky(mirrored, rotation):
    """A stick at position angle 30 deg (north through east), measured in pixels, comes out as such on the sky."""
    wcs = tan_wcs(150.0, 40.0, mirrored, rotation)
    centre = SkyCoord(150.02 * u.deg, 40.01 * u.deg)
    ends = [centre.directional_offset_by(angle * u.deg, 1 * u.arcsec) for angle in (30, 210)]
    px, py = wcs.all_world2pix([p.ra.deg for p in ends], [p.dec.deg for p in ends], 0)
    theta = np.arctan2(py[0] - py[1], px[0] - px[1])
    x, y = np.array([px.mean()]), np.array([py.mean()])
    e1, e2 = turn_to_sky(np.cos(2 * theta), np.sin(2 * theta), x, y, wcs)
    # from east towards north the stick lies at 90 - 30 = 60 deg
    assert [e1[0], e2[0]] == pytest.approx([np.cos(np.radians(120)), np.sin(np.radians(120))], abs=1e-4)


def test_skycells_flip_the_second_component():
    wcs = tan_wcs(150.0, 0.0)
    e1, e2 = turn_to_sky(np.array([0.1]), np.array([0.2]), np.array([499.5]), np.array([499.5]), wcs)
    assert [e1[0], e2[0]] == pytest.approx([0.1, -0.2], abs=1e-7)


def test_meridians_converge_and_shapes_follow():
    """At Dec 60, 2 deg from the tangent point, north is turned by 1.7 deg: left out, shapes would turn by 3.5 deg."""
    ra, dec = np.array([4.0]), np.array([60.0])
    _, _, north = project_positions(ra, dec, 0.0, 60.0)
    assert abs(np.degrees(north[0])) == pytest.approx(3.46, abs=0.05)
    wcs = tan_wcs(0.0, 60.0)
    x, y = wcs.all_world2pix(ra, dec, 0)
    sky = turn_to_sky(np.array([0.3]), np.array([0.0]), x, y, wcs)
    assert abs(sky[1][0]) > 0.03
    plane = turn_to_plane(*sky, north)
    assert [plane[0][0], plane[1][0]] == pytest.approx([0.3, 0.0], abs=2e-4)
