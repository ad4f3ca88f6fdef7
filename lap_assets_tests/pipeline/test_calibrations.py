"""Masters of every kind from frames on disk (LV-11), what they refuse, and how they compare (PHX-02)."""

import json
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

from lap_assets.errors import UnprocessableData
from lap_assets.model.ids import DataId
from lap_assets.model.image import Mask
from lap_assets.model.products import MASTERS
from lap_assets.pipeline import calibration_frames, calibrations
from lap_assets.settings import CalibrationSettings, Settings
from lap_assets_tests.benchmarks import masters as benchmark
from lap_assets_tests.pipeline.calibration_worlds import GAIN, NIGHT, World

pytestmark = pytest.mark.slow

SKY_SETTINGS = Settings(calibrations=CalibrationSettings(sky_mesh_px=32))


@pytest.fixture(scope="module", params=[(True, False), (False, True)], ids=["one file", "a compressed file per chip"])
def world(request, tmp_path_factory):
    """All masters of two chips; with one file per chip their names do not sort as the exposures do."""
    one_file, compressed = request.param
    made = World(tmp_path_factory.mktemp("world") / "w", 192, 160, one_file=one_file, compressed=compressed)
    for key in (made.add_biases(), made.add_darks(), made.add_flats(), made.add_flats(band="z")):
        made.make(key)
    made.make(made.add_objects("sky", np.linspace(500.0, 900.0, 10)), SKY_SETTINGS)
    made.make(made.add_objects("sky", np.linspace(2000.0, 3000.0, 10), band="z", seed=700), SKY_SETTINGS)
    made.make(made.add_objects("fringe", np.linspace(3000.0, 6000.0, 10), band="z", fringes_e=0.03, seed=900))
    return made


def read(world, kind, chip, band="all", night=NIGHT):
    return world.repo.read_image(DataId("calib", MASTERS[kind], f"cal|{kind}|{band}|{night}", chip))


@pytest.mark.parametrize("chip", ["c0", "c1"])
def test_bias_and_dark_are_those_of_the_detector_to_their_own_noise(world, chip):
    truth = world.detectors[chip]
    bias, dark = read(world, "bias", chip), read(world, "dark", chip)
    assert bias.header["BUNIT"] == "adu" and dark.header["BUNIT"] == "electron/s"
    assert ((bias.sci - truth.bias) / np.sqrt(bias.var)).std() == pytest.approx(1.0, abs=0.06)
    cold = ~truth.hot
    assert ((dark.sci - truth.dark) / np.sqrt(dark.var))[cold].std() == pytest.approx(1.0, abs=0.06)
    assert dark.sci[cold].mean() == pytest.approx(truth.dark[cold].mean(), rel=0.01)
    bad = (dark.mask & int(Mask.BAD)) != 0
    assert bad[truth.hot].all() and bad[cold].sum() <= 2


def test_flats_hold_response_amplifiers_and_chips_on_one_scale(world):
    ratios = [read(world, "flat", chip, "r").sci / world.detectors[chip].response for chip in world.chips]
    for ratio in ratios:
        assert ratio.std() / ratio.mean() == pytest.approx(np.sqrt(1 / 106_000), rel=0.15)  # of all electrons
    assert ratios[0].mean() / ratios[1].mean() == pytest.approx(1.0, abs=2e-3)


def test_sky_frames_hold_what_the_screen_does_not_show(world):
    for chip in world.chips:
        sky, truth = read(world, "sky", chip, "r").sci, world.detectors[chip].illumination
        assert np.ptp(truth) > 0.04
        ratio = sky / truth
        assert np.ptp(ratio / ratio.mean()) < 0.012 and ratio.std() / ratio.mean() < 0.003
    levels = [np.median(read(world, "sky", chip, "r").sci) for chip in world.chips]
    assert levels[0] / levels[1] == pytest.approx(1.0, abs=0.01)  # the flats' scale is that of the sky here


