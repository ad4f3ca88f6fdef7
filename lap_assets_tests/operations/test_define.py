"""Defining: names and numbers, the queue file and what was launched of it."""

import pytest

from lap_assets.errors import BadInput, Conflict
from lap_assets.lap.queue_file import RunRequest
from lap_assets.model.regions import Box, Cone
from lap_assets.operations.define import (
    Names,
    append_queue,
    define_area,
    define_run,
    find_queue,
    launch_entry,
    make_region,
    plan_area,
    read_queue,
)
from lap_assets_tests.defs.surveys import create_survey

WEST, EAST = "rings.v3.1359", "rings.v3.1360"
LINE = "-definerun -seq_id wide -projection_cell {} -filter {}\n"


@pytest.fixture
def space(tmp_path):
    """A small survey whose second sequence has no run yet."""
    made = create_survey(tmp_path / "repository")
    made.ledger.define_sequence("wide")
    return made


def write_queue(space, text):
    find_queue(space).write_text(text)


def test_names_and_numbers():
    """LAP-10: sequences and tessellations by number or name, cells with or without the tessellation's name."""
    names = Names(((1, "main"), (7, "3pi.v1")), ("demo", "rings.v3"))
    assert [names.find_sequence(text) for text in ("7", "3pi.v1", "1")] == ["3pi.v1", "3pi.v1", "main"]
    for cell, sky in (("1405", "rings.v3"), ("1405", "RINGS.V3"), ("1405", "2"), ("rings.v3.1405", ""),
                      ("RINGS.V3.1405", ""), ("rings.v3.1405", "2")):  # fmt: skip
        assert names.find_cell(cell, sky) == ("rings.v3", "rings.v3.1405")
    assert names.find_cell("demo.0") == ("demo", "demo.0")
    with pytest.raises(BadInput, match="-tess_id is missing"):
        names.find_cell("1405")
    with pytest.raises(BadInput, match="unknown tessellation '3'"):
        names.find_cell("1405", "3")
    with pytest.raises(BadInput, match="unknown sequence '2'"):
        names.find_sequence("2")


def test_without_a_tessellation_it_is_the_whole_skys():
    assert Names((), ()).find_cell("1405") == ("rings.v3", "rings.v3.1405")
    assert Names((), ("demo",)).find_cell("0") == ("demo", "demo.0")


def test_a_sequence_called_like_a_number_is_found_by_its_name():
    names = Names(((1, "2"), (2, "one")), ())
    assert (names.find_sequence("2"), names.find_sequence("1")) == ("2", "2")


def test_entries_of_the_queue_leave_it_when_they_are_launched(space):
    """LAP-34: the first one never launched; LAP-10: one run each."""
    write_queue(space, LINE.format(EAST, "g") + LINE.format("1359", "r") + LINE.format(1360, "r.00000"))
    entries, problems = read_queue(space)
    assert problems == []
    assert [(one.line, one.cell, one.band) for one in entries] == [(1, EAST, "g"), (2, WEST, "r"), (3, EAST, "r")]
    run = launch_entry(space, entries[0])
    assert (run.sequence, run.cell, run.band, run.state) == ("wide", EAST, "g", "new")
    assert [one.line for one in read_queue(space)[0]] == [2, 3]
    with pytest.raises(Conflict):
        launch_entry(space, entries[0])


def test_a_cancelled_run_was_launched(space):
    """LAP-34: never launched is never; an operator takes a cancelled run up by hand."""
    write_queue(space, LINE.format(EAST, "g"))
    space.ledger.cancel(launch_entry(space, read_queue(space)[0][0]).lap_id, "test")
    assert read_queue(space) == ((), [])


def test_what_is_wrong_in_the_queue_is_named_and_the_others_go_on(space):
    """LAP-34: file, line and why, also of what only the ledger can tell."""
    lines = [
        LINE.format(WEST, "g"),
        "-definerun -seq_id nobody -projection_cell 1359 -filter g\n",
        LINE.format("99999", "g"),
        LINE.format(1359, "g.00000"),
        "-definerun -seq_id wide\n",
        LINE.format(EAST, "g") + "\udcff",
    ]
    find_queue(space).write_text("".join(lines), errors="surrogateescape")
    entries, problems = read_queue(space)
    assert [one.line for one in entries] == [1, 6]
    path = find_queue(space)
    expected = ["2: unknown sequence 'nobody'", "3: no cell", "4: asks for the same run as line 1"]
    for problem, text in zip(problems, [*expected, "5: -projection_cell", "7: "], strict=True):
        assert problem.startswith(f"{path} line {text}") and "\n" not in problem


def test_no_queue_is_an_empty_one(space):
    assert read_queue(space) == ((), [])
    find_queue(space).mkdir()
    entries, [problem] = read_queue(space)
    assert entries == () and "cannot be read" in problem


def test_what_is_appended_is_read(space):
    """LAP-34: also where the last line does not end, and nothing is written where a name is wrong."""
    write_queue(space, LINE.format(WEST, "g").rstrip())
    append_queue(space, [RunRequest("wide", "1360", "r", label="x"), RunRequest("2", EAST, "g")])
    entries, problems = read_queue(space)
    assert problems == [] and [(one.line, one.cell, one.label) for one in entries] == [
        (1, WEST, ""), (2, EAST, "x"), (3, EAST, ""),
    ]  # fmt: skip
    before = find_queue(space).read_text()
    with pytest.raises(BadInput, match="nobody"):
        append_queue(space, [RunRequest("wide", "1359", "r"), RunRequest("nobody", "1359", "r")])
    assert find_queue(space).read_text() == before


def test_the_plan_of_an_area_is_what_defining_it_defines(space):
    """LAP-16: `--queue` writes exactly the runs that the command would define."""
    region = make_region(circle=(148.0, 2.0, 1.0))
    asked = plan_area(space, "wide", region, priority=3)
    append_queue(space, asked)
    entries = read_queue(space)[0]
    launched = [launch_entry(space, entry) for entry in entries]
    space.ledger.define_sequence("again")
    defined = define_area(space, "again", region, priority=3)

    def describe(rows):
        return [
            (row.cell, row.band, row.tessellation, [one.exposure for one in space.ledger.members(row.lap_id)])
            for row in rows
        ]

    assert describe(launched) == describe(defined)
    assert [row.band for row in launched] == ["g", "r"]
    assert {row.priority for row in space.ledger.runs("again")} == {row.priority for row in launched} == {3}


def test_regions():
    """LAP-16: one circle, box or polygon."""
    assert make_region(circle=(1.0, 2.0, 3.0)) == Cone(1.0, 2.0, 3.0)
    assert make_region(box=(350.0, 10.0, -5.0, 5.0)) == Box(350.0, 10.0, -5.0, 5.0)
    for wrong in ({}, {"circle": (1.0, 2.0, 3.0), "polygon": [(0, 0)]}, {"circle": (1.0, 2.0, 0.0)},
                  {"circle": (1.0, 95.0, 1.0)}, {"box": (1.0, 2.0, 5.0, -5.0)}, {"polygon": []}):  # fmt: skip
        with pytest.raises(BadInput):
            make_region(**wrong)


def test_a_cell_that_does_not_exist_is_bad_input(space):
    with pytest.raises(BadInput, match="99999"):
        define_run(space, RunRequest("wide", "99999", "g"))
    assert space.ledger.runs("wide") == []
