"""Ingest of files from outside: what is read from good ones, and one clear line for each bad one."""

import gzip
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from lap_assets.errors import BadInput
from lap_assets.model.camera import Camera, load_camera
from lap_assets.pipeline.ingest import inspect_calibrated, inspect_calibrations, inspect_raw

AMPLIFIERS = [
    {"name": "A", "overscan": [0, 4, 0, 12], "data": [4, 12, 0, 12], "target": [0, 8, 0, 12]},
    {"name": "B", "overscan": [20, 24, 0, 12], "data": [12, 20, 0, 12], "target": [8, 16, 0, 12]},
]
CD_DEG = [[-1.4e-4, 0.0], [0.0, 1.4e-4]]
CAMERA = Camera(
    name="cam",
    pixel_scale_arcsec=0.5,
    filters={"red 1": "r", "green": "g"},
    header={"night": "NIGHT", "comment": "OBSCOMM", "obs_mode": "OBSMODE", "instruments": ["CAM"]},
    calibrated={"image_tag": "_ooi", "inverse_variance_tag": "_oow", "mask_tag": "_ood", "mask_codes": {1: ["BAD"]}},
    chip_defaults={"nx": 16, "ny": 12, "raw_nx": 24, "raw_ny": 12, "cd_deg": CD_DEG, "amplifiers": AMPLIFIERS},
    chips={"c0": {"crpix": [18.0, 6.0]}, "c1": {"crpix": [-2.0, 6.0]}, "dead": {"crpix": [38.0, 6.0], "broken": True}},
)  # fmt: skip
CARDS = {
    "INSTRUME": "CAM", "EXPNUM": 7, "OBSTYPE": "object", "FILTER": "red  1", "EXPTIME": 30.0, "MJD-OBS": 61042.2,
    "NIGHT": "2026-01-01", "RA": 10.0, "DEC": -5.0, "AIRMASS": 1.2, "OBJECT": "M  31", "OBSCOMM": "visit 1 of 2",
    "OBSMODE": "3PI",
}  # fmt: skip
TPV = {
    "CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "CRVAL1": 10.0, "CRVAL2": -5.0, "CRPIX1": 8.5, "CRPIX2": 6.5,
    "CD1_1": -1.4e-4, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 1.4e-4, "CUNIT1": "deg", "CUNIT2": "deg",
    "PV1_1": 1.0, "PV2_1": 1.0,
}  # fmt: skip


def write_raw(path: Path, chips=("c0", "c1", "dead"), pixels=None, extension=None, **cards) -> Path:
    """A raw file; `cards` replace those of the primary header (None: left out), `extension` is added to each chip."""
    primary = fits.PrimaryHDU()
    for key, value in (CARDS | {key.replace("_", "-"): value for key, value in cards.items()}).items():
        if value is not None:
            primary.header[key] = value
    units = [primary]
    for i, name in enumerate(chips):
        data = np.full((12, 24), 1000 + i, np.uint16) if pixels is None else pixels
        units.append(fits.ImageHDU(data, name=name))
        units[-1].header.update(extension or {})
    fits.HDUList(units).writeto(path, overwrite=True)
    return path


def write_calibrated(
    folder: Path, name="x", chips=("c0",), shapes=None, wcs=None, drop=(), blank=False, cards=None
) -> Path:
    """An image with inverse variance and mask beside it, 14 × 10 pixels; `drop` removes WCS cards."""
    kinds = {"_ooi": np.float32, "_oow": np.float32, "_ood": np.int32}
    for tag, kind in kinds.items():
        units = [fits.PrimaryHDU()]
        units[0].header.update(CARDS | (cards or {}))
        for chip in chips:
            data = np.ones((shapes or {}).get(tag, (10, 14)), kind)
            if blank and tag == "_ooi":
                data[:] = np.nan
            units.append(fits.ImageHDU(data, name=chip))
            units[-1].header.update({k: v for k, v in (TPV | (wcs or {})).items() if k not in drop})
        fits.HDUList(units).writeto(folder / f"{name}{tag}_r.fits", overwrite=True)
    return folder / f"{name}_ooi_r.fits"


