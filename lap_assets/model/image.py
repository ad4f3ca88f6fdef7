"""Images with mask and variance, and the mask bits, each named once.

Pure containers: reading and writing them is `store/`'s, computing with them is `science/`'s.
"""

from dataclasses import dataclass, field
from enum import IntFlag

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS


class Mask(IntFlag):
    """Mask bits of every image of the platform (int16 planes)."""

    BAD = 1 << 0  # defect of the detector, from the master calibrations
    SATURATED = 1 << 1
    BLEED = 1 << 2  # charge trail of a saturated star
    COSMIC_RAY = 1 << 3
    EDGE = 1 << 4  # no complete interpolation kernel here
    NO_DATA = 1 << 5  # outside every chip, or not finite
    STREAK = 1 << 6  # satellite or aircraft trail
    SUSPECT = 1 << 7  # linearity not trusted
    CLIPPED = 1 << 8  # at least one input was rejected here (stacks; information only)
    DETECTED = 1 << 9  # part of a detection (information only)
    CROSSTALK = 1 << 10
    INTERPOLATED = 1 << 11  # value filled in from neighbours (information only)


# pixels that must not enter a measurement
UNUSABLE = Mask.BAD | Mask.SATURATED | Mask.BLEED | Mask.COSMIC_RAY | Mask.EDGE | Mask.NO_DATA | Mask.STREAK
# pixels that carry no information at all: weight zero in a stack (saturated cores stay, flagged)
NO_WEIGHT = UNUSABLE & ~Mask.SATURATED & ~Mask.BLEED


@dataclass
class MaskedImage:
    """Science, mask and variance planes of one shape.

    Attributes
    ----------
    sci : (ny, nx) float32
        Values in `header["BUNIT"]`.
    mask : (ny, nx) int16
        Bits of `Mask`.
    var : (ny, nx) float32
        Variance in BUNIT squared; not finite or <= 0 where there is no data.
    header : astropy.io.fits.Header
        WCS and what the product says of itself; no clock, no path.
    planes : dict of str to (ny, nx) array
        Further planes, e.g. `NINPUT` (int16) of stacks.
    """

    sci: np.ndarray
    mask: np.ndarray
    var: np.ndarray
    header: fits.Header = field(default_factory=fits.Header)
    planes: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        return self.sci.shape

    @property
    def wcs(self) -> WCS:
        """World coordinate system of the planes, from the header."""
        return WCS(self.header)

    @property
    def usable(self) -> np.ndarray:
        """(ny, nx) bool: pixels that may enter a measurement."""
        return ((self.mask & int(UNUSABLE)) == 0) & np.isfinite(self.sci) & (self.var > 0)
