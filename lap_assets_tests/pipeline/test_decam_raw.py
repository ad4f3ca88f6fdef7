"""Raw DECam files with the cards of a real one (exposure 200666) through ingest and the chip stage."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from astropy.io import fits

from lap_assets.model.camera import CAMERAS_DIR, load_camera
from lap_assets.model.image import Mask
from lap_assets.model.survey import Survey
from lap_assets.operations.cameras import try_frame
from lap_assets.pipeline import chips
from lap_assets.pipeline.ingest import inspect_raw
from lap_assets.settings import ChipSettings, Settings
from lap_assets.store.repo import Repo

pytestmark = pytest.mark.slow

PRIMARY = {
    "INSTRUME": "DECam", "EXPNUM": 200666, "OBSTYPE": "object", "OBJECT": "23740571.0", "EXPTIME": 100.0,
    "FILTER": "z DECam SDSS c0004 9260.0 1520.0", "RA": "15:49:47.297", "DEC": "05:43:04.141", "AIRMASS": 1.34,
    "MJD-OBS": 56404.3354121,
}  # fmt: skip
# sections of the two kinds of chips: read out at the bottom (N), and at the top with the amplifiers exchanged (S)
NORTH = {
    "DATASECA": "[57:1080,1:4096]", "BIASSECA": "[7:56,1:4096]", "CCDSECA": "[1:1024,1:4096]",
    "DATASECB": "[1081:2104,1:4096]", "BIASSECB": "[2105:2154,1:4096]", "CCDSECB": "[1025:2048,1:4096]",
    "GAINA": 4.33463372345, "RDNOISEA": 6.82661465106, "SATURATA": 50246.0,
    "GAINB": 4.35729847495, "RDNOISEB": 6.90893246187, "SATURATB": 46472.0,
}  # fmt: skip
SOUTH = {
    "DATASECA": "[1081:2104,51:4146]", "BIASSECA": "[2105:2154,51:4146]", "CCDSECA": "[1025:2048,1:4096]",
    "DATASECB": "[57:1080,51:4146]", "BIASSECB": "[7:56,51:4146]", "CCDSECB": "[1:1024,1:4096]",
    "GAINA": 4.59347726229, "RDNOISEA": 7.17960496096, "SATURATA": 43266.0,
    "GAINB": 4.4014084507, "RDNOISEB": 7.01628521127, "SATURATB": 44935.0,
}  # fmt: skip
LEVEL = {"A": 2700.0, "B": 2950.0}  # ADU
SKY = 1500.0  # electrons
PLATE, LIGHT = 60, 30000.0  # side in pixels of a bright plate, and its ADU
USED = ("S4", "S5", "N4", "N30")
SKIPPED = ("bias", "flat", "cosmic_rays", "trails")


def cards_of(chip, **changed):
    cards = (NORTH if chip.startswith("N") else SOUTH) | changed
    return fits.Header({key: value for key, value in cards.items() if value is not None})


def halves(chip):
    """Columns in the trimmed and in the raw frame, and direction of reading, of amplifiers A and B."""
    left, right = (slice(0, 1024), slice(0, 1080)), (slice(1024, 2048), slice(1080, 2160))
    up = 1 if chip.startswith("N") else -1
    places = (left, right) if chip.startswith("N") else (right, left)
    return {name: (*place, (up, 1 if place is left else -1)) for name, place in zip("AB", places, strict=True)}


def expose_sky(chip, rng, plates=()):
    """Signals of both amplifiers in ADU, in the order of reading: sky of `SKY` electrons and plates (x, y, ADU)."""
    light, signals = np.zeros((4096, 2048), np.float32), {}
    for x, y, adu in plates:
        light[y : y + PLATE, x : x + PLATE] += adu
    for name, (columns, _, (up, along)) in halves(chip).items():
        noise = rng.standard_normal((4096, 1024), np.float32) * np.sqrt(SKY)
        signals[f"{chip}/{name}"] = (light[:, columns] + (SKY + noise) / cards_of(chip)[f"GAIN{name}"])[::up, ::along]
    return signals


def read_out(chip, signals, rng):
    """The raw frame (4146, 2160) uint16 with pedestals and read noise."""
    raw = np.zeros((4146, 2160), np.float32)
    rows = slice(0, 4096) if chip.startswith("N") else slice(50, 4146)
    for name, (columns, whole, (up, along)) in halves(chip).items():
        raw[rows, columns.start + 56 : columns.stop + 56] = signals[f"{chip}/{name}"][::up, ::along]
        noise = cards_of(chip)[f"RDNOISE{name}"] / cards_of(chip)[f"GAIN{name}"]
        raw[:, whole] += LEVEL[name] + noise * rng.standard_normal((4146, 1080), np.float32)
    return np.clip(np.rint(raw), 0, 65535).astype(np.uint16)


def write_decam(path, frames, primary=None, **changed):
    """A multi-extension file; `changed` cards replace those of chip S4."""
    units = [fits.PrimaryHDU(header=fits.Header(PRIMARY | (primary or {})))]
    for name, pixels in frames.items():
        units.append(fits.ImageHDU(pixels, cards_of(name, **(changed if name == "S4" else {})), name=name))
    fits.HDUList(units).writeto(path)
    return path


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repository whose DECam has only some chips: the frames of all take a gigabyte."""
    values = yaml.safe_load((CAMERAS_DIR / "decam.yaml").read_text())
    values["chips"] = {name: values["chips"][name] for name in USED}
    here = {f"{name}/{amp}" for name in USED for amp in "AB"}
    values["crosstalk"] = {
        victim: kept
        for victim, sources in values["crosstalk"].items()
        if victim in here and (kept := {key: value for key, value in sources.items() if key in here})
    }
    repo = Repo(tmp_path_factory.mktemp("decam"))
    repo.cameras.mkdir(parents=True)
    (repo.cameras / "decam.yaml").write_text(yaml.safe_dump(values))
    return repo


