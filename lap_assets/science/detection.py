"""Sources of one image: detection, windowed centroids, aperture fluxes, sizes and flags (sep, after SExtractor).

Which of them are stars is decided in `select_stars`; positions on the sky and magnitudes are added by the astrometric
and photometric solutions. Catalogues of objects on stacks are `science/catalog.py`'s.
"""

import numpy as np
import pandas as pd
import sep
from numba import njit

from lap_assets.errors import UnprocessableData
from lap_assets.model.image import NO_WEIGHT
from lap_assets.science.apertures import find_half_light, measure_centroids, sum_apertures

_EXTRACT_LIMIT = 1_000_000
_CORE_RADIUS = 2  # px: mask bits within it are the source's own
_CENTROID_FLOOR_PX = 0.002  # what pixelisation leaves of a windowed centroid, added to its error
_LOCUS_WIDTH, _AWAY = 0.08, 1.25  # of the size of stars: what their locus spans; beyond it another one begins
_DENSE, _MIN_DENSE = 0.7, 5  # of the largest number in such a stretch; sources that can be called dense
_LOST_CENTROID_PX = 10.0  # error of a position that could not be refined


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
    snr, some = _filter_rows(
        np.ascontiguousarray(sky_free, np.float32), np.ascontiguousarray(var, np.float32),
        np.ascontiguousarray(mask, np.int16), np.int16(NO_WEIGHT), _gaussian(fwhm_px),
    )  # fmt: skip
    if not some:
        raise UnprocessableData("no usable pixel to detect sources on")
    sep.set_extract_pixstack(max(_EXTRACT_LIMIT, snr.size // 2))
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
    x, y, _, converged = measure_centroids(sky_free, var, mask, found["x"], found["y"], fwhm_px / 2.355)
    kept = converged & (np.hypot(x - found["x"], y - found["y"]) < 2.0)
    unusable = (mask[found["ypeak"], found["xpeak"]] & int(NO_WEIGHT)) != 0
    sources = pd.DataFrame(
        {
            "x": np.where(kept, x, found["x"]), "y": np.where(kept, y, found["y"]),
            "npix": found["npix"].astype(np.int32),
            "peak": np.where(unusable, np.float32(0), sky_free[found["ypeak"], found["xpeak"]]),
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
    used = weight > 0
    var = np.where(used, 1.0 / np.where(used, weight, 1.0), 0.0).astype(np.float32)
    nothing = np.zeros(image.shape, np.int16)
    return _filter_rows(np.ascontiguousarray(image, np.float32), var, nothing, np.int16(0), _gaussian(fwhm_px))[0]


def recenter_sources(
    sky_free: np.ndarray, var: np.ndarray, mask: np.ndarray, sources: pd.DataFrame, fwhm_px: float
) -> pd.DataFrame:
    """Sources with centroids windowed by a Gaussian of the now known FWHM, and their errors `xy_err`."""
    x0, y0 = sources.x.to_numpy(), sources.y.to_numpy()
    x, y, error, converged = measure_centroids(sky_free, var, mask, x0, y0, fwhm_px / 2.355)
    good = converged & (np.hypot(x - x0, y - y0) < max(1.0, 0.5 * fwhm_px))
    error = np.where(good, np.hypot(error, _CENTROID_FLOOR_PX), _LOST_CENTROID_PX)
    return sources.assign(x=np.where(good, x, x0), y=np.where(good, y, y0), xy_err=error.astype(np.float32))


def measure_sources(
    sky_free: np.ndarray, var: np.ndarray, mask: np.ndarray, sources: pd.DataFrame, radius_px: float
) -> pd.DataFrame:
    """Aperture flux and its error, and the half-light `radius` within 3 `radius_px`."""
    x, y = sources.x.to_numpy(), sources.y.to_numpy()
    flux, error = sum_apertures(sky_free, var, mask, x, y, radius_px)
    half = find_half_light(sky_free, mask, x, y, 3.0 * radius_px)
    return sources.assign(flux=flux, flux_err=error, radius=half.astype(np.float32))


def select_stars(
    sources: pd.DataFrame, min_snr: float = 30.0, max_width: float = 0.15, max_radius_px: float = np.inf
) -> np.ndarray:
    """Which sources are on the stellar locus: the size that bright, unflagged sources share.

    The locus is the lowest-lying dense stretch of half-light radii of bright sources (half-sample mode, Robertson &
    Cryer 1974), kept within 3 robust sigmas and within `max_width` of it relatively; sources larger than
    `max_radius_px` are none, where the seeing is known. Where a broad crowd of galaxies leads the halving away from
    the smallest of the dense narrow stretches, which is the stars', it begins there.

    Returns
    -------
    (n,) bool
    """
    clean = (sources["mask"].to_numpy() == 0) & (sources.sep_flag.to_numpy() & ~2 == 0)
    snr = sources.flux.to_numpy() / np.maximum(sources.flux_err.to_numpy(), 1e-20)
    size = sources.radius.to_numpy()
    bright = clean & (snr > min_snr) & (size > 0.5) & (size < max_radius_px)
    bright &= sources.b.to_numpy() > 0.6 * sources.a.to_numpy()
    if bright.sum() < 3:
        return bright
    # galaxies outnumber stars only among the larger half of the sources
    ordered = np.sort(size[bright])
    centre = _find_locus(ordered[: max(3, (3 * len(ordered)) // 4)])
    near = bright & (np.abs(size - centre) < max_width * centre)
    width = 1.4826 * float(np.median(np.abs(size[near] - centre)))
    return near & (np.abs(size - centre) < np.clip(3.0 * width, 0.03 * centre, max_width * centre))


def mask_sources(segments: np.ndarray, grow_px: int = 4) -> np.ndarray:
    """Pixels that belong to sources, grown by `grow_px`, (ny, nx) bool: to be left out of the sky."""
    return _grow_segments(np.ascontiguousarray(segments), grow_px)


def _find_locus(ordered: np.ndarray) -> float:
    """Size of the stars among ordered ones: their half-sample mode, but not beyond where they begin to lie dense."""
    mode = _half_sample_mode(ordered)
    # stars share one size to a few per cent, galaxies none: they are many without being denser
    count = np.searchsorted(ordered, (1.0 + _LOCUS_WIDTH) * ordered, side="right") - np.arange(len(ordered))
    lowest = ordered[np.argmax(count >= _DENSE * count.max())]
    start = int(np.argmax(np.where(ordered <= _AWAY * lowest, count, 0)))
    dense = float(np.median(ordered[start : start + count[start]]))
    if mode <= _AWAY * dense or count[start] < _MIN_DENSE:
        return mode
    return _half_sample_mode(ordered[np.abs(ordered - dense) < (_AWAY - 1.0) * dense])


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


def _gaussian(fwhm_px: float) -> np.ndarray:
    half = max(1, int(np.ceil(fwhm_px)))
    return np.exp(-0.5 * (np.arange(-half, half + 1) / (fwhm_px / 2.355)) ** 2).astype(np.float32)


@njit(cache=True, nogil=True)
def _weigh_row(image, var, mask, skip, signal, weight, half):
    """One row times its inverse variance, and that; both 0 where masked, from `half` on. Whether any pixel was good."""
    some = False
    for i in range(len(image)):
        good = ((mask[i] & skip) == 0) & (var[i] > np.float32(0.0))
        inverse = np.float32(1.0) / var[i] if good else np.float32(0.0)
        weight[half + i] = inverse
        signal[half + i] = image[i] * inverse if good else np.float32(0.0)
        some |= good
    return some


@njit(cache=True, nogil=True)
def _convolve_row(row, kernel, out):
    """`out` = row (padded by half a kernel on both sides) convolved with a symmetric kernel."""
    n, nx = len(kernel), len(out)
    half = n // 2
    _scale_row(row[half : half + nx], kernel[half], out)
    for k in range(half):
        _add_rows(row[k : k + nx], row[n - 1 - k : n - 1 - k + nx], kernel[k], out)


@njit(cache=True, nogil=True)
def _scale_row(row, factor, out):
    for i in range(len(out)):
        out[i] = factor * row[i]


@njit(cache=True, nogil=True)
def _add_rows(one, other, factor, out):
    for i in range(len(out)):
        out[i] += factor * (one[i] + other[i])


@njit(cache=True, nogil=True)
def _divide_row(top, bottom, out):
    for i in range(len(out)):
        out[i] = top[i] / np.sqrt(bottom[i]) if bottom[i] > np.float32(0.0) else np.float32(0.0)


@njit(cache=True, nogil=True)
def _filter_rows(image, var, mask, skip, profile):
    """Matched filter in one pass: rows are filtered along x as they come, and the last few of them along y.

    Whole rows are handed to small functions, whose loops the compiler turns into vector instructions. Returns the S/N
    of a star at each pixel, and whether any pixel was usable.
    """
    ny, nx = image.shape
    n = len(profile)
    half = n // 2
    square = profile * profile
    snr = np.empty((ny, nx), np.float32)
    signal, weight = np.zeros(nx + 2 * half, np.float32), np.zeros(nx + 2 * half, np.float32)
    # the last n rows filtered along x; those above and below the image are zero
    signals, weights = np.zeros((n, nx), np.float32), np.zeros((n, nx), np.float32)
    top, bottom = np.empty(nx, np.float32), np.empty(nx, np.float32)
    some = False
    for y in range(ny + half):
        if y < ny:
            some |= _weigh_row(image[y], var[y], mask[y], skip, signal, weight, half)
            _convolve_row(signal, profile, signals[y % n])
            _convolve_row(weight, square, weights[y % n])
        else:
            signals[y % n] = 0
            weights[y % n] = 0
        if y < half:
            continue
        middle = (y + 1 + half) % n
        _scale_row(signals[middle], profile[half], top)
        _scale_row(weights[middle], square[half], bottom)
        for k in range(half):
            above, below = (y + 1 + k) % n, (y - k) % n
            _add_rows(signals[above], signals[below], profile[k], top)
            _add_rows(weights[above], weights[below], square[k], bottom)
        _divide_row(top, bottom, snr[y - half])
    return snr, some


@njit(cache=True, nogil=True)
def _grow_segments(segments, grow):
    """Pixels within `grow` steps along rows and columns of a source."""
    ny, nx = segments.shape
    out = np.zeros(segments.shape, np.bool_)
    for y in range(ny):
        for x in range(nx):
            if segments[y, x] == 0:
                continue
            out[y, x] = True
            inner = 0 < x < nx - 1 and 0 < y < ny - 1
            if inner and segments[y, x - 1] and segments[y, x + 1] and segments[y - 1, x] and segments[y + 1, x]:
                continue
            for j in range(max(0, y - grow), min(ny, y + grow + 1)):
                wide = grow - abs(j - y)
                for i in range(max(0, x - wide), min(nx, x + wide + 1)):
                    out[j, i] = True
    return out
