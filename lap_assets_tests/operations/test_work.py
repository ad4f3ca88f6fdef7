"""Work with the books kept: what was cleaned comes back as it was, and only what is needed of it.

On a real, small chain from raw frames to transients.
"""

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lap_assets.errors import LapError
from lap_assets.model.decisions import MAKE, RECREATE, Action
from lap_assets.model.products import PRODUCTS
from lap_assets.model.states import BLOCKED, CLEANED, DONE, FAILED
from lap_assets.model.survey import PartitionRef
from lap_assets.operations.drive import DRIVEN, advance
from lap_assets.operations.work import hold_leases, recreate_partitions, work_partitions
from lap_assets.operations.workspace import Workspace
from lap_assets_tests.faults.tracing import FORK
from lap_assets_tests.operations.conftest import FEW, define_other

pytestmark = [pytest.mark.survey, pytest.mark.xdist_group("operations")]

CLEANED_PRODUCTS = ("chips", "warps", "diffs", "streak_masks", "stacks")


@pytest.fixture
def space(made, tmp_path) -> Workspace:
    """A copy of it, to work in."""
    shutil.copytree(made, tmp_path / "repository")
    return Workspace.open(tmp_path / "repository", FEW)


@pytest.fixture
def raw(space) -> Iterator[Path]:
    """The raw file of the first exposure, for a test to damage; as it was at the end."""
    path = Path(space.survey().exposures[keys(space, "chips")[0]].chips[0].path)
    before = path.read_bytes()
    yield path
    path.write_bytes(before)


def keys(space: Workspace, product: str) -> tuple[str, ...]:
    return space.survey().partitions(product)


def clean(space: Workspace, *products: str) -> None:
    """Clean all partitions of some products, whatever needs them."""
    for product in products or CLEANED_PRODUCTS:
        space.ledger.mark("main", [(product, key) for key in keys(space, product)], CLEANED, "for the test")
        for unit in space.repo.all_units("main", product):
            assert space.repo.clean(unit, "for the test") >= 0


def list_files(space: Workspace, *products: str) -> dict[str, tuple[str, str]]:
    """Unit and member → hashes of what is on disk, of everything that has files."""
    found = {}
    for product in products or CLEANED_PRODUCTS:
        for unit in space.repo.all_units("main", product):
            for name, record in space.repo.manifest(unit).members.items() if space.repo.has_files(unit) else ():
                space.repo.read_bytes(unit, name)  # verified by its hash
                found[f"{unit}:{name}"] = (record.parts_sha256, record.content_sha256)
    return found


def list_done(space: Workspace) -> set[PartitionRef]:
    """Partitions of the products that are cleaned that have files, as ledger and store agree."""
    states = space.ledger.partition_states("main")
    done = {ref for ref in states if ref[0] in CLEANED_PRODUCTS and states[ref].state == DONE}
    for product in CLEANED_PRODUCTS:
        for key in keys(space, product):
            units = space.repo.units("main", product, key)
            assert all(space.repo.has_files(unit) for unit in units) == ((product, key) in done)
    return done


def recreate(space: Workspace, product: str, *partitions: str) -> list:
    return list(recreate_partitions(space, space.survey(), product, partitions or keys(space, product)))


def work(space: Workspace, product: str, *partitions: str) -> list:
    return list(work_partitions(space, space.survey(), product, partitions or keys(space, product)))


def test_everything_cleaned_comes_back_byte_for_byte(space):
    """LAP-18: chips, warps, diffs, streak masks and stacks have the hashes of before, in the ledger and on disk."""
    files, states = list_files(space), space.ledger.partition_states("main")
    assert {name.split("/")[1] for name in files} == set(CLEANED_PRODUCTS)
    clean(space)
    assert list_files(space) == {} and list_done(space) == set()
    for product in CLEANED_PRODUCTS[::-1]:  # the last first: what it is made from comes back on the way
        for report in recreate(space, product):
            assert (report.state, report.differences) == (DONE, {})
    assert list_files(space) == files
    assert space.ledger.partition_states("main") == states
    assert all(unit.bytes for unit in space.ledger.units("main", "diffs"))


