"""Checking camera files, trying them on a raw frame, and reading an observatory's table of crosstalk (LV-27)."""

import re

import numpy as np
import pytest
import yaml
from astropy.io import fits

from lap_assets.errors import BadInput
from lap_assets.model.camera import CAMERAS_DIR, Camera, load_camera
from lap_assets.operations.cameras import (
    TEMPLATE,
    check_camera,
    describe_amplifiers,
    describe_chips,
    import_crosstalk,
    list_cameras,
    measure_strip,
    try_frame,
)

CARDS = {
    "INSTRUME": "simcam", "EXPNUM": 7, "OBSTYPE": "object", "FILTER": "sim-r", "EXPTIME": 30.0, "MJD-OBS": 61042.2,
    "NIGHT": "2026-01-01", "RA": 10.0, "DEC": -5.0, "OBSMODE": "3PI",
}  # fmt: skip
LEVEL, NOISE_E, GAIN = 800.0, 5.0, 1.5


def write_frame(path, noise_e=NOISE_E, overscan=None, chips=("c0", "c1", "c2", "c3"), **cards):
    """A raw frame of simcam: a sky of 400 ADU, drifting overscan; `overscan` replaces that of amplifier A of c1."""
    rng = np.random.default_rng(1)
    units = [fits.PrimaryHDU(header=fits.Header(CARDS | cards))]
    for name in chips:
        raw = LEVEL + 5.0 * np.linspace(0, 1, 1024)[:, None] + rng.normal(0, noise_e / GAIN, (1024, 1088))
        raw[:, 32:-32] += 400.0
        if overscan is not None and name == "c1":
            raw[:, :32] = overscan
        units.append(fits.ImageHDU(np.rint(raw).astype(np.uint16), name=name))
    fits.HDUList(units).writeto(path)
    return path


@pytest.mark.parametrize("name", sorted(path.stem for path in CAMERAS_DIR.glob("*.yaml")))
def test_shipped_cameras_pass_their_own_check(name):
    result = check_camera(CAMERAS_DIR / f"{name}.yaml")
    assert result.problems == [] and result.camera == load_camera(name)


def test_the_template_passes_the_check(tmp_path):
    path = tmp_path / "mycam.yaml"
    path.write_text(TEMPLATE.read_text())
    assert check_camera(path).problems == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("crpix: [2068.5, 2048.5]", "crpix: [2000.5, 2048.5]", "chips.E.crpix: overlaps chip W"),
        ("pixel_scale_arcsec: 0.26", "pixel_scale_arcsec: 0.273", "chips.W.cd_deg: has pixels of 0.2600 arcsec"),
        ("linearity, gain, dark,", "linearity, dark, gain,", "stages: camera mycam: stages: dark must come after gain"),
        ("gain: 1.5 ", "gain: 0 ", "chips.*.amplifiers.0: gain of amplifier A must be > 0"),
        ("target: [1024, 2048, 0, 4096]", "target: [1000, 2024, 0, 4096]", "cover the same pixels"),
        ("overscan: [0, 32, 0, 4096]", "overscan: [0, 32, 0, 5000]", "cover different rows"),
        ("raw_nx: 2112", "raw_nx: 2100", "reaches outside its raw frame"),
        ("filter: FILTER", "filters: FILTER", "header.filters"),
    ],
)
def test_problems_are_lines_with_the_path_of_the_key(tmp_path, old, new, said):
    """Overlapping chips, a scale wrong by 5 %, sections that cannot be, gain 0, steps in an order that cannot be."""
    text = TEMPLATE.read_text()
    assert old in text
    path = tmp_path / "mycam.yaml"
    path.write_text(text.replace(old, new, 1))
    problems = check_camera(path).problems
    assert problems and said in problems[0] and not any("\n" in line for line in problems)


def test_tables_of_chips_and_amplifiers():
    chips = describe_chips(load_camera("simcam"))
    assert list(chips["gap_x"]) == ["30.0"] * 4 and chips["orientation"].iloc[0] == "x to the west, y to the north"
    decam = describe_chips(load_camera("decam")).set_index("chip")
    assert decam.state["N30"] == "broken" and decam.state["N29"] == "" and decam.gap_x["N29"] == "201.0"
    kinds = describe_amplifiers(load_camera("decam"))
    assert set(kinds["data"]) == {"DATASECA", "DATASECB"} and set(kinds["read_first"]) == {
        "left bottom", "right bottom", "left top", "right top",
    }  # fmt: skip


def test_cameras_of_a_repository_are_listed_too(tmp_path):
    (tmp_path / "mycam.yaml").write_text(TEMPLATE.read_text())
    table = list_cameras(tmp_path).set_index("camera")
    assert table["from"].to_dict() == {
        "decam": "package", "mycam": "repository", "simcam": "package", "simtiny": "package",
    }  # fmt: skip
    assert table.chips["decam"] == 60 and "mycam" not in set(list_cameras()["camera"])


