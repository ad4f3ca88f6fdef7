"""Cameras as data (LV-27): geometry, headers, and one clear line for every mistake in a camera file."""

import re
from typing import get_args

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from pydantic import BaseModel

from lap_assets.errors import BadInput
from lap_assets.model.camera import CAMERAS_DIR, STAGES, Camera, find_problems, load_camera
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
    # amplifier A reads the left half of northern chips from the bottom, the right half of southern ones from the top
    assert [amp.readout for amp in camera.chip("N1").amplifiers] == [("left", "bottom"), ("right", "bottom")]
    assert [amp.readout for amp in camera.chip("S1").amplifiers] == [("right", "top"), ("left", "top")]
    # whatever the unsteady amplifier of S7 says is SUSPECT
    assert camera.chip("S7").amplifier("A").linearity_max_adu < 1.0
    assert {amp.linearity_max_adu for name in camera.chips if name != "S7" for amp in camera.chip(name).amplifiers} == {
        None
    }
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
        ("data: [60, 110, 0, 80]", "data: [59, 109, 0, 80]", "cover the same pixels"),
        ("overscan: [110, 120, 0, 80]", "overscan: [105, 120, 0, 80]", "lies on exposed pixels"),
        ("{name: B", "{name: A", "the same name"),
        ("target: [0, 50, 0, 80]}", "target: [0, 50, 0, 80], gain: 0}", "gain of amplifier A must be > 0"),
        ("c1: {crpix", "c1: {hdu: C0, crpix", "chips c0 and c1 have the same hdu"),
        ("name: toy", "name: toy\ncrosstalk: {c0/A: {c0/C: 1.0e-4}}", "'c0/C', which is no CHIP/AMPLIFIER"),
        ("name: toy", "name: toy\ncrosstalk: {c0/A: {c0/A: 1.0e-4}}", "makes no sense"),
        ("name: toy", "name: toy\ncrosstalk: {c0/A: {c0/B: 3.0}}", "makes no sense"),
        ("name: toy", "name: toy\nbrighter_fatter: {kernel: [[1.0e-7, 0.0], [0.0, 0.0]]}", "odd number of rows"),
        ("name: toy", "name: toy\ncolour_terms: {z: {bands: [i, z], coefficient: 0.1}}", "bands without a filter: z"),
        ("name: toy", "name: toy\nheader: {kinds: {lamp: arc}}", "kinds"),
        ("  c1: {crpix", "  c0: {crpix: [9.0, 9.0]}\n  c1: {crpix", "key c0 is there twice, again in line 16"),
        ("pixel_scale_arcsec: 0.4", "pixel_scale_arcsec: .nan", "pixel_scale_arcsec: Input should be a finite number"),
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


def test_values_of_header_keys_need_not_be_written_as_they_are_compared(tmp_path):
    """White space, case and numbers: a filter `R  one`, a kind `Dome Flat`, an HDU 1."""
    text = TEXT.replace("{G one: g}", "{'G   one': g, 7: r}").replace("c0: {crpix", "c0: {hdu: 1, crpix")
    camera = load_camera(write(tmp_path, text + "header: {kinds: {Dome  Flat: flat}}\n"))
    assert camera.band_of("G one ") == "g" and camera.band_of(7) == "r"
    assert camera.header.kinds == {"dome flat": "flat"} and camera.chips["c0"].hdu == "1"


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


def test_crosstalk_of_decam_is_that_of_the_observatory():
    """The table of 2013-06-06: 236 pairs of working chips, at most 1e-3, mostly between amplifiers of one chip."""
    camera = load_camera("decam")
    assert len(camera.crosstalk) == 236
    assert max(abs(one.coefficient) for one in camera.crosstalk) < 1e-3
    found = {one.source: one.coefficient for one in camera.crosstalk_of("S2") if one.victim == "S2/A"}
    assert found == {"S1/A": 2.95e-05, "S1/B": 3.90e-05, "S2/B": 4.50e-04, "S3/B": -2.30e-05}
    within = [one for one in camera.crosstalk if one.victim_chip == one.source_chip]
    assert len(within) > 100 and min(abs(one.coefficient) for one in within) > 4e-5
    assert {one.source_amplifier for one in within} | {one.victim_amplifier for one in within} == {"A", "B"}


