"""The selection language of `--select` and `--where`: `band=g^r exposure=101..105:2 cell~demo.* fwhm_arcsec<1.2`.

Terms separated by blanks must all hold. A term is a key, an operator and a value:

* `key=a^b^c`: one of these, each of which may be a glob (`2024-03-*`); `1..5` all whole numbers from 1 to 5,
  `1..9:2` every second of them;
* `key!=a^b`: none of these; `key~glob`: matches a glob (`*`, `?`, `[…]`);
* `key<1.5`, `<=`, `>`, `>=`: compares numbers (dates written 2024-08-15 compare as text).

A whole number matches the number at the end of a name: `exposure=101` matches `simcam-101`. Parsed by hand, nothing
is evaluated. What the keys mean is the caller's.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lap_assets.errors import BadInput

# names other systems give to our keys
ALIASES = {
    "visit": "exposure",
    "expnum": "exposure",
    "ccd": "chip",
    "ccdnum": "chip",
    "detector": "chip",
    "filter": "band",
    "tract": "cell",
    "projection_cell": "cell",
    "patch": "skycell",
}
_TERM = re.compile(r"([A-Za-z_][A-Za-z0-9_.]*)(!=|<=|>=|=|~|<|>)([^\s=<>~]\S*)")
_RANGE = re.compile(r"(\d+)\.\.(\d+)(?::(\d+))?")
_NUMBER_AT_END = re.compile(r"(\d+)$")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_MAX_LENGTH = 10_000


@dataclass(frozen=True)
class Term:
    """One comparison: `key operator value`."""

    key: str
    operator: str
    value: str

    def __str__(self) -> str:
        return f"{self.key}{self.operator}{self.value}"


def parse_expression(text: str | None) -> tuple[Term, ...]:
    """Terms of an expression; empty for an empty one. Raises `BadInput` that shows the term it cannot read."""
    if not text:
        return ()
    if len(text) > _MAX_LENGTH:
        raise BadInput(f"expression of {len(text)} characters is too long (at most {_MAX_LENGTH})")
    terms = []
    for piece in text.split():
        match = _TERM.fullmatch(piece)
        if not match:
            raise BadInput(f"cannot read {piece!r}: write KEY=VALUE, KEY=A^B, KEY=1..5:2, KEY~GLOB or KEY<NUMBER")
        term = Term(*match.groups())
        if term.operator in ("<", "<=", ">", ">=") and not _DATE.match(term.value):
            _read_number(term)
        if term.operator in ("=", "!="):
            _check_choices(term)
        terms.append(term)
    return tuple(terms)


def resolve_key(key: str, known: Sequence[str]) -> str:
    """The one of `known` that `key` names: itself, by alias, or as an unambiguous beginning; else `BadInput`."""
    name = key.lower()
    if name in known:
        return name
    if ALIASES.get(name) in known:
        return ALIASES[name]
    begun = [one for one in known if one.startswith(name)]
    if len(begun) == 1:
        return begun[0]
    problem = f"can be {' or '.join(begun)}" if begun else "is not known here"
    raise BadInput(f"key {key!r} {problem}; there are: {', '.join(known)}")


def resolve_terms(terms: Iterable[Term], known: Sequence[str]) -> tuple[Term, ...]:
    """The same terms with their keys resolved; see `resolve_key`."""
    return tuple(Term(resolve_key(term.key, known), term.operator, term.value) for term in terms)


def matches(terms: Iterable[Term], row: Mapping[str, Any]) -> bool:
    """Whether a row fulfils all terms; a key the row lacks (or holds None) fulfils only `!=`."""
    return all(match_term(term, row.get(term.key)) for term in terms)


def match_term(term: Term, value: Any) -> bool:
    """Whether one value fulfils one term."""
    if value is None:
        return term.operator == "!="
    if term.operator == "~":
        return fnmatch.fnmatchcase(str(value), term.value)
    if term.operator == "=":
        return match_choices(term.value, value)
    if term.operator == "!=":
        return not match_choices(term.value, value)
    return _compare(term, value)


def match_choices(choices: str, value: Any) -> bool:
    """Whether `value` is one of `a^b^1..5:2`."""
    text = str(value)
    found = _NUMBER_AT_END.search(text) if not isinstance(value, float) else None
    number = int(found.group(1)) if found else None
    for choice in choices.split("^"):
        if choice == text or _equal_numbers(choice, value) or _is_glob_of(choice, text):
            return True
        span = _RANGE.fullmatch(choice)
        if span and number is not None:
            first, last, step = int(span[1]), int(span[2]), int(span[3] or 1)
            if first <= number <= last and (number - first) % step == 0:
                return True
        if number is not None and choice.isascii() and choice.isdigit() and int(choice) == number:
            return True
    return False


def _is_glob_of(choice: str, text: str) -> bool:
    return any(sign in choice for sign in "*?[") and fnmatch.fnmatchcase(text, choice)


def _equal_numbers(choice: str, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return float(choice) == value
    except ValueError:
        return False


def _compare(term: Term, value: Any) -> bool:
    try:
        left, right = float(value), float(term.value)
    except (TypeError, ValueError):
        left, right = str(value), term.value
    return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[term.operator]


def _check_choices(term: Term) -> None:
    for choice in term.value.split("^"):
        span = _RANGE.fullmatch(choice)
        if not choice or (".." in choice and not span):
            raise BadInput(f"{term}: cannot read {choice!r}; a range is 1..5 or 1..9:2")
        if span and (int(span[2]) < int(span[1]) or int(span[3] or 1) == 0):
            raise BadInput(f"{term}: the range {choice} is empty")


def _read_number(term: Term) -> float:
    try:
        return float(term.value)
    except ValueError:
        raise BadInput(f"{term}: {term.value!r} is no number") from None
