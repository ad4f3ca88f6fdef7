"""What a subtraction gives, what it is allowed, and whether it can be believed: shared by both methods.

Not here: the methods (`alard_lupton`, `zogy`), the choice between them (`diff`), sources on the result
(`diff_sources`).
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lap_assets.model.image import MaskedImage
from lap_assets.science.matching_kernel import KernelLimits


class Psf(Protocol):
    """A point-spread function that may vary over the image (`psf_grid.PsfGrid`, `moffat.MoffatPsf`)."""

    @property
    def fwhm_px(self) -> float: ...

    def evaluate(self, x: float, y: float) -> np.ndarray:
        """(s, s) float64 of sum 1, centred on the middle pixel."""

    def evaluate_many(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n, s, s)."""


@dataclass(frozen=True)
class DiffLimits:
    """How two images are subtracted, and when the result counts as good.

    Attributes
    ----------
    method : str
        `alard_lupton` or `zogy`.
    kernel : KernelLimits
        Orders, stamps and tolerance for bad pixels (of `zogy`: stamps and bad pixels).
    decorrelate : bool
        Whiten the difference (Alard–Lupton; ZOGY's is white by construction).
    convolve : str
        Alard–Lupton: `template`, `science`, or `auto`, the sharper one.
    min_matched : int
        Stars found in both images.
    max_stamp_chi2 : float
        Median reduced χ² of matched stars, of those used in the fit and of those left out.
    max_kernel_sum_error : float
        |ln| of the kernel's sum: both images are calibrated.
    max_offset_px : float
        Between the positions of matched stars.
    max_sky_chi : float
        Scatter of the sky over √VAR, or the inverse of it.
    """

    method: str = "alard_lupton"
    kernel: KernelLimits = field(default_factory=KernelLimits)
    decorrelate: bool = True
    convolve: str = "auto"
    min_matched: int = 5
    max_stamp_chi2: float = 4.0
    max_kernel_sum_error: float = 0.2
    max_offset_px: float = 1.0
    max_sky_chi: float = 1.25


@dataclass(frozen=True)
class Difference:
    """A difference image and how good it is.

    Attributes
    ----------
    image : MaskedImage
        Science minus template, in nJy of the science image, in the PSF `psf`.
    method : str
        `alard_lupton` or `zogy`.
    convolved : str
        `template`, `science` (Alard–Lupton) or `both`.
    psf : Psf
        Of a source on the difference, normalised to the science image's flux.
    decorrelated : bool
        Whether the noise is as white as that of a warp.
    kernel : (size, size) float64
        At the centre of the image.
    kernel_sum : float
        Flux ratio of the image not convolved and the one convolved (ZOGY: science / template); both are calibrated, so
        far from 1 is a warning.
    n_matched : int
        Stars found in both images.
    n_stamps, n_rejected : int
        Of these, used in the fit, and thrown out of it.
    stamp_chi2 : float
        Median reduced χ² of the stars used (a model error of 2 % allowed).
    left_out_chi2 : float
        The same of stars that had no part in the fit; NaN where all were needed.
    sky_chi : float
        Robust scatter of image / √VAR over the pixels of the sky: 1 where VAR is right.
    correlation : (m, m) float64
        Noise autocorrelation of the difference, 1 at the centre.
    noisecov : float
        Variance of a sum over a large aperture / the sum of VAR (see `warp.covariance_factor`).
    astrometric_offset_px : (dx, dy)
        Of stars in the science image from those of the template.
    score : (ny, nx) float32 or None
        Signal to noise of a point source at each pixel, astrometric noise counted in (ZOGY's S_corr); 0 at
        pixels that are not usable.
    """

    image: MaskedImage
    method: str
    convolved: str
    psf: Psf
    decorrelated: bool
    kernel: np.ndarray
    kernel_sum: float
    n_matched: int
    n_stamps: int
    n_rejected: int
    stamp_chi2: float
    left_out_chi2: float
    sky_chi: float
    correlation: np.ndarray
    noisecov: float
    astrometric_offset_px: tuple[float, float]
    score: np.ndarray | None = None

    @property
    def fwhm_px(self) -> float:
        """FWHM of the difference's PSF."""
        return self.psf.fwhm_px


def judge_difference(difference: Difference, limits: DiffLimits) -> str:
    """Empty for a subtraction that can be believed, else one line that says what is wrong with it."""
    away = float(np.hypot(*difference.astrometric_offset_px))
    chi2 = np.fmax(difference.stamp_chi2, difference.left_out_chi2)
    ratio, sky = difference.kernel_sum, difference.sky_chi
    if difference.n_matched < limits.min_matched:
        return f"{difference.n_matched} stars in both images, {limits.min_matched} needed: overlap or WCS"
    if not away <= limits.max_offset_px:
        return f"stars lie {away:.2f} px from those of the template, {limits.max_offset_px:g} allowed: WCS"
    if not (ratio > 0 and abs(np.log(ratio)) <= limits.max_kernel_sum_error):
        return f"flux ratio {ratio:.3g} of two calibrated images, 1 to {limits.max_kernel_sum_error:.0%}: zero points"
    if not chi2 <= limits.max_stamp_chi2:
        return f"residuals of matched stars have reduced chi2 {chi2:.1f}, {limits.max_stamp_chi2:g} allowed"
    if not 1.0 / limits.max_sky_chi <= sky <= limits.max_sky_chi:
        return f"the sky scatters by {sky:.2f} times what VAR says, {limits.max_sky_chi:g} allowed"
    return ""
