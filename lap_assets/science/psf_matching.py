"""Bringing images to one PSF: the target, the kernels that lead to it, and the convolution of a whole image.

Here: PSFs that are known (`psf_grid.py`). Kernels fitted between two images whose PSFs are not known are
`matching_kernel.py`'s (Alard & Lupton); what the matched images are good for the stack and the differences say.
"""

from collections.abc import Sequence

import numpy as np
from scipy import fft, ndimage

from lap_assets.errors import NoWork
from lap_assets.model.image import NO_WEIGHT, Mask, MaskedImage
from lap_assets.science.moffat import MoffatPsf, stamp_size
from lap_assets.science.psf_grid import PsfGrid

_HARD = int(NO_WEIGHT)
_EDGE = int(Mask.EDGE)
_MIN_WEIGHT = 0.25  # of the kernel that must lie on good pixels, else there is no value
_TILE = 128  # px over which one matching kernel serves; nodes of PSFs are four times as far apart


def choose_target(psfs: Sequence[PsfGrid | float], widen: float = 1.05) -> np.ndarray:
    """The PSF to which all of `psfs` can be brought by convolution: the broadest one, made round and a little broader.

    Round, by the mean over the eight symmetries of the pixel grid, which need no interpolation; a little broader, so
    that an ellipticity of the broadest one asks for no sharpening.

    Parameters
    ----------
    psfs : sequence of PsfGrid or float
        PSFs, or FWHM [px] for which round Moffat profiles stand.
    widen : float
        FWHM of the target over that of the broadest.

    Returns
    -------
    (s, s) float64
        Sum 1, centred on the middle pixel.

    Raises
    ------
    NoWork
        If there is no PSF.
    """
    widths = [psf if isinstance(psf, (int, float)) else psf.fwhm_px for psf in psfs]
    if not widths or not np.isfinite(widths).any():
        raise NoWork("no PSF to choose a target from")
    broadest = int(np.nanargmax(widths))
    psf, width = psfs[broadest], float(widths[broadest])
    stamp = psf.mean if isinstance(psf, PsfGrid) else MoffatPsf(width).evaluate()
    size = max(len(stamp), stamp_size(widen * width))
    stamp = np.pad(stamp, (size - len(stamp)) // 2)
    stamp = sum(np.rot90(one, k) for one in (stamp, stamp.T) for k in range(4)) / 8.0
    sigma = width * np.sqrt(max(widen**2 - 1.0, 0.0)) / 2.3548
    stamp = ndimage.gaussian_filter(stamp, sigma, mode="constant", truncate=6.0) if sigma > 0 else stamp
    return stamp / stamp.sum()


def matching_kernel(psf: np.ndarray, target: np.ndarray, radius: int = 10, floor: float = 0.001) -> np.ndarray:
    """The kernel that turns `psf` into `target` by convolution.

    Ratio of the transforms, held back where the PSF has lost its power (Wiener): K = T P* / (|P|² + floor² (1 − |P|²)),
    exact at zero frequency, so that fluxes are kept.

    Parameters
    ----------
    psf, target : (s, s), (t, t) float
        Sum 1, centred on the middle pixel; odd sizes, which may differ.
    radius : int
        Of the kernel; what lies beyond is cut off and the rest brought to sum 1.
    floor : float
        Amplitude of the PSF's transform (1 at zero) below which its frequencies are not restored.

    Returns
    -------
    (2·radius + 1, 2·radius + 1) float64 of sum 1.
    """
    return matching_kernels(psf[None], target, radius, floor)[0]


def matching_kernels(psfs: np.ndarray, target: np.ndarray, radius: int = 10, floor: float = 0.001) -> np.ndarray:
    """`matching_kernel` for n PSFs (n, s, s) at once; (n, 2·radius + 1, 2·radius + 1)."""
    n = fft.next_fast_len(max(psfs.shape[-1], target.shape[-1]) + 2 * radius + 1, real=True)
    source, goal = _transform(psfs, n), _transform(target[None], n)
    power = np.abs(source) ** 2
    ratio = goal * source.conj() / (power + floor**2 * np.maximum(1.0 - power, 0.0))
    place = np.arange(-radius, radius + 1)
    kernels = fft.irfft2(ratio, (n, n), workers=1)[:, place[:, None], place[None, :]]
    return kernels / kernels.sum(axis=(1, 2), keepdims=True)


def _transform(stamps: np.ndarray, n: int) -> np.ndarray:
    """Transforms of (k, s, s) stamps whose middle pixel is the origin, padded to n."""
    half = stamps.shape[-1] // 2
    padded = np.zeros((len(stamps), n, n))
    padded[:, : stamps.shape[1], : stamps.shape[2]] = stamps / stamps.sum(axis=(1, 2), keepdims=True)
    return fft.rfft2(np.roll(padded, (-half, -half), axis=(1, 2)), workers=1)


def homogenise(
    image: MaskedImage,
    psf: PsfGrid,
    target: np.ndarray,
    *,
    radius: int | None = None,
    correlation: np.ndarray | None = None,
    max_bad_weight: float = 0.1,
) -> MaskedImage:
    """The image brought to the PSF `target`, variance and mask carried along.

    The kernel is that of the middle of each tile of 128 px. Pixels with NO_WEIGHT bits do not enter: the rest is
    renormalised, and EDGE set where they had more than `max_bad_weight` of the kernel.

    Parameters
    ----------
    image : MaskedImage
        Sky-subtracted.
    psf : PsfGrid
        Of the image.
    target : (s, s) float
    radius : int or None
        Of the kernels; None: 2 FWHM of the target, 5 to 30.
    correlation : (2·m + 1,) float or None
        Noise correlation of the image along either axis (`warp_kernels.noise_correlation`): VAR then is that of single
        pixels, and NOISECOV in the header is brought up to date. None: white.

    Returns
    -------
    MaskedImage
        Own planes and header; further planes are not carried.
    """
    if radius is None:
        radius = int(np.clip(np.ceil(2.0 * measure_width(target)), 5, 30))
    sci, mask, var = np.zeros_like(image.sci), image.mask.copy(), np.zeros_like(image.var)
    good = (image.mask & _HARD) == 0
    good &= np.isfinite(image.sci) & np.isfinite(image.var) & (image.var > 0)
    gains = []
    ny, nx = image.shape
    for y0 in range(0, ny, _TILE):
        for x0 in range(0, nx, _TILE):
            box = np.s_[y0 : min(y0 + _TILE, ny), x0 : min(x0 + _TILE, nx)]
            stamp = psf.evaluate(0.5 * (x0 + box[1].stop - 1), 0.5 * (y0 + box[0].stop - 1))
            kernel = matching_kernel(stamp, target, radius)
            gain = _noise_gain(kernel, correlation)
            if _convolve_tile(image, good, kernel, gain / np.sum(kernel**2), box, sci, mask, var, max_bad_weight):
                gains.append(gain)
    header = image.header.copy()
    if gains:
        header["NOISECOV"] = (round(float(header.get("NOISECOV", 1.0)) / float(np.mean(gains)), 5), "after matching")
    return MaskedImage(sci, mask, var, header)


def measure_width(stamp: np.ndarray) -> float:
    """FWHM [px] of a stamp as if it were a Moffat of β = 3.5 with its peak: quick, and good to a few per cent."""
    peak = float(stamp.max() / stamp.sum())
    # peak of a Moffat of unit flux: (β − 1) / (π α²), FWHM = 2 α √(2^(1/β) − 1)
    return float(2.0 * np.sqrt(2.5 / (np.pi * peak) * (2.0 ** (1.0 / 3.5) - 1.0)))


def _noise_gain(kernel: np.ndarray, correlation: np.ndarray | None) -> float:
    """Variance of a pixel after convolution over that before, for noise of the given correlation."""
    if correlation is None:
        return float(np.sum(kernel**2))
    along = ndimage.convolve1d(kernel, correlation, axis=0, mode="constant")
    return float(np.sum(kernel * ndimage.convolve1d(along, correlation, axis=1, mode="constant")))


def _convolve_tile(image, good, kernel, noise_factor, box, sci, mask, var, max_bad_weight) -> bool:
    """One tile, written into the planes; whether it has any data."""
    radius = kernel.shape[0] // 2
    inside = _cut(good, box, radius)
    if not inside.any():
        return False
    size = [fft.next_fast_len(n, real=True) for n in inside.shape]
    planes = [np.where(inside, _cut(plane, box, radius), np.float32(0)) for plane in (image.sci, image.var)]
    value = _convolve_valid(planes[0], kernel, size, radius)
    variance = _convolve_valid(planes[1], kernel**2, size, radius) * np.float32(noise_factor)
    weight = np.float32(1)
    if not inside.all():
        weight = _convolve_valid(inside.astype(np.float32), kernel, size, radius)
        mask[box] |= np.where(weight < 1.0 - max_bad_weight, np.int16(_EDGE), np.int16(0))
        weight = np.where(weight > _MIN_WEIGHT, weight, np.float32(np.inf))
    sci[box] = value / weight
    var[box] = np.maximum(variance, 0.0) / weight**2
    return True


def _cut(plane: np.ndarray, box: tuple[slice, slice], wing: int) -> np.ndarray:
    """The plane in a box and `wing` pixels around it, zero beyond its edges."""
    out = np.zeros([one.stop - one.start + 2 * wing for one in box], plane.dtype)
    inner = [slice(max(0, one.start - wing), one.stop + wing) for one in box]
    part = plane[tuple(inner)]
    first = [one.start - (full.start - wing) for one, full in zip(inner, box, strict=True)]
    out[first[0] : first[0] + part.shape[0], first[1] : first[1] + part.shape[1]] = part
    return out


def _convolve_valid(plane: np.ndarray, kernel: np.ndarray, size: list[int], radius: int) -> np.ndarray:
    """Convolution where the kernel lies within the plane, float32."""
    product = fft.rfft2(plane, size, workers=1) * fft.rfft2(kernel.astype(np.float32), size, workers=1)
    whole = fft.irfft2(product, size, workers=1)
    return whole[2 * radius : plane.shape[0], 2 * radius : plane.shape[1]]