def test_fringes_are_found_behind_stars_gradients_and_illumination(world):
    for chip in world.chips:
        made, truth = read(world, "fringe", chip, "z"), world.detectors[chip].fringe
        assert abs(made.sci.mean(dtype=float)) < 1e-3
        scale = np.polyfit(truth.ravel(), made.sci.ravel(), 1)[0]
        residual = made.sci - scale * truth
        # what stays is the noise it states, and that of the flats the frames were divided by
        assert residual.std() < 1.4 * np.sqrt(np.median(made.var))
        assert np.corrcoef(truth.ravel(), made.sci.ravel())[0, 1] > 0.8


def test_every_master_names_its_chip_band_and_frames_and_pins_what_it_was_made_with(world):
    upstream = {"bias": 0, "dark": 1, "flat": 2, "sky": 3 * len(world.chips), "fringe": 4}
    for kind, product in MASTERS.items():
        band = "all" if kind in ("bias", "dark") else "r" if kind in ("flat", "sky") else "z"
        data_id = DataId("calib", product, f"cal|{kind}|{band}|{NIGHT}", "c1")
        header, manifest = world.repo.read_image(data_id).header, world.repo.manifest(data_id)
        assert (header["CHIP"], header["BAND"]) == ("c1", band) and header["NFRAMES"] >= 5
        assert len(manifest.inputs) == upstream[kind]
        assert manifest.metrics["n_left_out"] == 0


def test_bands_of_any_height_give_the_same_bytes(world, monkeypatch):
    """What is read in stretches of 7 rows is what is read at once: overscan levels know nothing of the stretches."""
    task = calibrations.plan_flats(world.survey, world.repo, world.settings, "calib", f"cal|flat|r|{NIGHT}")[1]
    whole = calibrations.make_flats(task, world.repo).members["image.fits"]
    monkeypatch.setattr(calibration_frames, "_BAND_BYTES", 7 * 160 * 4 * 5)
    parts = calibrations.make_flats(task, world.repo).members["image.fits"]
    for plane in ("sci", "mask", "var"):
        assert np.array_equal(getattr(whole, plane), getattr(parts, plane))


def test_without_darks_the_dark_current_is_in_the_flats(world):
    """A flat of five seconds hardly shows it; one of a faint lamp of an hour does (switched off, it is there)."""
    frames = [f for k in range(5) for f in world.expose(lambda _n, one, _r: 500.0 * one.response, 3600.0, 40 + k)]
    key = world.add_set("flat", frames, "r", night="2024-02-01")
    with_dark = world.make(key)["c0"].members["image.fits"].sci
    survey = world.survey
    world.survey = replace(survey, calibrations={k: c for k, c in survey.calibrations.items() if c.kind != "dark"})
    without = world.make(key)["c0"].members["image.fits"].sci
    world.survey = survey
    hot = world.detectors["c0"].hot
    assert np.median(without[hot]) > 5.0 > 1.3 > np.median(with_dark[hot]) > 0.7


# ---- what is refused


@pytest.fixture
def small(tmp_path):
    return World(tmp_path / "w", 64, 48)


def spoil(path, change, chip="c0"):
    with fits.open(path, mode="update") as hdus:
        change(hdus[chip])


def test_too_few_frames_fail_the_chip_and_say_so(small):
    key = small.add_biases(2)
    with pytest.raises(
        UnprocessableData, match=r"chip c0: 2 frames, at least 3 are needed \(calibrations.min_frames\)"
    ):
        small.make(key)


