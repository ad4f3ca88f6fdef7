"""The least-squares fit behind an astrometric solution: corrections to header positions, all chips at once.

A correction is an affine term of each chip, a polynomial of the focal plane that all chips share, and, where a chip's
stars ask for it, higher terms of its own. Matching stars and writing headers is `science/astrometry.py`'s.
"""

from dataclasses import dataclass, field

import numpy as np

_CLIP_SIGMA = 4.0
_RAYLEIGH_MEDIAN = 0.8326  # median length of a two-dimensional Gaussian over sqrt(2) sigma
_ROUNDS = 5
_MIN_KEPT = 6


@dataclass
class Block:
    """Design and data of one chip.

    Attributes
    ----------
    shape : (ny, nx)
        Of the chip.
    affine : (n, 3) array
        1, u, v in the chip.
    shared, local : (n, n_terms) arrays
        Terms of orders 2 and up in focal-plane coordinates and in the chip.
    target : (n, 2) array
        Catalogue minus header position, degrees.
    error : (n,) array
        Per axis, degrees.
    """

    shape: tuple[int, int]
    affine: np.ndarray
    shared: np.ndarray
    local: np.ndarray
    target: np.ndarray
    error: np.ndarray


@dataclass
class Fit:
    """Coefficients, in degrees; `used` marks the stars of each chip that were not rejected."""

    order: int
    shared: np.ndarray
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    affine: dict[str, np.ndarray] = field(default_factory=dict)
    own: dict[str, np.ndarray] = field(default_factory=dict)
    used: dict[str, np.ndarray] = field(default_factory=dict)
    residual: dict[str, np.ndarray] = field(default_factory=dict)
    chi2: float = 0.0
    chi2_reduced: float = 1.0

    def evaluate(self, name: str, x: np.ndarray, y: np.ndarray, focal: np.ndarray) -> np.ndarray:
        """Correction (n, 2) in degrees at pixels of a chip; `focal` are header positions over the field's radius."""
        terms = _affine_terms(self.shapes[name], x, y)
        result = terms @ self.affine[name] + _higher_terms(focal, self.order) @ self.shared
        if name in self.own:
            result = result + _higher_terms(terms[:, 1:], self.order) @ self.own[name]
        return result

    def inherit(
        self, name: str, shape: tuple[int, int], x: np.ndarray, y: np.ndarray, focal: np.ndarray, target: np.ndarray
    ) -> None:
        """Give a chip without stars the affine term that comes nearest to given corrections (n, 2) at its pixels."""
        left = target - _higher_terms(focal, self.order) @ self.shared
        self.shapes[name] = shape
        self.affine[name], *_ = np.linalg.lstsq(_affine_terms(shape, x, y), left, rcond=None)


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
    affine = _affine_terms(shape, x, y)
    return Block(shape, affine, _higher_terms(focal, order), _higher_terms(affine[:, 1:], order), target, error)


def fit_blocks(blocks: dict[str, Block], order: int) -> Fit:
    """Weighted least squares of all chips at once, with rejection of outliers beyond 4 sigma of the actual scatter."""
    names = sorted(blocks)
    keep = {name: np.ones(len(blocks[name].error), bool) for name in names}
    for _ in range(_ROUNDS):
        fit = _solve_once(blocks, keep, order)
        fresh = {name: _judge(fit.residual[name], blocks[name].error, keep[name]) for name in names}
        if all(np.array_equal(fresh[name], keep[name]) for name in names):
            break
        keep = fresh
    lengths = np.concatenate([_scale(fit.residual[name], blocks[name].error) for name in names])
    # outliers count with their clipping limit, so that fits of different orders compare
    fit.chi2 = float(2.0 * np.sum(np.minimum(lengths, _CLIP_SIGMA) ** 2))
    fit.chi2_reduced = float(np.median(lengths) / _RAYLEIGH_MEDIAN) ** 2
    return fit


