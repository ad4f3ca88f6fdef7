"""Files, ledger and Dagster set at odds, on a real survey: each difference is named, settled once, and gone then."""

import itertools
import json
import shutil
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.cli.app import app
from lap_assets.defs.instance import asset_key, read_marks, read_materialized
from lap_assets.defs.run import RANGE_END, RANGE_START, open_instance
from lap_assets.ledger.ledger import Ledger
from lap_assets.model.ids import DataId
from lap_assets.model.products import PRODUCTS
from lap_assets.model.states import DONE, ENDED, NO_WORK
from lap_assets.operations.reconcile import Difference, Reconciler, Reconciliation, agree, reconcile
from lap_assets.operations.work import work_partitions
from lap_assets.operations.workspace import POSTGRES_YAML, Workspace
from lap_assets.pipeline.task import UnitReport
from lap_assets_tests.defs.surveys import create_survey
from lap_assets_tests.operations.conftest import FEW
from lap_assets_tests.store.samples import make_stack, publish

pytestmark = [pytest.mark.survey, pytest.mark.xdist_group("operations")]

PICTURE = "![preview](data:image/png;base64,"


@pytest.fixture(scope="module")
def settled(made, tmp_path_factory) -> tuple[Path, Reconciliation]:
    """The survey with an instance of Dagster that knew nothing of it, settled; and what was settled."""
    root = tmp_path_factory.mktemp("settled") / "repository"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", "")  # restored at the end: opening an instance sets it
        shutil.copytree(made, root)
        return root, reconcile(Workspace.open(root, FEW), apply=True)


@pytest.fixture
def space(settled, tmp_path, monkeypatch) -> Workspace:
    """A copy of the settled survey, to set at odds."""
    monkeypatch.setenv("DAGSTER_HOME", "")
    shutil.copytree(settled[0], tmp_path / "repository")
    return Workspace.open(tmp_path / "repository", FEW)


def every_partition(space: Workspace) -> set[tuple[str, str]]:
    survey = space.survey()
    return {(product, key) for product in PRODUCTS for key in survey.partitions(product)}


def settle(space: Workspace) -> list[Difference]:
    """What a dry run announces; that is then done, changes nothing else, and a second time there is nothing."""
    announced = reconcile(space).differences
    outcome = reconcile(space, apply=True)
    assert outcome.differences == announced and outcome.settled == len(announced)
    assert reconcile(space).differences == []
    return announced


def kinds(differences: list[Difference]) -> list[tuple[str, str, str]]:
    return [(one.kind, one.product, one.partition) for one in differences]


def is_marked(space: Workspace, product: str, partition: str) -> bool | None:
    """How the newest evaluation of `files_on_disk` ended."""
    with open_instance(space.root) as instance:
        return read_marks(instance, "main", [product]).get((product, partition))


def remake(space: Workspace) -> list[tuple[str, str]]:
    """Go through all products as a run does; data ids of the units that were made, not skipped."""
    made: list[UnitReport] = []
    for product in PRODUCTS:
        survey = space.survey()
        for report in work_partitions(space, survey, product, survey.partitions(product), tell=made.append):
            assert report.state == DONE, report.reason
    return [(one.data_id.product, one.data_id.unit) for one in made if not one.skipped]


def test_a_lost_history_is_told_again(settled, space):
    """Every partition: state, content hash, numbers and picture as a run would have told, and passing checks."""
    _, outcome = settled
    assert {one.kind for one in outcome.differences} == {"report"}
    assert {one.ref for one in outcome.differences} == every_partition(space)
    assert outcome.settled == len(outcome.differences) and not outcome.busy
    states = space.ledger.partition_states()
    with open_instance(space.root) as instance:
        marks = read_marks(instance, "main", PRODUCTS)
        for product in PRODUCTS:
            assert read_materialized(instance, "main", product) == set(space.survey().partitions(product))
            for partition in space.survey().partitions(product):
                chosen = dg.AssetRecordsFilter(asset_key("main", product), asset_partitions=[partition])
                record = instance.fetch_materializations(chosen, limit=1).records[0]
                told = {name: one.value for name, one in record.asset_materialization.metadata.items()}
                assert told["content_sha256"] == states[product, partition].content_sha256
                assert (told["state"], told["reported_by"]) == ("done", "lap reconcile")
                assert told["preview"].startswith(PICTURE)
                assert marks[product, partition] is True
    assert reconcile(space).differences == []