def test_bad_frames_are_left_out_and_named_and_the_others_go_on(small):
    small.make(small.add_biases(5))
    key = small.add_flats((20000.0,) * 4 + (30.0,))
    paths = sorted({frame.path for frame in small.survey.calibrations[key].frames})
    spoil(paths[0], lambda hdu: hdu.data.fill(65535))
    outputs = small.make(key)
    for_c0 = outputs["c0"].metrics
    assert (for_c0["n_frames"], for_c0["n_left_out"]) == (3, 2)
    assert f"{paths[4]}: it holds no light" in for_c0["left_out"] and paths[0] in for_c0["left_out"]
    assert (outputs["c1"].metrics["n_frames"], outputs["c1"].metrics["n_left_out"]) == (4, 1)
    # the reference exposure of the two chips may differ, their scale does not
    ratios = [np.mean(outputs[chip].members["image.fits"].sci / small.detectors[chip].response) for chip in small.chips]
    assert ratios[0] / ratios[1] == pytest.approx(1.0, abs=3e-3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda hdu: hdu.data[:, :16].fill(1000), "overscan .* is empty"),
        (lambda hdu: setattr(hdu, "data", hdu.data[:, :40].copy()), r"raw frame has shape \(64, 40\)"),
    ],
)
def test_frames_that_are_none_say_why(small, change, reason):
    key = small.add_biases(4)
    for path in sorted({frame.path for frame in small.survey.calibrations[key].frames})[:2]:
        spoil(path, change)
    with pytest.raises(UnprocessableData, match=f"chip c0: 2 frames, at least 3 .* 2 left out, the first: .*{reason}"):
        small.make(key)


def test_darks_without_an_exposure_time_are_left_out(small):
    small.make(small.add_biases(4))
    key = small.add_darks((0.0, 300.0, 300.0, 300.0))
    metrics = small.make(key)["c0"].metrics
    assert metrics["n_frames"] == 3 and "exposure time 0.0 s, but it must be > 0" in metrics["left_out"]


def test_a_master_that_is_missing_or_unfit_fails_what_is_made_with_it_by_name(small):
    key = small.add_biases(4)
    flats = small.add_flats()
    with pytest.raises(UnprocessableData, match=r"chip c0: no calib/master_biases/cal\|bias\|all\|2024-01-01/c0"):
        small.make(flats)
    bias = small.make(key)["c0"].members["image.fits"]
    small.make(flats)
    for chip in small.chips:
        data_id = DataId("calib", "master_flats", flats, chip)
        bad = replace(read(small, "flat", chip, "r"), sci=np.zeros_like(bias.sci))
        small.repo.publish(data_id, {"image.fits": bad}, inputs=(), recipe="x", config_sha256="c", code=1, metrics={})
    with pytest.raises(UnprocessableData, match="chip c0: the master flat has level 0, but it must be above zero"):
        small.make(small.add_objects("sky", (500.0,) * 4))
    for chip in small.chips:
        data_id = DataId("calib", "master_biases", key, chip)
        bad = replace(bias, sci=bias.sci[:9], mask=bias.mask[:9], var=bias.var[:9])
        small.repo.publish(data_id, {"image.fits": bad}, inputs=(), recipe="y", config_sha256="c", code=1, metrics={})
    with pytest.raises(UnprocessableData, match=r"chip c0: the master bias has shape \(9, 48\), the chip \(64, 48\)"):
        small.make(flats)


def test_flats_of_another_band_are_refused(small):
    small.make(small.add_biases(4))
    flats = small.add_flats(band="z")
    small.make(flats)
    one = small.survey.calibrations[flats]
    small.survey = replace(small.survey, calibrations={**small.survey.calibrations, "cal|flat|r|2024-01-01": replace(
        one, key="cal|flat|r|2024-01-01", band="r")})  # fmt: skip
    for chip in small.chips:
        data_id = DataId("calib", "master_flats", "cal|flat|r|2024-01-01", chip)
        wrong = read(small, "flat", chip, "z")
        small.repo.publish(data_id, {"image.fits": wrong}, inputs=(), recipe="x", config_sha256="c", code=1, metrics={})
    with pytest.raises(UnprocessableData, match="chip c0: the master flat is of band z, but r is wanted"):
        small.make(small.add_objects("sky", (500.0,) * 4))


