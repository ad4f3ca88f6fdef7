"""Runs of the real assets in this process: what Dagster is told of each partition, and what a failure stops."""

import base64
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lap_assets.definitions import build_defs
from lap_assets.defs.resources import LapResource
from lap_assets.defs.run import RANGE_END, RANGE_START, contiguous_ranges, open_instance, run_missing
from lap_assets.lap.select import select_targets
from lap_assets.operations.drive import DRIVEN
from lap_assets.operations.workspace import Workspace
from lap_assets.store.repo import Repo
from lap_assets_tests.defs.surveys import ingest_small, simulate_small

pytestmark = [pytest.mark.survey, pytest.mark.xdist_group("defs")]

PICKLED = (b"\x80\x03", b"\x80\x04", b"\x80\x05")
PREFIX = "![preview](data:image/png;base64,"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A repository of three exposures of one band, with its master calibrations made."""
    folder = tmp_path_factory.mktemp("small")
    space = ingest_small(folder / "repository", simulate_small(folder / "sim"))
    survey = space.survey()
    masters = select_targets(survey, lambda values: values["product"].startswith("master"), frozenset({"product"}))
    run_missing(space, "main", DRIVEN, targets=masters, revisit=True)
    return space.root


@pytest.fixture
def survey(prepared, tmp_path, monkeypatch) -> Workspace:
    """A copy of it, to work in."""
    monkeypatch.setenv("DAGSTER_HOME", "")  # restored at the end: opening an instance sets it
    shutil.copytree(prepared, tmp_path / "repository")
    return Workspace.open(tmp_path / "repository")


@pytest.fixture
def raw(survey) -> Iterator[Path]:
    """The raw file of the second exposure, for a test to damage; as it was at the end."""
    path = Path(survey.survey().exposures[survey.survey().partitions("chips")[1]].chips[0].path)
    before = path.read_bytes()
    yield path
    path.write_bytes(before)


@dataclass
class Records:
    """What the event log of a repository says."""

    root: Path
    instance: dg.DagsterInstance

    def partitions(self, product: str) -> set[str]:
        return self.instance.get_materialized_partitions(dg.AssetKey(["main", product]))

    def metadata(self, product: str, partition: str) -> dict:
        """Metadata of the newest materialization of a partition."""
        wanted = dg.AssetRecordsFilter(dg.AssetKey(["main", product]), asset_partitions=[partition])
        record = self.instance.fetch_materializations(wanted, limit=1).records[0]
        return {name: value.value for name, value in record.asset_materialization.metadata.items()}

    def checks(self, product: str, run: dg.ExecuteInProcessResult) -> dict[tuple[str, str], bool]:
        """(check, partition) to whether it passed, in one run."""
        told = self.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        found = [entry.dagster_event.asset_check_evaluation_data for entry in told]
        return {(one.check_name, one.partition): one.passed for one in found if one.asset_key.path[-1] == product}


def execute(
    space: Workspace, instance: dg.DagsterInstance, *products: str, settle: bool = False
) -> dg.ExecuteInProcessResult:
    """One run over all partitions of some assets of one partition set; with `settle` as a backfill of the UI."""
    keys = space.survey().partitions(products[0])
    definitions = build_defs(space.root, lap=LapResource(space.root, settle=settle))
    job = definitions.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        asset_selection=[dg.AssetKey(["main", name]) for name in products],
        instance=instance,
        tags={RANGE_START: keys[0], RANGE_END: keys[-1]},
        raise_on_error=False,
    )


def assert_thumbnail(markdown: str) -> None:
    assert markdown.startswith(PREFIX) and markdown.endswith(")")
    picture = base64.b64decode(markdown[len(PREFIX) : -1], validate=True)
    assert picture.startswith(b"\x89PNG") and len(picture) <= 10_000


def test_materializations_carry_numbers_and_a_thumbnail(survey):
    """Counts, FWHM, zero point, rms, seconds, bytes and a picture of at most 10 kB, per partition; nothing pickled."""
    keys = survey.survey()
    run_missing(survey, "main", DRIVEN, targets=select_targets(keys, to="warps"), revisit=True)
    with open_instance(survey.root) as instance:
        records = Records(survey.root, instance)
        for product in ("chips", "solutions", "joint_solutions", "warps"):
            assert records.partitions(product) == set(keys.partitions(product))
            for partition in keys.partitions(product):
                found = records.metadata(product, partition)
                units = survey.repo.units("main", product, partition)
                assert (found["state"], found["units"], found["units_done"]) == ("done", len(units), len(units))
                assert found["bytes"] == sum(survey.repo.manifest(unit).bytes for unit in units) > 0
                assert found["seconds"] > 0 and found["units_skipped"] == 0 and "not_done" not in found
                assert_thumbnail(found["preview"])
        first = keys.partitions("solutions")[0]
        solution, (unit,) = records.metadata("solutions", first), survey.repo.units("main", "solutions", first)
        for name in ("fwhm_arcsec", "zero_point_mag", "astrometry_rms_ra_mas", "limit_mag_5sigma"):
            assert solution[name] == pytest.approx(survey.repo.manifest(unit).metrics[name], rel=1e-5)
        assert 0.5 < solution["fwhm_arcsec"] < 2.5
        again = execute(survey, instance, "chips")
        assert again.success
        assert records.metadata("chips", keys.partitions("chips")[0])["units_skipped"] == 4
    written = [path for path in (survey.root / "dagster").rglob("*") if path.is_file()]
    assert written and not any(path.read_bytes()[:2] in PICKLED for path in written)


def test_a_failed_partition_leaves_the_good_ones_materialized(survey, raw):
    """A file cannot be read: a retry may cure that, so the run fails, after the others are recorded."""
    first, second, third = survey.survey().partitions("chips")
    raw.unlink()
    with open_instance(survey.root) as instance:
        records = Records(survey.root, instance)
        run = execute(survey, instance, "chips")
        assert not run.success
        assert records.partitions("chips") == {first, third}
        text = run.get_step_failure_events()[0].step_failure_data.error.to_string()
        assert second in text and "No such file" in text and first not in text
        checks = records.checks("chips", run)
        assert {key: ok for key, ok in checks.items() if key[0] == "units_done"} == {
            ("units_done", first): True,
            ("units_done", second): False,
            ("units_done", third): True,
        }
    states = survey.ledger.partition_states("main")
    assert [states["chips", key].state for key in (first, second, third)] == ["done", "failed", "done"]


def test_data_at_fault_are_a_result_and_flow_on(survey, raw):
    """A file cut short: its partition is materialized with the reason and a warning; what follows does without it."""
    first, second, third = survey.survey().partitions("chips")
    raw.write_bytes(raw.read_bytes()[: 3 * 2880])
    with open_instance(survey.root) as instance:
        records = Records(survey.root, instance)
        run = execute(survey, instance, "chips", "solutions")
        assert run.success
        assert records.partitions("chips") == records.partitions("solutions") == {first, second, third}
        found = records.metadata("chips", second)
        assert (found["state"], found["units_done"], found["units"]) == ("unprocessable", 0, 4)
        rows = [row.data for row in found["not_done"].records]
        assert [row["unit"] for row in rows] == ["c0", "c1", "c2", "c3"]
        assert all(row["reason"].startswith("unprocessable: ") and raw.name in row["reason"] for row in rows)
        assert records.metadata("solutions", second)["state"] == "unprocessable"
        checks = records.checks("chips", run)
        assert checks["units_done", second] is False and checks["files_on_disk", second] is True
        assert checks["units_done", first] and checks["units_done", third]


def test_a_backfill_tries_a_fault_again_then_drops_it_and_goes_on(survey, raw):
    """No driver watches a run of the UI: the partition ends `dropped`, named, and what follows is made without it."""
    first, second, third = survey.survey().partitions("chips")
    raw.unlink()
    with open_instance(survey.root) as instance:
        records = Records(survey.root, instance)
        run = execute(survey, instance, "chips", "solutions", settle=True)
        assert run.success
        assert records.partitions("chips") == {first, second, third}
        assert records.checks("chips", run)["units_done", second] is False
    states = survey.ledger.partition_states()
    assert states["chips", second].state == "dropped" and "No such file" in states["chips", second].reason
    assert states["solutions", first].state == states["solutions", third].state == "done"
    assert states["solutions", second].state == "unprocessable"


def test_units_dropped_beside_others_that_are_done_are_named_with_their_reason(survey):
    """The master bias of one chip is cut short: that chip of every exposure is dropped, and `lap run` says why."""
    unit = survey.repo.all_units("calib", "master_biases")[0]
    path = survey.repo.path(unit, "image.fits")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[: 3 * 2880])
    keys = survey.survey()
    summary = run_missing(survey, "main", DRIVEN, targets=select_targets(keys, to="chips"), revisit=True)
    for exposure, line in zip(keys.partitions("chips"), summary.failures, strict=True):
        assert line.startswith(f"chips {exposure}: dropped: ") and str(path) in line and "lap fsck" in line
        states = {one.unit: survey.repo.manifest(one).state for one in survey.repo.units("main", "chips", exposure)}
        assert states == {"c0": "done", "c1": "done", "c2": "done", "c3": "done"} | {unit.unit: "dropped"}


def test_a_failing_blocking_check_stops_only_its_partition(survey, monkeypatch):
    """Files that vanish between publishing and the check: nothing is made from that exposure, the others go on."""
    first, second, third = survey.survey().partitions("chips")
    find = Repo.has_files
    monkeypatch.setattr(Repo, "has_files", lambda repo, data_id: data_id.partition != second and find(repo, data_id))
    with open_instance(survey.root) as instance:
        records = Records(survey.root, instance)
        run = execute(survey, instance, "chips", "solutions")
        checks = records.checks("chips", run)
        assert checks["files_on_disk", second] is False
        assert checks["files_on_disk", first] and checks["files_on_disk", third]
        assert not run.success
        assert records.partitions("chips") == {first, third}
        assert survey.repo.units("main", "solutions", second) == []
        monkeypatch.undo()
        assert execute(survey, instance, "solutions").success is False
        assert records.partitions("solutions") == {first, third}


def test_inputs_not_made_yet_are_refused_and_nothing_is_published(survey):
    """Launched by hand out of order: the run fails with one line that names what is missing."""
    with open_instance(survey.root) as instance:
        run = execute(survey, instance, "solutions")
        assert not run.success
        assert Records(survey.root, instance).partitions("solutions") == set()
        text = run.get_step_failure_events()[0].step_failure_data.error.to_string()
        first = survey.survey().partitions("chips")[0]
        assert f"blocked: 1 inputs are not made yet, first chips {first}" in text
    assert survey.repo.units("main", "solutions", first) == []
    assert "solutions" not in {product for product, _ in survey.ledger.partition_states("main")}


@given(st.lists(st.booleans(), max_size=30))
def test_contiguous_ranges_cover_exactly_what_is_wanted(chosen):
    """Each range is a stretch of the partition set; together they are the wanted keys, and no two could be one."""
    keys = [f"k{number:02d}" for number in range(len(chosen))]
    wanted = {key for key, take in zip(keys, chosen, strict=True) if take}
    ranges = [(keys.index(first), keys.index(last)) for first, last in contiguous_ranges(wanted, keys)]
    covered = [keys[i] for first, last in ranges for i in range(first, last + 1)]
    assert covered == sorted(wanted)
    assert all(later[0] > earlier[1] + 1 for earlier, later in pairwise(ranges))
