"""From actions to runs: stretches of partitions, products that follow in the same run, and what is too new."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lap_assets.defs.jobs import Loaded
from lap_assets.defs.launch import Launch, hold_partial, plan_launches, request_run, split_stretches
from lap_assets.lap.judge import describe_wait
from lap_assets.model.decisions import CLEAN, DROP, MAKE, RECREATE, Action, Decision
from lap_assets.model.products import PRODUCTS
from lap_assets.operations.launches import LOST_AGAIN

KEYS = [f"e{number:02d}" for number in range(20)]
LOADED = Loaded(
    "main",
    {name: {key: place for place, key in enumerate(KEYS)} for name in PRODUCTS},
    {name: f"make_{row.partitions}" for name, row in PRODUCTS.items()},
    frozenset({1}),
)


@given(st.sets(st.sampled_from(KEYS)), st.integers(1, 6), st.sets(st.sampled_from(KEYS)))
def test_stretches_are_unbroken_and_cover_all(chosen, per_run, lost):
    """One run makes a stretch of the partition set; one that lost its run twice is alone in the next."""
    twice = f"failed: {LOST_AGAIN}: killed"
    actions = [Action("chips", key, reason=twice if key in lost else "missing") for key in chosen]
    stretches = [
        [one.partition for one in stretch] for stretch in split_stretches(actions, LOADED.places["chips"], per_run)
    ]
    assert [key for stretch in stretches for key in stretch] == sorted(chosen)
    for stretch in stretches:
        first = KEYS.index(stretch[0])
        assert stretch == KEYS[first : first + len(stretch)] and len(stretch) <= per_run
        assert len(stretch) == 1 or not lost & set(stretch)


def plan(actions, waiting=None, per_run=50, **options):
    return plan_launches(Decision(actions=tuple(actions), waiting=waiting or {}), LOADED, per_run, **options)


def test_what_waits_for_nothing_else_follows_in_the_same_run():
    """Solutions after chips; not where one of them waits for more."""
    actions = [Action("chips", key, lap_id=1, priority=3) for key in KEYS[:3]]
    alone = {("solutions", key): describe_wait([("chips", key)]) for key in KEYS[:3]}
    launches, new = plan(actions, alone)
    assert (launches, new) == ([Launch(("chips", "solutions"), tuple(KEYS[:3]), MAKE, "", 1, 3)], [])
    assert plan(actions, alone | {("solutions", KEYS[1]): "is being made by launch:4"})[0][0].products == ("chips",)


def test_everything_of_a_cell_goes_in_one_run():
    """Catalogue, shapes, map, fit follow one another; transients, possible at the same time, go along."""
    waiting = {
        ("shear_catalogs", "e00"): describe_wait([("object_catalogs", "e00")]),
        ("mass_maps", "e00"): describe_wait([("shear_catalogs", "e00")]),
        ("mass_fits", "e00"): describe_wait([("shear_catalogs", "e00"), ("mass_maps", "e00")]),
    }
    launches, _ = plan([Action("object_catalogs", "e00", lap_id=1), Action("transients", "e00", lap_id=1)], waiting)
    expected = ("object_catalogs", "shear_catalogs", "mass_maps", "mass_fits", "transients")
    assert [(one.products, one.partitions) for one in launches] == [(expected, ("e00",))]


def test_kinds_reasons_and_priorities_are_not_mixed():
    """What is dropped goes with its reason; what is cleaned is another job's."""
    waiting = {("streak_masks", key): describe_wait([("diffs", key)]) for key in ("e00", "e01", "e03")}
    actions = [
        Action("diffs", "e00", DROP, "postponed to run 7", 1),
        Action("diffs", "e01", DROP, "postponed to run 7", 1),
        Action("diffs", "e02", DROP, "postponed to run 8", 1),
        Action("diffs", "e03", RECREATE, "needed", 1),
        Action("diffs", "e04", MAKE, "missing", 1),
        Action("diffs", "e05", MAKE, "missing", 1, priority=5),
        Action("diffs", "e06", CLEAN, "nothing needs it", 1),
    ]
    launches, _ = plan(actions, waiting)
    assert [(one.kind, one.products, one.partitions, one.reason) for one in launches] == [
        (DROP, ("diffs", "streak_masks"), ("e00", "e01"), "postponed to run 7"),
        (DROP, ("diffs",), ("e02",), "postponed to run 8"),
        (RECREATE, ("diffs",), ("e03",), ""),
        (MAKE, ("diffs",), ("e04",), ""),
        (MAKE, ("diffs",), ("e05",), ""),
    ]


def test_partitions_newer_than_the_definitions_wait_for_a_reload():
    """Dagster refuses keys it has not loaded; of a new run, known ones wait too, so that they stand together."""
    actions = [Action("chips", "e00", lap_id=1), Action("chips", "e01", lap_id=2), Action("chips", "new", lap_id=2)]
    launches, new = plan(actions)
    assert [one.partitions for one in launches] == [("e00",)]
    assert new == [("chips", "e01"), ("chips", "new")]
    assert [one.partitions for one in plan(actions, hasty=True)[0]] == [("e00", "e01")]


def test_what_is_possible_waits_for_what_follows_in_a_moment():
    """One chip is back and its warp possible: it goes with the others, unless nobody makes what they wait for."""
    actions = [Action("warps", "e00", lap_id=1), Action("stacks", "e00", lap_id=1), Action("warps", "e01", lap_id=2)]
    waiting = {("warps", "e02"): "waits for chips e02 to be re-created (1 cleaned inputs)"}
    decision = Decision(actions=tuple(actions), waiting=waiting)
    loaded = replace(LOADED, lap_ids=frozenset({1, 2}))
    launches, _ = plan_launches(decision, loaded, 50)
    together = [one for one in launches if one.products == ("warps",)]
    assert hold_partial(launches, decision, set(), 50) == launches
    assert hold_partial(launches, decision, {1}, len(together[0].partitions)) == launches
    assert hold_partial(launches, decision, {1}, 50) == [one for one in launches if one not in together]


def test_a_request_names_all_that_the_run_must_know():
    """Its key is the launch; Dagster is told not to repeat it."""
    request = request_run(7, LOADED, Launch(("chips", "solutions"), ("e01", "e02", "e03"), MAKE, "", 4, 2))
    assert (request.run_key, request.job_name) == ("launch-7", "make_exposures")
    assert [key.path for key in request.asset_selection] == [["main", "chips"], ["main", "solutions"]]
    assert request.tags == {
        "lap/launch": "7", "lap/collection": "main", "lap/lap_id": "4", "lap/kind": "make", "lap/partitions": "3",
        "dagster/asset_partition_range_start": "e01", "dagster/asset_partition_range_end": "e03",
        "dagster/priority": "2", "dagster/max_retries": "0",
    }  # fmt: skip
