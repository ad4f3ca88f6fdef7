"""The least-squares model behind an astrometric solution: corrections to header positions, all chips at once.

A correction is an affine term of each chip, a polynomial of the focal plane that all chips share, and higher terms of
each chip that a Gaussian prior holds near zero. Order and prior are chosen on held-out stars. Matching stars and
writing headers is `science/astrometry.py`'s; several exposures at once are `science/joint_astrometry.py`'s.
"""

from dataclasses import dataclass, field

import numpy as np

_CLIP_SIGMA = 4.0
_RAYLEIGH_MEDIAN = 0.8326  # median length of a two-dimensional Gaussian over sqrt(2) sigma
_ROUNDS = 6
_MIN_KEPT = 5
_FOLDS = 5
_AFFINE = 3
_CHIP_ORDER = 3
# prior widths of the chips' own terms that are tried, in units of the scatter of single stars; 0: no such terms
_PRIOR_WIDTHS = (0.0, 0.5, 1.0, 2.0, 4.0)
_SINGULAR = 1e-9  # relative ridge that keeps terms without data at zero


@dataclass
class Block:
    """Design and data of one chip.

    Attributes
    ----------
    shape : (ny, nx)
        Of the chip.
    local : (n, 3 + n_own) array
        1, u, v and the higher terms in the chip.
    shared : (n, n_terms) array
        Terms of orders 2 and up in focal-plane coordinates.
    target : (n, 2) array
        Catalogue minus header position, degrees.
    error : (n,) array
        Per axis, degrees: of centroid and catalogue.
    """

    shape: tuple[int, int]
    local: np.ndarray
    shared: np.ndarray
    target: np.ndarray
    error: np.ndarray


@dataclass
class Fit:
    """Coefficients, in degrees; `used` marks the stars of each chip that were not rejected.

    Attributes
    ----------
    order : int
        Of the shared polynomial; 1 where there is none.
    prior : float
        Width of the prior of the chips' own higher terms, degrees; 0 where there are none.
    floor : float
        Scatter per axis beyond the stated errors (turbulence), degrees.
    """

    order: int
    prior: float
    floor: float
    shared: np.ndarray
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    local: dict[str, np.ndarray] = field(default_factory=dict)
    used: dict[str, np.ndarray] = field(default_factory=dict)
    residual: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def chip_order(self) -> int:
        """Highest order of a chip's map."""
        return max(self.order, _CHIP_ORDER if self.prior > 0 else 1)

    def evaluate(self, name: str, x: np.ndarray, y: np.ndarray, focal: np.ndarray) -> np.ndarray:
        """Correction (n, 2) in degrees at pixels of a chip; `focal` are header positions over the field's radius."""
        return (
            chip_terms(self.shapes[name], x, y) @ self.local[name]
            + legendre_terms(focal, 2, self.order) @ self.shared
        )  # fmt: skip

    def inherit(
        self, name: str, shape: tuple[int, int], x: np.ndarray, y: np.ndarray, focal: np.ndarray, target: np.ndarray
    ) -> None:
        """Give a chip without stars the affine term that comes nearest to given corrections (n, 2) at its pixels."""
        left = target - legendre_terms(focal, 2, self.order) @ self.shared
        terms = chip_terms(shape, x, y)
        self.shapes[name] = shape
        self.local[name] = np.zeros((terms.shape[1], 2))
        self.local[name][:_AFFINE], *_ = np.linalg.lstsq(terms[:, :_AFFINE], left, rcond=None)


def make_block(
    shape: tuple[int, int],
    x: np.ndarray,
    y: np.ndarray,
    focal: np.ndarray,
    target: np.ndarray,
    error: np.ndarray,
    order: int,
) -> Block:
    """Block of a chip of `shape` (ny, nx) with stars at pixels (x, y); see `Block` and `Fit.evaluate` for the rest."""
    return Block(shape, chip_terms(shape, x, y), legendre_terms(focal, 2, order), target, error)


def fit_blocks(blocks: dict[str, Block], order: int, *, free: bool = False) -> Fit:
    """Robust regularised least squares of all chips at once.

    Stars beyond 4 sigma of the actual scatter are rejected. The order of the shared polynomial, up to `order`, is the
    lowest that predicts held-out stars (5 fixed folds) as well as the best one does, within one standard error
    (Breiman et al. 1984, Classification and Regression Trees, sect. 3.4.3). Chips get terms of their own, with the
    prior that predicts best, if these predict better by more than that; none below order 3.

    Parameters
    ----------
    blocks : mapping of chip name to Block
        Made for `order`.
    order : int
    free : bool
        Fit `order` as it is, without terms of the chips, and choose nothing: while the matches are not final.
    """
    system = _System(blocks)
    keep = np.ones(len(system.error), bool)
    floor, chosen = system.first_scatter(), (order, 0.0)
    for attempt in range(_ROUNDS):
        if not free and attempt in (1, 3):
            chosen = system.choose(keep, floor, order)
        normal = system.accumulate(system.weigh(floor) * keep)
        residual = system.target - system.predict(*system.solve(normal.sum(axis=0), *chosen), chosen[0])
        fresh = system.judge(residual, floor, keep)
        floor = estimate_floor(np.hypot(*residual[fresh].T), system.error[fresh])
        if np.array_equal(fresh, keep) and attempt > (0 if free else 3):
            break
        keep = fresh
    return system.report(chosen, floor, keep)


