"""Stars that several exposures share: which measurements belong to one star, and their positions eliminated.

Positions here are in one tangent plane that all exposures share. What the columns of a design mean is
`science/focal_plane_geometry.py`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

_ARCSEC = 1.0 / 3600.0


@dataclass(frozen=True)
class Observations:
    """Measurements of stars, block by block (a block is one chip of one exposure).

    Attributes
    ----------
    block : (n,) int array
        Rising.
    star : (n,) int array
        The first stars are those of the reference catalogue, in its order.
    x, y : (n,) arrays
        Pixels.
    error : (n,) array
        Per axis, degrees.
    moved : (n, 2) array
        Proper motion of the star since the mean epoch, degrees in the common plane.
    ref, ref_err : (n_stars, 2) arrays
        Reference positions at the mean epoch in the common plane, and their errors, degrees; NaN without a reference.
    """

    block: np.ndarray
    star: np.ndarray
    x: np.ndarray
    y: np.ndarray
    error: np.ndarray
    moved: np.ndarray
    ref: np.ndarray
    ref_err: np.ndarray

    @property
    def n_stars(self) -> int:
        return len(self.ref)

    def drop_lonely(self, used: np.ndarray, used_ref: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Without observations that nothing is compared with: of stars with neither a second one nor a reference."""
        count = np.bincount(self.star[used], minlength=self.n_stars)
        kept = used & (count + used_ref > 1)[self.star]
        return kept, used_ref & (np.bincount(self.star[kept], minlength=self.n_stars) > 0)

    def average(self, position: np.ndarray, weight: np.ndarray, ref_weight: np.ndarray) -> "StarFit":
        """Stars' positions, weighted means of observations at `position` (n, 2) and references, and residuals.

        Parameters
        ----------
        weight : (n,) array
            Inverse variances; 0 for what is not used.
        ref_weight : (n_stars, 2) array
        """
        total = np.bincount(self.star, weight, self.n_stars)[:, None] + ref_weight
        sums = np.stack([np.bincount(self.star, weight * one, self.n_stars) for one in position.T], axis=1)
        safe = np.where(total > 0, total, 1.0)
        ref = np.where(np.isfinite(self.ref), self.ref, 0.0)
        mean = (sums + ref_weight * ref) / safe
        return StarFit(safe, position - mean[self.star], ref - mean)


@dataclass(frozen=True)
class StarFit:
    """Stars' total weights (n_stars, 2), residuals of observations (n, 2) and of references (n_stars, 2), degrees."""

    total: np.ndarray
    residual: np.ndarray
    ref_residual: np.ndarray


def match_observations(
    planes: Sequence[np.ndarray],
    references: Sequence[np.ndarray],
    ref: np.ndarray,
    ref_err: np.ndarray,
    pixels: Sequence[Mapping[str, np.ndarray]],
    radius_arcsec: float,
) -> Observations:
    """Group the measurements of several exposures by position: mutual nearest neighbours within a radius.

    Exposures are taken in order; a measurement joins a reference or a star already known, else founds a new star.

    Parameters
    ----------
    planes : sequence of (n, 2) arrays
        Per exposure: positions in the common plane, degrees.
    references : sequence of (n_ref, 2) arrays
        Per exposure: reference positions at its epoch; NaN rows match nothing.
    ref, ref_err : (n_ref, 2) arrays
        Reference positions at the mean epoch, and their errors.
    pixels : sequence of mappings
        Per exposure: arrays `block`, `x`, `y`, `error`.
    radius_arcsec : float
    """
    known = np.zeros((0, 2))
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in ("block", "star", "x", "y", "error", "moved")}
    for plane, place, one in zip(planes, references, pixels, strict=True):
        everything = np.concatenate([place, known])
        star = _match(plane, everything, radius_arcsec * _ARCSEC)
        new = star < 0
        star[new] = len(everything) + np.arange(int(new.sum()))
        known = np.concatenate([known, plane[new]])
        moved = np.zeros((len(star), 2))
        of_ref = star < len(ref)
        moved[of_ref] = (place - ref)[star[of_ref]]
        for name, values in (dict(one) | {"star": star, "moved": moved}).items():
            pieces[name].append(values)
    joined = {name: np.concatenate(values) for name, values in pieces.items()}
    none = np.full((len(known), 2), np.nan)
    usable = np.isfinite(ref) & np.isfinite(ref_err)
    return _compact(
        Observations(
            **joined,
            ref=np.concatenate([np.where(usable, ref, np.nan), none]),
            ref_err=np.concatenate([np.where(usable, ref_err, np.nan), none]),
        )
    )


