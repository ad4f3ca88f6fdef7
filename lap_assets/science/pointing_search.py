"""Where a telescope really pointed: the shift and rotation that bring stars onto a reference catalogue.

Histograms of the offsets between all pairs of star and reference, for a fan of rotations, on tangent-plane positions;
no headers and no projections here. What is done with the pointing found is `science/astrometry.py`'s.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy.spatial import cKDTree
from scipy.stats import poisson

from lap_assets.errors import UnprocessableData

_ARCSEC = 1.0 / 3600.0
_BIN_ARCSEC = 1.5  # three bins, the width of a peak, tolerate chips misplaced by 2″
# stars around the field's middle, where rotation and scale matter least, that are searched before the whole field
_CORE_STARS = (250, 1000)
_MAX_PAIRS = 3_000_000
_MAX_CHANCE = 1e-6  # that a peak as high arises anywhere in the search
_CLUSTERING = 2.0  # galaxies and stars clump: chance counts reach so many times their mean
_MIN_SHARE = 0.02  # of the stars (or of the references, if fewer) that a peak must hold
_SCALE_STEP = 0.01
_DIAGNOSED_SCALES = np.arange(-12, 13) * _SCALE_STEP
_MIRRORED = "the image is mirrored (parity)"
_DIAGNOSED_AXES = (
    ((1.0, 1.0), ""),
    ((-1.0, 1.0), _MIRRORED),
    ((1.0, -1.0), _MIRRORED),
    ((-1.0, -1.0), "the image is turned by 180 deg"),
)
_ECHO_SHARE = 0.5  # a second peak as high as this part of the first: everything is there twice
_ECHO_BINS = 4


@dataclass(frozen=True)
class Pointing:
    """Position on the sky = `matrix` @ position + `shift`, both in degrees; `n_pairs` stars agree on it."""

    matrix: np.ndarray
    shift: np.ndarray
    n_pairs: int
    chance: float


@dataclass(frozen=True)
class _Field:
    """Positions of stars (brightest first) and references, degrees, and the search's reach."""

    stars: np.ndarray
    ref: np.ndarray
    radius: float

    @property
    def extent(self) -> float:
        return float(np.hypot(*self.stars.T).max()) if len(self.stars) else 0.0


def find_pointing(stars: np.ndarray, ref: np.ndarray, radius_arcsec: float, max_rotation_deg: float = 2.0) -> Pointing:
    """Shift and rotation that most stars agree on.

    The middle of the field is searched first over all rotations, then the whole field around what was found there. A
    peak counts if chance would not make it (Poisson statistics over all bins tried) and distinct stars and references
    form it.

    Parameters
    ----------
    stars : (n, 2) array
        Tangent-plane positions in degrees by the headers, brightest first.
    ref : (m, 2) array
        The same of the reference catalogue.
    radius_arcsec, max_rotation_deg : float
        Errors of the pointing that are searched.

    Raises
    ------
    UnprocessableData
        If nothing matches; the reason names a mirrored image or a wrong pixel scale where one of them would match.
        Also if two pointings match equally well (an exposure that jumped).
    """
    radius = radius_arcsec * _ARCSEC
    whole = _limit(_Field(stars, ref, radius), max_rotation_deg)
    for number in (*_CORE_STARS, len(whole.stars)):
        core = _cut_core(whole, number)
        found = _search(core, _rotations(core.extent, 0.0, max_rotation_deg))
        if found is None:
            continue
        if core is not whole:
            angle = np.degrees(np.arctan2(found.matrix[1, 0], found.matrix[0, 0]))
            near = 1.5 * np.degrees(_BIN_ARCSEC * _ARCSEC / core.extent)
            found = _search(whole, _rotations(whole.extent, angle, near)) or found
        _refuse_echo(whole, found)
        return found
    what = f"no match with the reference catalogue within {radius_arcsec:.0f} arcsec and {max_rotation_deg:g} deg"
    numbers = f"{len(stars)} bright sources, {len(ref)} catalogue stars"
    reason = _diagnose(_cut_core(whole, _CORE_STARS[-1]), max_rotation_deg) or "check RA, DEC and the catalogue"
    raise UnprocessableData(f"{what} of the pointing ({numbers}): {reason}")


