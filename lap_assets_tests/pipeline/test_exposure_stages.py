"""From raw frames to joint solutions, with the store in between: what was put in is gone afterwards (LV-11)."""

import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import yaml
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image

from lap_assets.errors import NoWork, UnprocessableData
from lap_assets.model import camera as camera_model
from lap_assets.model.ids import DataId
from lap_assets.model.image import Mask
from lap_assets.model.survey import CalibrationSet, ChipFile, Exposure, Run, Survey
from lap_assets.model.tessellation import LocalTessellation
from lap_assets.pipeline import calibrations, chips, joint_solutions, solutions
from lap_assets.science.background import evaluate_background
from lap_assets.settings import ChipSettings, QualitySettings, Settings
from lap_assets.store.repo import Repo
from lap_assets_tests.science.star_fields import add_star

pytestmark = pytest.mark.slow

N, OVERSCAN, SKY, ZERO_POINT, FWHM = 256, 16, 500.0, 28.5, 2.6
RA, DEC, SCALE = 40.0, -20.0, 0.4 / 3600
CHIPS = ("c0", "c1")
TRUE_GAIN = {"A": 1.5, "B": 1.54}  # nominal 1.5 for both
BIAS_KEY, FLAT_KEY = "toy|bias|all|2024-01-01", "toy|flat|r|2024-01-01"

CELLS = {"demo.0": LocalTessellation("demo", [(RA, DEC)], 0.4, 600, (2, 2), 20).only}


def camera_yaml():
    half = N // 2
    amplifiers = [
        {"name": "A", "overscan": [0, OVERSCAN, 0, N], "data": [OVERSCAN, OVERSCAN + half, 0, N],
         "target": [0, half, 0, N]},
        {"name": "B", "overscan": [OVERSCAN + N, 2 * OVERSCAN + N, 0, N], "data": [OVERSCAN + half, OVERSCAN + N, 0, N],
         "target": [half, N, 0, N]},
    ]  # fmt: skip
    for amp in amplifiers:
        amp |= {"gain": 1.5, "read_noise_e": 5.0, "saturation_adu": 50000.0}
    shared = {"nx": N, "ny": N, "raw_nx": N + 2 * OVERSCAN, "raw_ny": N, "amplifiers": amplifiers}
    shared["cd_deg"] = [[-SCALE, 0.0], [0.0, SCALE]]
    places = {"c0": {"crpix": [N + 10.0, N / 2]}, "c1": {"crpix": [-10.0, N / 2]}}
    return {"name": "toy", "pixel_scale_arcsec": 0.4, "filters": {"r": "r"}, "chip_defaults": shared, "chips": places}


def response(chip):
    y, x = np.mgrid[:N, :N] / N
    return (1.0 - 0.15 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)) * (1.0 if chip == "c0" else 0.93)


