"""`lap clean` and `lap recreate`: what they print, and what they refuse. The work itself: operations/test_clean.py."""

import pytest

from lap_assets.model.decisions import FAULT, Step
from lap_assets.model.ids import DataId
from lap_assets.operations.workspace import Workspace
from lap_assets_tests.cli.outcomes import assert_refused
from lap_assets_tests.defs.surveys import create_survey
from lap_assets_tests.ledger.conftest import Report
from lap_assets_tests.store.samples import make_image

NAME = "simtiny-west-g-0"


@pytest.fixture
def space(tmp_path, elsewhere) -> Workspace:
    """A run given up after one warp and its chips were made; its raw file is gone."""
    space = create_survey(tmp_path / "repository")
    survey = space.survey()
    run = next(run for run in survey.runs if NAME in run.members)
    for product, partition in (("chips", NAME), ("warps", f"{NAME}|{run.cell}")):
        data_id = DataId("main", product, partition, "c0")
        facts = {"inputs": (), "recipe": "r", "config_sha256": "c", "code": 1, "metrics": {}}
        manifest = space.repo.publish(data_id, {"image.fits": make_image(1)}, **facts)
        report = Report(data_id, "done", manifest.content_sha256, bytes=manifest.bytes)
        space.ledger.record_partition("main", product, partition, "done", unit_reports=[report])
    space.ledger.apply([Step(one.lap_id, FAULT, value="1", reason="for the test") for one in survey.runs])
    return space


def test_show_says_what_would_go_and_what_stays_and_touches_nothing(lap, space):
    """LAP-33: nothing is cleaned whose raw could not be had again, and `--show` says so."""
    code, out, _ = lap("-C", space.root, "clean", "--show")
    assert code == 0 and "0 partitions would be cleaned, 0.0 MB freed" in out
    assert f"kept: exposure {NAME}: its raw files or its masters are gone" in out
    assert all(space.repo.has_files(unit) for unit in space.repo.all_units())
    code, out, _ = lap("-C", space.root, "clean")
    assert code == 0 and "0 partitions cleaned, 0.0 MB freed" in out and "MB are free now" in out
    assert all(space.repo.has_files(unit) for unit in space.repo.all_units())


@pytest.mark.parametrize(
    ("data_id", "text", "status"),
    [
        ("nonsense", "is no data id", 2),
        ("main/stocks/x", "unknown product 'stocks'", 2),
        ("main/chips/nobody", "no chips nobody in collection main", 1),
        ("main/chips/no'; DROP TABLE x", "is not allowed", 2),
    ],
)
def test_what_is_not_there_cannot_be_re_created(lap, space, data_id, text, status):
    assert_refused(lap("-C", space.root, "recreate", data_id), text, status=status)


def test_cleaning_needs_a_repository(lap):
    assert_refused(lap("clean", "--show"), "no repository here")