def test_linearity_is_applied_before_frames_are_combined(tmp_path):
    """Flats of a detector that loses 3 % at 20,000 ADU are low there, unless the camera file says how much."""
    made = {}
    for name, coefficients in (("without", []), ("with", [1.5e-6])):
        world = World(tmp_path / name, 64, 64, chips=("c0",))
        text = (world.repo.cameras / "cal.yaml").read_text()
        text = text.replace("gain: 1.5", f"gain: 1.5\n    linearity: {json.dumps(coefficients)}")
        (world.repo.cameras / "cal.yaml").write_text(text)
        world.make(world.add_biases(5))

        def light(_name, one, rng):
            ramp = 30000.0 * (0.5 + np.arange(64) / 64.0)[None, :] * np.ones((64, 1))
            # what is counted when true = m (1 + 1.5e-6 m)
            return GAIN * (np.sqrt(1.0 + 4 * 1.5e-6 * ramp / GAIN) - 1.0) / (2 * 1.5e-6)

        frames = [f for k in range(6) for f in world.expose(light, 5.0, k)]
        made[name] = world.make(world.add_set("flat", frames, "r"))["c0"].members["image.fits"].sci
    truth = 0.5 + np.arange(64) / 64.0
    slopes = {name: (flat.mean(axis=0) / truth)[-8:].mean() / (flat.mean(axis=0) / truth)[:8].mean()
              for name, flat in made.items()}  # fmt: skip
    assert slopes["without"] < 0.985
    assert slopes["with"] == pytest.approx(1.0, abs=2e-3)


# ---- comparing


def test_a_new_master_is_compared_with_the_one_before_chip_by_chip(small):
    small.make(small.add_biases(5))
    old = small.add_flats()
    small.make(old)
    first = calibrations.check_master(small.repo, "master_flats", old, None)
    assert first.ok and first.chips == {} and first.metrics == {}
    small.exposure += 50
    new = small.add_flats((19000.0,) * 5, night="2024-03-01")
    small.make(new)
    same = calibrations.check_master(small.repo, "master_flats", new, old)
    assert same.ok and sorted(same.chips) == ["c0", "c1"] and same.metrics["fraction_beyond_6sigma"] < 0.001
    dusty = small.detectors["c1"].response
    dusty[10:30, 10:30] *= 0.9
    bad = small.add_flats((21000.0,) * 5, night="2024-05-01")
    small.make(bad)
    report = calibrations.check_master(small.repo, "master_flats", bad, new)
    assert not report.ok and [text[:7] for text in report.reasons] == ["chip c1"]
    assert "beyond 6 sigma" in report.reasons[0] and report.chips["c0"].ok
    lenient = CalibrationSettings(max_fraction_beyond=0.5)
    assert calibrations.check_master(small.repo, "master_flats", bad, new, lenient).ok


def test_a_chip_that_is_no_longer_made_is_named(small):
    old = small.add_biases(4)
    small.make(old)
    frames = [frame for frame in small.survey.calibrations[old].frames if frame.chip == "c0"]
    new = small.add_set("bias", frames, night="2024-03-01")
    small.make(new)
    report = calibrations.check_master(small.repo, "master_biases", new, old)
    assert report.reasons == ("chip c1: not made, but the master before has it",)
    assert (
        calibrations.check_master(small.repo, "master_biases", "cal|bias|all|2030-01-01", old)
        .reasons[0]
        .endswith("has no chip")
    )


# ---- memory


@pytest.mark.slow
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "rice"])
def test_fifty_frames_of_2k_by_4k_are_combined_within_one_gigabyte(tmp_path, compressed):
    """LV-11: peak memory of a fresh process that makes a master bias and a master flat, interpreter included."""
    benchmark.write_world(tmp_path / "world", compressed)
    for key in benchmark.SETS.values():
        assert benchmark.run_fresh(tmp_path / "world", key, rounds=1)["peak_mib"] <= benchmark.LIMIT_MIB