def lose_records(space: Workspace) -> Workspace:
    """The repository with a ledger that knows what is defined, and of no partition."""
    space.ledger.close()
    (space.root / "ledger.db").unlink()
    ledger = Ledger.create(space.ledger_url)
    ledger.rebuild([entry for entry in space.repo.read_journal() if entry["kind"] != "partition"], [])
    ledger.close()
    return Workspace.open(space.root, FEW)


def test_a_ledger_that_lost_its_records_gets_them_back(space):
    """Files win, and the journal tells what manifests do not; Dagster, which knew, needs no telling."""
    before = space.ledger.partition_states()
    space = lose_records(space)
    found = settle(space)
    assert {one.ref for one in found} == every_partition(space)
    assert {(one.kind, one.state) for one in found} == {("record", "done")}
    assert space.ledger.partition_states() == before
    assert remake(space) == []


def test_without_a_journal_the_manifests_suffice(space):
    """What a partition was made from is left open, so a run looks at each once, and makes nothing again."""
    before = space.ledger.partition_states()
    journal = space.repo.layout.journal
    kept = [line for line in journal.read_text().splitlines(keepends=True) if json.loads(line)["kind"] != "partition"]
    journal.write_text("".join(kept))
    space = lose_records(space)
    assert {one.kind for one in settle(space)} == {"record"}
    now = space.ledger.partition_states()
    for ref, state in before.items():
        assert (now[ref].state, now[ref].content_sha256, now[ref].config_sha256) == (
            DONE, state.content_sha256, state.config_sha256,
        )  # fmt: skip
        assert now[ref].inputs_sha256 == ""
    assert remake(space) == []
    assert space.ledger.partition_states() == before


def test_what_the_ledger_knows_otherwise_is_as_the_files_say(space):
    """A record that another version of the files left behind."""
    (partition,) = space.survey().partitions("stacks")
    before = space.ledger.partition_states()["stacks", partition]
    (unit, *_) = space.repo.units("main", "stacks", partition)
    old = [UnitReport(unit, DONE, "old")]
    space.ledger.record_partition("main", "stacks", partition, DONE, content_sha256="old", unit_reports=old)
    found = settle(space)
    assert kinds(found) == [("record", "stacks", partition)] and "not as the ledger has them" in found[0].found
    assert space.ledger.partition_states()["stacks", partition].content_sha256 == before.content_sha256


@pytest.mark.parametrize("damage", ["files", "manifest", "sealed"])
def test_what_is_gone_is_made_again_alone(space, damage):
    """Files, manifest, or a manifest that cannot be read: the partition is corrupt, and so it says in the UI."""
    partition = space.survey().partitions("warps")[1]
    (unit, *_) = space.repo.units("main", "warps", partition)
    manifest = space.repo.layout.manifest(unit)
    if damage == "files":
        shutil.rmtree(space.repo.layout.content_dir(unit, space.repo.manifest(unit).directory))
    elif damage == "manifest":
        manifest.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes().replace(b'"done"', b'"dune"'))
    found = settle(space)
    assert kinds(found) == [("forget", "warps", partition), ("withdraw", "warps", partition)]
    assert str(unit) in found[0].found and "makes it again" in found[0].cure
    assert space.ledger.partition_states()["warps", partition].state == "corrupt"
    assert is_marked(space, "warps", partition) is False
    if damage == "sealed":
        manifest.unlink()  # as `lap fsck` sets it aside
    assert remake(space) == [("warps", unit.unit)]
    assert kinds(settle(space)) == [("confirm", "warps", partition)]
    assert is_marked(space, "warps", partition) is True


