"""Which exposures are pairs: two visits of one object in one night, told by their `object` and `comment` (LAP-19)."""

import re
from collections import defaultdict
from collections.abc import Iterable

from lap_assets.model.survey import Exposure

# "visit 1 of 2", "3pi dither 4 visit 2": the last number that follows a word for repetition
_VISIT = re.compile(
    r"(?P<before>.*\b(?:visit|dither|exp|exposure|pair)\D{0,3})(?P<number>\d+)(?P<after>.*)", re.I | re.S
)


def find_pairs(exposures: Iterable[Exposure]) -> list[tuple[str, str]]:
    """Pairs of exposures of the same object, filter and night whose comments name visits 1 and 2, 3 and 4, …

    Where several exposures claim the same visit, those next to each other in time are paired; the rest has no pair.

    Returns
    -------
    list of (exposure, exposure)
        The earlier visit first; sorted; no exposure twice.
    """
    visits: dict[tuple, dict[int, list[Exposure]]] = defaultdict(lambda: {0: [], 1: []})
    for one in exposures:
        match = _VISIT.fullmatch(one.comment.strip())
        if match and one.object.strip():
            number = int(match["number"]) - 1
            text = " ".join(f"{match['before']}#{match['after']}".casefold().split())
            key = (one.camera, one.object.strip(), one.filter, one.night, text, number // 2)
            visits[key][number % 2].append(one)
    pairs = []
    for first, second in (group.values() for group in visits.values()):
        ordered = (sorted(some, key=lambda one: (one.mjd, one.id)) for some in (first, second))
        pairs += [(a.id, b.id) for a, b in zip(*ordered, strict=False)]
    return sorted(pairs)