def test_only_what_is_needed_comes_back(space):
    """LAP-18: the warps of one exposure need its chips; a streak mask a diff, and that the stack of all warps."""
    clean(space)
    (first, *_), (pair, *_) = keys(space, "chips"), keys(space, "warps")
    recreate(space, "warps", pair)
    assert list_done(space) == {("chips", first), ("warps", pair)}
    recreate(space, "streak_masks", pair)
    assert list_done(space) == {
        *(("chips", key) for key in keys(space, "chips")),
        *(("warps", key) for key in keys(space, "warps")),
        *(("stacks", key) for key in keys(space, "stacks")),
        ("diffs", pair),
        ("streak_masks", pair),
    }


def test_what_comes_back_is_made_with_the_settings_of_then(space):
    """LAP-18: from the inputs and settings the manifests name, whatever the settings say today."""
    files, states = list_files(space, "chips", "warps"), space.ledger.partition_states("main")
    clean(space, "chips", "warps")
    today = Workspace.open(space.root, FEW | {"chips.cosmic_ray_sigma": 9.0, "warps.max_bad_weight": 0.3})
    assert [report.differences for report in recreate(today, "warps")] == [{}, {}, {}]
    assert list_files(space, "chips", "warps") == files
    assert today.ledger.partition_states("main") == states


def test_making_something_new_brings_its_inputs_back_first(space):
    """LAP-18: made from what was cleaned, its inputs come back, and nothing else does."""
    final = list_files(space, "final_stacks")
    clean(space)
    today = Workspace.open(space.root, FEW | {"diffs.source_snr": 7.0})
    pair = keys(space, "diffs")[0]
    (report,) = work(today, "diffs", pair)
    assert (report.state, report.skipped) == (DONE, 0)
    assert list_done(space) == {
        *(("chips", key) for key in keys(space, "chips")),
        *(("warps", key) for key in keys(space, "warps")),
        *(("stacks", key) for key in keys(space, "stacks")),
        ("diffs", pair),
    }
    assert list_files(space, "final_stacks") == final


def test_work_asked_for_on_what_was_cleaned_makes_nothing(space):
    """A backfill over everything does not bring back what was cleaned, and changes no hash."""
    before = space.ledger.partition_states("main")
    clean(space)
    for product in PRODUCTS:
        for report in work(space, product):
            assert report.state == (CLEANED if product in CLEANED_PRODUCTS else DONE)
            assert report.skipped == len(report.units)
    after = space.ledger.partition_states("main")
    assert {ref: state.content_sha256 for ref, state in after.items()} == {
        ref: state.content_sha256 for ref, state in before.items()
    }
    assert {ref: state.inputs_sha256 for ref, state in after.items()} == {
        ref: state.inputs_sha256 for ref, state in before.items()
    }
    assert list_files(space) == {}


def test_a_raw_file_that_is_gone_is_named_and_what_was_cleaned_stays_cleaned(space, raw):
    """LAP-24: attempts are counted, and the hashes stay."""
    clean(space, "chips", "warps")
    raw.unlink()
    first, pair = keys(space, "chips")[0], keys(space, "warps")[0]
    before = space.ledger.partition_states("main")["chips", first]
    for attempt in (1, 2):
        (report,) = recreate(space, "chips", first)
        assert report.state == FAILED and str(raw) in report.reason
        now = space.ledger.partition_states("main")["chips", first]
        assert (now.state, now.attempts, now.content_sha256) == (CLEANED, attempt, before.content_sha256)
    (report,) = work(Workspace.open(space.root, FEW | {"warps.max_bad_weight": 0.3}), "warps", pair)
    assert report.state == BLOCKED and f"chips {first}" in report.reason and str(raw) in report.reason
    assert {row.state for row in space.ledger.units("main", "chips", first)} == {CLEANED}


def choose_first(actions: Sequence[Action]) -> list[Action]:
    """The actions on the first product."""
    return [one for one in actions if one.product == actions[0].product]


