"""Which chips of an exposure took something larger for stars, told from all its chips together.

A chip chooses its stars by itself, as the densest stretch of sizes (`science/detection.py`); on a cluster of galaxies
that is the galaxies' own. Here sizes are compared, within the chip and between chips; choosing again, and measuring
with the new choice, is the caller's, as is looking whether the new PSF fits its stars better.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from lap_assets.science.detection import select_stars

_WIDER = 1.2  # times the size of stars: no star; more than optics make of one seeing from a chip to the next
_MIN_LOCUS, _LOCUS_SHARE = 5, 0.2  # sources that make a locus: so many, and so many for each of those taken for stars
_MIN_STARS = 3  # where the size of stars is known from other chips
_BETTER = 0.7  # times the residual of the PSF before: better


def limit_star_sizes(sources: Mapping[str, pd.DataFrame], sizes: Mapping[str, float]) -> dict[str, float]:
    """Half-light radii above which sources are no stars, pix, of the chips whose choice of stars is in doubt.

    Stars are the smallest sources that many share. A chip is in doubt where a second locus lies below the one it
    chose, or where it chose sources much larger than the stars of other chips although it has some of that size. Seeing
    that differs over the focal plane leaves nothing below the locus of the stars, however much it differs. The usual
    size is the lower median over the smallest loci of all chips, so that it is right also where most chips chose wrong.

    Parameters
    ----------
    sources : mapping
        Of each chip, with columns as `select_stars` needs them and is_star.
    sizes : mapping
        Half-light radius of what each chip took for stars, pix; 0 or NaN where it could not be measured.

    Returns
    -------
    dict
        By chip; empty where none is in doubt.
    """
    known = {name: size for name, size in sorted(sizes.items()) if size > 0}
    smallest = {name: _find_smallest_locus(sources[name], size) for name, size in known.items()}
    usual = sorted(smallest.values())[(len(smallest) - 1) // 2] if smallest else np.inf
    limits = {}
    for name, size in known.items():
        if smallest[name] < size:
            limits[name] = _limit_between(smallest[name], size)
        elif size > _WIDER * usual:
            limit = _limit_between(usual, size)
            if select_stars(sources[name], max_radius_px=limit).sum() >= _MIN_STARS:
                limits[name] = limit
    return limits


def _limit_between(star: float, size: float) -> float:
    """Above stars, and clear of the sources of radius `size` that were taken for them."""
    return star * min(_WIDER, float(np.sqrt(size / star)))


def fits_better(residual: float, before: float) -> bool:
    """Whether a PSF of other stars is to be believed, by the core residuals (`PsfModel.residual`) of both.

    Stars are alike and a model fits them; galaxies, and what is left of cosmic rays, are not.
    """
    return residual < _BETTER * before


def _find_smallest_locus(sources: pd.DataFrame, size: float) -> float:
    """Radius of the smallest locus at or below that of the chosen stars of radius `size`."""
    needed = max(_MIN_LOCUS, _LOCUS_SHARE * float(np.sum(sources.is_star)))
    while True:
        smaller = select_stars(sources, max_radius_px=size / _WIDER)
        if smaller.sum() < needed:
            return size
        size = float(sources.radius[smaller].median())
