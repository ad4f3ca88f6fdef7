"""The true optics against astropy's WCS and against the nominal camera files."""

import numpy as np
import pytest
from astropy.wcs import WCS

from lap_assets.model.camera import load_camera
from lap_assets.sim.design import CHIPS, make_design
from lap_assets.sim.optics import ChipWcs, place_chips
from lap_assets.sim.scene import make_wcs
from lap_assets.sim.schedule import plan_frames

DESIGN = make_design("demo", 3)
FRAME = next(frame for frame in plan_frames(DESIGN) if frame.kind == "object")


def corners(size):
    grid = np.linspace(0.0, size - 1.0, 6)
    x, y = np.meshgrid(grid, grid)
    return x.ravel(), y.ravel()


def separation_mas(ra, dec, ra2, dec2):
    return 3.6e6 * np.hypot((ra - ra2) * np.cos(np.radians(dec)), dec - dec2)


@pytest.mark.parametrize("chip", CHIPS)
def test_truth_header_says_the_same_as_the_simulator(chip):
    wcs = make_wcs(DESIGN, FRAME, chip)
    x, y = corners(DESIGN.chip_px)
    ra, dec = wcs.pixel_to_sky(x, y)
    theirs = WCS(wcs.header()).all_pix2world(x, y, 0)
    assert separation_mas(ra, dec, *theirs).max() < 1e-3
    back = wcs.sky_to_pixel(ra, dec)
    np.testing.assert_allclose(back, (x, y), atol=1e-8)


@pytest.mark.parametrize("size", ["demo", "tiny"])
def test_truth_departs_from_the_nominal_camera_but_not_far(size):
    """Pointing errors of a few arcsec, chips off by a few pixels, distortion of about 1" at the corners."""
    design = make_design(size, 3)
    camera = load_camera(design.camera)
    x, y = corners(design.chip_px)
    offsets, shapes = [], []
    for frame in (f for f in plan_frames(design) if f.kind == "object"):
        for chip in CHIPS:
            ra, dec = make_wcs(design, frame, chip).pixel_to_sky(x, y)
            ra0, dec0 = WCS(camera.nominal_wcs(chip, frame.ra_deg, frame.dec_deg)).all_pix2world(x, y, 0)
            east, north = (ra - ra0) * np.cos(np.radians(dec)) * 3600, (dec - dec0) * 3600
            offsets.append(np.hypot(east.mean(), north.mean()))
            design_matrix = np.stack([np.ones_like(x), x, y], axis=1)
            left = [v - design_matrix @ np.linalg.lstsq(design_matrix, v, rcond=None)[0] for v in (east, north)]
            shapes.append(np.abs(left).max())
    assert 1.0 < np.median(offsets) < 8.0
    assert max(offsets) < 15.0
    assert 0.02 < np.median(shapes) < 1.0  # not linear: distortion must be fitted


def test_jacobians_point_west_and_north():
    wcs = make_wcs(DESIGN, FRAME, "c2")
    ra, dec = wcs.pixel_to_sky(np.array([200.0]), np.array([700.0]))
    jacobian = wcs.jacobians(ra, dec)[0]
    theirs = WCS(wcs.header())
    half = 0.5 / 3600
    half_ra = half / np.cos(np.radians(dec[0]))
    there = np.array(
        theirs.all_world2pix(ra[0] + half_ra * np.array([-1, 1, 0, 0]), dec[0] + half * np.array([0, 0, 1, -1]), 0)
    )
    west, north = there[:, 0] - there[:, 1], there[:, 2] - there[:, 3]
    np.testing.assert_allclose(jacobian, np.stack([west, north], axis=1), atol=2e-5)
    assert jacobian[0, 0] == pytest.approx(2.5, rel=0.02) and jacobian[1, 1] == pytest.approx(2.5, rel=0.02)


def test_pixel_area_is_that_of_the_pixels_on_the_sky():
    place = place_chips(DESIGN)["c3"]
    wcs = ChipWcs(place, FRAME.pointing, DESIGN.chip_px, DESIGN.chip_px)
    area = place.pixel_area((DESIGN.chip_px, DESIGN.chip_px))
    header = WCS(wcs.header())
    for x, y in ((0, 0), (1000, 20), (1010, 1015)):
        ra, dec = header.all_pix2world([x - 0.5, x + 0.5, x, x], [y, y, y - 0.5, y + 0.5], 0)
        east, north = ra * np.cos(np.radians(dec)) * 3600, dec * 3600
        on_sky = abs((east[1] - east[0]) * (north[3] - north[2]) - (east[3] - east[2]) * (north[1] - north[0]))
        nominal = (0.4 * (1 + FRAME.pointing.stretch)) ** 2
        assert area[y, x] == pytest.approx(on_sky / nominal, abs=2e-5)
    assert np.ptp(area) < 0.01  # so that flats and fluxes differ by less than 5 mmag
