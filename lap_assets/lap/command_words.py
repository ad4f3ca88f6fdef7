"""The words of a command in Pan-STARRS spelling, `-option value`, as checked values.

`laptool` and the lines of a queue file are read with it. A value that is no number may not begin with `-`, so that a
forgotten value is noticed. What a command then does is `operations/`'s.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lap_assets.errors import BadInput
from lap_assets.model.ids import check_name

Reader = Callable[[str, str], Any]  # (text, name of the option) -> value
_OPTION = re.compile(r"--?[A-Za-z_].*", re.DOTALL)
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_FILTER = re.compile(r"(.+?)(\.0+)?", re.ASCII | re.DOTALL)
RUN_STATES = ("new", "run", "full")


def parse_words(
    words: Sequence[str], readers: Mapping[str, Reader | None], needed: Sequence[str] = ()
) -> dict[str, Any]:
    """Options and their values, by name without the dash.

    Parameters
    ----------
    words : sequence of str
    readers : mapping of option name (without dash) to what reads its value, or None for one without a value
    needed : sequence of str
        Options that must be there.

    Raises
    ------
    BadInput
        Unknown option, one given twice, a missing or wrong value, a word too many.
    """
    values: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name = word[1:]
        if not word.startswith("-") or name not in readers:
            kind = "option" if word.startswith("-") else "word"
            raise BadInput(f"unknown {kind} {word!r}; there are: {', '.join(f'-{one}' for one in sorted(readers))}")
        if name in values:
            raise BadInput(f"{word} is given twice")
        read = readers[name]
        if read is None:
            values[name] = True
        elif not rest or _OPTION.fullmatch(rest[0]):
            raise BadInput(f"{word} has no value")
        else:
            values[name] = read(rest.pop(0), word)
    missing = [f"-{name}" for name in needed if name not in values]
    if missing:
        raise BadInput(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    return values


def read_text(text: str, option: str) -> str:
    """Any text of one line."""
    if not text.isprintable():
        raise BadInput(f"{option} {text!r}: only printable characters, please")
    return text


def read_name(text: str, option: str) -> str:
    """A name that passes the allow-list of ids."""
    return check_name(text, option)


def read_number(text: str, option: str) -> float:
    """A finite number."""
    if not _FLOAT.fullmatch(text) or not math.isfinite(float(text)):
        raise BadInput(f"{option} {text!r} is no number")
    return float(text)


def read_ra(text: str, option: str) -> float:
    """A right ascension, deg."""
    return check_range(read_number(text, option), 0.0, 360.0, option)


def read_dec(text: str, option: str) -> float:
    """A declination, deg."""
    return check_range(read_number(text, option), -90.0, 90.0, option)


def read_radius(text: str, option: str) -> float:
    """The radius of a cone, deg."""
    return check_radius(read_number(text, option), option)


def read_count(text: str, option: str) -> int:
    """A whole number from 1, such as a `lap_id`."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text) > 0):
        raise BadInput(f"{option} {text!r} is no number of a row: give 1, 2, 3, …")
    return int(text)


def read_whole(text: str, option: str) -> int:
    """A whole number."""
    if not re.fullmatch(r"[+-]?\d{1,9}", text, re.ASCII):
        raise BadInput(f"{option} {text!r} is no whole number")
    return int(text)


def read_band(text: str, option: str) -> str:
    """The band of a filter, `g` or, with IPP's suffix, `g.00000`."""
    match = _FILTER.fullmatch(text)
    return check_name(match[1] if match else text, option)


def read_bands(text: str, option: str) -> tuple[str, ...]:
    """Bands, comma separated."""
    return tuple(dict.fromkeys(read_band(one, option) for one in text.split(",")))


def read_run_state(text: str, option: str) -> str:
    """The state of a run (LAP-03)."""
    if text not in RUN_STATES:
        raise BadInput(f"{option} {text!r} is none of {', '.join(RUN_STATES)}")
    return text


def read_polygon(text: str, option: str) -> tuple[tuple[float, float], ...]:
    """Corners of a polygon, `RA,DEC RA,DEC RA,DEC …`, deg."""
    corners = []
    for pair in text.split():
        ra, comma, dec = pair.partition(",")
        if not comma:
            raise BadInput(f"{option}: {pair!r} is no corner; write 'RA,DEC RA,DEC RA,DEC'")
        corners.append((read_ra(ra, option), read_dec(dec, option)))
    if len(corners) < 3:
        raise BadInput(f"{option}: {len(corners)} corners are no polygon; write 'RA,DEC RA,DEC RA,DEC'")
    return tuple(corners)


def check_range(value: float, low: float, high: float, what: str) -> float:
    """The value if it lies within, else `BadInput`."""
    if not low <= value <= high:
        raise BadInput(f"{what} {value:g} lies outside {low:g} to {high:g} degrees")
    return value


def check_radius(value: float, what: str) -> float:
    """The radius if it is one, deg; else `BadInput`."""
    if not 0.0 < value <= 180.0:
        raise BadInput(f"{what} {value:g} is no radius: give degrees above 0, at most 180")
    return value