def count_higher(order: int) -> int:
    """Number of polynomial terms of two variables of orders 2 … `order`."""
    return max(0, (order + 1) * (order + 2) // 2 - 3)


def chip_terms(shape: tuple[int, int], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """1, u, v and the higher Legendre products in coordinates of a chip (−1 … 1 along its longer side)."""
    scale = 0.5 * max(shape)
    plane = np.stack([(x - 0.5 * (shape[1] - 1)) / scale, (y - 0.5 * (shape[0] - 1)) / scale], axis=1)
    return legendre_terms(plane, 0, _CHIP_ORDER)


def legendre_terms(plane: np.ndarray, lowest: int, order: int) -> np.ndarray:
    """Products P_i(p)·P_j(q) of total order `lowest` … `order` at positions (n, 2), lowest orders first."""
    axes = []
    for values in plane.T:
        one = [np.ones_like(values), values]
        for k in range(2, order + 1):
            one.append(((2 * k - 1) * values * one[-1] - (k - 1) * one[-2]) / k)
        axes.append(one)
    terms = [axes[0][total - j] * axes[1][j] for total in range(lowest, order + 1) for j in range(total + 1)]
    return np.stack(terms, axis=1) if terms else np.zeros((len(plane), 0))


class _System:
    """All stars of an exposure in one design; its normal equations are an arrowhead, solved chip by chip.

    Both axes share the design. Columns of a row: the chip's own terms, then the shared ones, then the two targets.
    """

    def __init__(self, blocks: dict[str, Block]) -> None:
        self.names = sorted(blocks)
        self.shapes = {name: blocks[name].shape for name in self.names}
        counts = [len(blocks[name].error) for name in self.names]
        self.chip = np.repeat(np.arange(len(self.names)), counts)
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.target = np.concatenate([blocks[name].target for name in self.names])
        self.error = np.concatenate([blocks[name].error for name in self.names])
        self.local = np.concatenate([blocks[name].local for name in self.names])
        self.shared = np.concatenate([blocks[name].shared for name in self.names])
        # neighbours in a chip fall into different folds
        self.fold = np.concatenate([np.arange(count) % _FOLDS for count in counts])
        self.rows = np.hstack([self.local, self.shared, self.target])

    def first_scatter(self) -> float:
        """Scatter to start from: that of the targets about each chip's median."""
        pieces = [
            self.target[a:b] - np.median(self.target[a:b], axis=0)
            for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)
        ]
        return float(np.median(np.abs(np.concatenate(pieces)))) * 1.4826

    def weigh(self, floor: float) -> np.ndarray:
        return 1.0 / (self.error**2 + floor**2)

    def accumulate(self, weight: np.ndarray) -> np.ndarray:
        """(folds, chips, k, k) sums of weighted products of all columns."""
        size = self.rows.shape[1]
        sums = np.zeros((_FOLDS, len(self.names), size, size))
        for k, (a, b) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True)):
            for fold in range(_FOLDS):
                chosen = slice(a + fold, b, _FOLDS)
                rows = self.rows[chosen]
                sums[fold, k] = rows.T @ (rows * weight[chosen, None])
        return sums

    def solve(self, normal: np.ndarray, order: int, prior: float) -> tuple[np.ndarray, np.ndarray]:
        """Chips' terms (chips, n_local, 2) and shared terms (n_shared, 2) of summed products (chips, k, k)."""
        n_local = self.local.shape[1] if prior > 0 else _AFFINE
        first = self.local.shape[1]
        own, other = slice(0, n_local), slice(first, first + count_higher(order))
        matrix = normal[:, own, own].copy()
        strength = np.trace(matrix[:, :_AFFINE, :_AFFINE], axis1=1, axis2=2) / _AFFINE
        diagonal = np.arange(n_local)
        matrix[:, diagonal, diagonal] += _SINGULAR * strength[:, None] + 1e-30
        if prior > 0:
            matrix[:, diagonal[_AFFINE:], diagonal[_AFFINE:]] += 1.0 / prior**2
        right = np.concatenate([normal[:, own, other], normal[:, own, -2:]], axis=2)
        solved = np.linalg.solve(matrix, right)
        n_shared = count_higher(order)
        cross = normal[:, own, other]
        reduced = normal[:, other, other].sum(axis=0) - np.einsum("cij,cik->jk", cross, solved[..., :n_shared])
        values = normal[:, other, -2:].sum(axis=0) - np.einsum("cij,cik->jk", cross, solved[..., n_shared:])
        reduced[np.diag_indices(n_shared)] += (
            _SINGULAR * np.trace(normal[:, other, other].sum(axis=0)) / max(n_shared, 1)
        )
        shared = np.linalg.solve(reduced, values) if n_shared else np.zeros((0, 2))
        local = np.zeros((len(self.names), self.local.shape[1], 2))
        local[:, own] = solved[..., n_shared:] - solved[..., :n_shared] @ shared
        return local, shared

    def predict(self, local: np.ndarray, shared: np.ndarray, order: int) -> np.ndarray:
        own = np.einsum("ni,nik->nk", self.local, local[self.chip])
        return own + self.shared[:, : count_higher(order)] @ shared

    def choose(self, keep: np.ndarray, floor: float, order: int) -> tuple[int, float]:
        """Order and prior width that predict held-out stars best: simplest within a standard error of the best."""
        sums = self.accumulate(self.weigh(floor) * keep)
        total = sums.sum(axis=0)
        scatter = float(np.sqrt(np.median(self.error[keep] ** 2) + floor**2))
        candidates = [(one, 0.0) for one in range(1, order + 1)]
        losses = [self._hold_out(sums, total, keep, floor, one) for one in candidates]
        best = candidates[_simplest(losses)]
        if order < _CHIP_ORDER:
            return best
        wider = [(best[0], width * scatter) for width in _PRIOR_WIDTHS]
        losses = [losses[candidates.index(best)]] + [self._hold_out(sums, total, keep, floor, one) for one in wider[1:]]
        widest = int(np.argmin([loss.mean() for loss in losses]))
        # once they are there the prior itself keeps the terms small: its best width, not its smallest
        return wider[widest if _simplest(losses) else 0]

    def _hold_out(self, sums, total, keep, floor, candidate) -> np.ndarray:
        """Squared lengths of the residuals of held-out stars in sigmas, clipped as outliers are."""
        predicted = np.zeros_like(self.target)
        for fold in range(_FOLDS):
            chosen = self.fold == fold
            local, shared = self.solve(total - sums[fold], *candidate)
            predicted[chosen] = (
                np.einsum("ni,nik->nk", self.local[chosen], local[self.chip[chosen]])
                + self.shared[chosen, : count_higher(candidate[0])] @ shared
            )  # fmt: skip
        length2 = np.sum((self.target - predicted) ** 2, axis=1) * self.weigh(floor)
        return np.minimum(length2[keep], 2.0 * (2.0 * _CLIP_SIGMA) ** 2)

    def judge(self, residual: np.ndarray, floor: float, keep: np.ndarray) -> np.ndarray:
        """Stars within the clipping limit; all of a chip's that were kept so far if too few would be left."""
        lengths = np.hypot(*residual.T) * np.sqrt(0.5 * self.weigh(floor))
        spread = max(float(np.median(lengths[keep])) / _RAYLEIGH_MEDIAN, 0.3)
        good = lengths < _CLIP_SIGMA * spread
        enough = np.bincount(self.chip, good, len(self.names)) >= _MIN_KEPT
        return np.where(enough[self.chip], good, keep)

    def report(self, chosen: tuple[int, float], floor: float, keep: np.ndarray) -> Fit:
        local, shared = self.solve(self.accumulate(self.weigh(floor) * keep).sum(axis=0), *chosen)
        residual = self.target - self.predict(local, shared, chosen[0])
        fit = Fit(*chosen, floor, shared, self.shapes)
        for k, name in enumerate(self.names):
            a, b = self.starts[k : k + 2]
            fit.local[name], fit.used[name], fit.residual[name] = local[k], keep[a:b], residual[a:b]
        return fit


def _simplest(losses: list[np.ndarray]) -> int:
    """First of several candidates of rising complexity that is within a standard error of the best."""
    best = int(np.argmin([loss.mean() for loss in losses]))
    for k, loss in enumerate(losses):
        worse = loss - losses[best]
        if worse.mean() <= worse.std() / np.sqrt(max(len(worse), 1)):
            return k
    return best


def estimate_floor(length: np.ndarray, error: np.ndarray) -> float:
    """Scatter per axis which, added to the errors in quadrature, makes the median residual what it should be."""

    def typical(floor: float) -> float:
        return float(np.median(length / np.sqrt(2.0 * (error**2 + floor**2)))) / _RAYLEIGH_MEDIAN

    if not len(length) or typical(0.0) <= 1.0:
        return 0.0
    low, high = 0.0, float(np.max(length))
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if typical(middle) > 1.0 else (low, middle)
    return high
