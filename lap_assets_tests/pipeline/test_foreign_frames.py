"""Raw files as observatories write them: one chip per file, keys anywhere, sections told by headers, odd kinds."""

import re
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from lap_assets.model.camera import Camera
from lap_assets.pipeline.ingest import inspect_calibrations, inspect_raw
from lap_assets.pipeline.raw_files import read_frame

CARDS = {
    "EXPNUM": 7, "OBSTYPE": "object", "FILTER": "red", "EXPTIME": 30.0, "MJD-OBS": 61042.2, "RA": 10.0, "DEC": -5.0,
    "CCDTEMP": -99.0, "MODE": "wide",
}  # fmt: skip
SECTIONS = {
    "DATASECA": "[5:12,1:12]", "BIASSECA": "[1:4,1:12]", "DATASECB": "[13:20,1:12]", "BIASSECB": "[21:24,1:12]",
    "GAINA": 1.5, "GAINB": 1.6, "RDNA": 5.0, "RDNB": 5.1,
}  # fmt: skip
AMPLIFIERS = [
    {"name": letter, "data_key": f"DATASEC{letter}", "overscan_key": f"BIASSEC{letter}", "gain_key": f"GAIN{letter}",
     "read_noise_key": f"RDN{letter}"}
    for letter in "AB"
]  # fmt: skip


def make_camera(header=None, **values):
    """A camera of chips 1 and 2, known by key CCD, and the broken chip 3; one chip per file."""
    return Camera(**({
        "name": "cam", "pixel_scale_arcsec": 0.5, "filters": {"red": "r"},
        "header": {"chip": "CCD", "temperature_c": "CCDTEMP", "obs_mode": "MODE"} | (header or {}),
        "chip_defaults": {"nx": 16, "ny": 12, "cd_deg": [[-1.4e-4, 0.0], [0.0, 1.4e-4]], "amplifiers": AMPLIFIERS},
        "chips": {"c1": {"hdu": "1", "crpix": [18.0, 6.0]}, "c2": {"hdu": "2", "crpix": [-2.0, 6.0]},
                  "dead": {"hdu": "3", "crpix": [38.0, 6.0], "broken": True}},
    } | values))  # fmt: skip


CAMERA = make_camera()


def write_chip(path: Path, ccd, primary=(), compressed=False, **cards) -> Path:
    """A file with one chip, all cards in its own header but those named in `primary`; a card of None is left out."""
    every = CARDS | SECTIONS | {"CCD": ccd} | {key.replace("_", "-"): value for key, value in cards.items()}
    kept = {key: value for key, value in every.items() if value is not None}
    first = fits.PrimaryHDU(header=fits.Header({key: kept.pop(key) for key in primary}))
    pixels = np.arange(288, dtype=np.uint16).reshape(12, 24) + np.uint16(len(path.stem))
    kind = fits.CompImageHDU if compressed else fits.ImageHDU
    fits.HDUList([first, kind(pixels, fits.Header(kept))]).writeto(path, overwrite=True)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_files_of_one_chip_are_joined_to_exposures(tmp_path, compressed):
    """LV-27, GW-07: every key in the chip's own header, no HDU with a name; what was ingested can be read again."""
    paths = [write_chip(tmp_path / f"{n}_{ccd}.fits", ccd, compressed=compressed, EXPNUM=n)
             for n in (7, 8) for ccd in (2, 1)]  # fmt: skip
    exposures, rejected = inspect_raw(paths, CAMERA)
    assert rejected == [] and [one.id for one in exposures] == ["cam-000007", "cam-000008"]
    one = exposures[0]
    assert [chip.chip for chip in one.chips] == ["c1", "c2"]
    assert [Path(chip.path).name for chip in one.chips] == ["7_1.fits", "7_2.fits"]
    assert (one.band, one.exptime_s, one.ra_deg, one.obs_mode, one.night) == ("r", 30.0, 10.0, "wide", "2026-01-01")
    assert len({chip.sha256 for chip in one.chips}) == 2
    raw, header = read_frame(one.chips[1].path, one.chips[1].hdu)
    assert raw.shape == (12, 24) and header["CCD"] == 2
    # chip c2 lies to the east of c1: 16 + 4 pixels
    east = [np.mean([ra for ra, _ in chip.footprint]) for chip in one.chips]
    assert (east[1] - east[0]) * np.cos(np.radians(5.0)) / 1.4e-4 == pytest.approx(-20.0, abs=0.01)