def reject(path: Path, *more: Path, inspect=inspect_raw) -> str:
    """The reason for which one file is set aside, while a good one beside it goes on."""
    good = write_raw(path.with_name("good.fits"), EXPNUM=99)
    exposures, rejected = inspect([good, path, *more], CAMERA)
    assert [one.id for one in exposures] == ["cam-000099"]
    (one,) = rejected
    assert one.path == str(path)
    assert "\n" not in one.reason and len(one.reason) < 300
    return one.reason


def test_raw_exposure_is_read_as_its_header_says(tmp_path):
    path = write_raw(tmp_path / "a.fits")
    told = []
    (one,), rejected = inspect_raw([path], CAMERA, lambda done, total: told.append((done, total)))
    assert rejected == [] and told == [(1, 1)]
    assert (one.id, one.camera, one.band, one.filter, one.night) == ("cam-000007", "cam", "r", "red 1", "2026-01-01")
    assert (one.mjd, one.exptime_s, one.ra_deg, one.dec_deg, one.airmass) == (61042.2, 30.0, 10.0, -5.0, 1.2)
    assert (one.object, one.comment, one.obs_mode, one.kind) == ("M 31", "visit 1 of 2", "3PI", "raw")
    # the broken chip is left out
    assert [(chip.chip, chip.hdu, chip.path) for chip in one.chips] == [
        ("c0", "c0", str(path)),
        ("c1", "c1", str(path)),
    ]


def test_footprints_are_those_of_the_nominal_geometry(tmp_path):
    """Half a degree of sky is 3600 pixels of 0.5 arcsec; chip c0 lies 2 px east of the pointing, 16 px wide."""
    (one,), _ = inspect_raw([write_raw(tmp_path / "a.fits")], CAMERA)
    ra, dec = np.array(one.chips[0].footprint).T
    east = (ra - 10.0) * np.cos(np.radians(-5.0)) / 1.4e-4
    np.testing.assert_allclose([east.min(), east.max()], [18 - 16.5, 18 - 0.5], atol=1e-3)
    north = (dec + 5.0) / 1.4e-4
    np.testing.assert_allclose([north.min(), north.max()], [0.5 - 6.0, 12.5 - 6.0], atol=1e-3)


def test_bytes_decide_the_hash(tmp_path):
    first, second = write_raw(tmp_path / "a.fits"), write_raw(tmp_path / "b.fits", EXPNUM=8)
    exposures, _ = inspect_raw([first, second], CAMERA)
    hashes = [{chip.sha256 for chip in one.chips} for one in exposures]
    assert len(hashes[0]) == len(hashes[1]) == 1 and hashes[0] != hashes[1]
    assert len(hashes[0].pop()) == 64


def test_night_follows_from_the_time_where_there_is_no_key(tmp_path):
    """Noon to noon: 02:24 UT belongs to the date before, 15:00 UT to its own."""
    camera = CAMERA.model_copy(update={"header": CAMERA.header.model_copy(update={"night": ""})})
    paths = [write_raw(tmp_path / f"{i}.fits", EXPNUM=i, MJD_OBS=61042.0 + day) for i, day in enumerate((0.1, 0.625))]
    exposures, _ = inspect_raw(paths, camera)
    assert [one.night for one in exposures] == ["2026-01-01", "2026-01-02"]