def find_shift(stars: np.ndarray, ref: np.ndarray, radius_arcsec: float) -> np.ndarray | None:
    """Shift in degrees that most stars agree on, without rotation, or None where none stands out."""
    found = _search(_Field(stars, ref, radius_arcsec * _ARCSEC), [np.eye(2)], 1e-3)
    return None if found is None else found.shift


def _limit(field: _Field, max_rotation_deg: float) -> _Field:
    """Only so many of the brightest stars that the pairs stay within `_MAX_PAIRS`."""
    if not len(field.stars) or not len(field.ref):
        return field
    reach = field.radius + field.extent * np.radians(max_rotation_deg)
    sample = field.stars[:: max(1, len(field.stars) // 200)]
    per_star = float(np.mean(cKDTree(field.ref).query_ball_point(sample, reach, return_length=True)))
    return _Field(field.stars[: max(50, int(_MAX_PAIRS / max(per_star, 1e-3)))], field.ref, field.radius)


def _cut_core(field: _Field, number: int) -> _Field:
    """The stars nearest the middle, if the field has many more; else the field itself."""
    if len(field.stars) <= 1.5 * number:
        return field
    distance = np.hypot(*field.stars.T)
    return _Field(field.stars[distance <= np.partition(distance, number)[number]], field.ref, field.radius)


def _rotations(extent: float, middle_deg: float, reach_deg: float, bins: float = 1.0) -> list[np.ndarray]:
    """Rotation matrices in steps that move the edge of the field by some bins, those nearest the middle first."""
    steps = int(np.ceil(np.radians(reach_deg) * extent / (bins * _BIN_ARCSEC * _ARCSEC)))
    order = sorted(range(-steps, steps + 1), key=lambda k: (abs(k), k))
    return [_rotation(middle_deg + k * reach_deg / max(steps, 1)) for k in order]


def _rotation(angle_deg: float) -> np.ndarray:
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[c, -s], [s, c]])


def _search(field: _Field, matrices: Iterable[np.ndarray], max_chance: float = _MAX_CHANCE) -> Pointing | None:
    """The best of several linear maps, with its shift; None where its peak may be chance."""
    matrices = list(matrices)
    if len(field.stars) < 3 or len(field.ref) < 3:
        return None
    size = _BIN_ARCSEC * _ARCSEC
    half = int(np.ceil(field.radius / size))
    left, right = _pair(field, matrices)
    best, best_matrix = (-1, 0, 0, 0.0), matrices[0]
    for matrix in matrices:
        one = _find_peak(_count_offsets(field.stars @ matrix.T, field.ref, left, right, size, half))
        if one[0] > best[0]:
            best, best_matrix = one, matrix
    moved = field.stars @ best_matrix.T
    offset = field.ref[right] - moved[left]
    inside = np.abs(offset / size + half - np.array(best[1:3])).max(axis=1) <= 1.5
    count = min(len(np.unique(left[inside])), len(np.unique(right[inside])))
    trials = len(matrices) * (2 * half + 1) ** 2
    chance = trials * float(poisson.sf(count - 1, _CLUSTERING * best[3])) if count else 1.0
    if count < max(3.0, _MIN_SHARE * min(len(field.stars), len(field.ref))) or chance > max_chance:
        return None
    return Pointing(best_matrix, np.median(offset[inside], axis=0), count, chance)


