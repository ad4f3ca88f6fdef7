"""The engine: a stage that raises, publishes nonsense or cannot be planned fails alone, and says why."""

from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lap_assets.errors import NotFound, NoWork
from lap_assets.model.ids import DataId
from lap_assets.model.products import PRODUCTS
from lap_assets.model.states import CLEANED, DONE, DROPPED, FAILED, NO_WORK, UNPROCESSABLE
from lap_assets.model.survey import Exposure, Survey
from lap_assets.pipeline import joint_solutions
from lap_assets.pipeline.engine import (
    PartitionReport,
    Session,
    combine_states,
    drop_partition,
    find_cleaned_inputs,
    make_partitions,
)
from lap_assets.pipeline.task import Output, Task, UnitReport
from lap_assets.settings import ComputeSettings, JointSolutionSettings, Settings
from lap_assets.store.publish import replace_manifest
from lap_assets.store.repo import Repo
from lap_assets.store.verify import sweep
from lap_assets_tests.store.samples import make_image

SETTINGS = Settings(compute=ComputeSettings(executor="serial"))
EXPOSURES = {n: Exposure(n, "simcam", "r", "sim-r", "2026-01-01", 6e4, 30.0, 10.0, 0.0) for n in ("a-1", "a-2", "a-3")}


def make_session(tmp_path) -> Session:
    return Session(Survey("main", EXPOSURES), Repo(tmp_path), SETTINGS)


@pytest.fixture
def stage(monkeypatch):
    """A stage of the real table with functions of a test's own."""

    def set_up(plan, make):
        monkeypatch.setattr(joint_solutions, "plan", plan)
        monkeypatch.setattr(joint_solutions, "make", make)

    return set_up


def plan_one(survey, repo, settings, collection, partition):
    return [Task(DataId(collection, "joint_solutions", partition), (), settings)]


@pytest.mark.parametrize("metrics", [{"rms_mmag": float("nan")}, {"rms_mmag": object()}])
def test_what_cannot_be_published_fails_alone(tmp_path, stage, metrics):
    table = pd.DataFrame({"exposure": ["a-1"], "dzp_mag": [0.0], "dzp_err_mag": [0.1], "n_stars": [3]})

    def make(task, repo):
        return Output({"zeropoints.parquet": table}, metrics if task.data_id.partition == "c.0|g" else {})

    stage(plan_one, make)
    session = make_session(tmp_path)
    reports = {r.partition: r for r in make_partitions(session, "joint_solutions", ["c.0|g", "c.0|r"])}
    assert reports["c.0|g"].state == FAILED and "joint_solutions" in reports["c.0|g"].reason
    assert reports["c.0|r"].state == DONE
    assert session.repo.units("main", "joint_solutions", "c.0|g") == []


def test_what_cannot_be_planned_fails_alone_and_can_be_given_up(tmp_path, stage):
    def plan(survey, repo, settings, collection, partition):
        if partition == "c.0|g":
            raise NotFound("camera file gone")
        return plan_one(survey, repo, settings, collection, partition)

    def make(task, repo):
        raise ValueError("a defect of the code")

    stage(plan, make)
    session = make_session(tmp_path)
    reports = {r.partition: r for r in make_partitions(session, "joint_solutions", ["c.0|g", "c.0|r"])}
    assert (reports["c.0|g"].state, reports["c.0|g"].reason) == (FAILED, "camera file gone")
    assert reports["c.0|r"].state == DROPPED and "ValueError: a defect of the code" in reports["c.0|r"].reason
    assert "Traceback" in session.repo.read_log(DataId("main", "joint_solutions", "c.0|r"))
    assert drop_partition(session, "joint_solutions", "c.0|g", "why").state == DROPPED


def test_what_is_done_costs_nothing(tmp_path, stage):
    """LV-06: no worker is asked for, not even where none could be had."""
    table = pd.DataFrame({"exposure": ["a-1"], "dzp_mag": [0.0], "dzp_err_mag": [0.1], "n_stars": [3]})
    stage(plan_one, lambda task, repo: Output({"zeropoints.parquet": table}, {}))
    session = make_session(tmp_path)
    first = list(make_partitions(session, "joint_solutions", ["c.0|g", "c.0|r"]))
    nobody = ComputeSettings(executor="dask", scheduler_address="tcp://127.0.0.1:1", worker_wait_s=1.0)
    again = replace(session, settings=Settings(compute=nobody))
    second = list(make_partitions(again, "joint_solutions", ["c.0|g", "c.0|r"]))
    assert [one.skipped for one in second] == [1, 1]
    assert [one.content for one in second] == [one.content for one in first]


def test_state_of_a_partition_is_that_of_its_units():
    assert combine_states([DONE, FAILED]) == FAILED
    assert combine_states([NO_WORK, DONE, UNPROCESSABLE]) == DONE
    assert combine_states([NO_WORK, UNPROCESSABLE]) == UNPROCESSABLE
    assert combine_states([]) == NO_WORK


