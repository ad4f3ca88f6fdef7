"""The Dagster definitions: a graph without a repository, and partitions and mappings exactly those of the survey."""

import subprocess
import sys

import dagster as dg
import pytest

from lap_assets.definitions import build_defs
from lap_assets.defs import status
from lap_assets.errors import BadInput
from lap_assets.model.decisions import MODES
from lap_assets.model.products import CALIBRATION_COLLECTION, CALIBRATIONS, MASTERS, PRODUCTS, get_product
from lap_assets_tests.defs.surveys import BANDS, ask_for_all_masters, create_survey

PAIRS = [pytest.param(p.name, one, id=f"{p.name}<-{one}") for p in PRODUCTS.values() for one in p.inputs]
CHECKS = {"units_done": False, "files_on_disk": True}
MASTER_CHECKS = CHECKS | {"master_comparison": True}
DIFF_CHECKS = CHECKS | {"subtraction": False}


def find_key(product: str) -> dg.AssetKey:
    outside = get_product(product).partitions == CALIBRATIONS
    return dg.AssetKey([CALIBRATION_COLLECTION if outside else "main", product])


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The survey of a synthetic ledger, with masters of all kinds."""
    space = create_survey(tmp_path_factory.mktemp("defs") / "repository")
    ask_for_all_masters(space)
    return space


@pytest.fixture(scope="module")
def graph(survey):
    """The asset graph of that survey, validated as Dagster does when it loads a code location."""
    definitions = build_defs(survey.root)
    dg.Definitions.validate_loadable(definitions)
    return definitions.resolve_asset_graph()


@pytest.fixture
def no_repository(tmp_path, monkeypatch):
    monkeypatch.delenv("LAP_REPO", raising=False)
    monkeypatch.chdir(tmp_path)


def test_without_a_repository_the_graph_is_there_and_empty(no_repository):
    """A fresh clone: every product with its inputs, no partition, nothing to launch."""
    definitions = build_defs()
    dg.Definitions.validate_loadable(definitions)
    graph = definitions.resolve_asset_graph()
    assert graph.get_all_asset_keys() == {*map(find_key, PRODUCTS), dg.AssetKey(["main", status.NAME])}
    for name, product in PRODUCTS.items():
        node = graph.get(find_key(name))
        assert node.parent_keys == {find_key(one) for one in product.inputs}
        assert list(node.partitions_def.get_partition_keys()) == []
        assert node.description and node.metadata["title"] == product.title


def test_a_repository_that_is_named_but_not_there_is_an_error(no_repository, tmp_path, monkeypatch):
    """An empty graph instead would look as if the survey were lost."""
    with pytest.raises(BadInput, match="is no repository"):
        build_defs(tmp_path / "absent")
    monkeypatch.setenv("LAP_REPO", str(tmp_path / "absent"))
    with pytest.raises(BadInput, match="is no repository"):
        build_defs()


def test_definitions_load_without_noise_and_without_heavy_modules(survey):
    """Every Dagster process loads them: no warning on the terminal, nothing of the pixel pipeline imported."""
    heavy = ("sep", "galsim", "numba", "matplotlib", "scipy.optimize", "lap_assets.pipeline.preload")
    code = f"import sys, lap_assets.definitions as d; d.build_defs(); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=survey.root, capture_output=True, text=True, timeout=120, check=True
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_partition_keys_are_those_of_the_survey(survey, graph):
    keys = survey.survey()
    for name in PRODUCTS:
        found = graph.get(find_key(name)).partitions_def
        assert isinstance(found, dg.StaticPartitionsDefinition)
        assert tuple(found.get_partition_keys()) == keys.partitions(name)
    # the survey is what it was meant to be: two cells, and pairs that are fewer than exposures times cells
    assert len(keys.partitions("object_catalogs")) == 2
    assert len(keys.partitions("stacks")) == 2 * len(BANDS)
    assert len(keys.partitions("chips")) == 12 and len(keys.partitions("warps")) == 16


def walk_up(graph, product, upstream, key) -> set[str]:
    """Partitions of `upstream` that Dagster takes `key` of `product` to be made from."""
    child, parent = graph.get(find_key(product)), graph.get(find_key(upstream))
    mapping = child.partition_mappings[find_key(upstream)]
    result = mapping.get_upstream_mapped_partitions_result_for_partitions(
        child.partitions_def.subset_with_partition_keys([key]), child.partitions_def, parent.partitions_def
    )
    assert not result.required_but_nonexistent_partition_keys
    return set(result.partitions_subset.get_partition_keys())


def walk_down(graph, product, upstream, key) -> set[str]:
    """Partitions of `product` that Dagster takes to be made from `key` of `upstream`."""
    child, parent = graph.get(find_key(product)), graph.get(find_key(upstream))
    mapping = child.partition_mappings[find_key(upstream)]
    subset = mapping.get_downstream_partitions_for_partitions(
        parent.partitions_def.subset_with_partition_keys([key]), parent.partitions_def, child.partitions_def
    )
    return set(subset.get_partition_keys())


@pytest.mark.parametrize(("product", "upstream"), PAIRS)
def test_mapping_is_exactly_who_is_made_from_whom(survey, graph, product, upstream):
    """Both ways, key by key: what a backfill and the graph see is what the pipeline reads."""
    keys = survey.survey()
    made_from = {
        key: {source for name, source in keys.upstream(product, key) if name == upstream}
        for key in keys.partitions(product)
    }
    for key, sources in made_from.items():
        assert walk_up(graph, product, upstream, key) == sources
    for source in keys.partitions(upstream):
        assert walk_down(graph, product, upstream, source) == {key for key, s in made_from.items() if source in s}
    assert any(made_from.values()), "a pair without any edge shows nothing"


@pytest.mark.parametrize(("product", "upstream"), PAIRS)
def test_mapping_is_one_that_the_daemon_understands(graph, product, upstream):
    """Custom mappings are dropped by the host processes; without one Dagster guesses: both must not happen."""
    mapping = graph.get(find_key(product)).partition_mappings.get(find_key(upstream))
    assert type(mapping) in (dg.StaticPartitionMapping, dg.IdentityPartitionMapping)
    if isinstance(mapping, dg.IdentityPartitionMapping):
        same = graph.get(find_key(product)).partitions_def, graph.get(find_key(upstream)).partitions_def
        assert same[0] == same[1]


def test_product_table_names_every_input_the_survey_uses(survey):
    """An edge of `Survey.upstream` that is not in the product table would be no dependency in Dagster."""
    keys = survey.survey()
    for name, product in PRODUCTS.items():
        used = {source for key in keys.partitions(name) for source, _ in keys.upstream(name, key)}
        assert used == set(product.inputs)


def test_every_asset_has_its_checks_policy_and_code_version(survey, graph):
    """A backfill policy (else one run per partition), checks per partition; masters stop what follows by one of theirs.

    PHX-02: what is not certified is used by nothing.
    """
    for name in PRODUCTS:
        node = graph.get(find_key(name))
        assert node.backfill_policy is not None
        assert node.code_version == survey.configs()[name]
        own = MASTER_CHECKS if name in MASTERS.values() else DIFF_CHECKS if name == "diffs" else CHECKS
        for check, blocking in own.items():
            spec = graph.get_check_spec(dg.AssetCheckKey(find_key(name), check))
            assert spec.blocking is blocking
            assert spec.partitions_def == node.partitions_def
    assert len(graph.asset_check_keys) == len(CHECKS) * len(PRODUCTS) + len(MASTERS) + 1


def test_no_asset_hands_anything_to_the_io_manager(survey):
    """Dagster's default IO manager pickles: every output is a Nothing, which it never sees."""
    for asset in build_defs(survey.root).assets:
        if isinstance(asset, dg.AssetSpec):
            continue  # `lap_status` is told of, not made
        for name in asset.keys_by_output_name:
            assert asset.op.output_def_named(name).dagster_type.is_nothing, f"{asset.op.name}.{name}"


