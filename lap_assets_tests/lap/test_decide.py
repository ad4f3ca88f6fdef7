"""The decision function: what is made when, and that it comes to rest."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.lap.decide import DROP, MAKE, MAX_ATTEMPTS, Snapshot, decide, hash_inputs
from lap_assets.lap.select import products_before, select_targets
from lap_assets.model.products import PRODUCTS
from lap_assets.model.states import DONE, FAILED, NO_WORK, UNPROCESSABLE, PartitionState
from lap_assets.model.survey import CalibrationSet, Exposure, Run, Survey

CONFIGS = dict.fromkeys(PRODUCTS, "config")


def make_survey(n: int = 3, bands: str = "gr") -> Survey:
    exposures = {
        f"cam-{band}{i}": Exposure(f"cam-{band}{i}", "cam", band, band, f"2026-01-0{i + 1}", 6e4 + i, 30.0, 10.0, 0.0)
        for band in bands
        for i in range(n)
    }
    runs = tuple(
        Run(k, "demo.0", b, tuple(e for e in exposures if e.startswith(f"cam-{b}"))) for k, b in enumerate(bands)
    )
    bias = CalibrationSet("cam|bias|all|2026-01-01", "cam", "bias", "all", "2026-01-01")
    flats = [CalibrationSet(f"cam|flat|{b}|2026-01-01", "cam", "flat", b, "2026-01-01") for b in bands]
    return Survey(
        "main",
        exposures,
        {"demo.0": None},
        runs,
        {c.key: c for c in (bias, *flats)},
        {
            e: (("master_biases", bias.key), ("master_flats", f"cam|flat|{x.band}|2026-01-01"))
            for e, x in exposures.items()
        },
    )


def carry_out(survey, states, actions, state=DONE, version="1"):
    """The ledger after the actions ended with `state`."""
    after = dict(states)
    for a in actions:
        ref = (a.product, a.partition)
        attempts = states[ref].attempts + 1 if ref in states and state == FAILED else int(state == FAILED)
        inputs = hash_inputs(survey, states, ref)
        after[ref] = PartitionState(state, inputs, f"{ref}{inputs}{version}{state}", "config", attempts)
    return after


def drive(survey, states, targets=None):
    """Carry everything out; returns the final states and the actions in order."""
    done = []
    for _ in range(100):
        actions = decide(Snapshot(survey, states, CONFIGS, targets)).actions
        if not actions:
            return states, done
        states = carry_out(survey, states, actions)
        done += actions
    raise AssertionError("never comes to rest")


def test_everything_is_made_once_and_in_order():
    """One decision function carries all products, each partition once, inputs first."""
    survey = make_survey()
    states, done = drive(survey, {})
    everything = [(p, k) for p in PRODUCTS for k in survey.partitions(p)]
    assert sorted((a.product, a.partition) for a in done) == sorted(everything)
    place = {(a.product, a.partition): i for i, a in enumerate(done)}
    for ref in everything:
        assert all(place[up] < place[ref] for up in survey.upstream(*ref))
    assert decide(Snapshot(survey, states, CONFIGS)).settled == set(everything)


def test_changed_input_remakes_what_is_made_from_it_but_not_the_frozen_joint_solution():
    survey = make_survey()
    states, _ = drive(survey, {})
    states[("solutions", "cam-g0")] = replace(states[("solutions", "cam-g0")], content_sha256="other")
    _, done = drive(survey, states)
    products = {a.product for a in done}
    assert "joint_solutions" not in products
    assert {a.partition for a in done if a.product == "warps"} == {"cam-g0|demo.0"}
    assert {a.partition for a in done if a.product == "final_stacks"} == {"demo.0|g"}


def test_changed_settings_remake_only_their_product_and_what_follows():
    survey = make_survey()
    states, _ = drive(survey, {})
    decision = decide(Snapshot(survey, states, CONFIGS | {"mass_maps": "other"}))
    assert [(a.product, a.reason) for a in decision.actions] == [("mass_maps", "settings or code changed")]
    assert ("mass_fits", "demo.0") in decision.waiting


def test_failure_is_tried_again_then_dropped_and_the_stack_goes_on():
    """A fault that outlasts its attempts is dropped; the rest of the cell is not kept waiting."""
    survey = make_survey()
    bad = ("chips", "cam-g0")
    states, kinds = {}, []
    for _ in range(100):
        actions = decide(Snapshot(survey, states, CONFIGS)).actions
        if not actions:
            break
        mine = [a for a in actions if (a.product, a.partition) == bad]
        kinds += [a.kind for a in mine]
        states = carry_out(survey, states, [a for a in actions if a not in mine])
        states = carry_out(survey, states, mine, "dropped" if mine and mine[0].kind == DROP else FAILED)
    assert kinds == [MAKE] * MAX_ATTEMPTS + [DROP]
    assert states[("final_stacks", "demo.0|g")].state == DONE


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_results_of_any_kind_never_block(data):
    """Whatever mixture of results the units end with, every partition is decided and nothing waits at the end."""
    survey = make_survey(2)
    states = {}
    for _ in range(200):
        decision = decide(Snapshot(survey, states, CONFIGS))
        if not decision.actions:
            break
        action = data.draw(st.sampled_from(decision.actions))
        state = data.draw(st.sampled_from([DONE, NO_WORK, UNPROCESSABLE]))
        states = carry_out(survey, states, [action], state)
        again = decide(Snapshot(survey, states, CONFIGS)).actions
        assert action not in again
    assert not decision.waiting and len(states) == sum(len(survey.partitions(p)) for p in PRODUCTS)


def test_selection_takes_what_it_is_made_from_and_nothing_else():
    survey = make_survey()
    targets = select_targets(survey, lambda v: v["band"] == "g", frozenset({"band"}), "stacks")
    _, done = drive(survey, {}, targets)
    assert {a.product for a in done} == set(products_before("stacks"))
    assert all("cam-r" not in a.partition and "|r" not in a.partition for a in done)


def test_selection_of_an_exposure_makes_no_stack():
    targets = select_targets(make_survey(), lambda v: v["exposure"] == "cam-g0", frozenset({"exposure"}))
    assert {product for product, _ in targets} == {"chips", "solutions", "warps", "diffs", "streak_masks"}
