"""The survey on disk: the same bytes for any number of workers, the layout, the truth apart in `truth/`."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from lap_assets.errors import BadInput
from lap_assets.model.camera import load_camera
from lap_assets.model.tessellation import load_tessellation
from lap_assets.sim.design import CHIPS, make_design
from lap_assets.sim.schedule import plan_frames
from lap_assets.sim.survey import simulate_survey, write_survey
from lap_assets.sim.writer import read_bits

pytestmark = pytest.mark.slow

DESIGN = replace(
    make_design("tiny", 5), chip_px=128, visits=(2, 1, 2), bias_frames=1, flat_frames=1, transients=2, dither_arcsec=5.0
)


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sim") / "one"
    steps = []
    write_survey(folder, DESIGN, workers=1, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(n, steps[0][1]) for n in range(1, steps[0][1] + 1)]
    return folder


def hash_files(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_bytes_do_not_depend_on_the_number_of_workers(survey, tmp_path):
    write_survey(tmp_path / "two", DESIGN, workers=2)
    assert hash_files(tmp_path / "two") == hash_files(survey)


def test_another_seed_gives_another_survey():
    one, two = (plan_frames(replace(DESIGN, seed=seed)) for seed in (5, 6))
    assert len(one) == len(two)
    assert all(a.pointing != b.pointing for a, b in zip(one, two, strict=True) if a.kind == "object")


def test_raw_frames_are_what_the_camera_file_describes(survey):
    camera = load_camera("simtiny")
    paths = sorted((survey / "raw").glob("*.fits"))
    assert len(paths) == 10
    for path in [*paths, *sorted((survey / "calibration").glob("*.fits"))]:
        with fits.open(path, memmap=False) as units:
            header = units[0].header
            assert path.name == f"simtiny-{header['EXPNUM']:06d}.fits"
            assert camera.header.kinds[header[camera.header.kind]] == ("object" if path in paths else header["OBSTYPE"])
            if header["OBSTYPE"] != "bias":
                assert camera.band_of(header[camera.header.filter]) in DESIGN.bands
            assert camera.header.night_of(header[camera.header.mjd]) == header["NIGHT"]
            assert camera.header.read_angles(header)[0] == pytest.approx(150.0, abs=0.05)
            assert [unit.name.lower() for unit in units[1:]] == list(CHIPS)
            assert all(unit.data.shape == (128, 128 + 64) and unit.data.dtype == np.uint16 for unit in units[1:])
            assert not {"CHECKSUM", "DATE"} & set(header)


def test_full_sizes_have_the_shapes_of_their_cameras():
    for size in ("tiny", "demo", "field"):
        design = make_design(size, 1)
        for chip in load_camera(design.camera).chips.values():
            assert chip.shape == (design.chip_px, design.chip_px)
            assert chip.raw_shape == (design.chip_px, design.chip_px + 64)


@pytest.mark.parametrize("size", ["tiny", "demo", "field"])
def test_plan_is_the_one_the_survey_promises(size):
    """At least six exposures per band over three nights, two per band in the last, in visits; bias and flat frames."""
    design = make_design(size, 1)
    frames = plan_frames(design)
    objects = [frame for frame in frames if frame.kind == "object"]
    assert len({frame.number for frame in frames}) == len(frames)
    assert [frame.mjd for frame in objects] == sorted(frame.mjd for frame in objects)
    for band in design.bands:
        of_band = [frame for frame in objects if frame.band == band]
        assert len(of_band) >= 6 and len({frame.night for frame in of_band}) >= 3
        last = [frame for frame in of_band if frame.night == design.nights[-1]]
        for name in {frame.object for frame in last}:
            pair = [frame for frame in last if frame.object == name]
            assert [frame.comment for frame in pair] == ["visit 1 of 2", "visit 2 of 2"]
        assert sum(frame.kind == "flat" and frame.band == band for frame in frames) >= 5
    assert sum(frame.kind == "bias" for frame in frames) >= 5
    streaked = [frame for frame in objects if frame.trail is not None]
    assert len(streaked) == 1 and not streaked[0].transients
    assert {frame.night for frame in objects if frame.transients} == {design.nights[-1]}
    assert all(0.85 <= frame.transparency <= 1.0 and 0.85 <= frame.seeing.fwhm_arcsec <= 1.2 for frame in objects)


@pytest.mark.parametrize("size", ["tiny", "demo", "field"])
def test_the_tessellation_covers_every_dithered_chip(size):
    from lap_assets.sim.survey import _describe_field

    design = make_design(size, 1)
    cell = load_tessellation(_describe_field(design)["tessellation"]).cell(f"{size}.0")
    to_pixel = WCS(cell.header())
    camera = load_camera(design.camera)
    for frame in plan_frames(design):
        for chip in CHIPS if frame.kind == "object" else ():
            ra, dec = np.array(camera.footprint(chip, frame.ra_deg, frame.dec_deg)).T
            x, y = to_pixel.all_world2pix(ra, dec, 0)
            assert x.min() > 8 and y.min() > 8 and x.max() < cell.nx - 8 and y.max() < cell.ny - 8


def test_truth_lies_apart_and_is_complete(survey):
    outside = {str(path.relative_to(survey)) for path in survey.rglob("*") if path.is_file()}
    outside = {name for name in outside if not name.startswith(("truth/", "raw/", "calibration/"))}
    assert outside == {"field.json", "refcat/gaia.parquet"}
    field = json.loads((survey / "field.json").read_text())
    assert sorted(field) == ["bands", "camera", "refcat", "seed", "size", "tessellation"]
    truth = survey / "truth"
    exposures = pd.read_parquet(truth / "exposures.parquet")
    assert len(exposures) == 10 * 4
    for row in exposures.itertuples():
        cards = (truth / "wcs" / f"{row.exposure}_{row.chip}.hdr").read_text()
        ra, dec = WCS(fits.Header.fromstring(cards, sep="\n")).all_pix2world([60], [60], 0)
        assert abs(ra[0] - 150.0) < 0.1 and abs(dec[0] - 2.0) < 0.1
        hits = read_bits(truth / "cosmic_rays" / f"{row.exposure}_{row.chip}.npz")
        assert hits.shape == (128, 128)
    for name, columns in {
        "stars": {"star_id", "ra", "dec", "mag_g", "mag_r", "mag_i", "in_refcat"},
        "galaxies": {"galaxy_id", "ra", "dec", "z", "mag_r", "re_arcsec", "e1", "e2", "g1", "g2", "kappa", "member"},
        "transients": {"transient_id", "ra", "dec", "mag", "night"},
        "streaks": {"exposure", "chip", "x0", "y0", "x1", "y1"},
    }.items():
        assert columns <= set(pd.read_parquet(truth / f"{name}.parquet").columns)
    lens = json.loads((truth / "lens.json").read_text())
    assert {"ra", "dec", "z", "m200c_msun", "c200c", "z_source", "expected_snr"} <= set(lens)
    assert len(pd.read_parquet(truth / "streaks.parquet")) >= 2


def test_transients_are_on_a_chip_in_every_exposure(survey):
    transients = pd.read_parquet(survey / "truth" / "transients.parquet")
    seen = {}
    for path in sorted((survey / "truth" / "wcs").glob("*.hdr")):
        wcs = WCS(fits.Header.fromstring(path.read_text(), sep="\n"))
        x, y = wcs.all_world2pix(transients["ra"], transients["dec"], 0, quiet=True)
        inside = (x > 15) & (x < 112) & (y > 15) & (y < 112)
        seen[path.name[:14]] = seen.get(path.name[:14], False) | inside
    assert len(seen) == 10 and all(one.all() for one in seen.values())


def test_bad_requests_are_refused_in_one_line(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for call in (
        lambda: simulate_survey(tmp_path / "a", 1, "huge"),
        lambda: simulate_survey(tmp_path / "a", -1, "tiny"),
        lambda: simulate_survey(tmp_path / "a", 1, "tiny", workers=0),
        lambda: simulate_survey(tmp_path / "full", 1, "tiny"),
    ):
        with pytest.raises(BadInput) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "a").exists()
