"""The product table: every product of the platform, once.

For each product: how it is partitioned, what its unit of work is, which members a unit publishes and what their
structure is (checked at publish and by `lap fsck`), whether it is an intermediate that may be cleaned, and what it is
made from. A product's code number goes up when a change of code changes its bytes.
"""

from dataclasses import dataclass

from lap_assets.errors import BadInput

# partition kinds: names of the partition sets (architecture, section 3)
EXPOSURES, EXPOSURE_CELLS, CELL_BANDS, CELLS, CALIBRATIONS = (
    "exposures",
    "exposure_cells",
    "cell_bands",
    "cells",
    "calibrations",
)
KEY_PARTS = {
    EXPOSURES: ("exposure",),
    EXPOSURE_CELLS: ("exposure", "cell"),
    CELL_BANDS: ("cell", "band"),
    CELLS: ("cell",),
    CALIBRATIONS: ("camera", "kind", "band", "valid_from"),
}
CALIBRATION_COLLECTION = "calib"
# the product that holds the masters of each kind, in the order in which they build on one another
MASTERS = {
    "bias": "master_biases",
    "dark": "master_darks",
    "flat": "master_flats",
    "sky": "master_skies",
    "fringe": "master_fringes",
}


@dataclass(frozen=True)
class Member:
    """One file of a unit.

    Attributes
    ----------
    name : str
        File name, e.g. `image.fits`.
    planes : tuple of str
        Image HDUs that must be there, all of one shape (FITS members).
    columns : tuple of str
        Columns that must be there (Parquet members).
    optional : bool
    """

    name: str
    planes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True)
