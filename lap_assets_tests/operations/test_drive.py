"""Driving: what a terminal and the sensors make of one ledger, and what `advance` does with what is broken."""

import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pytest

from lap_assets.defs.jobs import load_collection
from lap_assets.defs.launch import KIND_TAG, REASON_TAG, read_launch
from lap_assets.errors import BadInput, Conflict
from lap_assets.model.decisions import (
    CHIP_MODE,
    CLEANUP_MODE,
    DROP,
    MAKE,
    MODES,
    MONITOR_MODE,
    QUEUE_MODE,
    Action,
)
from lap_assets.model.products import PRODUCTS
from lap_assets.model.states import UNPROCESSABLE
from lap_assets.model.survey import PartitionRef
from lap_assets.operations.define import find_queue
from lap_assets.operations.drive import DRIVEN, advance
from lap_assets.operations.workspace import Workspace
from lap_assets.pipeline.stages import STAGES
from lap_assets_tests.defs.surveys import create_survey
from lap_assets_tests.defs.test_sensors import MODE_SENSORS, Platform
from lap_assets_tests.properties.stand_in import StandIn

WEST, EAST = "rings.v3.1359", "rings.v3.1360"
LINE = "-definerun -seq_id wide -projection_cell {} -filter {} -obs_mode any\n"
ORDER = list(PRODUCTS)
Work = dict[PartitionRef, tuple[str, str]]  # kind of action, and reason where it goes with the product


@pytest.fixture
def space(tmp_path) -> Workspace:
    return create_survey(tmp_path / "repository")


def read_ledger(space: Workspace) -> tuple:
    """All that steps could have changed."""
    runs = space.ledger.runs()
    return runs, [space.ledger.members(run.lap_id) for run in runs], space.ledger.leases()


def test_another_place_of_templates_has_differences_looked_at_again_and_nothing_else(space):
    """AP-06: the path is no part of any recipe, but `lap run` must see that it is another one."""
    other = Workspace.open(space.root, {"diffs.template_repository": "/data/deep"})
    third = Workspace.open(space.root, {"diffs.template_repository": "/data/deeper"})
    changed = {name for name in PRODUCTS if space.configs()[name] != other.configs()[name]}
    assert changed == {"diffs"}
    assert other.configs()["diffs"] != third.configs()["diffs"]
    assert STAGES["diffs"].config_sha256(other.settings) == STAGES["diffs"].config_sha256(space.settings)


# ---- one ledger, two drivers


def ask_terminal(root: Path, revisit: bool) -> Work:
    """What `lap run` (it revisits) or `lap_science` does next."""
    decision = advance(Workspace.open(root), "main", DRIVEN, revisit=revisit)
    return {
        (one.product, one.partition): (one.kind, one.reason if one.kind == DROP else "") for one in decision.actions
    }


def ask_sensors(platform: Platform) -> Work:
    """What the sensors request, tick by tick until they request nothing more."""
    loaded = load_collection(platform.space.survey())
    found: Work = {}
    while requests := [one for name in MODE_SENSORS for one in platform.tick(name).run_requests or ()]:
        for one in requests:
            refs = read_launch(one.tags, one.asset_selection, loaded)
            first = min((product for product, _ in refs), key=ORDER.index)
            asked = (one.tags[KIND_TAG], one.tags.get(REASON_TAG, ""))
            assert refs and not found.keys() & set(refs), "requested twice"
            found |= {ref: asked if ref[0] == first else (MAKE, "") for ref in refs}
    return found


def carry_out(stand_in: StandIn, space: Workspace, work: Work) -> None:
    """All of it, inputs first, and recorded."""
    ordered = sorted(work, key=lambda ref: (ORDER.index(ref[0]), work[ref][0], ref))
    stand_in.carry_out(space, "main", [Action(*ref, *work[ref]) for ref in ordered], fresh=False)


@pytest.mark.slow
def test_a_terminal_and_the_sensors_do_the_same(space, tmp_path):
    """LAP-35: one ledger, handed to both at every stage of a survey with faults in it."""
    for name in ("lap_run", "lap_science", "sensors"):
        shutil.copytree(space.root, tmp_path / name)
    stand_in = StandIn(verdicts={("chips", "simtiny-both-r-0"): UNPROCESSABLE})
    stand_in.failures["main", ("chips", "simtiny-west-g-0")] = 9
    stand_in.failures["main", ("warps", f"simtiny-east-g-1|{EAST}")] = 1
    done: Work = {}
    with dg.DagsterInstance.ephemeral() as instance:
        platform = Platform(tmp_path / "sensors", instance)
        for _ in range(40):
            for name in ("lap_run", "lap_science", "sensors"):
                shutil.copy(space.root / "ledger.db", tmp_path / name / "ledger.db")
            typed = ask_terminal(tmp_path / "lap_run", revisit=True)
            assert typed == ask_terminal(tmp_path / "lap_science", revisit=False)
            requested = ask_sensors(platform)
            assert typed.items() <= requested.items()
            # with it they request what follows from nothing else
            survey = space.survey()
            for ref in requested.keys() - typed:
                assert requested[ref][0] == MAKE and set(survey.upstream(*ref)) & requested.keys(), ref
            assert bool(advance(space, "main", DRIVEN).actions) == bool(requested)
            if not requested:
                break
            carry_out(stand_in, space, requested)
            done |= requested
        for name in ("lap_run", "sensors"):
            decision = advance(Workspace.open(tmp_path / name), "main", [CLEANUP_MODE])
            assert not decision.actions and not platform.tick("cleanup_sensor").run_requests  # raw files are gone
    assert {(run.state, run.settled) for run in space.ledger.runs()} == {("full", True)}
    everything = {(product, key) for product in PRODUCTS for key in space.survey().partitions(product)}
    lost = {ref for ref in everything if ref[1].split("|")[0] in ("simtiny-both-r-0", "simtiny-west-g-0")}
    assert {ref for ref, (kind, _) in done.items() if kind == MAKE} >= everything - lost
    assert done["chips", "simtiny-west-g-0"] == (DROP, "a fault")


