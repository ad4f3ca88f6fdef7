"""The metadata format of laptool: exact text, and any row read back by a reader of its own."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lap_assets.errors import BadInput
from lap_assets.lap.metadata_format import format_rows, format_value

SEQUENCE = (("seq_id", "S64"), ("name", "STR"), ("description", "STR"))
VALUES = {
    "S32": st.integers(-(2**31), 2**31 - 1),
    "S64": st.integers(-(2**63), 2**63 - 1),
    "F32": st.floats(width=32, allow_nan=False),
    "F64": st.floats(allow_nan=False),
    "STR": st.text(st.characters(exclude_categories=["Cs"])),
    "BOOL": st.booleans(),
}
READ = {"S32": int, "S64": int, "F32": float, "F64": float, "BOOL": {"T": True, "F": False}.__getitem__}


def read_text(text):
    return re.sub(r"\\u([0-9a-f]{4})|\\U([0-9a-f]{8})", lambda m: chr(int(m[1] or m[2], 16)), text)


def read_rows(text):
    """An independent reader: what follows a `#` is a comment, blanks around values do not count."""
    rows, row = [], None
    for line in text.splitlines():
        words = line.partition("#")[0].strip(" ").split(None, 2)
        if len(words) == 2 and words[1] == "METADATA":
            row = {}
        elif words == ["END"]:
            rows.append(row)
            row = None
        elif row is not None:
            name, kind, value = (*words, "")[:3]
            row[name] = None if value == "NULL" else READ.get(kind, read_text)(value)
    return rows


def test_a_sequence_is_printed_as_ever():
    """LAP-09: the format to the letter."""
    rows = [
        {"seq_id": 1, "name": "3pi.v1", "description": "the whole sky"},
        {"seq_id": 2, "name": "md", "description": ""},
    ]
    assert format_rows("lapSequence", SEQUENCE, rows) == (
        "lapSequence MULTI\n"
        "\n"
        "lapSequence METADATA\n"
        "   seq_id      S64      1\n"
        "   name        STR      3pi.v1\n"
        "   description STR      the whole sky\n"
        "END\n"
        "\n"
        "lapSequence METADATA\n"
        "   seq_id      S64      2\n"
        "   name        STR      md\n"
        "   description STR\n"
        "END\n"
    )


def test_no_row_is_no_text():
    assert format_rows("lapRun", SEQUENCE, []) == ""


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("S32", -7, "-7"),
        ("S64", 2**40, "1099511627776"),
        ("F32", 0.1, "0.1"),
        ("F64", 0.1, "0.1"),
        ("F64", 3, "3.0"),
        ("BOOL", True, "T"),
        ("BOOL", False, "F"),
        ("STR", "a b", "a b"),
        ("STR", "NULL", r"\u004eULL"),
        ("STR", " a\nb#\\", r"\u0020a\u000ab\u0023\u005c"),
        ("STR", "a ", r"a\u0020"),
        ("S64", None, "NULL"),
    ],
)
def test_values_of_each_type(kind, value, text):
    """LAP-09: S32, S64, F32, F64, STR, BOOL."""
    assert format_value(kind, value) == text


@pytest.mark.parametrize(
    ("kind", "value"),
    [("S32", 2**31), ("S64", 2**63), ("S64", True), ("S64", 1.0), ("BOOL", 1), ("STR", 1), ("F64", "1"), ("INT", 1)],
)
def test_a_value_of_another_type_is_refused(kind, value):
    with pytest.raises(BadInput, match=f"is no {kind}"):
        format_value(kind, value)


@st.composite
def tables(draw):
    names = draw(st.lists(st.from_regex(r"[a-z_]{1,20}", fullmatch=True), min_size=1, max_size=6, unique=True))
    columns = [(name, draw(st.sampled_from(sorted(VALUES)))) for name in names]
    row = st.fixed_dictionaries({name: st.none() | VALUES[kind] for name, kind in columns})
    return columns, draw(st.lists(row, max_size=4))


@given(tables())
def test_any_row_reads_back(table):
    """LAP-09: whatever stands in a row, a block is one line per value and nothing is lost."""
    columns, rows = table
    text = format_rows("lapRun", columns, rows)
    assert len(text.splitlines()) == (len(rows) * (len(columns) + 3) + 1 if rows else 0)
    for found, row in zip(read_rows(text), rows, strict=True):
        for name, kind in columns:
            expected = row[name]
            if kind == "F32" and expected is not None:
                assert found[name] == pytest.approx(expected, rel=1e-8)
            else:
                assert found[name] == expected
