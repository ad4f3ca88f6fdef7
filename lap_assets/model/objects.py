"""What the columns of object catalogues mean where a number is a code: flags and extendedness.

Only the vocabulary; measuring is `science/catalog.py`, `science/forced.py` and `science/star_galaxy.py`.
"""

from enum import IntEnum, IntFlag


class ObjectFlag(IntFlag):
    """Bits of the column `flags` (detection image) and of `flags_<band>` (that band)."""

    BLENDED = 1 << 0  # was one detection with a neighbour before deblending
    NEIGHBOUR = 1 << 1  # more than a tenth of the Kron ellipse belongs to neighbours (filled in by symmetry)
    SATURATED = 1 << 2  # a saturated pixel or a bleed trail in the object
    INCOMPLETE = 1 << 3  # more than a tenth of the Kron ellipse has no data
    BAD_CENTRE = 1 << 4  # a pixel within one FWHM of the centre is not usable
    ROUGH_PSF = 1 << 5  # too few stars, and no PSF of the inputs: a Moffat profile of their FWHM
    NO_CENTROID = 1 << 6  # the windowed centroid failed; the isophotal one is given


# what makes a shape worthless, in stars for the PSF as in galaxies
SPOILT = ObjectFlag.SATURATED | ObjectFlag.INCOMPLETE | ObjectFlag.BAD_CENTRE | ObjectFlag.NO_CENTROID


class Extendedness(IntEnum):
    """Column `extendedness`, as DES Y3 (Sevilla-Noarbe et al. 2018): how sure it is that an object is resolved."""

    STAR = 0
    LIKELY_STAR = 1
    LIKELY_GALAXY = 2
    GALAXY = 3
    UNKNOWN = -1