def test_collections_have_their_own_assets_and_share_the_masters(tmp_path):
    """Two sequences never overwrite one another: the collection is the prefix of the asset key."""
    space = create_survey(tmp_path / "repository")
    (space.root / "lap.yaml").write_text("collections: [main, rerun.2]\n")
    graph = build_defs(space.root).resolve_asset_graph()
    outside = {find_key(name) for name in MASTERS.values()}
    inside = {dg.AssetKey([c, name]) for c in ("main", "rerun.2") for name in (*PRODUCTS, status.NAME)} - {
        dg.AssetKey([c, key.path[-1]]) for c in ("main", "rerun.2") for key in outside
    }
    assert graph.get_all_asset_keys() == inside | outside
    assert graph.get(dg.AssetKey(["rerun.2", "stacks"])).parent_keys == {dg.AssetKey(["rerun.2", "warps"])}
    assert graph.get(dg.AssetKey(["rerun.2", "chips"])).parent_keys == outside


def test_sequences_of_the_ledger_are_collections_too(tmp_path):
    """LAP-01: defined by a command, a sequence is there with assets and jobs of its own, whatever its name."""
    space = create_survey(tmp_path / "repository")
    for name in ("deep", "deep.2", "deep-2"):
        space.ledger.define_sequence(name)
    repository = build_defs(space.root).get_repository_def()
    keys = {key.path[0] for key in repository.asset_graph.get_all_asset_keys()} - {"calib"}
    assert keys == {"main", "deep", "deep.2", "deep-2"}
    jobs = {job.name for job in repository.get_all_jobs()}
    assert {"make_main_exposures", "make_deep_exposures"} <= jobs
    assert len([name for name in jobs if name.endswith("_exposures")]) == len(keys)


def test_every_sensor_is_on_from_the_start(survey):
    """LAP-35: the platform runs itself: each mode is a sensor, and ingest, status and the dead are looked after."""
    sensors = {one.name: one for one in build_defs(survey.root).get_repository_def().sensor_defs}
    modes = {f"{mode}_sensor" for mode in MODES}
    assert set(sensors) == modes | {"ingest_sensor", "status_sensor", "reaper_sensor", "failure_sensor"}
    assert {one.default_status for one in sensors.values()} == {dg.DefaultSensorStatus.RUNNING}
    # the daemon looks at its sensors every 5 s: an interval of 5 would often be missed by a moment
    assert all(sensors[name].minimum_interval_seconds < 5 for name in ("chip_sensor", "monitor_sensor", "queue_sensor"))