def test_crosstalk_may_be_a_list_or_a_table(tmp_path):
    table = "crosstalk: {c0/A: {c0/B: 1.0e-4, c1/B: -2.0e-5}}\n"
    rows = (
        "crosstalk:\n- {victim: c0/A, source: c0/B, coefficient: 1.0e-4}\n"
        "- {victim: c0/A, source: c1/B, coefficient: -2.0e-5}\n"
    )
    first = load_camera(write(tmp_path, TEXT + table)).crosstalk
    assert first == load_camera(write(tmp_path, TEXT + rows)).crosstalk
    assert [(one.source_chip, one.coefficient) for one in first] == [("c0", 1e-4), ("c1", -2e-5)]
    twice = rows + "- {victim: c0/A, source: c0/B, coefficient: 2.0e-4}\n"
    with pytest.raises(BadInput, match="is given twice"):
        load_camera(write(tmp_path, TEXT + twice))


def test_all_mistakes_of_a_file_are_found_at_once(tmp_path):
    """LV-27: one line each with the path of its key; what all chips share is said once."""
    text = TEXT.replace("raw_nx: 120", "raw_nx: many").replace("crpix: [110.0, 40.5]", "crpix: [110.0]")
    camera, problems = find_problems(write(tmp_path, text.replace("name: toy", "name: toy\nspeed: 3")))
    assert camera is None and len(problems) == 3 and not any("\n" in line for line in problems)
    assert any(line.startswith("chips.*.raw_nx: ") and "2 chips" in line for line in problems)
    assert any(line.startswith("chips.c0.crpix") for line in problems)
    assert any(line.startswith("speed: ") for line in problems)
    with pytest.raises(BadInput, match=r"\(and 2 more: lap camera check .*toy.yaml\)"):
        load_camera(tmp_path / "toy.yaml")
    assert find_problems(write(tmp_path, TEXT))[1] == []


def test_steps_not_listed_are_all_of_them_in_the_default_order(tmp_path):
    """LV-11: the order is data; a camera may change it, and leave steps out."""
    assert load_camera(write(tmp_path, TEXT)).stages == STAGES
    assert load_camera(write(tmp_path, TEXT + "stages: [gain, overscan]\n")).stages == ("gain", "overscan")


def fields_of(model):
    """Names of all fields of a model and of the models in it."""
    names = set()
    for name, field in model.model_fields.items():
        names.add(name)
        for one in [field.annotation, *get_args(field.annotation)]:
            if isinstance(one, type) and issubclass(one, BaseModel):
                names |= fields_of(one)
    return names


def test_the_template_is_a_camera_and_explains_every_key(tmp_path):
    """LV-27: what is commented out in it can be used too."""
    text = (CAMERAS_DIR / "template.yaml.txt").read_text()
    path = tmp_path / "mycam.yaml"
    path.write_text(text)
    camera = load_camera(path)
    assert camera.stages == STAGES and len(camera.good_chips) == 2
    # the crosstalk's columns have a shorter form there, and a chip's name is its key
    assert fields_of(Camera) - {"victim", "source", "chip_defaults"} <= set(re.findall(r"\w+", text))
    sections = "colour_terms|calibrated|crosstalk|brighter_fatter"
    blocks = re.findall(rf"^# (?:{sections}):\n(?:#   .*\n)+", text, re.MULTILINE)
    assert len(blocks) == 4
    path.write_text(text + "".join(re.sub("^# ", "", block, flags=re.MULTILINE) for block in blocks))
    full = load_camera(path)
    assert len(full.crosstalk) == 3 and full.colour_terms["r"].bands == ("g", "r")
    assert np.shape(full.brighter_fatter.kernel) == (3, 3) and full.calibrated.mask_tag == "ood"