def _pair(field: _Field, matrices: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of stars and references that any of the maps may bring within the radius of one another."""
    middle = matrices[0]
    away = max(float(np.linalg.norm(one - middle, 2)) for one in matrices)
    order = np.argsort(field.ref[:, 0], kind="stable")
    reach = field.radius * np.sqrt(2.0) + away * field.extent
    left, right = _list_pairs(field.stars @ middle.T, field.ref[order], reach)
    return left, order[right]


def _refuse_echo(field: _Field, found: Pointing) -> None:
    size = _BIN_ARCSEC * _ARCSEC
    half = int(np.ceil(field.radius / size))
    left, right = _pair(field, [found.matrix])
    counts = _count_offsets(field.stars @ found.matrix.T, field.ref, left, right, size, half)
    i, j = (int(np.rint(one / size)) + half for one in found.shift)
    counts[max(0, i - _ECHO_BINS) : i + _ECHO_BINS + 1, max(0, j - _ECHO_BINS) : j + _ECHO_BINS + 1] = 0
    peak, k, m, mean = _find_peak(counts)
    if peak < _ECHO_SHARE * found.n_pairs or poisson.sf(peak - 1, _CLUSTERING * mean) * counts.size > _MAX_CHANCE:
        return
    apart = np.hypot(k - i, m - j) * _BIN_ARCSEC
    raise UnprocessableData(
        f"the stars match the reference catalogue twice, {apart:.0f} arcsec apart ({found.n_pairs} and {peak} stars): "
        "the telescope jumped or trailed during the exposure"
    )


def _diagnose(field: _Field, max_rotation_deg: float) -> str:
    """What else would make the stars match: a mirror image, another pixel scale; empty where nothing does."""
    for signs, reason in _DIAGNOSED_AXES:
        # the first map decides which pairs are looked at: unscaled, unturned
        maps = [
            turn @ np.diag(signs) * (1.0 + change)
            for change in sorted(_DIAGNOSED_SCALES, key=abs)
            for turn in _rotations(field.extent, 0.0, max_rotation_deg, bins=2.0)
        ]
        found = _search(field, maps)
        if found is None:
            continue
        scale = np.sqrt(abs(np.linalg.det(found.matrix)))
        wrong = f"the pixel scale of the headers is wrong by {100 * (1.0 / scale - 1.0):+.0f} %"
        reasons = [reason] if reason else []
        if abs(scale - 1.0) > _SCALE_STEP / 2:
            reasons.append(wrong)
        return f"{' and '.join(reasons)}; check the camera's file" if reasons else ""
    return ""


@njit(cache=True, nogil=True)
def _list_pairs(stars, ref, reach):
    """Pairs no further apart than `reach` along either axis; `ref` is sorted by its first column."""
    first = np.searchsorted(ref[:, 0], stars[:, 0] - reach)
    last = np.searchsorted(ref[:, 0], stars[:, 0] + reach)
    total = 0
    for k in range(len(stars)):
        for m in range(first[k], last[k]):
            total += abs(ref[m, 1] - stars[k, 1]) <= reach
    left, right = np.empty(total, np.int64), np.empty(total, np.int64)
    total = 0
    for k in range(len(stars)):
        for m in range(first[k], last[k]):
            if abs(ref[m, 1] - stars[k, 1]) <= reach:
                left[total], right[total] = k, m
                total += 1
    return left, right


@njit(cache=True, nogil=True)
def _count_offsets(stars, ref, left, right, size, half):
    """Histogram (2·half+1)² of the offsets of pairs, in bins of `size`."""
    counts = np.zeros((2 * half + 1, 2 * half + 1), np.int32)
    for k in range(len(left)):
        i = int(np.rint((ref[right[k], 0] - stars[left[k], 0]) / size)) + half
        j = int(np.rint((ref[right[k], 1] - stars[left[k], 1]) / size)) + half
        if 0 <= i <= 2 * half and 0 <= j <= 2 * half:
            counts[i, j] += 1
    return counts


@njit(cache=True, nogil=True)
def _find_peak(counts):
    """Highest sum of 3×3 bins, its bin, and the mean of such sums."""
    n, m = counts.shape
    best, bi, bj, total = -1, 0, 0, 0
    for i in range(n):
        for j in range(m):
            total += counts[i, j]
            if counts[i, j] == 0:
                continue
            one = 0
            for k in range(max(0, i - 1), min(n, i + 2)):
                for p in range(max(0, j - 1), min(m, j + 2)):
                    one += counts[k, p]
            if one > best:
                best, bi, bj = one, i, j
    return best, bi, bj, 9.0 * total / (n * m)
