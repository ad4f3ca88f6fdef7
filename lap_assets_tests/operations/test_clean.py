"""Cleaning a collection, on a real small survey: what goes, what stays and why, and what a kill leaves."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lap_assets.errors import NotFound
from lap_assets.lap.decide import decide
from lap_assets.model.decisions import CLEANUP_MODE, Step
from lap_assets.model.ids import DataId
from lap_assets.model.states import CLEANED, DONE, GOTO_CLEANED
from lap_assets.operations.clean import (
    HOUR,
    CleanReport,
    choose_kept,
    clean_collection,
    clean_partitions,
    find_unavailable,
    keep_newest,
    look,
    plan_cleaning,
    recreate_units,
)
from lap_assets.operations.drive import DRIVEN, advance
from lap_assets.operations.work import hold_leases, recreate_partitions
from lap_assets.operations.workspace import Workspace
from lap_assets.store.repo import Repo
from lap_assets.store.verify import fsck
from lap_assets_tests.faults.tracing import FORK
from lap_assets_tests.operations.conftest import FEW, define_other

pytestmark = [pytest.mark.survey, pytest.mark.xdist_group("operations")]

INTERMEDIATE = ("chips", "warps", "diffs", "streak_masks", "stacks")


@pytest.fixture
def new(made, tmp_path) -> Workspace:
    """A copy of the survey, all made, whose run has not begun."""
    shutil.copytree(made, tmp_path / "repository")
    return Workspace.open(tmp_path / "repository", FEW)


@pytest.fixture
def space(new) -> Workspace:
    """The same, its run being complete."""
    assert not advance(new, "main", DRIVEN).actions
    (run,) = new.ledger.runs("main")
    assert (run.state, run.settled, run.cleaned) == ("full", True, False)
    return new


@pytest.fixture
def raw(space) -> Iterator[Path]:
    """The raw file of the first exposure, for a test to take away; there again at the end."""
    path = Path(space.survey().exposures["simtiny-000101"].chips[0].path)
    data = path.read_bytes()
    yield path
    path.write_bytes(data)


def states(space: Workspace, *products: str) -> dict[tuple[str, str], str]:
    found = space.ledger.partition_states("main")
    return {ref: found[ref].state for ref in found if not products or ref[0] in products}


def with_files(space: Workspace) -> set[tuple[str, str]]:
    """Intermediate partitions that have all their files."""
    units: dict[tuple[str, str], list[bool]] = {}
    for product in INTERMEDIATE:
        for unit in space.repo.all_units("main", product):
            units.setdefault((product, unit.partition), []).append(space.repo.has_files(unit))
    return {ref for ref, there in units.items() if all(there)}


def measure(space: Workspace) -> int:
    """Bytes of products on disk; what several share counts once."""
    files = {(s.st_ino, s.st_size) for s in (p.stat() for p in space.repo.layout.store.rglob("*.*") if p.is_file())}
    return sum(size for _, size in files)


def test_what_nothing_needs_goes_and_the_rest_is_intact(space):
    """LAP-33: goto_cleaned, then the files, then cleaned; final stacks and catalogues stay, and every hash."""
    before, size = space.ledger.partition_states("main"), measure(space)
    kept = {d: space.repo.manifest(d) for d in space.repo.all_units() if d.product not in INTERMEDIATE}
    plan, told = plan_cleaning(space, "main"), []
    report = clean_collection(space, "main", told.append)
    assert report.runs == [1] and report.kept == {} and told == report.partitions
    assert {(one.product, one.partition) for one in report.partitions} == {r for r in before if r[0] in INTERMEDIATE}
    assert [(one.product, one.partition) for one in plan.partitions] == [(one.product, one.partition) for one in told]
    after = space.ledger.partition_states("main")
    for ref, state in after.items():
        assert state.state == (CLEANED if ref[0] in INTERMEDIATE else DONE)
        assert replace(state, state=DONE, reason="") == replace(before[ref], reason="")
    assert with_files(space) == set()
    assert {d: space.repo.manifest(d) for d in kept} == kept and all(space.repo.has_files(d) for d in kept)
    freed = size - measure(space)
    assert abs(freed - report.bytes) < 1e5  # manifests changed, too
    assert freed > 0.65 * size and report.free_bytes > 0
    assert space.ledger.runs("main")[0].cleaned
    assert not fsck(space.repo, full=True).broken
    assert not advance(space, "main", DRIVEN).actions  # nothing downstream is made again
    assert clean_collection(space, "main").partitions == []


def test_nothing_goes_before_the_run_is_over(new):
    """LAP-33: never earlier."""
    report = clean_collection(new, "main")
    assert (report.partitions, report.kept, report.runs) == ([], {}, [])
    assert len(with_files(new)) == 13


def test_nothing_goes_that_another_run_uses(space):
    """LAP-33: counted by chip_id over all runs of the collection, whatever their tessellation."""
    other = define_other(space)
    report = clean_collection(space, "main")
    assert report.partitions == [] and report.runs == []
    assert set(report.kept) == {f"exposure simtiny-00010{n}" for n in (1, 2, 3)}
    assert len(with_files(space)) == 13
    space.ledger.cancel(other, "not wanted")
    report = clean_collection(space, "main")
    assert sorted(report.runs) == [1, other] and with_files(space) == set()


def test_a_run_defined_after_the_decision_keeps_what_it_uses(space):
    """LAP-33: the decision is looked at again once the leases are held."""
    actions = [one for one in decide(look(space, "main"), [CLEANUP_MODE]).actions if one.product == "chips"]
    assert len(actions) == 3
    define_other(space)
    report = CleanReport()
    refused = clean_partitions(space, "main", "chips", actions, report, lambda one: None)
    assert len(refused) == 3 and report.partitions == []
    assert set(states(space, "chips").values()) == {DONE}


def test_nothing_goes_whose_raw_could_not_be_had_again(space, raw):
    """LAP-33: neither what is made from it, nor differences and stacks that its warps went into."""
    raw.unlink()
    survey = space.survey()
    assert find_unavailable(space, survey, survey.exposures) == {"simtiny-000101"}
    report = clean_collection(space, "main")
    gone = {(one.product, one.partition) for one in report.partitions}
    assert gone == {
        (p, k) for n in ("02", "03") for p, k in ((("chips", f"simtiny-0001{n}")), ("warps", f"simtiny-0001{n}|tiny.0"))
    }
    assert "simtiny-000101" in " ".join(report.kept) and "could be made again" in report.kept["exposure simtiny-000101"]
    raw.write_bytes(b"back again")
    space.ledger.look_again(1)  # what could be cleaned of it was
    assert len(clean_collection(space, "main").partitions) == 9
    assert with_files(space) == set()


def test_without_its_masters_a_raw_is_no_help(space):
    survey = space.survey()
    flat = survey.associations["simtiny-000101"][-1]
    unit = space.repo.units("calib", *flat)[0]
    assert find_unavailable(space, survey, survey.exposures) == frozenset()
    space.repo.path(unit, "image.fits").unlink()
    assert find_unavailable(space, survey, survey.exposures) == set(survey.exposures)


def test_what_somebody_works_on_is_left_alone_until_it_is_free(space):
    with hold_leases(space, "main", "warps", ["simtiny-000102|tiny.0"]):
        report = clean_collection(space, "main")
        assert with_files(space) == {("warps", "simtiny-000102|tiny.0")}
        assert report.runs == [] and "warps simtiny-000102|tiny.0" in report.kept
    assert [one.partition for one in clean_collection(space, "main").partitions] == ["simtiny-000102|tiny.0"]


def test_claims_of_ones_own_are_no_hindrance(space):
    """A sensor claims what it asks to be cleaned before the job that cleans it begins."""
    keys = [f"launch/main/{p}/{k}" for p, k in states(space, *INTERMEDIATE)]
    assert len(space.ledger.claim(keys, "launch:7", 60.0)) == 13
    assert clean_collection(space, "main", owner="launch:8").partitions == []
    assert len(clean_collection(space, "main", owner="launch:7").partitions) == 13


def test_a_damaged_manifest_is_named_and_keeps_nothing_else_back(space):
    unit = space.repo.units("main", "diffs", "simtiny-000102|tiny.0")[0]
    space.repo.layout.manifest(unit).write_text("{}")
    report = clean_collection(space, "main")
    assert len(report.partitions) == 12
    assert "lap fsck" in report.kept["diffs simtiny-000102|tiny.0"]


def clean_and_die(root: Path, after: int) -> None:
    """Clean, and be killed before the files of the unit number `after` go."""
    count, clean = [], Repo.clean

    def clean_some(self, data_id: DataId, *arguments) -> int:
        count.append(data_id)
        if len(count) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return clean(self, data_id, *arguments)

    Repo.clean = clean_some  # in this child process only
    clean_collection(Workspace.open(root, FEW), "main")


@pytest.mark.parametrize("after", [1, 30])
def test_killed_while_cleaning_the_next_one_goes_on(space, after):
    """LAP-33: what is goto_cleaned is cleaned by the next one, and comes back with the hashes of before."""
    before = space.ledger.partition_states("main")
    space.ledger.close()
    child = FORK.Process(target=clean_and_die, args=(space.root, after))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    for lease in space.ledger.leases():  # they would expire by themselves
        space.ledger.release(lease)
    assert GOTO_CLEANED in states(space).values()
    assert not fsck(space.repo, full=True).broken
    for ref, state in states(space).items():  # never a product without files that the ledger takes for done
        if state == DONE:
            assert all(space.repo.has_files(unit) for unit in space.repo.units("main", *ref))
    clean_collection(space, "main")
    assert with_files(space) == set() and set(states(space, *INTERMEDIATE).values()) == {CLEANED}
    for report in recreate_partitions(space, space.survey(), "warps", [ref[1] for ref in before if ref[0] == "warps"]):
        assert (report.state, report.differences) == (DONE, {})
    after_all = space.ledger.partition_states("main")
    assert [state.content_sha256 for state in after_all.values()] == [state.content_sha256 for state in before.values()]


def test_what_came_back_by_hand_goes_again(space):
    """LAP-18, LAP-33: its run is looked at once more."""
    clean_collection(space, "main")
    (report,) = recreate_units(space, ["main/warps/simtiny-000102|tiny.0/00", "main/warps/simtiny-000102|tiny.0"])
    assert (report.state, report.differences) == (DONE, {})
    assert with_files(space) == {("chips", "simtiny-000102"), ("warps", "simtiny-000102|tiny.0")}
    assert not advance(space, "main", DRIVEN).actions
    assert clean_collection(space, "main").runs == [1] and with_files(space) == set()
    with pytest.raises(NotFound, match="no warps nowhere"):
        list(recreate_units(space, ["main/warps/nowhere"]))


# ---- the grace period and the disk budget


def allow(space: Workspace, **lap) -> Workspace:
    return Workspace.open(space.root, FEW | {f"lap.{name}": value for name, value in lap.items()})


def test_a_run_is_kept_for_the_grace_period_unless_the_budget_is_exceeded(space):
    patient = allow(space, keep_hours=1.0)
    assert choose_kept(patient, "main") == {1} and choose_kept(patient, "main", time.time() + 2 * HOUR) == frozenset()
    report = clean_collection(patient, "main")
    assert report.partitions == [] and "keep_hours" in report.kept["run 1"]
    roomy = allow(space, keep_hours=1.0, max_bytes=10 * space.ledger.stored_bytes())
    assert choose_kept(roomy, "main") == {1}
    tight = allow(space, keep_hours=1.0, max_bytes=space.ledger.stored_bytes() - 1)
    assert 0 < len(clean_collection(tight, "main").partitions) < 13  # until under the budget, and no further
    assert space.ledger.stored_bytes() <= tight.settings.lap.max_bytes and with_files(space)
    clean_collection(allow(space, keep_hours=1.0, max_bytes=1), "main")
    assert with_files(space) == set()


def test_a_budget_cleans_nothing_that_is_not_allowed(space):
    """LAP-33: however full the disk."""
    define_other(space)
    assert clean_collection(allow(space, keep_hours=1.0, max_bytes=1), "main").partitions == []


runs = st.dictionaries(st.integers(1, 9), st.tuples(st.floats(0, 100), st.integers(0, 50)), max_size=6)


@given(runs, st.floats(0, 100), st.integers(-20, 200))
def test_a_budget_ends_the_grace_of_the_oldest_runs_and_of_no_more_than_it_takes(runs, since, surplus):
    ended, sizes = ({lap_id: facts[n] for lap_id, facts in runs.items()} for n in (0, 1))
    kept = keep_newest(ended, since, surplus, sizes)
    graced = sorted((lap_id for lap_id in ended if ended[lap_id] > since), key=lambda lap_id: (ended[lap_id], lap_id))
    assert kept <= set(graced)
    assert kept == set(graced[len(graced) - len(kept) :])  # the oldest go first
    freed = sum(size for lap_id, size in sizes.items() if lap_id not in kept)
    assert freed >= surplus or not kept
    if len(kept) < len(graced):  # the last one that went had to
        assert freed - sizes[graced[len(graced) - len(kept) - 1]] < surplus


def test_steps_of_cleanup_are_those_of_the_decision(space):
    clean_collection(space, "main")
    assert decide(look(space, "main"), [CLEANUP_MODE]).steps == ()
    space.ledger.look_again(1)
    assert decide(look(space, "main"), [CLEANUP_MODE]).steps == (Step(1, "cleaned_run", mode=CLEANUP_MODE),)