def _compact(seen: Observations) -> Observations:
    """Only stars with a second observation or a reference, numbered anew; observations by block."""
    count = np.bincount(seen.star, minlength=seen.n_stars)
    wanted = (count > 0) & (count + np.isfinite(seen.ref[:, 0]) > 1)
    number = np.cumsum(wanted) - 1
    rows = np.nonzero(wanted[seen.star])[0]
    rows = rows[np.argsort(seen.block[rows], kind="stable")]
    chosen = {name: getattr(seen, name)[rows] for name in ("block", "x", "y", "error", "moved")}
    return replace(
        seen, **chosen, star=number[seen.star[rows]], ref=seen.ref[wanted], ref_err=seen.ref_err[wanted]
    )  # fmt: skip


def _match(plane: np.ndarray, known: np.ndarray, radius: float) -> np.ndarray:
    """Index of each position's mutual nearest neighbour within the radius, −1 without one."""
    result = np.full(len(plane), -1)
    finite = np.nonzero(np.isfinite(known).all(axis=1))[0]
    if not len(finite) or not len(plane):
        return result
    distance, index = cKDTree(known[finite]).query(plane, distance_upper_bound=radius)
    near = np.nonzero(np.isfinite(distance))[0]
    wanted, place = np.unique(index[near], return_inverse=True)
    _, back = cKDTree(plane).query(known[finite[wanted]])
    mutual = back[place] == near
    result[near[mutual]] = finite[index[near[mutual]]]
    return result


def eliminate_stars(
    design: Sequence[tuple[np.ndarray, np.ndarray]],
    seen: Observations,
    stars: StarFit,
    weight: np.ndarray,
    active: np.ndarray,
    group: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Normal equations of the geometry with every star's position eliminated.

    Minimising Σ w (y + B δ − s)² + Σ w_ref (z − s)² over all s leaves N δ = b with N = Σ w BᵀB − Σ_s gᵀg / h, where
    g = Σ w B over a star's observations, h its total weight, and b = −Σ w Bᵀ (y − s₀).

    Parameters
    ----------
    design : sequence of (columns, values)
        Per block: (k,) int columns, and values (2, n, k) for both axes.
    weight : (n,) array
        Inverse variances, 0 for what is not used.
    active : (n_columns,) bool array
        Columns that take part; the others stay 0.
    group : (n_stars,) int array
        Stars that share most of their columns (the same chip), eliminated together.

    Returns
    -------
    normal (n_columns, n_columns), right (n_columns,)
    """
    n_columns = len(active)
    normal, right = np.zeros((n_columns, n_columns)), np.zeros(n_columns)
    starts = np.searchsorted(seen.block, np.arange(len(design) + 1))
    weighted: list[list[np.ndarray]] = [[], []]
    columns = []
    for k, (every, all_values) in enumerate(design):
        index, values = every[active[every]], all_values[:, :, active[every]]
        rows = slice(starts[k], starts[k + 1])
        for axis in (0, 1):
            times = values[axis] * weight[rows, None]
            normal[np.ix_(index, index)] += values[axis].T @ times
            right[index] -= times.T @ stars.residual[rows, axis]
            weighted[axis].append(times.ravel())
        columns.append(np.broadcast_to(index, values.shape[1:]).ravel())
    length = np.concatenate([np.full(values.shape[1], active[every].sum()) for every, values in design])
    pointer = np.concatenate([[0], np.cumsum(length)])
    member = csr_matrix(
        (np.ones(len(seen.star)), (seen.star, np.arange(len(seen.star)))), shape=(seen.n_stars, len(seen.star))
    )
    for axis in (0, 1):
        products = csr_matrix(
            (np.concatenate(weighted[axis]), np.concatenate(columns), pointer), shape=(len(seen.star), n_columns)
        )
        _subtract_stars(normal, (member @ products).tocsr(), stars.total[:, axis], group)
    return normal, right


def _subtract_stars(normal: np.ndarray, sums: csr_matrix, total: np.ndarray, group: np.ndarray) -> None:
    """Take Σ gᵀg / h off the normal matrix, stars of one chip at a time, in which most columns are empty."""
    for one in np.unique(group):
        part = sums[np.nonzero(group == one)[0]]
        active, place = np.unique(part.indices, return_inverse=True)
        if not len(active):
            continue
        dense = np.zeros((part.shape[0], len(active)))
        dense[np.repeat(np.arange(part.shape[0]), np.diff(part.indptr)), place] = part.data
        dense /= np.sqrt(total[group == one])[:, None]
        normal[np.ix_(active, active)] -= dense.T @ dense
