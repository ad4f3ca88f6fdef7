"""The nominal focal plane of a camera (LV-27): corners, gaps, and what cannot be."""

import numpy as np
import pytest

from lap_assets.model.camera import Camera, load_camera
from lap_assets.model.focal_plane import (
    describe_orientation,
    find_geometry_problems,
    find_overlaps,
    locate_corners,
    measure_gaps,
)

SCALE = 0.36 / 3600


def mosaic(**chips):
    """A camera of chips of 100 x 80 pixels of 0.36 arcsec, x to the west, with these reference pixels."""
    return Camera(
        name="cam", pixel_scale_arcsec=0.36, filters={"r": "r"},
        chip_defaults={"nx": 100, "ny": 80, "cd_deg": [[-SCALE, 0.0], [0.0, SCALE]]}, chips=chips,
    )  # fmt: skip


def test_corners_are_the_outer_edges_of_the_pixels():
    """A chip of 100 x 80 px whose reference pixel is its first: half a pixel on one side, 99.5 on the other."""
    camera = mosaic(c0={"crpix": [1.0, 1.0]})
    xi, eta = locate_corners(camera.chips["c0"]).T / SCALE
    np.testing.assert_allclose(xi, [0.5, -99.5, -99.5, 0.5], atol=1e-9)
    np.testing.assert_allclose(eta, [-0.5, -0.5, 79.5, 79.5], atol=1e-9)
    xi, _ = locate_corners(camera.chips["c0"], (50, 100, 0, 80)).T / SCALE
    np.testing.assert_allclose(xi, [-49.5, -99.5, -99.5, -49.5], atol=1e-9)


def test_gaps_are_measured_in_pixels_to_the_nearest_neighbour():
    camera = mosaic(c0={"crpix": [1.0, 1.0]}, c1={"crpix": [-129.0, 1.0]}, c2={"crpix": [1.0, -99.0]})
    gaps = measure_gaps(camera)
    assert gaps["c0"].x == pytest.approx(30.0) and gaps["c0"].y == pytest.approx(20.0)
    # diagonally to c2 there is no gap along one axis
    assert gaps["c1"].x == pytest.approx(30.0) and gaps["c1"].y is None
    assert find_geometry_problems(camera) == []


@pytest.mark.parametrize(
    ("crpix", "overlaps"), [([-99.0, 1.0], False), ([-98.8, 1.0], False), ([-97.0, 1.0], True), ([1.0, 1.0], True)]
)
def test_chips_that_cover_the_same_sky_are_found(crpix, overlaps):
    """LV-27: two pixels of overlap are an error; touching is none."""
    camera = mosaic(c0={"crpix": [1.0, 1.0]}, c1={"crpix": crpix})
    assert find_overlaps(camera) == ([("c0", "c1")] if overlaps else [])
    assert [line.startswith("chips.c1.crpix: overlaps chip c0") for line in find_geometry_problems(camera)] == (
        [True] if overlaps else []
    )


def test_a_rotated_chip_in_the_corner_between_others_does_not_overlap():
    """Its edge faces the corner of the other at 2 pixels: bounding boxes overlap, the chips do not."""
    half = SCALE / np.sqrt(2)
    turned = {"crpix": [-128.07, 54.14], "cd_deg": [[-half, half], [half, half]]}
    camera = mosaic(c0={"crpix": [1.0, 1.0]}, c1=turned)
    one, two = (locate_corners(camera.chips[name]) for name in ("c0", "c1"))
    boxes_meet = np.all((one.min(axis=0) < two.max(axis=0)) & (two.min(axis=0) < one.max(axis=0)))
    assert boxes_meet and find_overlaps(camera) == []


def test_wrong_scale_and_mirrored_chips_are_told():
    """A pixel scale wrong by 5 % and a chip of the other parity, each by its key."""
    scaled = mosaic(c0={"crpix": [1.0, 1.0]}).model_copy(update={"pixel_scale_arcsec": 0.378})
    assert find_geometry_problems(scaled) == [
        "chips.c0.cd_deg: has pixels of 0.3600 arcsec, pixel_scale_arcsec is 0.378"
    ]
    mirrored = {"crpix": [401.0, 1.0], "cd_deg": [[SCALE, 0.0], [0.0, SCALE]]}
    flipped = mosaic(c0={"crpix": [1.0, 1.0]}, c1={"crpix": [-129.0, 1.0]}, c2=mirrored)
    assert find_geometry_problems(flipped) == ["chips.c2.cd_deg: is mirrored, other chips are not (c2)"]


def test_orientations_in_words():
    assert describe_orientation(load_camera("simcam").chip("c0")) == "x to the west, y to the north"
    assert describe_orientation(load_camera("decam").chip("S1")) == "x to the south, y to the east"


@pytest.mark.parametrize("name", ["decam", "simcam", "simtiny"])
def test_shipped_cameras_have_no_problem(name):
    assert find_geometry_problems(load_camera(name)) == []


def test_gaps_of_decam_are_those_published():
    """Flaugher et al. 2015, AJ 150, 150: 201 px between long, 153 px between short edges."""
    gaps = measure_gaps(load_camera("decam"))
    for gap in gaps.values():
        assert (gap.x, gap.y) == pytest.approx((201.0, 153.0))