def test_a_key_of_the_primary_header_comes_first(tmp_path):
    path = write_chip(tmp_path / "a.fits", 1, primary=("EXPTIME",), EXPTIME=45.0)
    with fits.open(path, mode="update") as hdus:
        hdus[1].header["EXPTIME"] = 30.0
    (one,), _ = inspect_raw([path], CAMERA)
    assert one.exptime_s == 45.0


def test_copies_and_contradictions_of_one_chip_are_told_apart(tmp_path):
    paths = [write_chip(tmp_path / f"{name}.fits", 1) for name in "ab"]
    paths += [write_chip(tmp_path / "cc.fits", 1), write_chip(tmp_path / "d.fits", 2, EXPTIME=31.0)]
    paths += [write_chip(tmp_path / "e.fits", 2)]
    exposures, rejected = inspect_raw(paths, CAMERA)
    assert [chip.path for chip in exposures[0].chips] == [str(paths[0]), str(paths[4])]
    assert [Path(one.path).name for one in rejected] == ["b.fits", "cc.fits", "d.fits"]
    assert rejected[0].reason.startswith(f"is a copy of {paths[0]}")
    assert rejected[1].reason.startswith("has other bytes but the same exposure number as")
    assert rejected[2].reason.startswith("says other things of exposure cam-000007")


@pytest.mark.parametrize(
    ("ccd", "cards", "said"),
    [
        (9, {}, "header key CCD = '9' is no chip of camera cam"),
        (None, {}, "header key CCD is missing"),
        (3, {}, "holds no working chip"),
        (1, {"FILTER": "mauve"}, "no filter 'mauve'"),
        (1, {"BIASSECA": None}, "chip c1: header key BIASSECA, .* is missing"),
        (1, {"DATASECB": "[13:25,1:12]"}, "chip c1: header key DATASECB .* outside the frame of 24 x 12"),
        (1, {"BIASSECB": "[20:24,1:12]"}, "chip c1: overscan of amplifier B .* exposed pixels"),
        (1, {"DATASECB": "[12:19,1:12]"}, "chip c1: data of amplifiers A and B .* cover the same pixels"),
        (1, {"GAINA": 0.0}, "chip c1: header key GAINA = 0.0 is no gain > 0"),
        (1, {"RDNB": None}, "chip c1: header key RDNB, .* is missing"),
    ],
)
def test_a_bad_chip_is_set_aside_with_one_line_and_the_others_go_on(tmp_path, ccd, cards, said):
    """LV-27: promised overscan missing, sections outside the frame, gain 0, unknown chip or filter."""
    good, bad = write_chip(tmp_path / "good.fits", 2), write_chip(tmp_path / "bad.fits", ccd, **cards)
    exposures, (rejected,) = inspect_raw([bad, good], CAMERA)
    assert [chip.chip for chip in exposures[0].chips] == ["c2"]
    assert rejected.path == str(bad) and re.search(said, rejected.reason) and "\n" not in rejected.reason


def test_an_exposure_may_come_in_parts(tmp_path):
    """GW-07: what is here of it is taken; `min_good_chips` is asked when it is processed, not while files arrive."""
    camera = make_camera(min_good_chips=2)
    paths = [write_chip(tmp_path / f"{ccd}.fits", ccd) for ccd in (1, 2)]
    parts = [inspect_raw([path], camera)[0][0] for path in paths]
    assert [[chip.chip for chip in one.chips] for one in parts] == [["c1"], ["c2"]]
    (whole,), _ = inspect_raw(paths, camera)
    assert whole.chips == parts[0].chips + parts[1].chips


def test_the_temperature_of_an_exposure_is_the_mean_of_its_chips(tmp_path):
    paths = [write_chip(tmp_path / f"{ccd}.fits", ccd, CCDTEMP=t) for ccd, t in ((1, -99.0), (2, -101.0))]
    assert inspect_raw(paths, CAMERA)[0][0].temperature_c == pytest.approx(-100.0)
    assert inspect_raw(paths, make_camera({"temperature_c": ""}))[0][0].temperature_c is None