def test_a_good_frame_is_measured_and_would_be_taken(tmp_path):
    """Read noise to 3 %, the level to 3 ADU (it drifts by 5), and what the header says."""
    run = try_frame(load_camera("simcam"), write_frame(tmp_path / "a.fits"))
    assert run.refused == [] and run.notes == []
    assert len(run.amplifiers) == 8
    assert run.amplifiers["noise_e"].astype(float).to_numpy() == pytest.approx(NOISE_E, rel=0.03)
    assert run.amplifiers["level_adu"].astype(float).to_numpy() == pytest.approx(LEVEL + 2.5, abs=1.0)
    facts = " / ".join(" ".join(line.split()) for line in run.facts)
    for said in ("kind object", "band r", "exposure simcam-000007", "night 2026-01-01", "ra 10.00000, dec -5.00000",
                 "exptime_s 30.0", "4 of 4 working ones: c0, c1, c2, c3"):  # fmt: skip
        assert said in facts


def test_all_that_is_wrong_with_a_frame_is_said_at_once(tmp_path):
    path = write_frame(tmp_path / "a.fits", chips=("c0", "c2", "c3", "c9"), FILTER="mauve", EXPTIME="long", DEC=95.0)
    run = try_frame(load_camera("simcam"), path)
    assert len(run.refused) == 5 and not any("\n" in line for line in run.refused)
    for said in ("no filter 'mauve'", "EXPTIME = 'long' is no number", "is not on the sky", "HDU C9 is no chip",
                 "has no HDU for chip c1"):  # fmt: skip
        assert any(said in line for line in run.refused)
    assert len(run.amplifiers) == 6  # the chips that are there are measured


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"overscan": 0.0}, "chip c1, amplifier A: the overscan .* is empty"),
        ({"overscan": 9000.0}, "chip c1, amplifier A: the overscan"),
        ({"noise_e": 9.0}, r"chip c0, amplifier A: read noise 9\.\d e measured in the overscan, 5 e nominal"),
    ],
)
def test_what_departs_from_the_camera_file_is_noted(tmp_path, values, said):
    """No overscan where one is promised; a read noise of almost twice the nominal one."""
    run = try_frame(load_camera("simcam"), write_frame(tmp_path / "a.fits", **values))
    assert run.refused == [] and any(re.search(said, note) for note in run.notes)


def test_sections_outside_the_frame_are_refused_by_chip(tmp_path):
    values = yaml.safe_load((CAMERAS_DIR / "simcam.yaml").read_text())
    for key in ("raw_nx", "raw_ny"):
        del values["chip_defaults"][key]
    values["chip_defaults"]["amplifiers"][1]["overscan"] = [1057, 1089, 0, 1024]
    run = try_frame(Camera(**values), write_frame(tmp_path / "a.fits"))
    assert len(run.refused) == 4 and "too small for the amplifiers of chip c0" in run.refused[0]


def test_a_file_that_is_no_fits_is_refused(tmp_path):
    path = tmp_path / "a.fits"
    path.write_text("nothing")
    assert "is no whole FITS file" in try_frame(load_camera("simcam"), path).refused[0]


def test_the_noise_of_a_strip_does_not_see_drifts_and_hits():
    """Rows drift by 50 ADU and 1 % of the pixels are hit by cosmic rays: 4 ADU to 2 %."""
    rng = np.random.default_rng(5)
    strip = rng.normal(1000.0, 4.0, (4096, 32)) + np.linspace(0, 50, 4096)[:, None]
    strip[rng.random(strip.shape) < 0.01] += 500.0
    level, noise = measure_strip(np.rint(strip).astype(np.uint16))
    assert noise == pytest.approx(4.0, rel=0.02) and level == pytest.approx(1025.0, abs=1.5)


def test_a_table_of_crosstalk_becomes_a_section_of_the_camera_file(tmp_path):
    """Rows as the observatory writes them, with further columns; broken chips are left out."""
    table = tmp_path / "DECam_xtalk.txt"
    table.write_text(
        "# victim source  x   x_err    src_nl\n"
        "ccd25B   ccd25A      1.34e-04   1.13e-05    4.078154e+04\n\n"
        "ccd26A   ccd25A      2.95e-05   5.49e-06    1.000000e+10\n"
        "ccd62A   ccd61A      2.91e-05   9.27e-06    1.000000e+10\n"  # N30 is broken
        "ccd26A   ccd25B      3.90e-05   3.28e-06    1.000000e+10\n"
    )
    lines = import_crosstalk(load_camera("decam"), table)
    assert yaml.safe_load("\n".join(lines)) == {
        "crosstalk": {"S1/B": {"S1/A": 1.34e-4}, "S2/A": {"S1/A": 2.95e-5, "S1/B": 3.9e-5}}
    }
    # and it says the same as the camera file that is shipped
    shipped = {(one.victim, one.source): one.coefficient for one in load_camera("decam").crosstalk}
    assert shipped["S1/B", "S1/A"] == 1.34e-4 and shipped["S2/A", "S1/B"] == 3.9e-5


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("ccd25B ccd25A", "line 1: expected victim, source and coefficient"),
        ("ccd99B ccd25A 1e-4", "line 1: 'ccd99B' is no amplifier of camera decam"),
        ("ccd25B ccd25A much", "line 1: coefficient 'much' is no number"),
        ("ccd25B ccd25A 2.0", "line 1: coefficient 2.0 is not below 1"),
        ("ccd25B S1/B 1e-4", "line 1: S1/B in S1/B makes no sense"),
        ("# nothing", "holds no row"),
    ],
)
def test_rows_of_a_table_that_make_no_sense(tmp_path, row, said):
    table = tmp_path / "table.txt"
    table.write_text(row + "\n")
    with pytest.raises(BadInput, match=said):
        import_crosstalk(load_camera("decam"), table)