def choose_fit(fits: list[Fit]) -> Fit:
    """Of fits of rising order, the lowest whose chi² a higher one does not lower by more than chance would.

    Terms that the stars do not ask for only add noise, most of all at the corners.
    """
    best = fits[0]
    for fit in fits[1:]:
        terms = 2 * (count_higher(fit.order) - count_higher(best.order))
        if best.chi2 - fit.chi2 > (terms + 3.0 * np.sqrt(2.0 * terms)) * max(fit.chi2_reduced, 1.0):
            best = fit
    return best


def count_higher(order: int) -> int:
    """Number of polynomial terms of two variables of orders 2 … `order`."""
    return max(0, (order + 1) * (order + 2) // 2 - 3)


def _solve_once(blocks: dict[str, Block], keep: dict[str, np.ndarray], order: int) -> Fit:
    names = sorted(blocks)
    n_shared = count_higher(order)
    design, target, weight = [], [], []
    for k, name in enumerate(names):
        block, good = blocks[name], keep[name]
        rows = np.zeros((int(good.sum()), 3 * len(names) + n_shared))
        rows[:, 3 * k : 3 * k + 3] = block.affine[good]
        rows[:, 3 * len(names) :] = block.shared[good]
        design.append(rows)
        target.append(block.target[good])
        weight.append(1.0 / block.error[good])
    root = np.concatenate(weight)[:, None]
    solution, *_ = np.linalg.lstsq(np.concatenate(design) * root, np.concatenate(target) * root, rcond=1e-12)
    fit = Fit(order, solution[3 * len(names) :])
    for k, name in enumerate(names):
        block = blocks[name]
        fit.shapes[name] = block.shape
        fit.affine[name] = solution[3 * k : 3 * k + 3]
        fit.residual[name] = block.target - block.affine @ fit.affine[name] - block.shared @ fit.shared
        _extend_chip(fit, name, block, keep[name])
        fit.used[name] = keep[name]
    return fit


def _extend_chip(fit: Fit, name: str, block: Block, good: np.ndarray) -> None:
    """Give a chip higher terms of its own where they lower chi² by more than chance would."""
    extra = block.local.shape[1]
    if extra == 0 or good.sum() < 4 * (extra + 3):
        return
    left, weight = fit.residual[name][good], 1.0 / block.error[good][:, None]
    design = np.hstack([block.affine, block.local])
    solution, *_ = np.linalg.lstsq(design[good] * weight, left * weight, rcond=1e-12)
    before = np.sum((left * weight) ** 2)
    after = np.sum(((left - design[good] @ solution) * weight) ** 2)
    terms = 2 * (extra + 3)
    # in units of the scatter that is left, so that underestimated errors do not buy terms
    gain = (before - after) / max(after / (2 * good.sum() - terms), 1e-30)
    if gain > terms + 5.0 * np.sqrt(2.0 * terms):
        fit.affine[name] = fit.affine[name] + solution[:3]
        fit.own[name] = solution[3:]
        fit.residual[name] = fit.residual[name] - design @ solution


def _judge(residual: np.ndarray, error: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Stars within the clipping limit; all that were kept so far if too few would be left."""
    lengths = _scale(residual, error)
    spread = max(float(np.median(lengths[keep])) / _RAYLEIGH_MEDIAN, 0.3)
    good = lengths < _CLIP_SIGMA * spread
    return good if good.sum() >= _MIN_KEPT else keep


def _scale(residual: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Lengths of residuals (n, 2) in units of sqrt(2) sigma: 1 in the mean square."""
    return np.hypot(residual[:, 0], residual[:, 1]) / error / np.sqrt(2.0)


def _higher_terms(plane: np.ndarray, order: int) -> np.ndarray:
    p, q = plane[:, 0], plane[:, 1]
    terms = [p ** (total - j) * q**j for total in range(2, order + 1) for j in range(total + 1)]
    return np.stack(terms, axis=1) if terms else np.zeros((len(p), 0))


def _affine_terms(shape: tuple[int, int], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    scale = 0.5 * max(shape)
    u, v = (x - 0.5 * (shape[1] - 1)) / scale, (y - 0.5 * (shape[0] - 1)) / scale
    return np.stack([np.ones_like(u), u, v], axis=1)