# ---- advance


def test_modes_one_by_one_come_to_what_all_of_them_ask_for(space, tmp_path):
    """LAP-35: sensors ask mode by mode, a terminal all at once."""
    shutil.copytree(space.root, tmp_path / "other")
    together = advance(space, "main")
    other = Workspace.open(tmp_path / "other")
    apart = [
        one
        for mode in (QUEUE_MODE, CHIP_MODE, MONITOR_MODE, CLEANUP_MODE)
        for one in advance(other, "main", [mode]).actions
    ]
    assert sorted(apart) == sorted(together.actions) and together.actions
    assert read_ledger(space) == read_ledger(other)
    assert advance(space, "main") == together  # asked again, the same, and no step


def test_a_broken_entry_of_the_queue_is_complained_about_and_the_others_go_on(space):
    """LAP-34: an empty cell and an unknown one; as many are launched as may be active."""
    space.ledger.define_sequence("wide")
    for run in space.ledger.runs():
        space.ledger.pause(run.lap_id)
    lines = [LINE.format(WEST, "z"), LINE.format("rings.v3.99999", "g"), "-definerun -seq_id nobody\n",
             *(LINE.format(cell, band) for cell in (EAST, WEST) for band in ("g", "r"))]  # fmt: skip
    find_queue(space).write_text("".join(lines * 2))
    complaints: list[str] = []
    advance(space, "wide", MODES, complain=complaints.append)
    assert [line.split(":")[0] for line in complaints] == ["queue.txt line 1"] and "no exposure" in complaints[0]
    launched = [(run.cell, run.band, run.state) for run in space.ledger.runs("wide")]
    assert launched == [(cell, band, "run") for cell in (EAST, WEST) for band in ("g", "r")]
    assert space.settings.lap.max_active == 4
    before = read_ledger(space)
    advance(space, "wide", MODES)
    assert read_ledger(space) == before


def test_only_the_runs_asked_for_are_followed(space):
    """LAP-35: `lap run --lap-id N`."""
    first, second, *_ = space.ledger.runs()
    decision = advance(space, "main", lap_ids=[second.lap_id])
    assert decision.actions and {one.lap_id for one in decision.actions} == {second.lap_id}
    assert [run.state for run in space.ledger.runs()] == ["new", "run", "new", "new"]
    assert not any(one.chip_id for one in space.ledger.members(first.lap_id))


def test_only_the_targets_and_what_they_are_made_from(space):
    target = ("solutions", "simtiny-both-g-0")
    stand_in, made = StandIn(), []
    while actions := advance(space, "main", DRIVEN, targets=[target]).actions:
        made += [(one.product, one.partition) for one in actions]
        stand_in.carry_out(space, "main", actions)
    masters = space.survey().upstream("chips", target[1])
    assert set(made) == {*masters, ("chips", target[1]), target} and made[-1] == target


def fail_one_tick(space: Workspace, error: type[Exception], modes: Sequence[str] = MODES) -> None:
    with pytest.raises(error) as caught:
        advance(space, "main", modes)
    assert "\n" not in str(caught.value) and str(space.root) in str(caught.value)


def test_a_database_that_is_gone_fails_one_tick_and_the_next_goes_on(space):
    """One clear line, nothing made in its place, nothing half applied."""
    before, path = read_ledger(space), space.root / "ledger.db"
    path.rename(space.root / "away.db")
    fail_one_tick(space, BadInput)
    assert not path.exists()
    (space.root / "away.db").rename(path)
    assert read_ledger(space) == before
    assert advance(space, "main").actions


def test_a_database_locked_by_another_writer_fails_one_tick_and_the_next_goes_on(space):
    """Steps of all runs or of none."""
    impatient, before = Workspace(space.root, space.settings, busy_seconds=0.1), read_ledger(space)
    other = sqlite3.connect(space.root / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    fail_one_tick(impatient, Conflict)
    other.execute("ROLLBACK")
    other.close()
    assert read_ledger(space) == before
    assert advance(impatient, "main").actions
