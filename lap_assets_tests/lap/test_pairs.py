"""Pairs from header fields."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lap_assets.lap.pairs import find_pairs
from lap_assets_tests.lap.worlds import make_exposure

BASE = make_exposure("r", 0)


def expose(id_: str, comment: str, **values: object):
    return replace(BASE, id=id_, comment=comment, **values)


def test_visits_one_and_two_of_an_object_in_a_night_are_a_pair():
    """LAP-19: same object, filter and night, visit or dither pair in the comment."""
    assert find_pairs([expose("b", "visit 2 of 4"), expose("a", "Visit 1 of 4")]) == [("a", "b")]
    four = [expose(f"e{n}", f"3pi dither {n}") for n in (1, 2, 3, 4)]
    assert find_pairs(four) == [("e1", "e2"), ("e3", "e4")]


def test_what_differs_in_object_filter_night_or_text_is_no_pair():
    """LAP-19."""
    first = expose("a", "visit 1")
    for other in (
        {"object": "another"}, {"filter": "r.1"}, {"night": "2026-01-09"}, {"camera": "other"},
    ):  # fmt: skip
        assert find_pairs([first, expose("b", "visit 2", **other)]) == []
    for comment in ("visit 3", "visit 1", "field 7 visit 2", "second visit", ""):
        assert find_pairs([first, expose("b", comment)]) == []
    assert find_pairs([expose("a", "visit 1", object=""), expose("b", "visit 2", object="")]) == []


def test_a_repeated_visit_is_paired_with_its_nearest_in_time_and_the_rest_is_left():
    again = [expose("a", "visit 1", mjd=1.0), expose("c", "visit 1", mjd=3.0), expose("b", "visit 2", mjd=2.0)]
    assert find_pairs(again) == [("a", "b")]


@given(st.lists(st.tuples(st.integers(0, 3), st.text(max_size=12), st.integers(0, 9)), max_size=12), st.randoms())
def test_pairs_are_disjoint_and_do_not_depend_on_order(rows, random):
    exposures = [
        expose(f"e{i}", f"{text} visit {n}", night=f"2026-01-0{night + 1}", mjd=float(i))
        for i, (night, text, n) in enumerate(rows)
    ]
    pairs = find_pairs(exposures)
    names = [name for pair in pairs for name in pair]
    assert len(names) == len(set(names))
    shuffled = list(exposures)
    random.shuffle(shuffled)
    assert find_pairs(shuffled) == pairs
