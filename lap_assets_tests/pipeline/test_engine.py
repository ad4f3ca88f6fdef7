"""The engine: a stage that raises, publishes nonsense or cannot be planned fails alone, and says why."""

import pandas as pd
import pytest

from lap_assets.errors import NotFound
from lap_assets.model.ids import DataId
from lap_assets.model.states import DONE, DROPPED, FAILED, NO_WORK, UNPROCESSABLE
from lap_assets.model.survey import Exposure, Survey
from lap_assets.pipeline import joint_solutions
from lap_assets.pipeline.engine import PartitionReport, Session, combine_states, drop_partition, make_partitions
from lap_assets.pipeline.task import Output, Task, UnitReport
from lap_assets.settings import ComputeSettings, Settings
from lap_assets.store.repo import Repo

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


def test_state_of_a_partition_is_that_of_its_units():
    assert combine_states([DONE, FAILED]) == FAILED
    assert combine_states([NO_WORK, DONE, UNPROCESSABLE]) == DONE
    assert combine_states([NO_WORK, UNPROCESSABLE]) == UNPROCESSABLE
    assert combine_states([]) == NO_WORK


def test_content_of_what_has_none_follows_its_inputs():
    """A template below six inputs has no content, but its differences must see that its inputs changed."""
    data_id = DataId("main", "stacks", "c.0|r", "00")
    reports = [PartitionReport("stacks", "c.0|r", NO_WORK, (UnitReport(data_id, NO_WORK, recipe=r),)) for r in "abb"]
    assert reports[0].content != reports[1].content == reports[2].content