@pytest.mark.parametrize(
    ("cards", "said"),
    [
        ({"EXPTIME": None}, "header key EXPTIME is missing"),
        ({"EXPTIME": "thirty"}, "EXPTIME = 'thirty' is no number"),
        ({"EXPTIME": 0.0}, "EXPTIME = 0: an exposure of the sky needs a time > 0"),
        ({"EXPTIME": -3.0}, "EXPTIME = -3"),
        ({"EXPTIME": "NaN"}, "EXPTIME = 'NaN' is no finite number"),
        ({"FILTER": None}, "header key FILTER is missing"),
        ({"FILTER": "mauve"}, "no filter 'mauve'"),
        ({"MJD_OBS": None}, "header key MJD-OBS is missing"),
        ({"MJD_OBS": "2026-01-01"}, "is no number"),
        ({"MJD_OBS": 2461042.5}, "no modified Julian date"),
        ({"NIGHT": "1.1.2026"}, "is no date like 2026-01-31"),
        ({"RA": None}, "header key RA is missing"),
        ({"RA": "east"}, "RA = 'east' is no angle"),
        ({"DEC": 95.0}, "is not on the sky"),
        ({"EXPNUM": None}, "header key EXPNUM is missing"),
        ({"EXPNUM": "../x"}, "header key EXPNUM: exposure id 'cam-../x' is not allowed"),
        ({"EXPNUM": "a|b"}, "'cam-a|b' is not allowed"),
        ({"EXPNUM": "a,b"}, "'cam-a,b' is not allowed"),
        ({"EXPNUM": -5}, None),
        ({"OBSTYPE": "bias"}, "is a bias frame.*--kind calibration"),
        ({"OBSTYPE": "focus"}, "OBSTYPE = 'focus' is none of object, bias, dark, flat, sky, fringe"),
        ({"OBSTYPE": None}, "header key OBSTYPE is missing"),
        ({"INSTRUME": "Other"}, "INSTRUME says 'Other', which is not camera cam"),
    ],
)
def test_headers_that_cannot_be_used(tmp_path, cards, said):
    path = write_raw(tmp_path / "bad.fits", **cards)
    if said is None:  # a name like any other: CAMERA--5
        assert [one.id for one in inspect_raw([path], CAMERA)[0]] == ["cam--5"]
    else:
        assert re.search(said, reject(path)) or said in reject(path)


def test_number_of_300_characters(tmp_path):
    path = write_raw(tmp_path / "bad.fits")
    with warnings.catch_warnings(), fits.open(path, mode="update") as hdus:
        warnings.simplefilter("ignore")
        hdus[0].header["EXPNUM"] = "7" * 300
    assert "of 304 characters is too long" in reject(path)


def test_missing_optional_keys_have_defaults(tmp_path):
    path = write_raw(tmp_path / "a.fits", AIRMASS=None, OBJECT=None, OBSCOMM=None, OBSMODE=None)
    (one,), _ = inspect_raw([path], CAMERA)
    assert (one.airmass, one.object, one.comment, one.obs_mode) == (1.0, "", "", "3PI")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"chips": ("c0", "dead")}, "has no HDU for chip c1"),
        ({"chips": ("c0", "c1", "c9")}, "HDU C9 is no chip of camera cam"),
        ({"chips": ("c0", "c1", "c1")}, "holds chip c1 twice"),
        ({"pixels": np.zeros((12, 23), np.uint16)}, "HDU C0 is 23 x 12 pixels, chip c0 has 24 x 12"),
        ({"pixels": np.full((12, 24), np.nan, np.float32)}, "HDU C0 has no finite pixel"),
        ({"pixels": np.zeros((2, 12, 24), np.uint16)}, "HDU C0 is no two-dimensional image"),
        ({"extension": TPV | {"CD1_1": 0.0}}, "HDU C0: its WCS matrix .* is singular"),
        ({"chips": ()}, "holds no image"),
    ],
)
def test_images_that_cannot_be_used(tmp_path, values, said):
    assert re.search(said, reject(write_raw(tmp_path / "bad.fits", **values)))


def test_file_cut_at_every_block_is_set_aside(tmp_path):
    """Astropy only warns of a truncated file, and reads what is left; here none of them passes."""
    whole = write_raw(tmp_path / "whole.fits", chips=("dead", "c0", "c1")).read_bytes()
    assert len(whole) % 2880 == 0 and len(whole) > 5 * 2880
    for size in [*range(0, len(whole), 2880), len(whole) - 1, len(whole) - 2000, 100]:
        path = tmp_path / "bad.fits"
        path.write_bytes(whole[:size])
        assert reject(path), f"cut at {size}"