def test_only_certified_modes_are_taken(tmp_path):
    """PHX-03: an exposure of another observing mode is set aside and says so; without the list all are taken."""
    paths = [write_chip(tmp_path / "a.fits", 1), write_chip(tmp_path / "b.fits", 1, EXPNUM=8, MODE="focus")]
    exposures, rejected = inspect_raw(paths, make_camera(certified_modes=("wide", "deep")))
    assert [one.id for one in exposures] == ["cam-000007"]
    assert rejected[0].path == str(paths[1])
    assert "observing mode 'focus' of camera cam is not certified (certified_modes: wide, deep)" in rejected[0].reason
    assert len(inspect_raw(paths, CAMERA)[0]) == 2


def test_hdus_that_are_no_chips_of_the_mosaic_are_passed_over(tmp_path):
    """Focus and guide chips in a raw file are no strangers where the camera says so."""
    camera = make_camera({"chip": ""}, ignored_hdus=("FS1",), chips={"c1": {"crpix": [18.0, 6.0]}})
    cards = fits.Header(CARDS | SECTIONS)
    chips = [fits.ImageHDU(np.zeros((12, 24), np.uint16), cards, name="c1"), fits.ImageHDU(np.ones((9, 9)), name="FS1")]
    fits.HDUList([fits.PrimaryHDU(), *chips]).writeto(tmp_path / "a.fits")
    (one,), rejected = inspect_raw([tmp_path / "a.fits"], camera)
    assert [chip.hdu for chip in one.chips] == ["c1"] and rejected == []
    _, rejected = inspect_raw([tmp_path / "a.fits"], camera.model_copy(update={"ignored_hdus": ()}))
    assert "HDU FS1 is no chip of camera cam" in rejected[0].reason


def test_without_a_kind_key_frames_are_objects_unless_said_otherwise(tmp_path):
    """`lap ingest --as`: exposures of the sky serve as sky or fringe frames, whatever their headers say."""
    camera = make_camera({"kind": ""})
    path = write_chip(tmp_path / "a.fits", 1, OBSTYPE=None)
    assert [one.id for one in inspect_raw([path], camera)[0]] == ["cam-000007"]
    assert "is a dark frame" in inspect_raw([path], camera, given="dark")[1][0].reason
    for kind, key in (("bias", "cam|bias|all|2026-01-01"), ("dark", "cam|dark|all|2026-01-01"),
                      ("fringe", "cam|fringe|r|2026-01-01"), ("sky", "cam|sky|r|2026-01-01")):  # fmt: skip
        (one,), rejected = inspect_calibrations([path], camera, given=kind)
        assert (one.key, one.kind, rejected) == (key, kind, [])
    plain = write_chip(tmp_path / "b.fits", 1)
    assert "--as sky or --as fringe" in inspect_calibrations([plain], CAMERA)[1][0].reason
    assert inspect_calibrations([plain], CAMERA, given="sky")[0][0].kind == "sky"


def test_darks_need_a_time_and_have_no_band(tmp_path):
    paths = [write_chip(tmp_path / f"{n}.fits", 1, OBSTYPE="dark", FILTER=None, EXPTIME=t)
             for n, t in (("a", 300.0), ("bb", 0.0))]  # fmt: skip
    (one,), rejected = inspect_calibrations(paths, CAMERA)
    assert one.key == "cam|dark|all|2026-01-01" and len(one.frames) == 1
    assert "a dark frame needs a time > 0" in rejected[0].reason


def test_the_temperature_of_a_set_is_the_mean_of_its_frames(tmp_path):
    """PHX-01: masters are chosen by temperature, too; a frame that does not tell it does not count."""
    paths = [
        write_chip(tmp_path / f"{'x' * n}.fits", 1, OBSTYPE="bias", CCDTEMP=t)
        for n, t in ((1, -99.0), (2, -101.0), (3, None))
    ]
    (one,), _ = inspect_calibrations(paths, CAMERA)
    assert one.temperature_c == pytest.approx(-100.0) and len(one.frames) == 3
    assert inspect_calibrations(paths[2:], CAMERA)[0][0].temperature_c is None
