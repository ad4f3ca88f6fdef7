"""The queue file: lines as in an operator's notes; a broken one is named and the others go on."""

from hypothesis import given
from hypothesis import strategies as st

from lap_assets.lap.queue_file import DEFINERUN, RunRequest, format_definerun, parse_queue

NOTES = """\
# the pole first
-definerun -seq_id 1 -projection_cell 2643 -tess_id rings.v3 -filter g.00000 -label pole

laptool -definerun -seq_id 3pi.v1 -projection_cell rings.v3.1405 -filter r  # then the plane
  /usr/bin/laptool -definerun -seq_id 1 -projection_cell 7 -filter y -ra 10 -decl -28.5 -radius 2 -dist_group 'plane'
-definerun -seq_id 1 -projection_cell 8 -filter i -obs_mode any -priority -3
"""
WORDS = ["-definerun", "\n", "'", "7", *(f"-{name}" for name in DEFINERUN)]
NAME = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_\-]{0,8}", fullmatch=True)
TEXT = st.just("") | NAME
CONE = st.tuples(st.floats(0, 360), st.floats(-90, 90), st.floats(0, 180, exclude_min=True))
REQUESTS = st.builds(
    RunRequest, NAME, NAME, NAME, TEXT, st.none() | CONE, TEXT, TEXT, st.none() | st.sampled_from(["3PI", "MD"]),
    st.integers(-999, 999),
)  # fmt: skip


def test_lines_as_in_an_operators_notes():
    """LAP-34: with and without `laptool`, comments, blank lines, g and g.00000; LAP-11: 3PI unless told otherwise."""
    requests, problems = parse_queue(NOTES)
    assert problems == ()
    assert requests == (
        RunRequest("1", "2643", "g", "rings.v3", label="pole", line=2),
        RunRequest("3pi.v1", "rings.v3.1405", "r", line=4),
        RunRequest("1", "7", "y", region=(10.0, -28.5, 2.0), dist_group="plane", line=5),
        RunRequest("1", "8", "i", obs_mode=None, priority=-3, line=6),
    )


def test_broken_lines_are_named_and_the_others_go_on():
    """LAP-34: what is wrong with each line, by its number."""
    good = "-definerun -seq_id 1 -projection_cell 7 -filter g"
    broken = {
        "-definerun -seq_id 1 -projection_cell 7": "-filter is missing",
        f"{good} -radius 0": "-radius 0 is no radius",
        f"{good} -ra 10": "-ra alone is no cone",
        f"{good} -decl 95": "-decl 95 lies outside",
        f"{good} -colour red": "unknown option '-colour'",
        f"{good} -label": "-label has no value",
        f"{good} -label -dist_group x": "-label has no value",
        f"{good} -label 'x;y'": "'x;y' is not allowed",
        f"{good} -label x -label y": "-label is given twice",
        f"{good} -label 'x": "No closing quotation",
        "-listrun": "is no -definerun",
        "laptool": "'laptool' is no -definerun",
        "rm -rf /": "'rm' is no -definerun",
    }
    requests, problems = parse_queue("\n".join([good, *broken, f"{good} -label last"]))
    assert [one.line for one in requests] == [1, len(broken) + 2]
    assert [number for number, _ in problems] == list(range(2, len(broken) + 2))
    for (_, why), expected in zip(problems, broken.values(), strict=True):
        assert expected in why and "\n" not in why


@given(st.text() | st.lists(st.sampled_from(WORDS)).map(" ".join))
def test_no_text_makes_it_raise(text):
    """LAP-34: each line is a request, a problem, or nothing."""
    requests, problems = parse_queue(text)
    lines = sorted([*(one.line for one in requests), *(number for number, _ in problems)])
    assert lines == sorted(set(lines)) and all(1 <= line <= text.count("\n") + 1 for line in lines)


@given(st.lists(REQUESTS, max_size=4))
def test_what_is_written_is_read_back(asked):
    """LAP-34: `lap run define --queue` writes what the queue reads."""
    requests, problems = parse_queue("".join(f"{format_definerun(one)}\n" for one in asked))
    assert problems == ()
    assert [one.__class__(**(vars(one) | {"line": 0})) for one in requests] == asked