def test_files_that_are_no_fits(tmp_path):
    path = tmp_path / "bad.fits"
    path.write_text("hello " * 1000)
    assert "is no whole FITS file" in reject(path)
    assert "fetch it again" in reject(path)
    path.unlink()
    assert reject(path) == "does not exist"
    path.mkdir()
    assert "is no whole FITS file" in reject(path)


def test_compressed_file_cut_short(tmp_path):
    packed = tmp_path / "bad.fits.gz"
    with write_raw(tmp_path / "whole.fits").open("rb") as source, gzip.open(packed, "wb") as target:
        shutil.copyfileobj(source, target)
    assert [one.id for one in inspect_raw([packed], CAMERA)[0]] == ["cam-000007"]
    packed.write_bytes(packed.read_bytes()[:-20])
    assert "is no whole FITS file" in reject(packed)


def test_two_files_of_one_exposure(tmp_path):
    """The first in order of names is taken; a copy and a contradiction are told apart."""
    first = write_raw(tmp_path / "a.fits")
    shutil.copy(first, tmp_path / "b.fits")
    other = write_raw(tmp_path / "c.fits", EXPTIME=31.0)
    exposures, rejected = inspect_raw([other, tmp_path / "b.fits", first], CAMERA)
    assert [one.chips[0].path for one in exposures] == [str(first)]
    assert [Path(one.path).name for one in rejected] == ["b.fits", "c.fits"]
    assert rejected[0].reason.startswith(f"is a copy of {first}")
    assert rejected[1].reason.startswith("has other bytes but the same exposure number")


def test_inspecting_changes_no_file(tmp_path):
    path = write_raw(tmp_path / "a.fits")
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    inspect_raw([path], CAMERA)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_calibrated_exposure_with_its_companions(tmp_path):
    path = write_calibrated(tmp_path, chips=("c0", "c1"))
    points = tmp_path / "zp.fits"
    Table({"expnum": [7, 7, 8], "ccdname": ["c0", "c1", "c0"], "ccdzpt": [25.0, np.nan, 26.0]}).write(points)
    (one,), rejected = inspect_calibrated(sorted(tmp_path.glob("x_*")), CAMERA, points)
    assert rejected == []
    assert (one.id, one.kind, [chip.chip for chip in one.chips]) == ("cam-000007", "calibrated", ["c0", "c1"])
    chip = one.chips[0]
    assert (Path(chip.path).name, Path(chip.variance_path).name, Path(chip.mask_path).name) == (
        path.name, "x_oow_r.fits", "x_ood_r.fits",
    )  # fmt: skip
    # a star of 1 ADU in 30 s: 25 - 2.5 log10(1 / 30)
    assert chip.zero_point_mag == pytest.approx(28.6928, abs=1e-4)
    assert one.chips[1].zero_point_mag is None
    # 14 x 10 pixels about the reference point
    ra, dec = np.array(chip.footprint).T
    assert np.ptp(ra) * np.cos(np.radians(5.0)) / 1.4e-4 == pytest.approx(14.0, abs=1e-3)
    assert np.ptp(dec) / 1.4e-4 == pytest.approx(10.0, abs=1e-3)


def test_a_changed_mask_changes_the_hash(tmp_path):
    path = write_calibrated(tmp_path)
    (before,), _ = inspect_calibrated([path], CAMERA)
    with fits.open(tmp_path / "x_ood_r.fits", mode="update") as hdus:
        hdus[1].data[3, 3] = 5
    (after,), _ = inspect_calibrated([path], CAMERA)
    assert before.chips[0].sha256 != after.chips[0].sha256


