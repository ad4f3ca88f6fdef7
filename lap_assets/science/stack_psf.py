"""The PSF of one band of a stacked skycell: the mean of its inputs' PSFs, or from its own stars.

Here: which inputs count where; choosing the stars, the order of the model and the fall-back. The models themselves are
`psf_grid.py`'s and `psf.py`'s.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import sep

from lap_assets.errors import NoWork
from lap_assets.science.catalog import BandImage
from lap_assets.science.forced import PsfAt
from lap_assets.science.moffat import MoffatPsf, stamp_size
from lap_assets.science.psf import PsfModel, fit_psf, measure_shape
from lap_assets.science.psf_grid import PsfGrid, average_grids
from lap_assets.science.star_galaxy import select_psf_stars

_ENOUGH_STARS = 25
_BETA = 3.0  # of the stand-in
_NODE_PX = 32  # half-width of the box about a node in which inputs are counted


@dataclass(frozen=True)
class StackPsf:
    """The PSF of a band of a skycell and how it was come by; `degree` is -1 where its own stars were too few."""

    model: PsfAt
    fwhm_px: float
    n_stars: int
    degree: int


def average_psfs(grids: Sequence[PsfGrid | None], used: np.ndarray, weights: np.ndarray) -> PsfGrid:
    """The PSF of a stack at the nodes of its inputs' grids: their mean, each by its weight times the part of the pixels
    around the node in which it was used.

    Parameters
    ----------
    grids : sequence of PsfGrid or None
        Of all inputs, on the same nodes; those without a PSF do not count.
    used : (p, ny, nx) int
        Bit k of plane p: input 31·p + k entered.
    weights : (n,) float

    Raises
    ------
    NoWork
        If no input has a PSF.
    """
    known = [k for k, grid in enumerate(grids) if grid is not None and weights[k] > 0]
    if not known:
        raise NoWork("no input has a PSF")
    return average_grids([grids[k] for k in known], _share_nodes(grids[known[0]], used, weights)[known])


def reduce_psf(
    grid: PsfGrid, others: Sequence[PsfGrid | None], used: np.ndarray, weights: np.ndarray, gone: Sequence[int]
) -> PsfGrid | None:
    """The PSF of a stack without some inputs, by arithmetic at each node; None where an input's PSF is not known.

    Parameters
    ----------
    grid : PsfGrid
        From `average_psfs`.
    others : sequence of PsfGrid or None
        Of the inputs taken out, on any nodes.
    used : (p, ny, nx) int
        Bit k of plane p: input 31·p + k entered, with those taken out.
    weights : (n,) float
    gone : sequence of int
        The inputs taken out.
    """
    if any(one is None for one in others):
        return None
    shares = _share_nodes(grid, used, weights)
    total = np.where(grid.known, shares.sum(axis=0), 0.0)
    gx, gy = np.meshgrid(grid.x, grid.y)
    stamps = total[..., None, None] * grid.stamps.astype(np.float64)
    half = grid.stamp_px // 2
    for row, other in zip(gone, others, strict=True):
        theirs = other.evaluate_many(gx.ravel(), gy.ravel())
        wing = theirs.shape[-1] // 2
        reach = min(half, wing)
        inner = np.s_[..., half - reach : half + reach + 1, half - reach : half + reach + 1]
        cut = np.s_[:, wing - reach : wing + reach + 1, wing - reach : wing + reach + 1]
        stamps[inner] -= shares[row][..., None, None] * theirs[cut].reshape(*gx.shape, 2 * reach + 1, 2 * reach + 1)
    left = total - shares[list(gone)].sum(axis=0)
    sums = stamps.sum(axis=(2, 3))
    good = (left > 1e-6) & (sums > 0.5 * left) & (stamps[:, :, half, half] > 0)
    if not good.any():
        return None
    stamps[~good] = 0.0
    stamps[good] /= sums[good][:, None, None]
    return PsfGrid(grid.x, grid.y, stamps.astype(np.float32))


def _share_nodes(grid: PsfGrid, used: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(n, ny, nx) weight of each input at the nodes: its own times the part of the pixels around that it entered."""
    shares = np.zeros((len(weights), grid.y.size, grid.x.size))
    for j, y in enumerate(grid.y):
        for i, x in enumerate(grid.x):
            box = used[:, _around(y, used.shape[1]), _around(x, used.shape[2])]
            shares[:, j, i] = [w * np.mean((box[k // 31] >> (k % 31)) & 1) for k, w in enumerate(weights)]
    return shares


def _around(at: float, size: int) -> slice:
    """Every fourth pixel about a place along one axis of an image."""
    return slice(max(int(at) - _NODE_PX, 0), min(int(at) + _NODE_PX + 1, size), 4)


def model_stack_psf(
    band: BandImage,
    segments: np.ndarray,
    ids: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    flux: np.ndarray,
    snr: np.ndarray,
    clean: np.ndarray,
    fwhm_px: float,
    min_snr: float = 50.0,
    min_stars: int = 5,
    expected: PsfGrid | None = None,
) -> StackPsf:
    """Model the PSF from the stars among objects at (x, y); with fewer than `min_stars`, the mean of the inputs' PSFs.

    The polynomial order of its variation is what the number of stars bears: 2 from 60, 1 from 20, else 0.

    Parameters
    ----------
    segments, ids : (ny, nx) int32, (n,) int
        Segments of all objects, and those of the objects given; other objects' pixels around a star are set to the sky.
    flux, snr : (n,) float
        In some aperture around each object.
    clean : (n,) bool
        Neither saturated nor on bad pixels; neighbours are taken away.
    fwhm_px : float
        Expected seeing.
    expected : PsfGrid or None
        Of the inputs (`average_psfs`); None: a Moffat profile of `fwhm_px` stands in.
    """
    size = stamp_size(fwhm_px)
    x, y = np.array(x, dtype=np.float64), np.array(y, dtype=np.float64)  # sep wants writable arrays
    reach = np.full(len(x), 3.0 * fwhm_px)
    half_light = np.zeros(0)
    if len(x):
        own = {"segmap": segments.astype(np.int32), "seg_id": np.array(ids, np.int32)}
        half_light = sep.flux_radius(band.sci, x, y, reach, 0.5, mask=band.empty, **own)[0]
    stars = select_psf_stars(np.nan_to_num(half_light), snr, clean, min_snr)
    # bright stars alone where they are many: what lies unseen below a star weighs less the brighter it is
    stars = stars[: max(_ENOUGH_STARS, np.count_nonzero(snr[stars] >= 3.0 * min_snr))]
    n = len(stars)
    if n >= min_stars:
        degree = 2 if n >= 60 else 1 if n >= 20 else 0
        # stars cut by the image's edge or a hole are no use to the model, which raises when none is left
        with suppress(NoWork):
            alone = np.where((segments > 0) & ~np.isin(segments, ids[stars]), np.float32(0), band.sci)
            model = fit_psf(
                alone, band.var, band.unusable, x[stars], y[stars], flux[stars], stamp_px=size, degree=degree
            )
            if model.n_stars >= min_stars:
                return StackPsf(model, _measure_fwhm(model, band.sci.shape), model.n_stars, model.degree)
    if expected is not None:
        return StackPsf(expected, expected.fwhm_px, 0, -1)
    return StackPsf(MoffatPsf(fwhm_px, _BETA), fwhm_px, 0, -1)


def _measure_fwhm(model: PsfModel, shape: tuple[int, int]) -> float:
    """FWHM (pixels) in the middle of the image."""
    return measure_shape(model.evaluate((shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0)).fwhm_px
