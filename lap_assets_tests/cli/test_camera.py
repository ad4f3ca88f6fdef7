"""`lap camera`: list, template, check and crosstalk (LV-27), and `lap ingest --as`."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from lap_assets.model.camera import CAMERAS_DIR, load_camera
from lap_assets.operations.workspace import Workspace
from lap_assets_tests import benchmarks
from lap_assets_tests.cli.outcomes import assert_refused
from lap_assets_tests.operations.test_cameras import write_frame


@pytest.fixture
def mycam(lap, elsewhere):
    """A camera file made as the template says."""
    path = elsewhere / "mycam.yaml"
    status, out, _ = lap("camera", "template")
    assert status == 0
    path.write_text(out)
    return path


def test_the_template_can_be_checked_and_drawn(lap, mycam, elsewhere):
    picture = elsewhere / "mycam.png"
    status, out, err = lap("camera", "check", mycam, "--picture", picture)
    assert (status, err) == (0, "")
    assert "camera mycam: 2 of 2 chips working" in out and "the camera file can be used" in out
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_file_with_mistakes_is_told_all_of_them(lap, mycam):
    mycam.write_text(mycam.read_text().replace("raw_nx: 2112", "raw_nx: many").replace("ra_unit: deg", "ra_unit: rad"))
    status, out, _ = lap("camera", "check", mycam)
    assert status == 1
    assert [line.split(": ")[:2] for line in out.splitlines()] == [
        ["problem", "chips.*.raw_nx"], ["problem", "header.ra_unit"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [("name: [", "is no plain YAML"), ("3", "must be a mapping"), ("!!python/object/apply:os.system [true]", "YAML")],
)
def test_files_that_are_no_camera_file_are_refused(lap, elsewhere, text, said):
    (elsewhere / "bad.yaml").write_text(text)
    assert_refused(lap("camera", "check", elsewhere / "bad.yaml"), said, "bad.yaml")
    assert_refused(lap("camera", "check", "nosuch"), "unknown camera 'nosuch'")


def test_a_raw_frame_decides_too(lap, elsewhere):
    """Status 1 where the frame would be set aside, with the reason; 0 where it would be taken."""
    good, bad = write_frame(elsewhere / "good.fits"), write_frame(elsewhere / "bad.fits", FILTER="mauve")
    status, out, _ = lap("camera", "check", "simcam", "--raw", good)
    assert status == 0 and "the frame would be taken" in out and "[1:32,1:1024]" in out
    status, out, _ = lap("camera", "check", CAMERAS_DIR / "simcam.yaml", "--raw", bad)
    assert status == 1 and "refused: camera simcam has no filter 'mauve'" in out


def test_list_names_the_cameras_of_the_package_and_of_the_repository(lap, mycam, elsewhere):
    status, out, _ = lap("camera", "ls")
    assert status == 0 and "decam" in out and "mycam" not in out
    lap("init", elsewhere / "repository")
    cameras = Workspace.open(elsewhere / "repository").repo.cameras
    cameras.mkdir(exist_ok=True)
    (cameras / "mycam.yaml").write_text(mycam.read_text())
    _, out, _ = lap("--repo", elsewhere / "repository", "camera", "ls")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["decam", "mycam", "simcam", "simtiny"]
    status, out, _ = lap("--repo", elsewhere / "repository", "camera", "check", "mycam")
    assert status == 0 and "camera mycam" in out


def test_crosstalk_section_from_a_table(lap, elsewhere):
    (elsewhere / "table.txt").write_text("ccd25B ccd25A 1.34e-04 1.13e-05\n")
    status, out, _ = lap("camera", "crosstalk", "table.txt", "--camera", "decam")
    assert (status, out) == (0, "crosstalk:\n  S1/B: {S1/A: 1.340e-04}\n")
    (elsewhere / "table.txt").write_text("ccd25B ccd99A 1.34e-04\n")
    assert_refused(lap("camera", "crosstalk", "table.txt", "--camera", "decam"), "ccd99A", "line 1")


def test_exposures_of_the_sky_serve_as_fringe_frames(lap, elsewhere):
    """`--as fringe` makes a calibration set of object frames; contradictions are refused before a file is opened."""
    frame = write_frame(elsewhere / "a.fits")
    lap("init", elsewhere / "repository")
    arguments = ("--repo", elsewhere / "repository", "ingest", frame, "--camera", "simcam")
    status, out, err = lap(*arguments, "--kind", "calibration", "--as", "fringe")
    assert (status, err) == (0, "") and "1 master calibrations to build from 1 frames: 1 new" in out
    sets = Workspace.open(elsewhere / "repository").ledger.survey().calibrations
    assert list(sets) == ["simcam|fringe|r|2026-01-01"]
    assert_refused(lap(*arguments, "--as", "fringe"), "--kind raw cannot be taken as fringe frames")
    assert_refused(lap(*arguments, "--kind", "calibration", "--as", "object"), "cannot be taken as object frames")


def test_the_camera_of_the_benchmark_describes_its_files(lap, elsewhere):
    """One chip per file, known by header key CCD in a compressed HDU; a frame like those of make_bench.py."""
    file = Path(benchmarks.__file__).with_name("bench.yaml")
    camera = load_camera(file)
    assert camera.good_chips == tuple(f"c{k}" for k in range(8))
    rng = np.random.default_rng(2)
    raw = rng.normal(1010.0, 4.0, (4096, 2112))
    raw[:, 32:-32] += 270.0
    cards = {"EXPNUM": 0, "CCD": 5, "CRVAL1": 150.0, "CRVAL2": 2.2, "EXPTIME": 90.0, "FILTER": "r", "AIRMASS": 1.1,
             "MJD-OBS": 60000.0}  # fmt: skip
    hdu = fits.CompImageHDU(np.rint(raw).astype(np.uint16), fits.Header(cards), compression_type="RICE_1")
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(elsewhere / "e0_c5.fits.fz")
    status, out, _ = lap("camera", "check", file, "--raw", elsewhere / "e0_c5.fits.fz")
    assert status == 0 and "1 of 8 working ones: c5" in out and "bench-000000" in out