def test_files_of_one_exposure_are_joined(tmp_path):
    paths = [write_calibrated(tmp_path, "a", ("c0",)), write_calibrated(tmp_path, "b", ("c1",))]
    (one,), rejected = inspect_calibrated(paths, CAMERA)
    assert rejected == [] and [chip.chip for chip in one.chips] == ["c0", "c1"]
    again = write_calibrated(tmp_path, "c", ("c1",))
    odd = write_calibrated(tmp_path, "d", ("c0",), cards={"EXPTIME": 31.0})
    (one,), rejected = inspect_calibrated([*paths, again, odd], CAMERA)
    assert [chip.chip for chip in one.chips] == ["c0", "c1"]
    assert "holds chip c1 of exposure cam-000007 once more" in rejected[0].reason
    assert "says other things of exposure cam-000007" in rejected[1].reason


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"drop": ("CTYPE1", "CTYPE2")}, "HDU C0 has no celestial WCS"),
        ({"drop": ("CTYPE1", "CTYPE2", "CRVAL1", "CRVAL2", "CD1_1", "CD1_2", "CD2_1", "CD2_2")}, "no celestial WCS"),
        ({"wcs": {"CD1_1": 0.0, "CD2_2": 0.0}}, "singular"),
        ({"wcs": {"CD1_1": 1e-4, "CD1_2": 1e-4, "CD2_1": 1e-4, "CD2_2": 1e-4}}, "singular"),
        ({"wcs": {"CTYPE1": "RA---XYZ", "CTYPE2": "DEC--XYZ"}}, "its WCS"),
        ({"wcs": {"CD1_1": 3.0, "CD2_2": 3.0}}, "spreads it over|nowhere on the sky"),
        ({"shapes": {"_oow": (10, 13)}}, "HDU C0: image 14 x 10, inverse variance 13 x 10 pixels"),
        (
            {"shapes": {"_ooi": (13, 14), "_oow": (13, 14), "_ood": (13, 14)}},
            "is 14 x 13 pixels, more than chip c0 has",
        ),
        ({"blank": True}, "no finite pixel"),
        ({"chips": ("zz",)}, "HDU ZZ is no chip of camera cam"),
        ({"chips": ("dead",)}, "holds no working chip"),
        ({"cards": {"OBSTYPE": "flat"}}, "is a calibrated flat frame"),
    ],
)
def test_calibrated_files_that_cannot_be_used(tmp_path, values, said):
    bad = write_calibrated(tmp_path, "bad", **values)
    good = write_calibrated(tmp_path, "good", cards={"EXPNUM": 99})
    exposures, rejected = inspect_calibrated([bad, good], CAMERA)
    assert [one.id for one in exposures] == ["cam-000099"]
    (one,) = rejected
    assert one.path == str(bad) and re.search(said, one.reason) and "\n" not in one.reason


def test_missing_and_damaged_companions(tmp_path):
    path = write_calibrated(tmp_path)
    mask, variance = tmp_path / "x_ood_r.fits", tmp_path / "x_oow_r.fits"
    variance.write_bytes(variance.read_bytes()[:-2880])
    assert "its inverse variance x_oow_r.fits is no whole FITS file" in inspect_calibrated([path], CAMERA)[1][0].reason
    mask.unlink()
    variance.unlink()
    assert (
        "has no inverse variance beside it: x_oow_r.fits is missing" in inspect_calibrated([path], CAMERA)[1][0].reason
    )
    assert "no calibrated image" in inspect_calibrated([write_raw(tmp_path / "raw.fits")], CAMERA)[1][0].reason


def test_a_mask_without_its_image_is_not_passed_over_in_silence(tmp_path):
    write_calibrated(tmp_path)
    (tmp_path / "x_ooi_r.fits").unlink()
    exposures, rejected = inspect_calibrated(sorted(tmp_path.glob("*.fits")), CAMERA)
    assert exposures == [] and len(rejected) == 2


def test_camera_without_a_calibrated_layout():
    with pytest.raises(BadInput, match="add calibrated: to its file"):
        inspect_calibrated([], CAMERA.model_copy(update={"calibrated": None}))