@given(st.lists(st.sampled_from([DONE, CLEANED, NO_WORK, UNPROCESSABLE, DROPPED]), min_size=1))
def test_cleaning_units_changes_nothing_that_those_downstream_see(states):
    """A partition counts as cleaned as soon as a file of it is gone, and its content stays what it was."""
    units = [UnitReport(DataId("main", "stacks", "c.0|r", f"{n:02d}"), s, "c" * 64) for n, s in enumerate(states)]
    whole = [replace(unit, state=DONE) if unit.state == CLEANED else unit for unit in units]
    reports = [
        PartitionReport("stacks", "c.0|r", combine_states([one.state for one in some]), tuple(some))
        for some in (units, whole)
    ]
    assert reports[0].content == reports[1].content
    assert (reports[0].state == CLEANED) == (CLEANED in states)


def test_content_of_what_has_none_follows_its_inputs():
    """A template below six inputs has no content, but its differences must see that its inputs changed."""
    data_id = DataId("main", "stacks", "c.0|r", "00")
    reports = [PartitionReport("stacks", "c.0|r", NO_WORK, (UnitReport(data_id, NO_WORK, recipe=r),)) for r in "abb"]
    assert reports[0].content != reports[1].content == reports[2].content


# ---- re-creation


PARTITION = "c.0|r"
UNIT = DataId("main", "joint_solutions", PARTITION)
INPUT = DataId("main", "chips", "a-1", "c0")  # stands for what the unit is made from


class Lab:
    """A stage whose content follows from its input, a setting, a fact of the survey and the weather."""

    def __init__(self, root, monkeypatch):
        self.repo, self.settings, self.fact, self.weather = Repo(root), SETTINGS, "file-1", 0.0
        monkeypatch.setattr(joint_solutions, "plan", self.plan)
        monkeypatch.setattr(joint_solutions, "make", self.make)
        self.set_input(1.0)

    def set_input(self, value: float) -> None:
        image = make_image(value)
        facts = {"inputs": (), "recipe": str(value), "config_sha256": "", "code": 1, "metrics": {}}
        self.repo.publish(INPUT, {"image.fits": image}, **facts)

    def set_snr(self, value: float) -> None:
        self.settings = SETTINGS.model_copy(update={"joint_solutions": JointSolutionSettings(min_snr=value)})

    def plan(self, survey, repo, settings, collection, partition):
        pin = repo.pin(INPUT)
        return [Task(UNIT, (pin,) if pin else (), settings, {"fact": self.fact})]

    def make(self, task, repo):
        if self.weather is None:
            raise OSError("disk gone")
        value = float(repo.read_image(task.inputs[0]).sci[0, 0]) + task.settings.joint_solutions.min_snr + self.weather
        if value > 1e3:
            raise NoWork("too much")
        table = pd.DataFrame({"exposure": ["a-1"], "dzp_mag": [value], "dzp_err_mag": [0.1], "n_stars": [3]})
        return Output({"zeropoints.parquet": table}, {"value": value})

    def run(self, recreate=False) -> PartitionReport:
        session = Session(Survey("main", EXPOSURES), self.repo, self.settings)
        (report,) = make_partitions(session, "joint_solutions", [PARTITION], recreate)
        return report

    @property
    def value(self) -> float:
        return self.repo.read_table(UNIT, "zeropoints.parquet")["dzp_mag"][0]


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    """A unit that was made and cleaned."""
    lab = Lab(tmp_path, monkeypatch)
    lab.first = lab.run()
    assert lab.first.state == DONE
    lab.repo.clean(UNIT, "nothing needs it")
    return lab


def test_a_cleaned_unit_counts_as_done_and_is_not_made(lab):
    before = lab.repo.manifest(UNIT)
    report = lab.run()
    assert (report.state, report.skipped) == (CLEANED, 1)
    assert report.units[0].content == before.content_sha256 and report.units[0].bytes == 0
    assert lab.repo.manifest(UNIT) == before
    lab.set_snr(31.0)
    assert (lab.run().state, lab.value) == (DONE, 32.0)  # its recipe does not fit any more, so it is made


def test_re_creation_gives_the_same_content_and_the_same_bytes(lab):
    before = lab.repo.manifest(UNIT)
    report = lab.run(recreate=True)
    after = lab.repo.manifest(UNIT)
    assert (report.state, report.skipped, report.reason, report.differences) == (DONE, 0, "", {})
    assert report.content == lab.first.content
    assert (after.pin, after.members, after.inputs, after.recipe) == (
        before.pin,
        before.members,
        before.inputs,
        before.recipe,
    )


