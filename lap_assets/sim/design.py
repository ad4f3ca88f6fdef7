"""What each size of the simulated survey consists of: camera, fields, nights, depths, densities. Numbers, no drawing.

The draws themselves (what departs from nominal in a given seed) belong to the modules that use them; here is only the
common way to a random generator, so that no draw depends on another's order or on the number of workers.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from lap_assets.errors import BadInput

CHIPS = ("c0", "c1", "c2", "c3")  # south-east, south-west, north-east, north-west (x runs to the west)
PIXEL_SCALE_ARCSEC = 0.4
OVERSCAN_COLUMNS = 32
NOMINAL_GAIN = 1.5  # e-/ADU
NOMINAL_READ_NOISE_E = 5.0
FULL_WELL_E = 86000.0
REF_EPOCH_YR = 2016.0


@dataclass(frozen=True)
class BandDesign:
    """One band: exposure time, sky and zero point (mag of 1 e- in one exposure at full transparency)."""

    exptime_s: float
    zero_point_mag: float
    sky_mag_arcsec2: float
    flat_e: float

    @property
    def sky_e(self) -> float:
        """Electrons of sky per pixel and exposure."""
        return 10.0 ** (0.4 * (self.zero_point_mag - self.sky_mag_arcsec2)) * PIXEL_SCALE_ARCSEC**2


BANDS = {
    "g": BandDesign(150.0, 31.05, 22.0, 33000.0),
    "r": BandDesign(300.0, 31.79, 21.2, 36000.0),
    "i": BandDesign(280.0, 31.57, 20.3, 36000.0),
}


@dataclass(frozen=True)
class LensDesign:
    """The cluster: mass within 200 times the critical density, concentration, redshift."""

    m200c_msun: float = 1.0e15
    c200c: float = 4.0
    z: float = 0.2
    offset_arcsec: tuple[float, float] = (20.0, 60.0)  # of the cluster from the field's centre, drawn


@dataclass(frozen=True)
class SurveyDesign:
    """All choices of one simulated survey.

    Attributes
    ----------
    visits : tuple of int
        Exposures per band and pointing on each night; the last night's are the ones with the transients.
    pointings_arcmin : tuple of (east, north)
        Centres of the pointings about the field's centre.
    galaxy_density, star_density, field_density : float
        Per square arcminute: background galaxies to `faint_mag`, stars of 14 < r < 20.5, foreground galaxies.
    skycell_px, grid, overlap_px
        The local tessellation that covers the dithered field.
    """

    name: str
    seed: int
    camera: str
    chip_px: int
    gap_px: int
    bands: tuple[str, ...]
    nights: tuple[str, ...]
    visits: tuple[int, ...]
    pointings_arcmin: tuple[tuple[float, float], ...]
    dither_arcsec: float
    corner_distortion_px: float
    galaxy_density: float
    star_density: float
    brightest_star_mag: float
    transients: int
    transient_mag: tuple[float, float]
    skycell_px: int
    grid: tuple[int, int]
    overlap_px: int = 40
    ra_deg: float = 150.0
    dec_deg: float = 2.0  # on the border of two RINGS.V3 projection cells
    faint_mag: float = 23.7
    field_density: float = 1.0
    bias_frames: int = 5
    flat_frames: int = 5
    streak: bool = True
    lens: LensDesign = LensDesign()

    @property
    def half_field_px(self) -> float:
        """Half the width of the mosaic in pixels, gap included."""
        return self.chip_px + 0.5 * self.gap_px

    @property
    def corner_px(self) -> float:
        """Distance of the mosaic's corner from the optical axis in pixels."""
        return float(np.hypot(self.half_field_px, self.half_field_px))

    @property
    def sky_half_deg(self) -> tuple[float, float]:
        """Half the width of the sky to be populated (east-west, north-south), in degrees of the tangent plane."""
        margin = self.half_field_px * PIXEL_SCALE_ARCSEC + self.dither_arcsec + 30.0
        east = max(abs(x) for x, _ in self.pointings_arcmin) * 60.0
        north = max(abs(y) for _, y in self.pointings_arcmin) * 60.0
        return (margin + east) / 3600.0, (margin + north) / 3600.0

    def chip_origin_px(self, chip: str) -> tuple[float, float]:
        """Nominal pixel (0-based x, y) of a chip on which the optical axis would fall."""
        low, high = self.chip_px - 0.5 + 0.5 * self.gap_px, -0.5 - 0.5 * self.gap_px
        number = CHIPS.index(chip)
        return (high if number % 2 else low), (high if number // 2 else low)


_DEMO = {
    "name": "demo", "camera": "simcam", "chip_px": 1024, "gap_px": 30, "bands": ("g", "r", "i"),
    "nights": ("2024-03-08", "2024-03-10", "2024-03-15"), "visits": (2, 2, 2), "pointings_arcmin": ((0.0, 0.0),),
    "dither_arcsec": 40.0, "corner_distortion_px": 2.0, "galaxy_density": 45.0, "star_density": 2.5,
    "brightest_star_mag": 13.0, "transients": 10, "transient_mag": (19.0, 22.5), "skycell_px": 1220, "grid": (2, 2),
}  # fmt: skip
_TINY = _DEMO | {
    "name": "tiny", "camera": "simtiny", "chip_px": 384, "gap_px": 16, "bands": ("g", "r"), "dither_arcsec": 15.0,
    "corner_distortion_px": 0.8, "star_density": 6.0, "brightest_star_mag": 14.0, "transients": 3,
    "transient_mag": (19.0, 21.0), "skycell_px": 490,
}  # fmt: skip
_FIELD = _DEMO | {
    "name": "field", "pointings_arcmin": ((-6.0, 0.0), (6.0, 0.0)), "visits": (4, 2, 2), "grid": (4, 2),
}  # fmt: skip
SIZES = {"tiny": _TINY, "demo": _DEMO, "field": _FIELD}


def make_design(size: str, seed: int) -> SurveyDesign:
    """The design of a size (`tiny`, `demo`, `field`); raises `BadInput` for another size or a negative seed."""
    if size not in SIZES:
        raise BadInput(f"unknown size {size!r} of the simulated survey: use one of {', '.join(SIZES)}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise BadInput(f"seed {seed!r} of the simulated survey must be a whole number >= 0")
    return SurveyDesign(seed=seed, **SIZES[size])


def make_rng(seed: int, *labels: str | int) -> np.random.Generator:
    """The random generator of one named draw: `make_rng(1, "noise", "c0", 101)`."""
    return np.random.default_rng([seed, *(zlib.crc32(str(label).encode()) for label in labels)])