def test_cleaned_and_there_again_any_number_of_times(space, tmp_path):
    """Killed between files and ledger, both ways: the ledger follows, the UI is told with a warning, never red."""
    partition = space.survey().partitions("chips")[0]
    units = space.repo.units("main", "chips", partition)
    hashes = space.ledger.partition_states()["chips", partition]
    folder = space.repo.layout.unit_dir(units[0]).parent
    shutil.copytree(folder, tmp_path / "kept")
    for _ in range(2):
        for unit in units:
            space.repo.clean(unit, "nothing needs it")
        assert kinds(settle(space)) == [("mark", "chips", partition), ("withdraw", "chips", partition)]
        now = space.ledger.partition_states()["chips", partition]
        assert (now.state, now.content_sha256, now.inputs_sha256) == (
            "cleaned", hashes.content_sha256, hashes.inputs_sha256,
        )  # fmt: skip
        assert is_marked(space, "chips", partition) is False
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "kept", folder)
        assert kinds(settle(space)) == [("mark", "chips", partition), ("confirm", "chips", partition)]
        assert space.ledger.partition_states()["chips", partition].state == DONE
        assert is_marked(space, "chips", partition) is True


def test_a_cleaning_cut_short_goes_on(space):
    """Some units cleaned, some not: neither done nor cleaned, and the next cleaning takes it up."""
    partition = space.survey().partitions("chips")[0]
    space.repo.clean(space.repo.units("main", "chips", partition)[0], "nothing needs it")
    found = settle(space)
    assert kinds(found) == [("mark", "chips", partition)]
    assert space.ledger.partition_states()["chips", partition].state == "goto_cleaned"


def test_what_only_dagster_believes_in_is_marked(tmp_path, monkeypatch):
    """A materialization that somebody reported by hand: seen as a warning, and nothing is made from it."""
    monkeypatch.setenv("DAGSTER_HOME", "")
    space = create_survey(tmp_path / "repository")
    partition = space.survey().partitions("chips")[0]
    with open_instance(space.root) as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization(asset_key("main", "chips"), partition=partition))
    found = settle(space)
    assert kinds(found) == [("withdraw", "chips", partition)] and "unknown in the ledger" in found[0].found
    assert is_marked(space, "chips", partition) is False
    assert ("chips", partition) not in space.ledger.partition_states()


def test_what_somebody_is_at_is_left_alone(space):
    """A lease in the ledger, or an unfinished run in Dagster: named, and settled once it is over."""
    first, second, third = space.survey().partitions("chips")
    for partition in (first, second, third):
        shutil.rmtree(space.repo.layout.unit_dir(space.repo.units("main", "chips", partition)[0]))
    lease = space.ledger.acquire(f"main/chips/{first}", "somebody", 60.0)
    with open_instance(space.root) as instance:
        run = start_run(instance, second)
    outcome = reconcile(space, apply=True)
    assert kinds(outcome.differences) == [("forget", "chips", third), ("withdraw", "chips", third)]
    assert outcome.busy == {("chips", first): "somebody", ("chips", second): f"run {run.run_id[:8]} (STARTED)"}
    space.ledger.release(lease)
    with open_instance(space.root) as instance:
        instance.report_run_failed(run)
    assert {one.partition for one in settle(space)} == {first, second}


def start_run(instance: dg.DagsterInstance, partition: str) -> dg.DagsterRun:
    """A run of chips that is under way."""

    @dg.asset(key=["main", "chips"], partitions_def=dg.StaticPartitionsDefinition([partition]))
    def chips() -> None:
        pass

    return instance.create_run_for_job(
        dg.Definitions(assets=[chips]).resolve_implicit_global_asset_job_def(),
        asset_selection=frozenset({dg.AssetKey(["main", "chips"])}),
        tags={RANGE_START: partition, RANGE_END: partition},
        status=dg.DagsterRunStatus.STARTED,
    )


def test_a_repository_moves_to_postgresql(space, postgres_url, monkeypatch):
    """As dagster.postgres.yaml describes: no record is lost, nothing is made again, and no half of it stays behind."""
    before = space.ledger.partition_states()
    monkeypatch.setenv("LAP_POSTGRES_URL", postgres_url)
    with pytest.raises(Exception, match=r"LAP_POSTGRES_URL is set, but .* has its databases embedded"):
        Workspace.open(space.root)
    shutil.copy(POSTGRES_YAML, space.root / "dagster" / "dagster.yaml")
    app(["--repo", str(space.root), "ledger", "rebuild"], standalone_mode=False)
    moved = Workspace.open(space.root, FEW)
    assert moved.ledger.partition_states() == before
    found = settle(moved)
    assert {one.ref for one in found} == every_partition(moved) and {one.kind for one in found} == {"report"}
    assert remake(moved) == []
    monkeypatch.delenv("LAP_POSTGRES_URL")
    with pytest.raises(Exception, match=r"has its databases on PostgreSQL .*: set LAP_POSTGRES_URL"):
        Workspace.open(space.root)


