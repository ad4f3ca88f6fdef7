"""Cleaning a unit: what goes, what stays, and what readers, checks and other units see of it."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lap_assets.errors import Cleaned, Conflict, NotFound
from lap_assets.model.ids import Pin
from lap_assets.store.repo import Repo
from lap_assets.store.verify import fsck, sweep
from lap_assets_tests.store.samples import FINAL, STACK, TWIN, WARP, check_stack, make_image, make_stack, publish

LATER = 4e9  # seconds since the epoch: everything is old by then


@pytest.fixture
def repo(tmp_path):
    repo = Repo(tmp_path)
    inputs = (Pin(WARP, "d" * 64),)
    publish(repo, STACK, make_stack(3), inputs=inputs, metrics={"depth_mag": 24.5}, seconds=2.0, fence=5, run_id="r1")
    return repo


def test_cleaning_frees_the_bytes_and_keeps_all_that_is_known(repo):
    before = repo.manifest(STACK)
    sizes = sum(path.stat().st_size for path in repo.path(STACK, "image.fits").parent.iterdir())
    assert repo.clean(STACK, "LAP-33: nothing needs it") == sizes == before.bytes > 0
    after = repo.manifest(STACK)
    assert after == replace(before, state="cleaned", directory="", reason="LAP-33: nothing needs it")
    assert after.bytes == 0 and after.pin == before.pin == repo.pin(STACK)
    assert repo.layout.find_versions(STACK) == []
    assert not repo.has_files(STACK) and not repo.has_version(before.pin)


def test_cleaning_again_changes_nothing(repo):
    repo.clean(STACK, "first")
    once = repo.layout.manifest(STACK).read_bytes()
    assert repo.clean(STACK, "second") == 0
    assert repo.layout.manifest(STACK).read_bytes() == once


def test_results_without_members_and_what_is_missing_are_left_alone(repo):
    publish(repo, FINAL, {}, state="no_work", reason="too few inputs")
    before = repo.layout.manifest(FINAL).read_bytes()
    assert repo.clean(FINAL) == repo.clean(WARP) == 0
    assert repo.layout.manifest(FINAL).read_bytes() == before
    assert repo.manifest(WARP) is None


def test_a_reader_is_told_that_it_was_cleaned_and_how_it_comes_back(repo):
    """LAP-33: a cleaned product is no missing one."""
    pin = repo.pin(STACK)
    repo.clean(STACK, "every run is over")
    readers = [
        lambda: repo.read_image(STACK),
        lambda: repo.read_image(pin),
        lambda: repo.read_table(STACK, "inputs.parquet"),
        lambda: repo.path(STACK, "image.fits"),
        lambda: repo.get("stacks", cell="demo.0", band="r", skycell="03"),
        lambda: repo.uri("stacks", cell="demo.0", band="r", skycell="03"),
    ]
    for read in readers:
        with pytest.raises(Cleaned, match=r"cleaned \(every run is over\).*lap recreate 'main/stacks/demo.0\|r/03'"):
            read()
    assert issubclass(Cleaned, NotFound)
    (row,) = repo.query("stacks").to_dict("records")
    assert (row["state"], row["bytes"], row["content_sha256"]) == ("cleaned", 0, pin.content)


def test_a_cell_is_not_shown_without_its_cleaned_part(repo):
    other = replace(STACK, unit="04")
    publish(repo, other, make_stack(4))
    repo.clean(STACK)
    with pytest.raises(Cleaned, match="03"):
        repo.get("stacks", cell="demo.0", band="r")
    assert repo.get("stacks", cell="demo.0", band="r", skycell="04").sci[0, 0] == 4


@pytest.mark.parametrize(("cleaned", "other"), [(STACK, TWIN), (TWIN, STACK)])
def test_units_that_share_files_do_not_hurt_each_other(repo, cleaned, other):
    publish(repo, TWIN, {}, refers_to=repo.pin(STACK))
    shared = repo.path(STACK, "image.fits").stat()
    assert shared.st_nlink == 2
    assert repo.clean(cleaned) == 0  # the bytes are still somebody's
    check_stack(repo, other, {3})
    assert not fsck(repo, full=True).broken
    assert repo.clean(other) >= shared.st_size


def test_a_cleaned_unit_comes_back_and_can_be_referred_to_again(repo):
    pin = repo.pin(STACK)
    repo.clean(STACK)
    with pytest.raises(Conflict, match="was cleaned"):
        publish(repo, FINAL, {}, refers_to=pin)
    assert publish(repo, STACK, make_stack(3), fence=5).pin == pin
    publish(repo, FINAL, {}, refers_to=pin)
    check_stack(repo, FINAL, {3})


def test_who_lost_the_lease_cleans_nothing(repo):
    with pytest.raises(Conflict, match="fence 5"):
        repo.clean(STACK, fence=4)
    check_stack(repo, STACK, {3})
    repo.clean(STACK, fence=6)
    with pytest.raises(Conflict, match="fence 6"):
        publish(repo, STACK, make_stack(4), fence=5)


def test_the_check_finds_nothing_wrong_with_a_cleaned_unit(repo):
    publish(repo, WARP, {"image.fits": make_image(2)})
    repo.clean(STACK)
    for full in (False, True):
        report = fsck(repo, full=full)
        assert (report.units, report.cleaned, report.broken, report.damaged) == (2, 1, {}, [])
        assert report.bytes == repo.manifest(WARP).bytes and "1 cleaned" in report.lines[-1]
    assert repo.manifest(STACK).state == "cleaned"


def test_files_left_over_by_a_kill_are_swept(repo):
    folder = repo.path(STACK, "image.fits").parent
    copy = shutil.copytree(folder, folder.with_name("copy"))
    repo.clean(STACK)
    copy.rename(folder)
    assert fsck(repo).orphans == [folder]
    assert sweep(repo) == [] and folder.is_dir()  # a reader may be in it
    assert sweep(repo, now=LATER) == [folder]
    assert repo.manifest(STACK).state == "cleaned"


def test_cleaning_takes_only_the_current_version(repo):
    """A replaced one is the sweep's: a reader that pinned it may be in it."""
    old = repo.pin(STACK)
    publish(repo, STACK, make_stack(4), fence=5)
    repo.clean(STACK)
    assert [folder.name for folder in repo.layout.find_versions(STACK)] == [old.content[:32]]


