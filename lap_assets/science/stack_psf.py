"""The PSF of one band of a stacked skycell: from its own stars, or a stand-in where they are too few.

Here: choosing the stars, the order of the model and the fall-back. The model itself is `psf.py`'s.
"""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import sep

from lap_assets.errors import NoWork
from lap_assets.science.catalog import BandImage
from lap_assets.science.forced import PsfAt
from lap_assets.science.psf import PsfModel, fit_psf, measure_shape
from lap_assets.science.star_galaxy import select_psf_stars

_ENOUGH_STARS = 25


@dataclass(frozen=True)
class MoffatPsf:
    """A round Moffat profile, the same everywhere."""

    fwhm_px: float
    stamp_px: int
    beta: float = 3.0

    def evaluate(self, x: float, y: float) -> np.ndarray:
        """(s, s) float64 stamp, sum 1, centred on its middle pixel; each pixel is averaged over 5 x 5 points."""
        alpha2 = (self.fwhm_px / 2.0) ** 2 / (2.0 ** (1.0 / self.beta) - 1.0)
        fine = (np.arange(self.stamp_px * 5) - (self.stamp_px * 5 - 1) / 2.0) / 5.0
        profile = (1.0 + (fine[:, None] ** 2 + fine[None, :] ** 2) / alpha2) ** -self.beta
        stamp = profile.reshape(self.stamp_px, 5, self.stamp_px, 5).mean(axis=(1, 3))
        return stamp / stamp.sum()

    def evaluate_many(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The same stamp n times, (n, s, s)."""
        return np.repeat(self.evaluate(0.0, 0.0)[None], len(x), axis=0)


@dataclass(frozen=True)
class StackPsf:
    """The PSF of a band of a skycell and how it was come by; `degree` is -1 for the Moffat stand-in."""

    model: PsfAt
    fwhm_px: float
    n_stars: int
    degree: int


def stamp_size(fwhm_px: float) -> int:
    """Odd number of pixels that holds a PSF and its wings: 4 FWHM to each side, at least 25 pixels."""
    return max(25, 2 * int(np.ceil(4.0 * fwhm_px)) + 1)


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
) -> StackPsf:
    """Model the PSF from the stars among objects at (x, y); with fewer than `min_stars`, a Moffat of `fwhm_px`.

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
    return StackPsf(MoffatPsf(fwhm_px, size), fwhm_px, 0, -1)


def _measure_fwhm(model: PsfModel, shape: tuple[int, int]) -> float:
    """FWHM (pixels) in the middle of the image."""
    return measure_shape(model.evaluate((shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0)).fwhm_px