class Product:
    """One row of the product table; see the module's text.

    `compressed`: the images are kept tile-compressed, floats rounded far below their noise.
    """

    name: str
    title: str
    partitions: str
    unit: str  # "chip", "skycell", or "" where the partition is the unit
    members: tuple[Member, ...]
    inputs: tuple[str, ...]
    code: int = 1
    intermediate: bool = True
    compressed: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the parts of a data id, unit included: `("exposure", "cell", "skycell")`."""
        return KEY_PARTS[self.partitions] + ((self.unit,) if self.unit else ())


_IMAGE = Member("image.fits", planes=("SCI", "MASK", "VAR"))
_STACK = Member("image.fits", planes=("SCI", "MASK", "VAR", "NINPUT"))
_PREVIEW = Member("preview.png", optional=True)
_STACK_INPUTS = Member("inputs.parquet", columns=("exposure", "weight", "fwhm_arcsec"))
_PSF = Member("psf.fits", planes=("PSF",), optional=True)
_USED = Member("used.fits", planes=("USED0",), optional=True)
_MATCHED = Member("matched.fits", planes=("SCI", "VAR"), optional=True)

PRODUCTS: dict[str, Product] = {
    p.name: p
    for p in (
        Product(
            "master_biases",
            "Master bias of each chip",
            CALIBRATIONS,
            "chip",
            (_IMAGE, _PREVIEW),
            (),
            intermediate=False,
        ),
        Product(
            "master_darks",
            "Master dark of each chip, electrons per second",
            CALIBRATIONS,
            "chip",
            (_IMAGE, _PREVIEW),
            ("master_biases",),
            intermediate=False,
        ),
        Product(
            "master_flats",
            "Master flat of each chip",
            CALIBRATIONS,
            "chip",
            (_IMAGE, _PREVIEW),
            ("master_biases", "master_darks"),
            intermediate=False,
        ),
        Product(
            "master_skies",
            "Sky frame (illumination correction) of each chip",
            CALIBRATIONS,
            "chip",
            (_IMAGE, _PREVIEW),
            ("master_biases", "master_darks", "master_flats"),
            intermediate=False,
        ),
        Product(
            "master_fringes",
            "Fringe pattern of each chip",
            CALIBRATIONS,
            "chip",
            (_IMAGE, _PREVIEW),
            ("master_biases", "master_darks", "master_flats", "master_skies"),
            intermediate=False,
        ),
        Product(
            "chips",
            "Calibrated chips, electrons",
            EXPOSURES,
            "chip",
            (_IMAGE, _PREVIEW),
            ("master_biases", "master_darks", "master_flats", "master_skies", "master_fringes"),
            code=2,
        ),
        Product(
            "solutions",
            "Sources, background, astrometry, zero point and PSF of an exposure",
            EXPOSURES,
            "",
            (
                Member("solution.json"),
                Member("sources.parquet", columns=("chip", "x", "y", "ra", "dec", "flux", "flux_err")),
                Member("backgrounds.fits"),
                Member("skies.fits", optional=True),
                Member("psfs.fits", optional=True),
                _PREVIEW,
            ),
            ("chips",),
            code=3,
            intermediate=False,  # small, and what a re-created warp is made with
        ),
        Product(
            "joint_solutions",
            "Joint calibration of a run: zero points over the focal plane, astrometry, which chips are used",
            CELL_BANDS,
            "",
            (
                Member("zeropoints.parquet", columns=("exposure", "dzp_mag", "dzp_err_mag", "n_stars")),
                Member("selection.parquet", columns=("exposure", "chip", "used", "reason"), optional=True),
                Member("astrometry.json", optional=True),
                _PREVIEW,
            ),
            ("solutions",),
            intermediate=False,  # small, and frozen
        ),
        Product(
            "warps",
            "Exposures resampled to skycells, nJy",
            EXPOSURE_CELLS,
            "skycell",
            (
                _IMAGE,
                _PSF,
                Member("levels.fits", planes=("LEVEL", "COUNT", "SKY"), optional=True),
                Member("stars.parquet", columns=("x", "y", "flux_njy", "snr"), optional=True),
                _PREVIEW,
            ),
            ("chips", "solutions", "joint_solutions"),
            code=2,
        ),
        Product(
            "stacks",
            "First-pass stacks (enough inputs), nJy",
            CELL_BANDS,
            "skycell",
            (_STACK, _STACK_INPUTS, _USED, _PSF, _MATCHED, _PREVIEW),
            ("warps",),
            code=2,
        ),
        Product(
            "diffs",
            "Difference images and their sources",
            EXPOSURE_CELLS,
            "skycell",
            (
                _IMAGE,
                Member("sources.parquet", columns=("x", "y", "ra", "dec", "flux", "flux_err", "snr")),
                _PSF,
                _PREVIEW,
            ),
            ("warps", "stacks"),
            code=3,
        ),
        Product(
            "streak_masks",
            "Streaks found on the differences",
            EXPOSURE_CELLS,
            "skycell",
            (Member("streaks.parquet", columns=("x0", "y0", "x1", "y1", "width_px", "snr")), _PREVIEW),
            ("diffs",),
        ),
        Product(
            "final_stacks",
            "The complete set of stacks, destreaked, nJy",
            CELL_BANDS,
            "skycell",
            (
                _STACK,
                _STACK_INPUTS,
                _USED,
                _PSF,
                _MATCHED,
                Member("sky_corrected.fits", planes=("SCI",), optional=True),
                _PREVIEW,
            ),
            ("stacks", "warps", "streak_masks"),
            code=2,
            intermediate=False,
            compressed=True,
        ),
        Product(
            "object_catalogs",
            "Objects of a cell, all bands",
            CELLS,
            "skycell",
            (
                Member("objects.parquet", columns=("object_id", "ra", "dec", "x", "y")),
                Member("segments.fits", planes=("SEGMENT",)),
                _PREVIEW,
            ),
            ("final_stacks",),
            code=2,
            intermediate=False,
        ),
        Product(
            "shear_catalogs",
            "PSF-corrected shapes of background galaxies",
            CELLS,
            "skycell",
            (Member("shear.parquet", columns=("object_id", "ra", "dec", "e1", "e2", "weight")), _PREVIEW),
            ("object_catalogs", "final_stacks"),
            intermediate=False,
        ),
        Product(
            "mass_maps",
            "Aperture-mass E and B maps and their peaks",
            CELLS,
            "",
            (
                Member("map.fits", planes=("E", "B", "SNR", "SNR_B")),
                Member("peaks.parquet", columns=("ra", "dec", "snr", "radius_arcmin")),
                _PREVIEW,
            ),
            ("shear_catalogs",),
            intermediate=False,
        ),
        Product(
            "mass_fits",
            "NFW fit at the highest peak",
            CELLS,
            "",
            (
                Member("fit.json"),
                Member("profile.parquet", columns=("radius_mpc", "gamma_t", "gamma_x", "gamma_err", "n")),
                _PREVIEW,
            ),
            ("shear_catalogs", "mass_maps"),
            intermediate=False,
        ),
        Product(
            "transients",
            "Objects in the differences, with light curves",
            CELLS,
            "",
            (
                Member("transients.parquet", columns=("transient_id", "ra", "dec", "n_detections", "snr_max")),
                Member("lightcurves.parquet", columns=("transient_id", "exposure", "band", "mjd", "flux", "flux_err")),
                _PREVIEW,
            ),
            ("diffs", "streak_masks"),
            intermediate=False,
        ),
    )
}


def home_of(collection: str, product: str) -> str:
    """The collection a product lives in: masters lie outside all collections."""
    return CALIBRATION_COLLECTION if get_product(product).partitions == CALIBRATIONS else collection


def get_product(name: str) -> Product:
    """The product called `name`; raises `BadInput` that lists the names there are."""
    if name not in PRODUCTS:
        raise BadInput(f"unknown product {name!r}; there are: {', '.join(PRODUCTS)}")
    return PRODUCTS[name]
