"""The sky of an exposure as one smooth surface over the focal plane, which leaves the light of large objects alone.

The mesh of a single chip (`science/background.py`) follows whatever is wider than a few cells: the haloes of bright
galaxies and of clusters go with the sky. One polynomial through the meshes of all chips cannot, and is published beside
them for the sky-corrected flavour (LV-17; the idea is that of HSC's sky correction, Aihara et al. 2019, PASJ 71, 114,
section 4.1). Which of the two a stack uses is not decided here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_ROUNDS = 30
_BIWEIGHT = 4.685  # Tukey's tuning constant: 95 % efficient for Gaussian scatter
_CELLS_PER_TERM = 4


@dataclass(frozen=True)
class SkyCells:
    """Sky levels of one chip's mesh and where the cells lie in the focal plane (any unit); all of one shape."""

    level: np.ndarray
    u: np.ndarray
    v: np.ndarray


@dataclass(frozen=True)
class FocalPlaneSky:
    """Result of `fit_focal_plane_sky`.

    Attributes
    ----------
    meshes : mapping of chip to (my, mx) float32
        The surface at the cells of each chip's mesh: to be evaluated as any mesh is.
    order : int
        Of the polynomial, lowered where there are too few cells.
    rms : float
        Robust scatter of the cells about the surface.
    """

    meshes: Mapping[str, np.ndarray]
    order: int
    rms: float


def fit_focal_plane_sky(cells: Mapping[str, SkyCells], order: int = 3) -> FocalPlaneSky:
    """A polynomial through the sky of all chips, deaf to cells that haloes raise.

    Iteratively reweighted least squares with Tukey's biweight, from the lowest order up: cells far above the
    surface get no weight, however many chips a halo covers, as long as most of the focal plane is free of it.

    Parameters
    ----------
    cells : mapping of chip to SkyCells
        At least one chip.
    order : int
        Of the polynomial in both coordinates together.
    """
    names = sorted(cells)
    level = np.concatenate([np.asarray(cells[name].level, float).ravel() for name in names])
    u = np.concatenate([np.asarray(cells[name].u, float).ravel() for name in names])
    v = np.concatenate([np.asarray(cells[name].v, float).ravel() for name in names])
    middle = 0.5 * (u.min() + u.max()), 0.5 * (v.min() + v.max())
    reach = max(float(np.ptp(u)), float(np.ptp(v)), 1e-12) / 2.0
    u, v = (u - middle[0]) / reach, (v - middle[1]) / reach
    while order > 0 and len(level) < _CELLS_PER_TERM * (order + 1) * (order + 2) // 2:
        order -= 1
    surface = np.full(len(level), np.median(level))
    for step in range(order + 1):
        surface, rms = _fit_robustly(_terms(u, v, step), level, surface)
    sizes = np.cumsum([cells[name].level.size for name in names])[:-1]
    meshes = {
        name: piece.reshape(cells[name].level.shape).astype(np.float32)
        for name, piece in zip(names, np.split(surface, sizes), strict=True)
    }
    return FocalPlaneSky(meshes, order, rms)


def _fit_robustly(terms: np.ndarray, level: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float]:
    """Fitted values and the robust scatter about them."""
    fitted = start
    for _ in range(_ROUNDS):
        residual = level - fitted
        rms = 1.4826 * float(np.median(np.abs(residual)))
        if rms == 0.0:
            break
        weight = np.clip(1.0 - (residual / (_BIWEIGHT * rms)) ** 2, 0.0, None)  # square root of the biweight
        solution, *_ = np.linalg.lstsq(terms * weight[:, None], level * weight, rcond=1e-10)
        before, fitted = fitted, terms @ solution
        if np.abs(fitted - before).max() < 1e-4 * rms:
            break
    return fitted, 1.4826 * float(np.median(np.abs(level - fitted)))


def _terms(u: np.ndarray, v: np.ndarray, order: int) -> np.ndarray:
    return np.stack([u ** (total - j) * v**j for total in range(order + 1) for j in range(total + 1)], axis=1)