@pytest.fixture(scope="module")
def frames(repo):
    """A bright plate on amplifier A of S4, and all that the table says one amplifier leaves in another."""
    rng = np.random.default_rng(3)
    signals = expose_sky("S4", rng, [(1500, 2000, LIGHT)]) | expose_sky("S5", rng)
    # 48000 ADU with the bias: beyond the saturation of amplifier B, not of A
    signals |= expose_sky("N4", rng, [(200, 300, 48000 - LEVEL["A"]), (1700, 300, 48000 - LEVEL["B"])])
    mixed = {name: signal.copy() for name, signal in signals.items()}
    for one in load_camera("decam", repo.cameras).crosstalk:
        mixed[one.victim] += np.float32(one.coefficient) * signals[one.source]
    images = {chip: read_out(chip, mixed, rng) for chip in ("S4", "S5", "N4")}
    return images | {"FN1": np.zeros((16, 16), np.uint16)}


@pytest.fixture(scope="module")
def exposure(frames, repo, tmp_path_factory):
    path = write_decam(tmp_path_factory.mktemp("raw") / "DECam_00200666.fits", frames)
    (one,), rejected = inspect_raw([path], load_camera("decam", repo.cameras))
    assert rejected == []
    return one


def calibrate(exposure, repo, chip, *skipped):
    settings = Settings(chips=ChipSettings(skip_steps=(*SKIPPED, *skipped)))
    tasks = chips.plan(Survey("main", {exposure.id: exposure}), repo, settings, "main", exposure.id)
    (task,) = [task for task in tasks if task.data_id.unit == chip]
    output = chips.make(task, repo)
    return output.members["image.fits"]


def excess(image, x, y):
    """Mean electrons above the sky in the inner part of a plate at (x, y); its error is 0.8."""
    inner = image.sci[y + 4 : y + PLATE - 4, x + 4 : x + PLATE - 4]
    assert np.all(image.usable[y + 4 : y + PLATE - 4, x + 4 : x + PLATE - 4])
    return float(inner.mean()) - SKY


def test_a_raw_file_is_taken_as_its_headers_say(exposure):
    """LV-27, GW-07: raw DECam frames, refused before for want of sections, are ingested."""
    assert (exposure.id, exposure.band, exposure.kind, exposure.night) == ("decam-200666", "z", "raw", "2013-04-21")
    assert [(chip.chip, chip.hdu) for chip in exposure.chips] == [("N4", "N4"), ("S4", "S4"), ("S5", "S5")]
    assert exposure.ra_deg == pytest.approx(237.44707, abs=1e-4)
    # S4 lies half a chip north of the pointing, N4 as far to the south
    north = {chip.chip: np.mean([dec for _, dec in chip.footprint]) - exposure.dec_deg for chip in exposure.chips}
    assert north["S4"] == pytest.approx(-north["N4"], abs=1e-3) and 0.05 < north["S4"] < 0.1


def test_amplifiers_are_calibrated_with_the_numbers_of_their_header(exposure, repo):
    """LV-11: both amplifiers show the same sky to 0.5 electrons, and the variance is that of sky and read noise."""
    image = calibrate(exposure, repo, "S4")
    left, right = image.sci[:1900, :1024], image.sci[:1900, 1024:]
    assert left.mean() == pytest.approx(SKY, abs=0.5) and right.mean() == pytest.approx(SKY, abs=0.5)
    for half, noise in ((image.var[:, :1024], SOUTH["RDNOISEB"]), (image.var[:, 1024:], SOUTH["RDNOISEA"])):
        assert float(np.median(half)) == pytest.approx(SKY + noise**2, rel=0.01)
    assert float(left.std()) == pytest.approx(np.sqrt(SKY + SOUTH["RDNOISEB"] ** 2), rel=0.02)
    # the plate, where it was put: amplifier A is the right half of a southern chip
    assert excess(image, 1500, 2000) == pytest.approx(LIGHT * SOUTH["GAINA"], rel=1e-3)


