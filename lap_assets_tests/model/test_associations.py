"""Which masters an exposure gets, how well they fit, and what it waits for: the rules alone."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lap_assets.model.associations import (
    BUILT,
    CERTIFIED,
    EXECUTABLE,
    HALF_LIFE_DAYS,
    LACKS,
    REJECTED,
    VIRTUAL,
    WAITS,
    choose_master,
    find_previous,
    measure_distance,
    score_set,
)
from lap_assets.model.products import MASTERS
from lap_assets.model.survey import CalibrationSet, Exposure, Survey, group_sets


def make_set(night: str, state: str = CERTIFIED, kind: str = "bias", band: str = "all", **values) -> CalibrationSet:
    return CalibrationSet(f"cam|{kind}|{band}|{night}", "cam", kind, band, night, state=state, **values)


def choose(night: str, *sets: CalibrationSet, temperature_c: float | None = None) -> str:
    """First night of the set that is chosen; empty: none."""
    ordered = [one for group in group_sets(sets).values() for one in group]
    found = choose_master(ordered, night, temperature_c)
    return found.valid_from if found else ""


JANUARY, FEBRUARY = make_set("2026-01-01"), make_set("2026-02-01")


@pytest.mark.parametrize(
    ("night", "expected"),
    [("2026-01-01", "2026-01-01"), ("2026-01-31", "2026-01-01"), ("2026-02-01", "2026-02-01"),
     ("2027-01-01", "2026-02-01"), ("2025-12-01", "2026-01-01")],
)  # fmt: skip
def test_the_newest_that_began_is_in_force_and_before_the_first_the_first(night, expected):
    """PHX-01: validity ranges follow one another."""
    assert choose(night, FEBRUARY, JANUARY) == expected


def test_an_expired_master_is_used_by_nothing():
    """PHX-01: after its last night the one before it is in force again, if that still is."""
    expired = replace(FEBRUARY, valid_to="2026-02-10")
    assert choose("2026-02-10", JANUARY, expired) == "2026-02-01"
    assert choose("2026-02-11", JANUARY, expired) == "2026-01-01"
    assert choose("2026-02-11", replace(JANUARY, valid_to="2026-02-01"), expired) == ""


def test_a_rejected_master_is_used_by_nothing_and_a_held_one_only_where_there_is_no_other():
    """PHX-02: only certified masters count, as long as there are some."""
    assert choose("2026-02-05", JANUARY, replace(FEBRUARY, state=REJECTED)) == "2026-01-01"
    assert choose("2026-02-05", JANUARY, replace(FEBRUARY, state=BUILT)) == "2026-01-01"
    assert choose("2026-01-05", replace(JANUARY, state=BUILT), FEBRUARY) == "2026-02-01"
    assert choose("2026-02-05", replace(FEBRUARY, state=BUILT)) == "2026-02-01"
    assert choose("2026-02-05", replace(FEBRUARY, state=REJECTED)) == ""


def test_a_virtual_master_is_waited_for_but_never_preferred_at_the_same_distance():
    """PHX-02: what a master is chosen for must not change back and forth while others are built."""
    assert choose("2026-02-05", JANUARY, replace(FEBRUARY, state=VIRTUAL)) == "2026-02-01"
    moved = replace(make_set("2026-01-20"), valid_from="2026-02-01")  # by a person
    assert choose_master([replace(FEBRUARY, state=VIRTUAL), moved], "2026-02-05").key == moved.key
    assert choose_master([moved, replace(FEBRUARY, state=VIRTUAL)], "2026-02-05").key == moved.key


def test_the_temperature_of_the_detector_counts_where_both_are_known():
    """PHX-08: ten degrees weigh as much as the age at which the score of a bias halves."""
    warm, cold = replace(JANUARY, temperature_c=-80.0), replace(FEBRUARY, temperature_c=-110.0)
    assert choose("2026-02-05", warm, cold, temperature_c=-81.0) == "2026-01-01"
    assert choose("2026-02-05", warm, cold, temperature_c=-109.0) == "2026-02-01"
    assert choose("2026-02-05", warm, cold) == "2026-02-01"
    assert choose("2026-02-05", JANUARY, cold, temperature_c=-81.0) == "2026-01-01"
    assert measure_distance(warm, "2026-01-01", -90.0) == 1.0 == measure_distance(warm, "2026-03-02")


def test_scores_halve_with_age_and_say_how_sure_a_master_is():
    """PHX-08: 1 for a certified master of the night; flats age faster than fringes."""
    assert score_set(JANUARY, "2026-01-01") == 1.0
    for kind, days in HALF_LIFE_DAYS.items():
        one = make_set("2026-01-01", kind=kind)
        night = {30.0: "2026-01-31", 60.0: "2026-03-02", 90.0: "2026-04-01", 365.0: "2027-01-01"}[days]
        assert score_set(one, night) == pytest.approx(0.5)
    ranked = [score_set(replace(JANUARY, state=state), "2026-01-01") for state in (CERTIFIED, VIRTUAL, BUILT)]
    assert ranked == sorted(ranked, reverse=True) and len(set(ranked)) == 3
    assert score_set(JANUARY, "2025-12-31") < score_set(JANUARY, "2026-01-02")


def test_nights_that_are_no_dates_are_ordered_as_they_are():
    sets = [make_set(night) for night in ("n1", "n2", "n3")]
    assert choose("n2", *sets) == "n2" and choose("n9", *sets) == "n3" and choose("a", *sets) == "n1"


STATES = st.sampled_from([VIRTUAL, BUILT, CERTIFIED, REJECTED])
DAYS = st.integers(1, 28)


@given(st.dictionaries(DAYS, STATES, min_size=1, max_size=8), DAYS)
def test_the_choice_is_the_same_among_fewer_sets(states, day):
    """A snapshot that holds only the masters that are needed chooses as the whole survey does."""
    sets = [make_set(f"2026-01-{number:02d}", state) for number, state in sorted(states.items())]
    night = f"2026-01-{day:02d}"
    found = choose_master(sets, night)
    assert (found is None) == all(one.state == REJECTED for one in sets)
    for left_out in sets:
        if found is not None and left_out is not found:
            assert choose_master([one for one in sets if one is not left_out], night) is found


@given(st.dictionaries(DAYS, st.just(VIRTUAL), min_size=1, max_size=6), DAYS, st.permutations(range(6)))
def test_certifying_masters_one_after_the_other_changes_no_choice(states, day, order):
    """PHX-02: an exposure keeps its masters while they and others are built, in whatever order."""
    sets = [make_set(f"2026-01-{number:02d}", state) for number, state in sorted(states.items())]
    night = f"2026-01-{day:02d}"
    chosen = choose_master(sets, night).key
    for number in order:
        if number < len(sets):
            sets[number] = replace(sets[number], state=CERTIFIED)
            assert choose_master(sets, night).key == chosen


# ---- associations of a survey

FLAT = make_set("2026-01-01", VIRTUAL, "flat", "r")
EXPOSURE = Exposure("cam-1", "cam", "r", "r filter", "2026-01-03", 61043.1, 30.0, 10.0, 0.0)


def make_survey(*sets: CalibrationSet, withdrawn: tuple[CalibrationSet, ...] = (), kinds=("bias", "flat")) -> Survey:
    refs = tuple((MASTERS[one.kind], one.key) for one in sets)
    return Survey(
        "main", {EXPOSURE.id: EXPOSURE}, calibrations={one.key: one for one in sets}, associations={EXPOSURE.id: refs},
        kinds={"cam": kinds}, withdrawn={one.key: one for one in withdrawn},
    )  # fmt: skip


def test_an_association_says_whether_an_exposure_can_be_processed_and_what_it_waits_for():
    """PHX-01, PHX-02: executable with certified masters only; as good as the worst of them."""
    found = make_survey(JANUARY, FLAT).association("cam-1")
    assert (found.status, found.waits) == (WAITS, ("flat cam|flat|r|2026-01-01 to be built",))
    held = make_survey(JANUARY, replace(FLAT, state=BUILT, reason="too many far pixels")).association("cam-1")
    assert held.waits == ("flat cam|flat|r|2026-01-01 to be certified: too many far pixels",)
    good = make_survey(JANUARY, replace(FLAT, state=CERTIFIED)).association("cam-1")
    assert (good.status, good.waits, good.lacks) == (EXECUTABLE, (), ())
    assert held.score < found.score < good.score == score_set(replace(FLAT, state=CERTIFIED), EXPOSURE.night)


def test_an_association_without_a_needed_master_lacks_frames():
    """PHX-01: bias and flat are needed where a camera asks for them; dark, sky and fringe are used if there."""
    found = make_survey(JANUARY).association("cam-1")
    assert (found.status, found.score) == (LACKS, 0.0)
    assert found.lacks == ("no flat frames of band r are valid on 2026-01-03: ingest them with --kind calibration",)
    assert make_survey(JANUARY, kinds=("bias", "dark", "sky", "fringe")).association("cam-1").status == EXECUTABLE
    (text,) = make_survey(JANUARY, withdrawn=(replace(FLAT, reason="lamp was off"),)).association("cam-1").lacks
    assert text.startswith("cam|flat|r|2026-01-01 was rejected (lamp was off) and no other flat frames of band r")


def test_masters_are_made_with_the_masters_in_force_when_they_begin():
    """PHX-01: a flat with bias and dark, a fringe with all others; what the camera does not ask for is left out."""
    sets = [make_set("2026-01-01", kind=kind, band="r" if kind in ("flat", "sky", "fringe") else "all")
            for kind in MASTERS]  # fmt: skip
    survey = make_survey(*sets, FEBRUARY, kinds=tuple(MASTERS))
    flat = survey.upstream("master_flats", "cam|flat|r|2026-01-01")
    assert flat == (("master_biases", JANUARY.key), ("master_darks", "cam|dark|all|2026-01-01"))
    fringe = survey.upstream("master_fringes", "cam|fringe|r|2026-01-01")
    assert [product for product, _ in fringe] == [MASTERS[kind] for kind in ("bias", "dark", "flat", "sky")]
    assert survey.upstream("master_biases", JANUARY.key) == ()
    plain = make_survey(*sets, kinds=("bias", "flat"))
    assert plain.upstream("master_flats", "cam|flat|r|2026-01-01") == (("master_biases", JANUARY.key),)


def test_a_new_master_is_compared_with_the_certified_one_before_it():
    """PHX-02: of its camera, kind and band; the first after it where there is none before."""
    march = make_set("2026-03-01", VIRTUAL)
    others = [make_set("2026-02-20", kind="flat", band="r"), replace(FEBRUARY, state=BUILT)]
    assert find_previous([JANUARY, march, *others], march) == JANUARY.key
    assert find_previous([JANUARY, FEBRUARY, march], march) == FEBRUARY.key
    assert find_previous([march, *others], march) is None
    early = make_set("2025-12-01", VIRTUAL)
    assert make_survey(JANUARY, FEBRUARY, early).previous_master(early.key) == JANUARY.key