def flat_scale():
    """What dividing by flats of mean 1 over the mosaic multiplies true electrons by, with the nominal gain."""
    gain = np.where(np.arange(N) < N // 2, 1.5 / TRUE_GAIN["A"], 1.5 / TRUE_GAIN["B"])[None, :]
    middle = slice(N // 4, N - N // 4)
    return np.mean([np.median((response(chip) * gain)[middle, middle]) for chip in CHIPS])


def to_raw(rng, electrons):
    """Electrons on the chip to a raw frame: true gains, bias pattern, drifting overscan, read noise."""
    raw = np.zeros((N, N + 2 * OVERSCAN))
    level = 600.0 + 3.0 * np.sin(np.arange(N) / 50.0)[:, None]
    pattern = 6.0 * np.exp(-np.arange(N) / 25.0)[None, :]
    for name, columns in (("A", slice(0, N // 2)), ("B", slice(N // 2, N))):
        raw[:, OVERSCAN:-OVERSCAN][:, columns] = electrons[:, columns] / TRUE_GAIN[name] + pattern[:, columns]
    raw += level + rng.normal(0, 5.0 / 1.5, raw.shape)
    return np.clip(np.rint(raw), 0, 65535).astype(np.uint16)


def write_mef(path, images):
    fits.HDUList([fits.PrimaryHDU(), *(fits.ImageHDU(raw, name=name) for name, raw in images.items())]).writeto(path)
    return str(path)


class Toy:
    """A repository with calibration frames and three exposures of one field on disk, and its survey."""

    def __init__(self, root, monkeypatch):
        rng = np.random.default_rng(42)
        cameras = root / "cameras"
        cameras.mkdir()
        (cameras / "toy.yaml").write_text(yaml.safe_dump(camera_yaml()))
        monkeypatch.setattr(camera_model, "CAMERAS_DIR", cameras)
        self.repo, self.settings = Repo(root / "repo"), Settings()
        self.camera = camera_model.load_camera("toy")
        ra, dec = RA + rng.uniform(-0.033, 0.033, 300) / np.cos(np.radians(DEC)), DEC + rng.uniform(-0.018, 0.018, 300)
        self.stars = pd.DataFrame({"ra": ra, "dec": dec, "mag": rng.uniform(15.0, 19.5, 300)})
        self.repo.root.mkdir()
        self.repo.write_refcat("gaia", self.catalog(rng))
        biases = [self.frame(root / f"bias{k}.fits", lambda _: np.zeros((N, N)), rng) for k in range(5)]
        flats = [self.frame(root / f"flat{k}.fits", lambda c: rng.poisson(30000 * response(c)), rng) for k in range(5)]
        sets = {BIAS_KEY: self.calibration(BIAS_KEY, biases), FLAT_KEY: self.calibration(FLAT_KEY, flats)}
        self.truth = {}
        exposures = {e.id: e for e in (self.expose(root, k, rng) for k in range(3))}
        masters = (("master_biases", BIAS_KEY), ("master_flats", FLAT_KEY))
        run = Run(1, "demo.0", "r", tuple(sorted(exposures)))
        self.survey = Survey("main", exposures, CELLS, (run,), sets, dict.fromkeys(exposures, masters), {"*": "gaia"})

    def catalog(self, rng):
        table = pd.DataFrame({"source_id": np.arange(300), "pmra": 0.0, "pmdec": 0.0, "ref_epoch_yr": 2024.0})
        for axis, cosine in (("ra", np.cos(np.radians(DEC))), ("dec", 1.0)):
            table[axis] = self.stars[axis] + rng.normal(0, 20.0 / 3.6e6, 300) / cosine
            table[f"{axis}_err_mas"] = 20.0
        table["mag_r"] = self.stars.mag + rng.normal(0, 0.01, 300)
        return table

    def frame(self, path, electrons, rng):
        return write_mef(path, {chip: to_raw(rng, electrons(chip)) for chip in CHIPS})

    def calibration(self, key, paths):
        frames = tuple(ChipFile(chip, path, chip, ()) for path in paths for chip in CHIPS)
        return CalibrationSet(key, "toy", key.split("|")[1], key.split("|")[2], "2024-01-01", frames)

    def expose(self, root, k, rng):
        """Exposure k: pointing 4 arcsec off, transparency falling, one bright trail of cosmic rays per chip."""
        dx, dy, transparency = 8.0 * k / 3600, -5.0 * k / 3600, 1.0 - 0.05 * k
        told, images = (RA + dx / np.cos(np.radians(DEC)), DEC + dy), {}
        for chip in CHIPS:
            truth = self.camera.nominal_wcs(chip, told[0] + 4.0 / 3600, told[1] - 3.0 / 3600)
            x, y = WCS(truth).all_world2pix(self.stars.ra, self.stars.dec, 0)
            image = np.zeros((N, N))
            for a, b, mag in zip(x, y, self.stars.mag, strict=True):
                if -8 < a < N + 8 and -8 < b < N + 8:
                    add_star(image, a, b, transparency * 10 ** (0.4 * (ZERO_POINT - mag)), FWHM, half=12)
            light = rng.poisson((image + SKY) * response(chip)).astype(float)
            row = 40 + 30 * k
            light[row, 100:130] += 3000.0
            images[chip] = to_raw(rng, light)
            self.truth[f"toy-{k}", chip] = {"wcs": truth, "row": row, "transparency": transparency}
        path = write_mef(root / f"toy-{k}.fits", images)
        files = tuple(ChipFile(c, path, c, self.camera.footprint(c, *told)) for c in CHIPS)
        return Exposure(f"toy-{k}", "toy", "r", "r", "2024-01-02", 60311.1, 60.0, *told, chips=files)

    def make(self, module, partition, suffix="", settings=None):
        """Plan, make and publish all units of a partition; returns the outputs by unit."""
        name = f"_{suffix}" if suffix else ""
        plan, make = getattr(module, f"plan{name}"), getattr(module, f"make{name}")
        collection = "calib" if suffix else "main"
        outputs = {}
        for task in plan(self.survey, self.repo, settings or self.settings, collection, partition):
            output = make(task, self.repo)
            self.repo.publish(
                task.data_id, output.members, inputs=task.inputs, recipe="r", config_sha256="c", code=1,
                metrics=output.metrics,
            )  # fmt: skip
            outputs[task.data_id.unit] = output
        return outputs


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        survey = Toy(tmp_path_factory.mktemp("toy"), patch)
        survey.biases = survey.make(calibrations, BIAS_KEY, "biases")
        survey.flats = survey.make(calibrations, FLAT_KEY, "flats")
        survey.chips = {e: survey.make(chips, e) for e in survey.survey.exposures}
        survey.solutions = {e: survey.make(solutions, e)[""] for e in survey.survey.exposures}
        yield survey


def test_masters_hold_the_pattern_and_the_steps_between_amplifiers_and_chips(toy):
    bias = toy.repo.read_image(DataId("calib", "master_biases", BIAS_KEY, "c0"))
    assert bias.sci[:, :3].mean() == pytest.approx(6.0 * np.exp(-1 / 25.0), abs=0.4)
    flats = {c: toy.repo.read_image(DataId("calib", "master_flats", FLAT_KEY, c)).sci for c in CHIPS}
    step = flats["c0"][:, N // 2 : N // 2 + 8].mean() / flats["c0"][:, N // 2 - 8 : N // 2].mean()
    assert step == pytest.approx(1.5 / 1.54, abs=1e-3)
    assert flats["c1"].mean() / flats["c0"].mean() == pytest.approx(0.93, abs=1e-3)


def test_chips_are_flat_in_electrons_and_cosmic_rays_are_flagged(toy):
    for exposure, outputs in toy.chips.items():
        skies = []
        for chip, output in outputs.items():
            image = output.members["image.fits"]
            assert image.header["BUNIT"] == "electron"
            skies += [np.median(image.sci[rows, columns]) for rows in HALVES for columns in HALVES]
            hit = image.mask[toy.truth[exposure, chip]["row"], 100:130] & int(Mask.COSMIC_RAY)
            assert (hit != 0).mean() > 0.95
            assert output.metrics["n_cosmic_ray_px"] < 400
        # stars raise the median of a quarter by a few electrons; the chips' own step is 35, the amplifiers' 13
        assert np.ptp(skies) < 6.0


HALVES = (slice(0, N // 2), slice(N // 2, N))


def test_without_flat_or_bias_the_steps_are_still_there(toy):
    settings = Settings(chips=ChipSettings(skip_steps=("flat", "cosmic_rays")))
    task = chips.plan(toy.survey, toy.repo, settings, "main", "toy-0")[1]
    image = chips.make(task, toy.repo).members["image.fits"]
    first = chips.make(chips.plan(toy.survey, toy.repo, settings, "main", "toy-0")[0], toy.repo).members["image.fits"]
    assert np.median(first.sci) - np.median(image.sci) > 20.0
    assert not (image.mask & int(Mask.COSMIC_RAY)).any()


def test_solutions_meet_the_truth(toy):
    for exposure, output in toy.solutions.items():
        document = json.loads(json.dumps(output.members["solution.json"], allow_nan=False))
        transparency = toy.truth[exposure, "c0"]["transparency"]
        assert document["zero_point_mag"] == pytest.approx(
            ZERO_POINT + 2.5 * np.log10(transparency * flat_scale()), abs=0.015
        )
        assert document["fwhm_arcsec"] == pytest.approx(0.4 * FWHM, rel=0.08)  # the pixel widens it a little
        assert document["ellipticity"] < 0.02
        for chip, one in document["chips"].items():
            assert one["state"] == "good"
            header = fits.Header(one["wcs"])
            x, y = np.meshgrid(np.linspace(0, N - 1, 9), np.linspace(0, N - 1, 9))
            ra, dec = WCS(header).all_pix2world(x, y, 0)
            true_ra, true_dec = WCS(toy.truth[exposure, chip]["wcs"]).all_pix2world(x, y, 0)
            assert np.sqrt(np.mean(((ra - true_ra) * np.cos(np.radians(DEC)) * 3.6e6) ** 2)) < 10.0
            assert np.sqrt(np.mean(((dec - true_dec) * 3.6e6) ** 2)) < 10.0


def test_bright_stars_are_right_to_15_mmag_and_the_table_names_its_units(toy):
    table = toy.repo.read_table(DataId("main", "solutions", "toy-1"), "sources.parquet")
    assert table.attrs["units"]["ra"] == "deg"
    stars = table[table.is_star & table.usable]
    offset = np.hypot(
        (stars.ra.to_numpy()[:, None] - toy.stars.ra.to_numpy()) * np.cos(np.radians(DEC)),
        stars.dec.to_numpy()[:, None] - toy.stars.dec.to_numpy(),
    )
    nearest = offset.argmin(axis=1)
    bright = (offset.min(axis=1) < 0.3 / 3600) & (toy.stars.mag.to_numpy()[nearest] < 18.0)
    difference = stars.mag.to_numpy()[bright] - toy.stars.mag.to_numpy()[nearest[bright]]
    assert bright.sum() > 40
    assert abs(np.median(difference)) < 0.01
    assert 1.4826 * np.median(np.abs(difference - np.median(difference))) < 0.015


def test_published_mesh_gives_back_the_sky(toy):
    planes = toy.repo.read_planes(DataId("main", "solutions", "toy-0"), "backgrounds.fits")
    sky = evaluate_background(planes["C0"][0], (planes["C0"][1]["CHIPNY"], planes["C0"][1]["CHIPNX"]))
    assert sky.shape == (N, N)
    assert np.abs(sky - SKY * flat_scale()).max() < 6.0


def test_the_sky_over_the_focal_plane_is_published_beside_the_meshes(toy):
    """LV-17: a flat sky is the same in both."""
    planes = toy.repo.read_planes(DataId("main", "solutions", "toy-0"), "skies.fits")
    assert sorted(planes) == ["C0", "C1"]
    for mesh, header in planes.values():
        sky = evaluate_background(mesh, (header["CHIPNY"], header["CHIPNX"]))
        assert np.abs(sky - SKY * flat_scale()).max() < 6.0


def test_solutions_count_good_failed_incomplete_and_broken_chips(toy):
    """GW-07."""
    document = toy.solutions["toy-0"].members["solution.json"]
    assert document["chip_counts"] == {"good": 2, "failed": 0, "incomplete": 0, "broken": 0, "all": 2}
    metrics = toy.solutions["toy-0"].metrics
    assert [metrics[f"chips_{name}"] for name in ("good", "failed", "incomplete", "broken")] == [2, 0, 0, 0]
    one = toy.survey.exposures["toy-0"]
    half = replace(toy.survey, exposures={"toy-0": replace(one, chips=one.chips[:1])})
    output = solutions.make(solutions.plan(half, toy.repo, toy.settings, "main", "toy-0")[0], toy.repo)
    assert output.members["solution.json"]["chip_counts"]["incomplete"] == 1


def test_chips_beyond_the_cuts_fail_with_the_reason_and_too_few_left_end_the_exposure(toy):
    """LV-12: all cuts are configuration; stars of 1.04 arcsec on pixels of 0.4."""
    chosen = QualitySettings(max_fwhm_arcsec_by_band={"r": 1.0})
    (task,) = solutions.plan(toy.survey, toy.repo, replace_section(toy.settings, quality=chosen), "main", "toy-0")
    with pytest.raises(
        UnprocessableData, match=r"0 good chips, 1 are needed \(c0: fwhm_moffat_arcsec 1\.\d+ > 1; c1: "
    ):
        solutions.make(task, toy.repo)
    passing = QualitySettings(max_fwhm_arcsec_by_band={"g": 1.0}, max_astrometry_rms_mas=60.0)
    (task,) = solutions.plan(toy.survey, toy.repo, replace_section(toy.settings, quality=passing), "main", "toy-0")
    assert solutions.make(task, toy.repo).metrics["chips_failed"] == 0


def test_effective_time_is_relative_to_the_reference_conditions_of_the_band(toy):
    """PHX-08: transparency falls by 5 % from one exposure to the next, and t_eff with its square."""
    # one second of the toy's exposures collects what the zero point says, at a sky of 500 electrons per exposure
    exptime = toy.survey.exposures["toy-0"].exptime_s
    clear = ZERO_POINT - 2.5 * np.log10(exptime / flat_scale())
    chosen = QualitySettings(
        reference_fwhm_arcsec=toy.solutions["toy-0"].metrics["fwhm_arcsec"], reference_zero_point_mag={"r": clear},
        reference_sky_e_s={"r": SKY * flat_scale() / exptime},
    )  # fmt: skip
    found = []
    for name in ("toy-0", "toy-2"):
        (task,) = solutions.plan(toy.survey, toy.repo, replace_section(toy.settings, quality=chosen), "main", name)
        found.append(solutions.make(task, toy.repo).metrics["t_eff"])
    assert found[0] == pytest.approx(1.0, abs=0.03)
    assert found[1] / found[0] == pytest.approx(0.9**2, rel=0.03)
    assert "t_eff" not in toy.solutions["toy-0"].metrics  # without reference conditions it is not known


def replace_section(chosen, **sections):
    return chosen.model_copy(update=sections)


def test_joint_solution_of_exposures_with_their_own_zero_points_is_nearly_zero(toy):
    output = toy.make(joint_solutions, "demo.0|r")[""]
    table = output.members["zeropoints.parquet"]
    assert table.n_stars.min() > 30
    assert table.dzp_mag.abs().max() < 0.004
    assert output.metrics["repeatability_mmag"] < 20.0
    assert_thumbnail(output.members["preview.png"])
    selection = output.members["selection.parquet"]
    assert len(selection) == 6 and selection.used.all()
    assert (output.metrics["chips_used"], output.metrics["chips_left_out"]) == (6, 0)


def test_chips_far_from_the_field_are_left_out_of_the_run_with_the_reason(toy):
    """LV-13: c0 and c1 stand 0.9' to either side of the cell's middle."""
    chosen = toy.settings.model_copy(update={"quality": QualitySettings(max_distance_deg=0.001)})
    (task,) = joint_solutions.plan(toy.survey, toy.repo, chosen, "main", "demo.0|r")
    output = joint_solutions.make(task, toy.repo)
    assert output.metrics["chips_used"] == 0
    assert set(output.members["selection.parquet"].reason) == {"farther than 0.001 deg"}
    assert (output.members["zeropoints.parquet"].n_stars == 0).all()


def assert_thumbnail(data):
    assert data.startswith(b"\x89PNG") and len(data) <= 10_000


def test_solutions_show_the_focal_plane_and_red_where_a_chip_failed(toy, monkeypatch):
    """A chip too few of whose stars match is outlined at the place its own header gives."""
    (task,) = solutions.plan(toy.survey, toy.repo, toy.settings, "main", "toy-0")
    good = toy.solutions["toy-0"].members["preview.png"]
    solve = solutions.solve_exposure

    def fail_second(*args, **options):
        solved = solve(*args, **options)
        return solved | {"c1": replace(solved["c1"], order=0)}

    monkeypatch.setattr(solutions, "solve_exposure", fail_second)
    output = solutions.make(task, toy.repo)
    failed = output.members["preview.png"]
    assert output.metrics["chips_failed"] == 1
    assert_thumbnail(good)
    assert_thumbnail(failed)
    assert count_red(good) == 0 and count_red(failed) > 50


def count_red(data):
    picture = np.asarray(Image.open(BytesIO(data)).convert("RGB")).astype(int)
    return np.sum((picture[..., 0] > 200) & (picture[..., 1] < 60) & (picture[..., 2] < 60))


def test_remaking_gives_the_same_bytes(toy):
    before = [toy.repo.manifest(DataId("main", product, "toy-1", unit)).content_sha256 for product, unit in UNITS]
    toy.make(chips, "toy-1")
    toy.make(solutions, "toy-1")
    after = [toy.repo.manifest(DataId("main", product, "toy-1", unit)).content_sha256 for product, unit in UNITS]
    assert after == before


UNITS = (("chips", "c0"), ("chips", "c1"), ("solutions", ""))


def replan(toy, module, partition, path=None, **changes):
    """First task of a partition whose image lies at `path`, or with some params changed."""
    task = module.plan(toy.survey, toy.repo, toy.settings, "main", partition)[0]
    places = {**task.places, "image": path} if path else task.places
    return replace(task, params={**task.params, **changes}, places=places)


@pytest.mark.parametrize(
    ("make_data", "says"),
    [
        (lambda: np.full((N, N + 2 * OVERSCAN), np.nan, np.float32), "no data"),
        (lambda: np.zeros((N, N + 2 * OVERSCAN), np.uint16), "no data"),
        (lambda: np.ones((N, N), np.uint16), "shape"),
    ],
)
def test_bad_raw_chips_are_unprocessable_with_a_reason(toy, tmp_path, make_data, says):
    path = write_mef(tmp_path / "bad.fits", {"c0": make_data()})
    with pytest.raises(UnprocessableData, match=says):
        chips.make(replan(toy, chips, "toy-0", path=path), toy.repo)


def test_a_truncated_file_and_a_missing_hdu_are_unprocessable_and_a_missing_file_may_come_back(toy, tmp_path):
    path = tmp_path / "cut.fits"
    write_mef(path, {"c0": np.ones((N, N + 2 * OVERSCAN), np.uint16)})
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(UnprocessableData, match="damaged"):
        chips.make(replan(toy, chips, "toy-0", path=str(path)), toy.repo)
    with pytest.raises(UnprocessableData, match="no HDU"):
        chips.make(replan(toy, chips, "toy-0", hdu="c7"), toy.repo)
    with pytest.raises(OSError, match="nowhere"):
        chips.make(replan(toy, chips, "toy-0", path="/nowhere/x.fits"), toy.repo)


def test_missing_masters_and_catalogues_are_named(toy):
    empty = Survey("main", toy.survey.exposures, CELLS, reference_catalogs={})
    task = chips.plan(empty, toy.repo, toy.settings, "main", "toy-0")[0]
    with pytest.raises(UnprocessableData, match="kind bias"):
        chips.make(task, toy.repo)
    with pytest.raises(UnprocessableData, match="no reference catalogue"):
        solutions.make(solutions.plan(empty, toy.repo, toy.settings, "main", "toy-0")[0], toy.repo)
    lost = Survey("main", toy.survey.exposures, reference_catalogs={"*": "lost"})
    with pytest.raises(UnprocessableData, match="lost"):
        solutions.make(solutions.plan(lost, toy.repo, toy.settings, "main", "toy-0")[0], toy.repo)
    with pytest.raises(NoWork):
        joint_solutions.make(joint_solutions.plan(empty, toy.repo, toy.settings, "main", "demo.0|r")[0], toy.repo)