def test_re_creation_takes_the_settings_and_inputs_of_then(lab):
    """LAP-18: what was made comes back, not what would be made today."""
    lab.set_snr(99.0)
    lab.set_input(5.0)  # the input was replaced; the version that was pinned is there still
    report = lab.run(recreate=True)
    assert (report.state, report.differences, lab.value) == (DONE, {}, 31.0)
    assert lab.run().units[0].skipped is False  # and today's are another product
    assert lab.value == 104.0


def lose_settings(lab, monkeypatch):
    lab.set_snr(99.0)
    for path in lab.repo.layout.configs.iterdir():
        path.unlink()


def damage_settings(lab, monkeypatch):
    lab.set_snr(99.0)
    for path in lab.repo.layout.configs.iterdir():
        path.write_bytes(b"{}")


def lose_input(lab, monkeypatch):
    lab.set_input(5.0)
    sweep(lab.repo, now=4e9)


def raise_code(lab, monkeypatch):
    monkeypatch.setitem(PRODUCTS, "joint_solutions", replace(PRODUCTS["joint_solutions"], code=2))
    lab.set_snr(99.0)


def change_fact(lab, monkeypatch):
    lab.fact = "file-2"
    lab.set_snr(99.0)


def change_weather(lab, monkeypatch):
    lab.weather = 0.5


@pytest.mark.parametrize(
    ("change", "cause", "value"),
    [
        (lose_settings, "settings: those of then", 100.0),
        (damage_settings, "settings: those of then", 100.0),
        (lose_input, r"inputs: 1 are not to be had as they were, first main/chips/a-1/c0", 35.0),
        (raise_code, "code: number 1 then, 2 now", 100.0),
        (change_fact, "inputs: the raw files, the camera or the sky cell", 100.0),
        (change_weather, "fingerprint: the same, so a file outside the store has changed, or the stage is not", 31.5),
    ],
)
def test_what_cannot_come_back_as_it_was_is_made_anew_and_the_cause_named(lab, monkeypatch, change, cause, value):
    """The report says in what the unit differs and why; so do its log and the partition's reason."""
    before = lab.repo.manifest(UNIT).content_sha256
    change(lab, monkeypatch)
    report = lab.run(recreate=True)
    assert (report.state, lab.value) == (DONE, value)
    assert cause in report.differences[""] and before[:12] in report.differences[""]
    assert report.reason == report.differences[""]
    assert cause in lab.repo.read_log(UNIT)


def test_another_environment_is_named_as_the_cause(lab):
    manifest = lab.repo.manifest(UNIT)
    older = replace(manifest, fingerprint=dict(manifest.fingerprint) | {"numpy": "1.0", "id": "x"})
    replace_manifest(lab.repo.layout.unit_dir(UNIT), older)
    lab.weather = 1e-9
    report = lab.run(recreate=True)
    assert "fingerprint: numpy 1.0 → " in report.differences[""]


def test_where_today_gives_the_same_content_nothing_differs(lab):
    for path in lab.repo.layout.configs.iterdir():
        path.unlink()
    lab.set_snr(99.0)
    lab.weather = -69.0
    report = lab.run(recreate=True)
    assert (report.state, report.differences, lab.value) == (DONE, {}, 31.0)


def test_a_unit_that_ends_otherwise_than_it_was_says_so(lab):
    lab.weather = 1e4
    report = lab.run(recreate=True)
    assert (report.state, report.units[0].state) == (NO_WORK, NO_WORK)
    assert "it is no_work now" in report.differences[""]


def test_a_failed_re_creation_leaves_the_unit_cleaned(lab):
    before = lab.repo.manifest(UNIT)
    lab.weather = None
    report = lab.run(recreate=True)
    assert (report.state, report.reason) == (FAILED, "OSError: disk gone")
    assert lab.repo.manifest(UNIT) == before
    session = Session(Survey("main", EXPOSURES), lab.repo, lab.settings)
    assert drop_partition(session, "joint_solutions", PARTITION, "why").state == CLEANED
    assert lab.repo.manifest(UNIT) == before


def test_an_input_that_was_cleaned_is_named_and_a_unit_made_without_it_fails_curably(lab):
    """It is no defect of the code, so it must not end as dropped."""
    lab.repo.clean(INPUT)
    session = Session(Survey("main", EXPOSURES), lab.repo, lab.settings)
    assert find_cleaned_inputs(session, "joint_solutions", PARTITION) == []
    assert find_cleaned_inputs(session, "joint_solutions", PARTITION, recreate=True) == [("chips", "a-1")]
    report = lab.run(recreate=True)
    assert report.state == FAILED and "lap recreate 'main/chips/a-1/c0'" in report.reason


def test_what_was_not_cleaned_is_left_as_it_is_by_a_re_creation(lab):
    lab.run(recreate=True)
    before = lab.repo.manifest(UNIT)
    lab.set_snr(99.0)
    report = lab.run(recreate=True)
    assert (report.state, report.skipped) == (DONE, 1)
    assert lab.repo.manifest(UNIT) == before
