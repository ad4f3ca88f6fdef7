"""Backgrounds of the inputs of a stack brought to one another: planes fitted to the medians of blocks.

Here: the fit. The medians are measured with the warp (`levels.fits`); the planes are taken off while the rows stream
(`stack`).
"""

import numpy as np

from lap_assets.science.matching_kernel import count_terms, polynomial_terms, scale_positions

_ROUNDS = 5
_CLIP = 3.0
_MIN_COVERAGE = 0.3  # of the pixels of a full block
_MIN_BLOCKS = 12  # per coefficient; a lower order where there are fewer


def fit_levels(
    levels: np.ndarray, counts: np.ndarray, weights: np.ndarray, block_px: int, shape: tuple[int, int], order: int = 1
) -> np.ndarray:
    """Planes c0 + c1 x + c2 y by which each input's level exceeds the common one.

    All are solved for at once: minimise Σ w_k ρ(L_kb − P_k(b) − C_b) over the blocks b that at least two inputs cover,
    C_b the level of the block (eliminated), Σ w_k P_k = 0, so that the stack's level stays the weighted mean. Blocks
    whose residual exceeds 3 sigma are left out, five rounds.

    Parameters
    ----------
    levels, counts : (n, by, bx) float
        Medians of the sky in blocks, nJy/px, and good pixels they were made from.
    weights : (n,) float
        Of the inputs in the stack; those of 0 get 0.
    block_px : int
    shape : (ny, nx)
    order : int
        0 or 1; −1: nothing is fitted.

    Returns
    -------
    (n, 3) float64
        nJy/px; coordinates of `matching_kernel.scale_positions`.
    """
    planes = np.zeros((len(levels), 3))
    if order < 0 or len(levels) < 2:
        return planes
    full = counts.max(initial=0)
    valid = (counts > _MIN_COVERAGE * max(full, 1)) & np.isfinite(levels) & (weights > 0)[:, None, None]
    valid &= valid.sum(axis=0) > 1
    blocks = valid.any(axis=0)
    row, column = np.nonzero(blocks)
    if not row.size:
        return planes
    x, y = (0.5 * (block_px - 1) + block_px * one.astype(float) for one in (column, row))
    terms = polynomial_terms(*scale_positions(x, y, shape), order).T
    if min(valid[k].sum() for k in range(len(levels)) if valid[k].any()) < _MIN_BLOCKS * count_terms(order):
        terms = terms[:, :1]
    value, use = levels[:, blocks].astype(float), valid[:, blocks]
    solved = np.zeros((len(levels), terms.shape[1]))
    for _ in range(_ROUNDS):
        solved = _solve_planes(value, use, weights, terms)
        residual = value - solved @ terms.T
        weight = use * weights[:, None]
        residual -= (weight * np.where(use, residual, 0)).sum(axis=0) / np.maximum(weight.sum(axis=0), 1e-300)
        spread = 1.4826 * np.array(
            [np.median(np.abs(r[u])) if u.any() else 0.0 for r, u in zip(residual, use, strict=True)]
        )
        keep = valid[:, blocks] & (np.abs(residual) <= _CLIP * np.maximum(spread, 1e-12)[:, None])
        keep &= keep.sum(axis=0) > 1
        if np.array_equal(keep, use) or not keep.any():
            break
        use = keep
    planes[:, : terms.shape[1]] = solved
    return planes


def _solve_planes(value: np.ndarray, use: np.ndarray, weights: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """(n, t) coefficients from the normal equations, the levels of the blocks eliminated."""
    n, t = len(value), terms.shape[1]
    weight = use * weights[:, None]
    total = np.maximum(weight.sum(axis=0), 1e-300)
    common = (weight * np.where(use, value, 0)).sum(axis=0) / total
    matrix, side = np.zeros((n, t, n, t)), np.zeros((n, t))
    for k in range(n):
        side[k] = terms.T @ (weight[k] * np.where(use[k], value[k] - common, 0))
        for j in range(k, n):
            share = (weight[k] if j == k else 0.0) - weight[k] * weight[j] / total
            matrix[k, :, j, :] = (terms * share[:, None]).T @ terms
            matrix[j, :, k, :] = matrix[k, :, j, :].T
    matrix, size = matrix.reshape(n * t, n * t), max(float(np.abs(matrix).max()), 1e-300)
    # the common plane is not determined: the weighted mean of all is zero; what no block determines is zero too
    constraint = np.concatenate([np.eye(t) * w for w in weights / weights.max()], axis=1)
    matrix = matrix + size * constraint.T @ constraint + 1e-9 * size * np.eye(n * t)
    return np.linalg.solve(matrix, side.ravel()).reshape(n, t)
