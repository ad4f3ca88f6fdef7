"""Stars or galaxies: size against the PSF model, and which stars may make that model.

Here: the spread model, the extendedness classes, and the selection of PSF stars by the stellar locus. The PSF model
itself is `psf.py`'s; probabilities from colours and Gaia are a later refinement of this module.
"""

import numpy as np
from scipy import fft

from lap_assets.model.objects import Extendedness

# SPREAD_MODEL compares with an exponential disk of this scale length in FWHM (Desai et al. 2012, section 3.4)
_DISK_SCALE = 1.0 / 16.0
_LOCUS_WINDOW = 0.03  # half-width, in log radius, within which objects count as a crowd
_FEWEST = 40
_ENOUGH_STARS = 25
_CROWDED = 0.4  # part of the largest crowd that is crowd enough


def measure_spread(
    flux: np.ndarray, variance: np.ndarray, kind: np.ndarray, psfs: np.ndarray, fwhm_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """SPREAD_MODEL and its error: 0 for a point source, positive for what is wider, negative for what is sharper.

    The linear discriminant between the PSF and the PSF convolved with a small exponential disk (Desai et al. 2012,
    eq. 6; Bouy et al. 2013). Arrays as of `forced.cut_stamps` and `forced.render_psfs`; NaN where most is not clean.
    """
    disks = convolve_disk(psfs, fwhm_px * _DISK_SCALE)
    clean = kind == 0
    p, g = np.where(clean, psfs, 0.0), np.where(clean, disks, 0.0)
    pp, gp = _dot(p, p), _dot(g, p)
    fp, fg = _dot(flux, p), _dot(flux, g)
    enough = (pp > 0.5 * _dot(psfs, psfs)) & (fp > 0)
    fp, pp = np.where(enough, fp, np.nan), np.where(enough, pp, np.nan)
    spread = fg / fp - gp / pp
    # variance of the ratio, from that of each pixel
    slope = (g - (fg / fp)[:, None, None] * p) / fp[:, None, None]
    return spread, np.sqrt(_dot(slope**2, variance))


def convolve_disk(psfs: np.ndarray, scale_px: float) -> np.ndarray:
    """(n, s, s) stamps convolved with a round exponential disk; its transform is (1 + (2 pi k r)^2)^-1.5."""
    size = psfs.shape[1]
    padded = fft.next_fast_len(size + 8, real=True)
    ky, kx = fft.fftfreq(padded)[:, None], fft.rfftfreq(padded)[None, :]
    disk = (1.0 + (2.0 * np.pi * scale_px) ** 2 * (kx**2 + ky**2)) ** -1.5
    return fft.irfft2(fft.rfft2(psfs, (padded, padded)) * disk, (padded, padded))[:, :size, :size]


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("nij,nij->n", a, b)


def combine_spreads(spreads: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over bands (first axis) by inverse variance; NaNs are left out, NaN where there is nothing."""
    good = np.isfinite(spreads) & (errors > 0)
    weight = np.where(good, 1.0 / np.where(good, errors, 1.0) ** 2, 0.0)
    total = weight.sum(axis=0)
    known = np.where(total > 0, total, np.nan)
    return (weight * np.where(good, spreads, 0.0)).sum(axis=0) / known, 1.0 / np.sqrt(known)


def classify_extendedness(spread: np.ndarray, error: np.ndarray) -> np.ndarray:
    """(n,) int8 `Extendedness` by three cuts on SPREAD_MODEL (DES Y3; Sevilla-Noarbe et al. 2018, eq. 3)."""
    known = np.isfinite(spread) & np.isfinite(error)
    s, e = np.where(known, spread, 0.0), np.where(known, error, 0.0)
    classes = (s + 3.0 * e > 0.005).astype(np.int8) + (s + e > 0.003) + (s - e > 0.001)
    return np.where(known, classes, int(Extendedness.UNKNOWN)).astype(np.int8)


def select_psf_stars(
    half_light_px: np.ndarray, snr: np.ndarray, clean: np.ndarray, min_snr: float, max_stars: int = 300
) -> np.ndarray:
    """Indices of objects on the stellar locus, brightest first.

    Among clean bright objects stars crowd at one half-light radius while galaxies are spread over larger ones: the
    locus is the first crowd from below, its width the scatter below its middle. It is found among the brightest
    third (at least 40 objects), for the fainter the objects, the more of them are galaxies; fainter ones on it are
    added where those are fewer than 25.

    Parameters
    ----------
    half_light_px, snr : (n,) float
    clean : (n,) bool
        Neither saturated nor on bad pixels.
    """
    bright = np.flatnonzero(clean & (snr >= min_snr) & (half_light_px > 0) & np.isfinite(half_light_px))
    if not len(bright):
        return bright
    bright = bright[np.argsort(-snr[bright], kind="stable")]
    n_first = max(_FEWEST, len(bright) // 3)
    size = np.log(half_light_px[bright])
    centre = find_locus(size[:n_first])
    # galaxies only widen the upper side, so the lower side tells the width of the locus
    first = size[:n_first]
    below = centre - first[(first <= centre) & (first > centre - 3.0 * _LOCUS_WINDOW)]
    width = np.clip(1.4826 * np.median(below) if len(below) else 0.02, 0.01, 0.05)
    near = np.abs(size - centre) <= 3.0 * width
    enough = max(np.count_nonzero(near[:n_first]), _ENOUGH_STARS)
    return bright[near][: min(enough, max_stars)]


def find_locus(log_size: np.ndarray) -> float:
    """Where the first crowd from below lies: the smallest value whose neighbours are two fifths as many as any has."""
    ordered = np.sort(np.asarray(log_size, dtype=np.float64))
    crowd = np.searchsorted(ordered, ordered + _LOCUS_WINDOW, "right") - np.searchsorted(
        ordered, ordered - _LOCUS_WINDOW
    )
    centre = float(ordered[int(np.argmax(crowd >= _CROWDED * crowd.max()))])
    for _ in range(3):
        centre = float(np.median(ordered[np.abs(ordered - centre) <= 1.5 * _LOCUS_WINDOW]))
    return centre
