"""Cameras as data (LV-27): geometry, headers, and one clear line for every mistake in a camera file."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from lap_assets.errors import BadInput
from lap_assets.model.camera import CAMERAS_DIR, Camera, load_camera
from lap_assets.model.image import Mask

CAMERAS = sorted(path.stem for path in CAMERAS_DIR.glob("*.yaml"))
TEXT = """
name: toy
pixel_scale_arcsec: 0.4
filters: {G one: g}
chip_defaults:
  nx: 100
  ny: 80
  raw_nx: 120
  raw_ny: 80
  cd_deg: [[-1.0e-4, 0.0], [0.0, 1.0e-4]]
  amplifiers:
    - {name: A, data: [10, 60, 0, 80], overscan: [0, 10, 0, 80], target: [0, 50, 0, 80]}
    - {name: B, data: [60, 110, 0, 80], overscan: [110, 120, 0, 80], target: [50, 100, 0, 80]}
chips:
  c0: {crpix: [110.0, 40.5]}
  c1: {crpix: [-10.0, 40.5], broken: true}
"""


def write(tmp_path, text):
    path = tmp_path / "toy.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", CAMERAS)
def test_shipped_cameras_load_and_their_chips_do_not_overlap(name):
    """Centres of working chips are a chip apart at least, in pixels of the focal plane."""
    camera = load_camera(name)
    centres = []
    for chip in camera.chips.values():
        offset = np.array([(chip.nx + 1) / 2 - chip.crpix[0], (chip.ny + 1) / 2 - chip.crpix[1]])
        centres.append((offset, np.array([chip.nx, chip.ny])))
    for k, (first, size) in enumerate(centres):
        for second, _ in centres[:k]:
            assert np.any(np.abs(first - second) >= size)


def test_decam_has_sixty_working_chips_and_codes_of_the_community_pipeline():
    camera = load_camera("decam")
    assert len(camera.chips) == 62
    assert set(camera.chips) - set(camera.good_chips) == {"N30", "S30"}
    assert camera.band_of("r  DECam SDSS c0002 6415.0 1480.0") == "r"
    assert camera.calibrated.mask_codes[5] == ("COSMIC_RAY",)
    assert camera.header.night_of(57828.26285591) == "2017-03-15"  # 06:18 UTC is still the evening's night in Chile


@pytest.mark.parametrize(
    ("chip", "pointing", "centre"),
    [
        ("N2", (187.3235, 25.47929), (186.6349, 25.39646)),
        ("N3", (187.0348, 25.56019), (186.6897, 25.47789)),
        ("S1", (187.616, 25.43075), (186.5841, 25.51094)),
    ],
)
def test_decam_nominal_chip_centres_agree_with_headers_within_15_arcsec(chip, pointing, centre):
    """Telescope pointing and chip centre as real Community Pipeline headers give them (CENTRA, CENRA1)."""
    corners = np.array(load_camera("decam").footprint(chip, *pointing))
    offset = (corners.mean(axis=0) - centre) * 3600 * [np.cos(np.radians(centre[1])), 1.0]
    assert np.hypot(*offset) < 15.0


def test_nominal_wcs_puts_the_pointing_at_crpix_and_the_footprint_at_the_outer_corners(tmp_path):
    camera = load_camera(write(tmp_path, TEXT))
    header = camera.nominal_wcs("c0", 359.999, -30.0)
    ra, dec = WCS(header).all_pix2world(109.0, 39.5, 0)
    assert np.hypot((ra - 359.999) * np.cos(np.radians(30)), dec + 30.0) < 1e-9
    corners = camera.footprint("c0", 359.999, -30.0)
    x, y = WCS(header).all_world2pix(*zip(*corners, strict=True), 0)
    assert np.allclose(x, [-0.5, 99.5, 99.5, -0.5], atol=1e-6)
    assert np.allclose(y, [-0.5, -0.5, 79.5, 79.5], atol=1e-6)


def test_defaults_are_shared_and_broken_chips_left_out(tmp_path):
    camera = load_camera(write(tmp_path, TEXT))
    assert camera.chips["c0"].hdu == "c0"
    assert camera.good_chips == ("c0",)
    assert camera.chips["c0"].amplifiers == camera.chips["c1"].amplifiers


def test_hash_follows_the_content_not_the_formatting(tmp_path):
    first = load_camera(write(tmp_path, TEXT))
    assert load_camera(write(tmp_path, TEXT + "\n# a remark\n")).sha256 == first.sha256
    assert load_camera(write(tmp_path, TEXT.replace("110.0", "110.5"))).sha256 != first.sha256


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("name: toy", "name: toy\nspeed: 3", "speed"),
        ("crpix: [110.0, 40.5]", "crpix: [110.0]", "crpix"),
        ("0.0], [0.0, 1.0e-4", "0.0], [0.0, 0.0", "singular"),
        ("target: [50, 100, 0, 80]", "target: [49, 99, 0, 80]", "exactly once"),
        ("data: [60, 110, 0, 80]", "data: [60, 109, 0, 80]", "different shapes"),
        ("overscan: [110, 120, 0, 80]", "overscan: [110, 130, 0, 80]", "outside its raw frame"),
        ("filters: {G one: g}", "filters: {G one: 'a|b'}", "not allowed"),
        ("filters:", "stages: [overscan, magic]\nfilters:", "stages"),
        ("name: toy", "name: !!python/object/apply:os.system ['true']", "plain YAML"),
        ("chips:", "chips: [", "plain YAML"),
    ],
)
def test_a_mistake_in_a_camera_file_is_one_line_that_names_it(tmp_path, old, new, says):
    path = write(tmp_path, TEXT.replace(old, new, 1))
    with pytest.raises(BadInput) as caught:
        load_camera(path)
    text = str(caught.value)
    assert says in text and "toy.yaml" in text and "\n" not in text


@pytest.mark.parametrize("name", ["nosuch", "../decam", "a|b", "/nowhere/x.yaml"])
def test_unknown_cameras_are_refused(name):
    with pytest.raises(BadInput):
        load_camera(name)


def test_unknown_filters_and_chips_are_refused_by_name(tmp_path):
    camera = load_camera(write(tmp_path, TEXT))
    with pytest.raises(BadInput, match="no filter 'R'"):
        camera.band_of("R")
    with pytest.raises(BadInput, match="no chip 'c9'"):
        camera.chip("c9")


@pytest.mark.parametrize(("ra", "unit", "expected"), [(12.5, "deg", 12.5), ("01:00:00", "hourangle", 15.0)])
def test_angles_of_headers(tmp_path, ra, unit, expected):
    camera = load_camera(write(tmp_path, TEXT + f"header: {{ra_unit: {unit}}}\n"))
    assert camera.header.read_angles(fits.Header({"RA": ra, "DEC": "-30:30:00"})) == pytest.approx((expected, -30.5))


@pytest.mark.parametrize("header", [{"RA": 10.0}, {"RA": "north", "DEC": 0.0}, {"RA": 10.0, "DEC": 91.0}])
def test_unusable_angles_name_their_key(tmp_path, header):
    camera: Camera = load_camera(write(tmp_path, TEXT))
    with pytest.raises(BadInput, match=r"RA|DEC"):
        camera.header.read_angles(fits.Header(header))


def test_mask_names_of_calibrated_layouts_are_ours(tmp_path):
    layout = "calibrated: {image_tag: i, inverse_variance_tag: w, mask_tag: d, mask_codes: {1: [BAD], 2: [GHOST]}}\n"
    with pytest.raises(BadInput, match="GHOST"):
        load_camera(write(tmp_path, TEXT + layout))
    good = load_camera(write(tmp_path, TEXT + layout.replace("GHOST", "STREAK")))
    assert Mask[good.calibrated.mask_codes[2][0]] is Mask.STREAK
    assert good.calibrated.sibling_name("c4d_i_x.fits", "w") == "c4d_w_x.fits"
