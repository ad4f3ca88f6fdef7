"""Robust mean of the frames of one chip, pixel by pixel, with the variance of that mean.

Used for every kind of master. Works on any stretch of rows, so that a caller who reads bands holds one band of all
frames at a time. What the frames are and how they are scaled belongs to the caller; combining warps is
`science/stack.py`'s.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit

from lap_assets.errors import UnprocessableData

_LANES = 128  # pixels sorted side by side: n frames of them stay in the first-level cache


@dataclass(frozen=True)
class FrameNoise:
    """Scale and expected noise of the frames: v / s is combined, and its variance is (max(m, 0) s + b + r²) / s².

    Attributes
    ----------
    scales : (n,) float32
        s > 0: what one unit of the result is in each frame (level of a flat, seconds of a dark).
    backgrounds : (n,) float32
        b: electrons under the values that were taken off.
    photons : bool
        Whether the values have photon noise, m being the median of the scaled frames (not so for a bias, in ADU).
    typical : float
        Result for which the weights of the frames are the best ones.
    """

    scales: np.ndarray
    backgrounds: np.ndarray
    photons: bool = True
    typical: float = 1.0

    @classmethod
    def of(cls, scales, backgrounds=None, photons: bool = True, typical: float = 1.0) -> "FrameNoise":
        """From any sequences; no backgrounds are zeros."""
        scales = np.asarray(scales, np.float32)
        backgrounds = np.zeros_like(scales) if backgrounds is None else np.asarray(backgrounds, np.float32)
        return cls(scales, backgrounds, photons, typical)

    def weigh(self, read_variance: float) -> np.ndarray:
        """Inverse variance of each frame at the typical value, relative to the best, (n,) float32."""
        light = self.typical * self.scales if self.photons else np.float32(0.0)
        variance = (light + self.backgrounds + np.float32(max(read_variance, 1e-12))) / self.scales**2
        return (variance.min() / variance).astype(np.float32)


@lru_cache(maxsize=64)
def _plan_sort(n: int) -> np.ndarray:
    """Pairs (i, j), i < j, whose comparisons in this order sort n values; (m, 2) intp.

    Merge exchange (Knuth, TAOCP vol. 3, 5.2.2, algorithm M): the order does not depend on the values, so that many
    pixels go through it side by side in vector registers.
    """
    pairs = []
    top = 1 << max((n - 1).bit_length() - 1, 0)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if (i & p) == r]
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    return np.array(pairs, np.intp).reshape(-1, 2)


@njit(cache=True, nogil=True)
def _sort_lanes(tile, pairs):
    """Sort each column of `tile` (n, lanes) upwards."""
    lanes = tile.shape[1]
    for c in range(len(pairs)):
        i, j = pairs[c, 0], pairs[c, 1]
        for x in range(lanes):
            a, b = tile[i, x], tile[j, x]
            tile[i, x] = a if a < b else b
            tile[j, x] = b if a < b else a


@njit(cache=True, nogil=True, error_model="numpy")
def _combine_rows(
    frames, read_variance, scales, backgrounds, weights, photons, clip_sigma, pairs, mean, variance, count
):
    """Row by row: median of the finite values, reject by expected noise, weighted mean of the rest."""
    n, ny, nx = frames.shape
    values, ordered = np.empty((n, _LANES), np.float32), np.empty((n, _LANES), np.float32)
    centre, read = np.zeros(_LANES, np.float32), np.zeros(_LANES, np.float32)
    total, weight, spread = np.empty(_LANES, np.float32), np.empty(_LANES, np.float32), np.empty(_LANES, np.float32)
    sharp, doubt, gap = np.empty(_LANES, np.float32), np.empty(_LANES, np.float32), np.zeros(_LANES, np.float32)
    found, used = np.empty(_LANES, np.int32), np.empty(_LANES, np.int32)
    half_pi = np.float32(0.5 * np.pi)
    invert = (np.float32(1.0) / scales).astype(np.float32)
    clip, nothing, endless = np.float32(clip_sigma * clip_sigma), np.float32(0.0), np.float32(np.inf)
    for y in range(ny):
        for x0 in range(0, nx, _LANES):
            lanes = min(_LANES, nx - x0)
            found[:] = 0
            for k in range(n):
                for x in range(lanes):
                    v = frames[k, y, x0 + x] * invert[k]
                    finite = abs(v) < endless
                    found[x] += 1 if finite else 0
                    # what is not there sorts behind everything, and no test below lets it in
                    values[k, x] = v if finite else endless
                    ordered[k, x] = v if finite else endless
            _sort_lanes(ordered, pairs)
            for x in range(lanes):
                m = max(found[x], 1)
                a, b = ordered[(m - 1) // 2, x], ordered[m // 2, x]
                centre[x] = a if m % 2 else np.float32(0.5) * (a + b)
                gap[x] = nothing if m % 2 else np.float32(0.5) * (b - a)
                read[x] = read_variance[y, x0 + x]
            total[:], weight[:], spread[:], used[:], sharp[:] = 0.0, 0.0, 0.0, 0, 0.0
            for k in range(n):
                light, b, inverse = scales[k] if photons else nothing, backgrounds[k], invert[k] * invert[k]
                for x in range(_LANES):
                    c = centre[x] if centre[x] > nothing else nothing
                    expected = (c * light + b + read[x]) * inverse
                    ordered[k, x] = expected
                    sharp[x] += np.float32(1.0) / np.sqrt(expected) if values[k, x] < endless else nothing
            for x in range(_LANES):
                doubt[x] = half_pi * np.float32(found[x]) / (sharp[x] * sharp[x])
            for k in range(n):
                w = weights[k]
                for x in range(_LANES):
                    expected = ordered[k, x]
                    off = values[k, x] - centre[x]
                    keep = off * off <= clip * (expected + doubt[x]) and values[k, x] < endless
                    kept = w if keep else nothing
                    # sums of what departs from the median: no digits are lost however high the level
                    total[x] += w * off if keep else nothing
                    weight[x] += kept
                    spread[x] += kept * kept * expected
                    used[x] += 1 if keep else 0
            for x in range(lanes):
                count[y, x0 + x] = used[x]
                if used[x] > 0:
                    mean[y, x0 + x] = centre[x] + total[x] / weight[x]
                    variance[y, x0 + x] = spread[x] / (weight[x] * weight[x])
                else:
                    there = found[x] > 0
                    mean[y, x0 + x] = centre[x] if there else np.float32(np.nan)
                    variance[y, x0 + x] = doubt[x] + gap[x] * gap[x] if there else np.float32(np.nan)


def combine_frames(
    frames: np.ndarray, read_variance: np.ndarray | float, noise: FrameNoise | None = None, clip_sigma: float = 5.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clipped weighted mean of scaled frames of one chip, or of a stretch of its rows.

    A value is rejected when it lies more than `clip_sigma` *expected* sigmas from the median of its pixel: with five
    frames the sample's own scatter would be no guide, and a cosmic ray must not vouch for itself by its own photon
    noise. Expected is also that of the median, pi n / 2 over the square of the sum of 1 / sigma: among frames of
    different noise it is less certain than the best of them. The weight of a frame is one number, so that it does not
    follow the noise of a pixel.

    Parameters
    ----------
    frames : (n, ny, nx) float32
        Values before scaling, electrons for most kinds; not finite where a pixel is to be left out.
    read_variance : (ny, nx) float32 or float
        r², in the unit of the frames squared.
    noise : FrameNoise, optional
        Without it nothing is scaled and the read variance is all the noise.
    clip_sigma : float

    Returns
    -------
    mean : (ny, nx) float32
        NaN where no frame has a value.
    variance : (ny, nx) float32
        Of the mean.
    count : (ny, nx) int16
        Frames used; 0 with a finite mean: two halves contradict each other, and the median stands, with its variance.

    Raises
    ------
    UnprocessableData
        Without any frame, or when shapes differ.
    """
    if frames.ndim != 3 or len(frames) == 0:
        raise UnprocessableData(f"cannot combine frames of shape {frames.shape}")
    n, ny, nx = frames.shape
    noise = noise or FrameNoise.of(np.ones(n), photons=False)
    if np.ndim(read_variance) not in (0, 2) or np.shape(read_variance) not in ((), (ny, nx)) or len(noise.scales) != n:
        raise UnprocessableData(
            f"cannot combine frames of shape {frames.shape} with {len(noise.scales)} scales and a read noise of shape "
            f"{np.shape(read_variance)}"
        )
    spread = np.ascontiguousarray(np.broadcast_to(np.asarray(read_variance, np.float32), (ny, nx)))
    mean, variance = np.empty((ny, nx), np.float32), np.empty((ny, nx), np.float32)
    count = np.empty((ny, nx), np.int16)
    _combine_rows(
        np.ascontiguousarray(frames, np.float32), spread, noise.scales, noise.backgrounds,
        noise.weigh(float(np.mean(spread))), noise.photons, float(clip_sigma), _plan_sort(n), mean, variance, count,
    )  # fmt: skip
    return mean, variance, count


@njit(cache=True, nogil=True)
def fill_rows(raw, levels, saturation, image):
    """Counts minus the level of each row, as float32 into `image`; NaN from `saturation` on.

    Parameters
    ----------
    raw : (rows, nx) array
        ADU.
    levels : (rows,) float32
        ADU.
    saturation : float32
        ADU.
    image : (rows, nx) float32
        Written to.
    """
    for y in range(raw.shape[0]):
        level = levels[y]
        for x in range(raw.shape[1]):
            v = np.float32(raw[y, x])
            image[y, x] = v - level if v < saturation else np.float32(np.nan)


def measure_frame_noise(frames: np.ndarray) -> float:
    """Noise of a single frame (one number) from the median absolute difference of successive frames, (n, ny, nx).

    Raises `UnprocessableData` with fewer than two frames, or where they have no finite pixel in common.
    """
    if len(frames) < 2:
        raise UnprocessableData("the noise of calibration frames needs at least two of them")
    differences = np.abs(np.diff(frames, axis=0))
    finite = differences[np.isfinite(differences)]
    if finite.size == 0:
        raise UnprocessableData("the calibration frames hold no number; reject them")
    return float(1.4826 * np.median(finite) / np.sqrt(2.0))