def test_the_command_shows_a_table_and_settles_on_demand(space, capsys):
    """Exit status 1 while anything differs, 0 once it is settled."""
    partition = space.survey().partitions("chips")[0]
    shutil.rmtree(space.repo.layout.unit_dir(space.repo.units("main", "chips", partition)[0]))
    command = ["--repo", str(space.root), "reconcile"]
    assert app(command, standalone_mode=False) == 1
    out = capsys.readouterr().out
    assert partition in out and "makes it again" in out and "2 differences: nothing changed" in out
    assert not app([*command, "--apply"], standalone_mode=False)
    assert "2 differences: 2 settled" in capsys.readouterr().out
    assert not app(command, standalone_mode=False)
    assert capsys.readouterr().out.splitlines() == ["0 differences"]


UNITS = ("00", "01", "02")
NUMBERS = itertools.count()
IN_STORE = st.sampled_from(["", "done", "cleaned", "no_work", "broken"])
IN_LEDGER = st.tuples(st.sampled_from(["", "done", "cleaned", "goto_cleaned", "no_work", "failed"]), st.booleans())
PARTITION = st.sampled_from(["", "done", "cleaned", "goto_cleaned", "corrupt", "failed", "no_work"])


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Workspace:
    """A repository in which nothing is defined."""
    return Workspace.create(tmp_path_factory.mktemp("odds") / "repository")


@settings(max_examples=40, deadline=None)
@given(store=st.tuples(*[IN_STORE] * 3), known=st.tuples(*[IN_LEDGER] * 3), state=PARTITION)
def test_settling_once_settles_whatever_is_at_odds(empty, store, known, state):
    """Any states of the units of a partition in store and ledger: afterwards they agree, and files were not touched."""
    key = f"cell.{next(NUMBERS)}|r"
    contents = write_units(empty, key, store)
    if state:
        reports = [
            UnitReport(DataId("main", "stacks", key, unit), one, contents.get(unit, "x") if true else "other")
            for unit, (one, true) in zip(UNITS, known, strict=True)
            if one
        ]
        empty.ledger.record_partition("main", "stacks", key, state, unit_reports=reports)
    files = list_files(empty, key)
    reconciler, others = Reconciler(empty, ("main",)), set(empty.ledger.partition_states()) - {("stacks", key)}
    reconciler.settle_ledger(reconciler.take_picture("main", "main"), others, apply=True)
    picture = reconciler.take_picture("main", "main")
    assert picture.compare(("stacks", key)) is None
    facts = picture.facts.get(("stacks", key), {})
    for unit, row in picture.rows.get(("stacks", key), {}).items():
        assert row.state not in ENDED or agree(row, facts[unit])
    assert facts.keys() <= picture.rows.get(("stacks", key), {}).keys()
    assert list_files(empty, key) == files


def list_files(space: Workspace, key: str) -> dict[Path, int]:
    """Everything below the units of a partition, and when it was written."""
    folder = space.repo.layout.unit_dir(DataId("main", "stacks", key, UNITS[0])).parent
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def write_units(space: Workspace, key: str, store: tuple[str, ...]) -> dict[str, str]:
    """Units of one partition in these states; contents of those that have one."""
    contents = {}
    for number, (unit, state) in enumerate(zip(UNITS, store, strict=True)):
        data_id = DataId("main", "stacks", key, unit)
        if state == NO_WORK:
            publish(space.repo, data_id, {}, state=NO_WORK, reason="too few inputs")
        elif state:
            contents[unit] = publish(space.repo, data_id, make_stack(number + 1.0)).content_sha256
        if state == "cleaned":
            space.repo.clean(data_id, "nothing needs it")
        elif state == "broken":
            shutil.rmtree(space.repo.layout.find_versions(data_id)[0])
    return contents
