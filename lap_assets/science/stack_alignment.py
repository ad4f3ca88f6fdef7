"""Inputs of a stack whose stars do not lie where those of the others do: a wrong WCS, found before it doubles stars.

Here: comparing star lists. What is done with an input that is off `pipeline/stacks` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

_BRIGHTEST = 400  # stars of an input that are compared
_ENOUGH = 8  # common stars to be expected before their absence means something
_AGREEING = 0.3  # part of the expected common stars that must be found
_SEARCH_PX = 60.0  # largest offset that is measured
_BIN_PX = 1.0


@dataclass(frozen=True)
class Misplaced:
    """An input that disagrees: `offset_px` from the others (NaN if not found), by `n_stars` stars."""

    offset_px: float
    n_stars: int

    def describe(self, scale_arcsec: float) -> str:
        """One line for the table of inputs and the log."""
        if not np.isfinite(self.offset_px):
            return f"none of its {self.n_stars} stars is where the other inputs have stars: check its astrometry"
        offset = self.offset_px * scale_arcsec
        return f"its {self.n_stars} stars are {offset:.1f} arcsec off those of the other inputs: check its astrometry"


def find_misplaced(
    stars: Sequence[np.ndarray | None], weights: np.ndarray, max_offset_px: float
) -> dict[int, Misplaced]:
    """Inputs that are left out, by index.

    Two inputs agree if at least 0.3 of the stars that should be common lie within twice `max_offset_px` of each other,
    and the median of their offsets within `max_offset_px`. The largest group that hangs together by agreement (by
    weight where two are alike) is believed; an input outside it that should share eight stars or more with one of its
    members and agrees with none is misplaced. With too few stars nothing can be said, and the input stays.

    Parameters
    ----------
    stars : sequence of (m, 3) float arrays or None
        x, y [px] and flux of the stars of each input, on one pixel grid.
    weights : (n,) float
        Of the inputs; those of 0 are not looked at.
    max_offset_px : float
    """
    lists = [
        np.zeros((0, 3)) if table is None or weight <= 0 else _select_brightest(table)
        for table, weight in zip(stars, weights, strict=True)
    ]
    n = len(lists)
    trees = [cKDTree(one[:, :2]) if len(one) else None for one in lists]
    agree, differ = np.zeros((n, n), bool), np.zeros((n, n), bool)
    for i in range(n):
        for j in range(i + 1, n):
            if trees[i] is None or trees[j] is None:
                continue
            expected = _count_expected(lists[i], lists[j])
            offsets = _match(trees[j], lists[i], lists[j], 2.0 * max_offset_px)
            if expected < _ENOUGH:
                continue
            near = len(offsets) >= _AGREEING * expected and np.hypot(*np.median(offsets, axis=0)) <= max_offset_px
            agree[i, j] = agree[j, i] = near
            differ[i, j] = differ[j, i] = not near
    _, group = connected_components(csr_array(agree), directed=False)
    sizes = [(int((group == g).sum()), float(np.asarray(weights)[group == g].sum()), -g) for g in range(max(group) + 1)]
    believed = group == -max(sizes)[2]
    return {
        k: Misplaced(_measure_offset(lists[k], [lists[j] for j in np.flatnonzero(believed)]), len(lists[k]))
        for k in range(n)
        if not believed[k] and (differ[k] & believed).any()
    }


def _select_brightest(table: np.ndarray) -> np.ndarray:
    return table[np.argsort(-table[:, 2], kind="stable")][:_BRIGHTEST]


def _count_expected(one: np.ndarray, other: np.ndarray) -> int:
    """Stars that both lists should have: those inside the other's bounds, of the list that has fewer."""
    return min(_count_inside(one, other), _count_inside(other, one))


def _count_inside(one: np.ndarray, other: np.ndarray) -> int:
    low, high = other[:, :2].min(axis=0), other[:, :2].max(axis=0)
    return int(((one[:, :2] >= low) & (one[:, :2] <= high)).all(axis=1).sum())


def _match(tree: cKDTree, one: np.ndarray, other: np.ndarray, radius: float) -> np.ndarray:
    """(m, 2) offsets of the stars of `one` from the nearest of `other` within `radius`; one NaN row if none."""
    distance, index = tree.query(one[:, :2], distance_upper_bound=radius)
    near = np.isfinite(distance)
    return one[near, :2] - other[index[near], :2]


def _measure_offset(one: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """Length of the offset that most pairs of stars share, px; NaN where none stands out."""
    rest = np.concatenate(others)
    pairs = cKDTree(one[:, :2]).query_ball_tree(cKDTree(rest[:, :2]), _SEARCH_PX)
    offsets = np.array([one[i, :2] - rest[j, :2] for i, near in enumerate(pairs) for j in near])
    if not len(offsets):
        return float("nan")
    bins = np.arange(-_SEARCH_PX, _SEARCH_PX + _BIN_PX, _BIN_PX)
    votes = np.histogram2d(offsets[:, 0], offsets[:, 1], bins=[bins, bins])[0]
    best = np.unravel_index(np.argmax(votes), votes.shape)
    centre = bins[list(best)] + 0.5 * _BIN_PX
    close = np.hypot(*(offsets - centre).T) < 2.0 * _BIN_PX
    if close.sum() < max(3, _AGREEING * len(one)):
        return float("nan")
    return float(np.hypot(*np.median(offsets[close], axis=0)))