class Cleaning(RuleBasedStateMachine):
    """Any order of publishing, referring, cleaning and sweeping of two units that may share files."""

    def __init__(self):
        super().__init__()
        self.repo = Repo(Path(tempfile.mkdtemp(prefix="lap-cleaning-")))
        self.known: dict = {}  # data id → (value, whether its files are there)

    def teardown(self):
        shutil.rmtree(self.repo.root)

    @rule(value=st.integers(1, 3))
    def make(self, value):
        publish(self.repo, STACK, make_stack(value))
        self.known[STACK] = (value, True)

    @precondition(lambda self: self.known.get(STACK, (0, False))[1])
    @rule()
    def refer(self):
        publish(self.repo, FINAL, {}, refers_to=self.repo.pin(STACK))
        self.known[FINAL] = self.known[STACK]

    @rule(data_id=st.sampled_from([STACK, FINAL]))
    def clean(self, data_id):
        self.repo.clean(data_id)
        if data_id in self.known:
            self.known[data_id] = (self.known[data_id][0], False)

    @rule()
    def tidy(self):
        sweep(self.repo, now=LATER)
        assert not fsck(self.repo, full=True, now=LATER).broken

    @invariant()
    def each_is_what_was_last_done_to_it(self):
        for data_id, (value, there) in self.known.items():
            assert self.repo.manifest(data_id).state == ("done" if there else "cleaned")
            assert self.repo.has_files(data_id) is there
            if there:
                check_stack(self.repo, data_id, {value})


Cleaning.TestCase.settings = hypothesis_settings(max_examples=25, stateful_step_count=12, deadline=None)
test_any_order_of_making_and_cleaning = Cleaning.TestCase
