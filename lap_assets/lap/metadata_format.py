"""The metadata format in which `laptool` prints rows (LAP-09): a block per row, a line per value with its type.

    lapSequence MULTI

    lapSequence METADATA
       seq_id      S64      1
       name        STR      3pi.v1
       description STR      the whole sky
    END

Which columns a listing has is `operations/listings.py`'s; JSON for machines is written there too.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lap_assets.errors import BadInput

TYPES = ("S32", "S64", "F32", "F64", "STR", "BOOL")
NULL = "NULL"
_LIMITS = {"S32": 2**31, "S64": 2**63}


def format_rows(name: str, columns: Sequence[tuple[str, str]], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows of one table as text; empty where there is none.

    Parameters
    ----------
    name : str
        Of the table, e.g. `lapSequence`.
    columns : sequence of (name, type)
        In the order they are printed; a type is one of `TYPES`.
    rows : iterable of mapping
        Value by column name; None is printed as NULL.

    Raises
    ------
    BadInput
        A value that is not of its column's type.
    """
    width = max((len(column) for column, _ in columns), default=0)
    blocks = []
    for row in rows:
        lines = [f"   {column:<{width}} {kind:<8} {format_value(kind, row[column])}" for column, kind in columns]
        blocks.append("\n".join([f"{name} METADATA", *(line.rstrip(" ") for line in lines), "END", ""]))
    return f"{name} MULTI\n\n" + "\n".join(blocks) if blocks else ""


def format_value(kind: str, value: Any) -> str:
    """One value as text; raises `BadInput` where it is not of this type."""
    if value is None:
        return NULL
    if kind == "STR" and isinstance(value, str):
        return escape_text(value)
    if kind == "BOOL" and isinstance(value, bool):
        return "T" if value else "F"
    if kind in _LIMITS and type(value) is int and -_LIMITS[kind] <= value < _LIMITS[kind]:
        return str(value)
    if kind in ("F32", "F64") and type(value) in (int, float):
        return f"{value:.9g}" if kind == "F32" else repr(float(value))
    raise BadInput(f"{value!r} is no {kind}")


def escape_text(text: str) -> str:
    r"""A text on one line: what would end the line, begin a comment, be cut off or read as NULL is written `\uXXXX`."""
    if text == NULL:
        return rf"\u{ord(NULL[0]):04x}{NULL[1:]}"
    last = len(text) - 1
    return "".join(
        _escape(sign) if sign in "\\#" or not sign.isprintable() or (sign.isspace() and at in (0, last)) else sign
        for at, sign in enumerate(text)
    )


def to_json(value: Any) -> Any:
    """A value as JSON has it: no NaN and no infinity there."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _escape(sign: str) -> str:
    return rf"\u{ord(sign):04x}" if ord(sign) < 0x10000 else rf"\U{ord(sign):08x}"