def test_a_run_goes_on_without_what_cannot_be_re_created(space, raw):
    """LAP-18, LAP-24: re-created, tried again, then the member is dropped; never asked for without end."""
    assert not advance(space, "main", DRIVEN).actions
    clean(space)
    raw.unlink()
    other, kinds = define_other(space), []
    while (chosen := choose_first(advance(space, "main", DRIVEN).actions))[0].product != "warps":
        kinds.append((chosen[0].product, [one.kind for one in chosen]))
        carry_out = recreate if chosen[0].kind == RECREATE else work
        carry_out(space, chosen[0].product, *(one.partition for one in chosen))
    assert kinds == [("joint_solutions", [MAKE]), ("chips", [RECREATE] * 3), ("chips", [RECREATE])]
    (dropped,) = [one for one in space.ledger.members(other) if one.data_state == "drop"]
    assert dropped.exposure == keys(space, "chips")[0] and str(raw) in dropped.reason
    assert "drop" not in {one.data_state for one in space.ledger.members(1)}


def test_a_difference_is_in_the_report_and_in_the_ledger(space, raw):
    """A raw file with other bytes gives other chips: made, and said."""
    clean(space, "chips")
    before = space.ledger.partition_states("main")["chips", keys(space, "chips")[0]]
    data = bytearray(raw.read_bytes())
    third = len(data) // 3
    data[third : third + 4000] = bytes(byte ^ 1 for byte in data[third : third + 4000])
    raw.write_bytes(bytes(data))
    report, *others = sorted(recreate(space, "chips"), key=lambda one: one.partition)
    assert report.state == DONE and report.differences and [one.differences for one in others] == [{}, {}]
    now = space.ledger.partition_states("main")["chips", report.partition]
    assert now.content_sha256 == report.content != before.content_sha256
    assert "differs from what was cleaned" in now.reason and "a file outside the store has changed" in now.reason


def test_an_input_that_another_one_is_re_creating_is_waited_for(space):
    clean(space, "chips", "warps")
    first, pair = keys(space, "chips")[0], keys(space, "warps")[0]
    with hold_leases(space, "main", "chips", [first]):
        (report,) = recreate(space, "warps", pair)
        assert report.state == BLOCKED and "is being made by" in report.reason
        refused: dict[str, str] = {}
        with hold_leases(space, "main", "chips", keys(space, "chips"), refused) as fences:
            assert set(fences) == set(keys(space, "chips")) - {first} and list(refused) == [first]
    assert [report.state for report in recreate(space, "warps", pair)] == [DONE]


def test_a_ledger_that_is_gone_does_not_hide_why_the_work_ended(space, caplog):
    """A full disk takes the ledger first: what broke is told, and that the lease has to expire."""
    with pytest.raises(LapError, match="no space left"), hold_leases(space, "main", "chips", keys(space, "chips")[:1]):
        (space.root / "ledger.db").unlink()
        raise LapError("no space left")
    assert [one.getMessage() for one in caplog.records if "stays leased for 60 s: ledger" in one.getMessage()]


def recreate_and_die(root: Path, after: int) -> None:
    """Re-create all warps, and be killed when `after` units are told of."""
    space, told = Workspace.open(root, FEW), []

    def tell(report) -> None:
        told.append(report)
        if len(told) == after:
            os.kill(os.getpid(), signal.SIGKILL)

    list(recreate_partitions(space, space.survey(), "warps", space.survey().partitions("warps"), tell=tell))


@pytest.mark.parametrize("after", [1, 15])
def test_killed_while_re_creating_the_next_one_goes_on(space, after):
    files, states = list_files(space), space.ledger.partition_states("main")
    clean(space, "chips", "warps")
    space.ledger.close()
    child = FORK.Process(target=recreate_and_die, args=(space.root, after))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    for lease in space.ledger.leases():  # they would expire by themselves
        space.ledger.release(lease)
    reports = recreate(space, "warps")
    assert [(report.state, report.differences) for report in reports] == [(DONE, {})] * 3
    recreate(space, "chips")
    assert list_files(space) == files
    assert space.ledger.partition_states("main") == states