def test_calibration_frames_are_grouped_by_kind_band_and_night(tmp_path):
    def write(name, kind, night, filter_="", exptime=0.0):
        cards = {
            "OBSTYPE": kind,
            "NIGHT": night,
            "FILTER": filter_,
            "EXPTIME": exptime,
            "RA": None,
            "EXPNUM": int(name),
        }
        return write_raw(tmp_path / f"{name}.fits", **cards)

    paths = [write("1", "bias", "2026-01-01"), write("2", "BIAS", "2026-01-01"), write("3", "bias", "2026-02-01")]
    paths += [write("4", "flat", "2026-01-01", "red 1", 5.0), write("5", "flat", "2026-01-01", "green", 5.0)]
    shutil.copy(paths[0], tmp_path / "6.fits")
    bad = [
        tmp_path / "6.fits",
        write("7", "object", "2026-01-01", "green", 5.0),
        write("8", "flat", "2026-01-01", "mauve", 5.0),
    ]
    sets, rejected = inspect_calibrations([*paths, *bad], CAMERA)
    assert [(one.key, len(one.frames)) for one in sets] == [
        ("cam|bias|all|2026-01-01", 4), ("cam|bias|all|2026-02-01", 2),
        ("cam|flat|g|2026-01-01", 2), ("cam|flat|r|2026-01-01", 2),
    ]  # fmt: skip
    assert {frame.chip for frame in sets[0].frames} == {"c0", "c1"}
    assert (sets[2].kind, sets[2].band, sets[2].valid_from) == ("flat", "g", "2026-01-01")
    assert [Path(one.path).name for one in rejected] == ["6.fits", "7.fits", "8.fits"]
    assert (
        "is a copy of" in rejected[0].reason and "--kind raw" in rejected[1].reason and "'mauve'" in rejected[2].reason
    )


def test_decam_cutouts_are_nine_exposures_with_zero_points(shared_data):
    """The real Community Pipeline layout, as downloaded: three bands, three chips."""
    folder = shared_data / "decam_cutouts"
    camera = load_camera("decam")
    exposures, rejected = inspect_calibrated(
        sorted(folder.glob("images/**/*.fits")), camera, folder / "survey-ccds-1.fits.gz"
    )
    assert rejected == []
    assert sorted(one.band for one in exposures) == list("ggrrrzzzz")
    assert {chip.chip for one in exposures for chip in one.chips} == {"N2", "N3", "S1"}
    table = {(row["expnum"], row["ccdname"]): row for row in Table.read(folder / "survey-ccds-1.fits.gz")}
    for one in exposures:
        row = table[int(one.id.removeprefix("decam-")), one.chips[0].chip]
        assert one.chips[0].zero_point_mag == pytest.approx(row["ccdzpt"] + 2.5 * np.log10(row["exptime"]), abs=1e-5)
        assert one.mjd == pytest.approx(row["mjd_obs"], abs=1e-6)
    # they were cut from one field of 65 arcsec; some end earlier, at the edge of their chip
    ra, dec = np.array([one.chips[0].footprint for one in exposures]).transpose(2, 0, 1)
    height = np.array([dec.max(axis=1).min() - dec.min(axis=1).max()])
    width = (ra.max(axis=1).min() - ra.min(axis=1).max()) * np.cos(np.radians(25.46))
    assert 45.0 < 3600 * width < 66.0 and 60.0 < 3600 * height < 66.0
    for one in exposures:
        image = fits.getheader(one.chips[0].path, 1)
        side = np.diff(np.array(one.chips[0].footprint[:2]) * [np.cos(np.radians(25.46)), 1.0], axis=0)
        assert 3600 * np.hypot(*side[0]) == pytest.approx(0.2626 * image["NAXIS1"], rel=0.01)
    nights = {one.id: one.night for one in exposures}
    assert nights["decam-630780"] == "2017-03-15"  # taken at 06:18 UT on the 16th