def test_saturation_is_that_of_each_amplifier(exposure, repo):
    """48000 ADU saturate amplifier B (46472) of a northern chip, not A (50246)."""
    image = calibrate(exposure, repo, "N4")
    flagged = (image.mask & int(Mask.SATURATED)) != 0
    assert not flagged[:, :1024].any()
    assert flagged[300 : 300 + PLATE, 1700 : 1700 + PLATE].all()
    assert excess(image, 200, 300) == pytest.approx(NORTH["GAINA"] * (48000 - LEVEL["A"]), rel=1e-3)


@pytest.mark.parametrize(
    ("chip", "x", "gain", "coefficient"), [("S4", 488, SOUTH["GAINB"], 2.33e-4), ("S5", 1500, SOUTH["GAINA"], 3.67e-5)]
)
def test_crosstalk_of_the_observatory_s_table_is_removed(exposure, repo, chip, x, gain, coefficient):
    """LV-11: a ghost of 31 (5) electrons within (between) chips is gone to 3 σ; with the step switched off it stays."""
    ghost = gain * coefficient * LIGHT
    assert excess(calibrate(exposure, repo, chip), x, 2000) == pytest.approx(0.0, abs=2.5)
    assert excess(calibrate(exposure, repo, chip, "crosstalk"), x, 2000) == pytest.approx(ghost, abs=2.5)


@pytest.mark.parametrize(
    ("primary", "changed", "said"),
    [
        ({}, {"BIASSECA": None}, "HDU S4: chip S4: header key BIASSECA, .* is missing"),
        ({}, {"DATASECB": "[57:1080,52:4147]"}, "chip S4: header key DATASECB .* outside the frame of 2160 x 4146"),
        ({}, {"GAINA": 0.0}, "chip S4: header key GAINA = 0.0 is no gain > 0"),
        ({"FILTER": "z Other"}, {}, "no filter 'z Other'"),
        ({"OBSTYPE": "zero"}, {}, "is a bias frame"),
        ({"OBSTYPE": "dome flat"}, {}, "is a flat frame"),
        ({"OBSTYPE": "focus"}, {}, "OBSTYPE = 'focus' is none of"),
        ({"INSTRUME": "Mosaic3"}, {}, "INSTRUME says 'Mosaic3'"),
    ],
)
def test_what_cannot_be_used_is_one_line(frames, repo, tmp_path, primary, changed, said):
    path = write_decam(tmp_path / "bad.fits", frames, primary, **changed)
    exposures, rejected = inspect_raw([path], load_camera("decam", repo.cameras))
    assert exposures == [] and len(rejected) == 1
    assert re.search(said, rejected[0].reason) and "\n" not in rejected[0].reason


def test_a_dry_run_measures_what_was_put_in(exposure, repo):
    """LV-27: levels, read noises and sections of all amplifiers, and nothing to complain of."""
    run = try_frame(load_camera("decam", repo.cameras), Path(exposure.chips[0].path))
    assert run.refused == [] and run.notes == []
    table = run.amplifiers.set_index(["chip", "amp"])
    assert len(table) == 6
    row = table.loc[("S4", "A")]
    assert (row.data, row.overscan, row.target) == ("[1081:2104,51:4146]", "[2105:2154,51:4146]", "[1025:2048,1:4096]")
    assert abs(float(row.level_adu) - LEVEL["A"]) <= 1.0
    assert float(row.noise_e) == pytest.approx(SOUTH["RDNOISEA"], rel=0.02)


@pytest.mark.slow
def test_a_whole_exposure_of_62_chips_and_its_focus_chips(tmp_path):
    """All HDUs of the file of a night: 60 chips are taken, the two broken ones and the focus chips passed over."""
    camera = load_camera("decam")
    path = tmp_path / "DECam_00200666.fits.fz"
    units = [fits.PrimaryHDU(header=fits.Header(PRIMARY))]
    flat = np.full((4146, 2160), 3000, np.uint16)
    units += [fits.CompImageHDU(flat, cards_of(name), name=name) for name in camera.chips]
    units += [fits.CompImageHDU(flat[:100, :100], name=name) for name in camera.ignored_hdus]
    fits.HDUList(units).writeto(path)
    (one,), rejected = inspect_raw([path], camera)
    assert rejected == [] and len(one.chips) == 60
    assert {"N30", "S30", "FS1"}.isdisjoint(chip.chip for chip in one.chips)
