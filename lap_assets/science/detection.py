"""Sources of one image: detection, windowed centroids, aperture fluxes, sizes and flags (sep, after SExtractor).

Which of them are stars is decided in `select_stars`; positions on the sky and magnitudes are added by the astrometric
and photometric solutions. Catalogues of objects on stacks are `science/catalog.py`'s.
"""

import numpy as np
import pandas as pd
import sep
from numba import njit
from scipy.ndimage import binary_dilation, convolve1d

from lap_assets.errors import UnprocessableData
from lap_assets.model.image import NO_WEIGHT

_EXTRACT_LIMIT = 1_000_000
_CORE_RADIUS = 2  # px: mask bits within it are the source's own


def detect_sources(
    sky_free: np.ndarray, var: np.ndarray, mask: np.ndarray, threshold_sigma: float, min_px: int, fwhm_px: float = 2.5
) -> tuple[pd.DataFrame, np.ndarray]:
    """Find sources and measure what needs no PSF.

    Parameters
    ----------
    sky_free, var : (ny, nx) float32
        Image without sky, and its variance.
    mask : (ny, nx) int16
    threshold_sigma : float
        Per pixel of the filtered image, in sigmas.
    min_px : int
        Connected pixels needed.
    fwhm_px : float
        Of the Gaussian the image is filtered with, and of the first centroid window.

    Returns
    -------
    sources : DataFrame
        x, y [pix, windowed], npix, peak, a, b, theta [of the filtered image], mask (bits within 2 px), sep_flag;
        sorted by y then x.
    segments : (ny, nx) int32
        0 where there is no source.

    Raises
    ------
    UnprocessableData
        If nothing is left to detect on, or there are more sources than pixels' worth (a broken image).
    """
    bad = ((mask & int(NO_WEIGHT)) != 0) | ~(var > 0)
    if bad.all():
        raise UnprocessableData("no usable pixel to detect sources on")
    image = np.ascontiguousarray(np.where(bad, 0.0, sky_free), np.float32)
    snr = filter_matched(image, np.where(bad, 0.0, 1.0 / np.where(bad, 1.0, var)), fwhm_px)
    sep.set_extract_pixstack(max(_EXTRACT_LIMIT, image.size // 2))
    try:
        found, segments = sep.extract(
            snr, threshold_sigma, minarea=min_px, filter_kernel=None, deblend_nthresh=32, deblend_cont=0.005,
            segmentation_map=True,
        )  # fmt: skip
    except Exception as error:
        # sep reports the full buffers of its C library as plain `Exception`
        if "overflow" not in str(error) and "buffer" not in str(error):
            raise
        raise UnprocessableData(f"too crowded to extract sources (sep: {' '.join(str(error).split())})") from None
    x, y, moved = sep.winpos(image, found["x"], found["y"], np.full(len(found), fwhm_px / 2.355), mask=bad)
    lost = ~(np.hypot(x - found["x"], y - found["y"]) < 2.0) | (moved & 16 > 0)
    sources = pd.DataFrame(
        {
            "x": np.where(lost, found["x"], x), "y": np.where(lost, found["y"], y),
            "npix": found["npix"].astype(np.int32), "peak": image[found["ypeak"], found["xpeak"]],
            "a": found["a"].astype(np.float32),
            "b": found["b"].astype(np.float32), "theta": found["theta"].astype(np.float32),
            "sep_flag": found["flag"].astype(np.int32),
        }
    )  # fmt: skip
    sources["mask"] = _collect_bits(mask, sources.x.to_numpy(), sources.y.to_numpy(), _CORE_RADIUS)
    return sources.sort_values(["y", "x"], ignore_index=True), segments


def filter_matched(image: np.ndarray, weight: np.ndarray, fwhm_px: float) -> np.ndarray:
    """Signal-to-noise ratio (ny, nx) float32 of a Gaussian star of `fwhm_px` at every pixel: the matched filter.

    Written out because that of sep, given a variance, loses isolated stars of S/N 20 at a threshold of 5 (sep 1.4).
    `weight` is the inverse variance, 0 where there is no data.
    """
    half = max(1, int(np.ceil(fwhm_px)))
    profile = np.exp(-0.5 * (np.arange(-half, half + 1) / (fwhm_px / 2.355)) ** 2)
    signal, weight = (image * weight).astype(np.float32), weight.astype(np.float32)
    for axis in (0, 1):
        signal = convolve1d(signal, profile, axis=axis, mode="constant")
        weight = convolve1d(weight, profile**2, axis=axis, mode="constant")
    return np.where(weight > 0, signal / np.sqrt(np.where(weight > 0, weight, 1.0)), 0.0).astype(np.float32)


def recenter_sources(sky_free: np.ndarray, mask: np.ndarray, sources: pd.DataFrame, fwhm_px: float) -> pd.DataFrame:
    """Sources with centroids windowed by a Gaussian of the now known FWHM (SExtractor's XWIN_IMAGE)."""
    bad = (mask & int(NO_WEIGHT)) != 0
    image = np.ascontiguousarray(np.where(bad, 0.0, sky_free), np.float32)
    x0, y0 = sources.x.to_numpy(copy=True), sources.y.to_numpy(copy=True)  # sep wants writable arrays
    x, y, _ = sep.winpos(image, x0, y0, np.full(len(sources), fwhm_px / 2.355), mask=bad)
    good = np.hypot(x - x0, y - y0) < max(1.0, 0.5 * fwhm_px)
    return sources.assign(x=np.where(good, x, x0), y=np.where(good, y, y0))


def measure_sources(
    sky_free: np.ndarray, var: np.ndarray, mask: np.ndarray, sources: pd.DataFrame, radius_px: float
) -> pd.DataFrame:
    """Aperture flux and error, half-light `radius` within 3 `radius_px`, and the centroid's error `xy_err`."""
    bad = (mask & int(NO_WEIGHT)) != 0
    image = np.ascontiguousarray(np.where(bad, 0.0, sky_free), np.float32)
    noise = np.sqrt(np.where(bad, 0.0, var), dtype=np.float32)
    x, y = sources.x.to_numpy(copy=True), sources.y.to_numpy(copy=True)
    flux, error, _ = sep.sum_circle(image, x, y, radius_px, err=noise, mask=bad, subpix=5)
    half, _ = sep.flux_radius(image, x, y, np.full(len(sources), 3.0 * radius_px), 0.5, mask=bad, subpix=5)
    size = np.where(np.isfinite(half), half, 0.0)
    snr = flux / np.maximum(error, 1e-20)
    # centroid error of a Gaussian star: sigma / (S/N) (King 1983, PASP 95, 163), with its floor for pixelisation
    xy_err = np.where(snr > 0, size / 1.177 / np.maximum(snr, 1.0), 10.0)
    return sources.assign(
        flux=flux, flux_err=error, radius=size.astype(np.float32),
        xy_err=np.hypot(xy_err, 0.003).astype(np.float32),
    )  # fmt: skip


def select_stars(sources: pd.DataFrame, min_snr: float = 30.0, max_width: float = 0.15) -> np.ndarray:
    """Which sources are on the stellar locus: the size that bright, unflagged sources share.

    The locus is the lowest-lying dense stretch of half-light radii of bright sources (half-sample mode, Robertson &
    Cryer 1974), kept within 3 robust sigmas and within `max_width` of it relatively.

    Returns
    -------
    (n,) bool
    """
    clean = (sources["mask"].to_numpy() == 0) & (sources.sep_flag.to_numpy() & ~2 == 0)
    snr = sources.flux.to_numpy() / np.maximum(sources.flux_err.to_numpy(), 1e-20)
    size = sources.radius.to_numpy()
    bright = clean & (snr > min_snr) & (size > 0.5) & (sources.b.to_numpy() > 0.6 * sources.a.to_numpy())
    if bright.sum() < 3:
        return bright
    # galaxies outnumber stars only among the larger half of the sources
    ordered = np.sort(size[bright])
    centre = _half_sample_mode(ordered[: max(3, (3 * len(ordered)) // 4)])
    near = bright & (np.abs(size - centre) < max_width * centre)
    width = 1.4826 * float(np.median(np.abs(size[near] - centre)))
    return near & (np.abs(size - centre) < np.clip(3.0 * width, 0.03 * centre, max_width * centre))


def mask_sources(segments: np.ndarray, grow_px: int = 4) -> np.ndarray:
    """Pixels that belong to sources, grown by `grow_px`, (ny, nx) bool: to be left out of the sky."""
    return binary_dilation(segments > 0, iterations=grow_px) if segments.any() else segments > 0


def _half_sample_mode(ordered: np.ndarray) -> float:
    while len(ordered) > 3:
        half = (len(ordered) + 1) // 2
        widths = ordered[half - 1 :] - ordered[: len(ordered) - half + 1]
        start = int(np.argmin(widths))
        ordered = ordered[start : start + half]
    return float(np.median(ordered))


@njit(cache=True, nogil=True)
def _collect_bits(mask, x, y, radius):
    """OR of the mask bits within `radius` px of each position."""
    ny, nx = mask.shape
    bits = np.zeros(len(x), np.int32)
    for k in range(len(x)):
        cx, cy = int(np.rint(x[k])), int(np.rint(y[k]))
        for j in range(max(0, cy - radius), min(ny, cy + radius + 1)):
            for i in range(max(0, cx - radius), min(nx, cx + radius + 1)):
                bits[k] |= mask[j, i]
    return bits
