"""The frames of a set (LV-11): which are used, how bright they are, and the chips on one scale whatever is missing."""

from pathlib import Path

import numpy as np
import pytest

from lap_assets.errors import UnprocessableData
from lap_assets.pipeline import calibration_sets as sets
from lap_assets.pipeline import calibrations
from lap_assets.science import flat
from lap_assets.settings import CalibrationSettings
from lap_assets_tests.pipeline.calibration_worlds import World

CHOSEN = CalibrationSettings()


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "w", 96, 80, chips=("c0", "c1", "c2"), one_file=False)
    made.make(made.add_biases(4))
    return made


def open_flats(world, chip):
    key = world.add_flats((20000.0, 23000.0, 17000.0, 21000.0, 19000.0))
    tasks = calibrations.plan_flats(world.survey, world.repo, world.settings, "calib", key)
    task = next(task for task in tasks if task.data_id.unit == chip)
    return task, sets.open_set(task, world.repo, "flat")


def relate(world, task, found):
    return sets.relate_chips(found, task, world.repo, 1, flat.measure_sample_level)


def expected(world, chip):
    levels = {name: np.median(one.response[24:72, 20:60]) for name, one in world.detectors.items()}
    return levels[chip] / np.mean(list(levels.values()))


def test_chips_of_one_exposure_are_found_in_their_files_whatever_these_are_called(world):
    task, found = open_flats(world, "c1")
    # lamps differ by a third from exposure to exposure: another one would show
    assert relate(world, task, found) == pytest.approx(expected(world, "c1"), rel=3e-3)


def test_an_exposure_that_all_chips_have_is_taken_where_one_is_damaged(world):
    task, found = open_flats(world, "c1")
    others = [one for one in task.params["reference"] if one["chip"] == "c2"]
    wanted = found.frames[0].rows.value("EXPNUM")
    for one in others:
        path = Path(task.places[one["place"]])
        if f"f{wanted}-" in path.name:
            path.write_text("gone")
    assert relate(world, task, found) == pytest.approx(expected(world, "c1"), rel=3e-3)


def test_flats_are_measured_and_those_without_light_left_out(world):
    _, found = open_flats(world, "c0")
    found, levels = sets.measure_flat_levels(found, CHOSEN)
    lamps = np.array([20000.0, 23000.0, 17000.0, 21000.0, 19000.0])
    assert np.allclose(levels / lamps / (levels[0] / lamps[0]), 1.0, atol=3e-3)
    kept = found.keep([0, 2, 4], "it is a test", 3)
    assert len(kept.frames) == 3 and [text.split(": ")[1] for text in kept.refused] == ["it is a test"] * 2
    with pytest.raises(
        UnprocessableData, match=r"chip c0: 2 frames, at least 3 .* 3 left out, the first: .*it is a test"
    ):
        found.keep([0, 2], "it is a test", 3)


def test_sky_of_object_frames_is_that_between_their_stars(world):
    world.make(world.add_flats())
    key = world.add_objects("sky", (400.0, 600.0, 800.0, 500.0))
    task = calibrations.plan_skies(world.survey, world.repo, world.settings, "calib", key)[0]
    found, skies = sets.measure_skies(sets.open_set(task, world.repo, "sky"), CHOSEN, 64)
    ratios = np.array([one.level for one in skies]) / [400.0, 600.0, 800.0, 500.0]
    assert np.ptp(ratios) / ratios.mean() < 0.01
    for one in skies:
        assert 0.05 < one.sources.mean() < 0.7
        # the illumination bends by 0.75 % over the chip, which three cells a side do not follow
        assert abs(np.nanmean(one.residual)) < 0.0075 * one.level
        assert np.isnan(one.residual[one.sources]).all()
    assert len(found.frames) == 4
