"""Wings of a PSF that follow rings about the star, not single pixels.

A PSF whose pixels vary freely (`psf.py`) has in its wings the noise of the few stars that it was fitted to, 1e-4 of the
flux in a pixel and more; filters made of it draw that about every bright star. Here: the rings. Not here: the model
itself, the filters (`zogy`).
"""

import numpy as np

from lap_assets.science.difference import Psf
from lap_assets.science.psf_grid import PsfGrid
from lap_assets.science.star_shapes import measure_moments

_FROM_FWHM, _FULLY = 2.0, 1.25  # radius from which on rings stand for pixels, and times it they do so alone
_GROWTH, _LEAST_PX = 1.18, 0.3  # a ring's outer radius over its inner one, and what is added to it
_STEEPNESS = 5.0  # of the power law about which the profile is interpolated


def smooth_wings(psf: Psf) -> Psf:
    """A PSF whose wings are the means of rings, ellipses of the shape that the core has.

    Up to 2 FWHM nothing changes but the normalisation. Profiles that are no grids of stamps are smooth as they are.
    """
    if not isinstance(psf, PsfGrid):
        return psf
    size = psf.stamp_px
    r = _elliptical_radius(psf.mean)
    radius = _FROM_FWHM * psf.fwhm_px
    if not (r[r <= size // 2] > _FULLY * radius).any():
        return psf
    means, profiles = _lay_rings(r, radius / _FULLY, size // 2)
    share = np.clip((r - radius) / ((_FULLY - 1.0) * radius), 0.0, 1.0)
    stamps = psf.stamps.reshape(-1, size * size).astype(np.float64)
    smooth = stamps * (1.0 - share) + (stamps @ means.T) @ profiles * share
    total = smooth.sum(axis=1, keepdims=True)
    known = psf.known.reshape(-1, 1) & (total > 0)
    smooth = np.where(known, smooth / np.where(known, total, 1.0), 0.0)
    return PsfGrid(psf.x, psf.y, smooth.reshape(psf.stamps.shape).astype(np.float32))


def _elliptical_radius(stamp: np.ndarray) -> np.ndarray:
    """(s²,) distance from the middle, at least 1 px, along ellipses of the core's shape that keep areas."""
    e1, e2 = measure_moments(stamp[None])[0, 3:5]
    half = stamp.shape[0] // 2
    y, x = (grid.ravel() for grid in np.mgrid[-half : half + 1, -half : half + 1])
    if not np.hypot(e1, e2) < 0.5:
        e1 = e2 = 0.0
    square = ((1.0 - e1) * x**2 - 2.0 * e2 * x * y + (1.0 + e1) * y**2) / np.sqrt(1.0 - e1**2 - e2**2)
    return np.sqrt(np.maximum(square, 1.0))


def _lay_rings(r: np.ndarray, innermost: float, outermost: float) -> tuple[np.ndarray, np.ndarray]:
    """(n, s²) that take the level of n rings from a stamp, and (n, s²) profiles that sum to a stamp with those.

    Levels are relative to a power law, and linear in the radius's logarithm between the middles of rings.
    """
    law = r**-_STEEPNESS
    edges = [innermost]
    while edges[-1] < outermost:
        edges.append(edges[-1] * _GROWTH + _LEAST_PX)
    # the corners belong to the last ring
    number = np.minimum(np.searchsorted(edges, r, side="right") - 1, len(edges) - 2)
    rings = np.array([number == k for k in range(len(edges) - 1) if (number == k).any()])
    weight = rings * law
    middle = (weight @ r) / weight.sum(axis=1)
    between = np.array([np.interp(np.log(r), np.log(middle), one) for one in np.eye(len(rings))])
    return rings / weight.sum(axis=1, keepdims=True), between * law
