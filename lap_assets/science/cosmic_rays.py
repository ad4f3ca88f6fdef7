"""Cosmic rays in a single image, by their edges: L.A.Cosmic (van Dokkum 2001, PASP 113, 1420), as one numba pass.

The costly medians are taken only where the Laplacian is significant, and later rounds look only around what the round
before has found; that is what makes it an order of magnitude faster than filtering whole images. In a chip of millions
of pixels hundreds of lone noise peaks look as sharp as a hit: what was found is therefore judged once more as a whole,
by the charge of each connected group. Rejection by comparison of several exposures belongs to the stack.
"""

import numpy as np
from numba import njit

from lap_assets.model.image import Mask

_MARGIN = 5  # px around a candidate in which medians are taken, and around a hit where the next round looks again
_SAMPLED = 512  # rows and columns by which the sky is told
_MIN_STRUCTURE = 0.01  # floor of the fine structure image, in sigmas


@njit(cache=True, nogil=True)
def _median_of(values, n):
    """Median of the first n entries of a small scratch array, which is reordered (insertion sort)."""
    for i in range(1, n):
        value = values[i]
        j = i - 1
        while j >= 0 and values[j] > value:
            values[j + 1] = values[j]
            j -= 1
        values[j + 1] = value
    if n % 2:
        return values[n // 2]
    return 0.5 * (values[n // 2 - 1] + values[n // 2])


@njit(cache=True, nogil=True)
def _median_box(image, y, x, radius, scratch):
    """Median of the box around (y, x), cut at the image's border."""
    ny, nx = image.shape
    n = 0
    for j in range(max(0, y - radius), min(ny, y + radius + 1)):
        for i in range(max(0, x - radius), min(nx, x + radius + 1)):
            scratch[n] = image[j, i]
            n += 1
    return _median_of(scratch, n)


@njit(cache=True, nogil=True)
def _fill_median3(image, out, look, scratch):
    ny, nx = image.shape
    for y in range(ny):
        for x in range(nx):
            if look[y, x]:
                out[y, x] = _median_box(image, y, x, 1, scratch)


@njit(cache=True, nogil=True)
def _fill_laplacian(image, out, look):
    """Positive Laplacian of the image sampled twice, averaged back (van Dokkum, eq. 6–9): 2·height for a lone pixel."""
    ny, nx = image.shape
    for y in range(ny):
        for x in range(nx):
            if not look[y, x]:
                continue
            value = image[y, x]
            up, down = image[max(y - 1, 0), x], image[min(y + 1, ny - 1), x]
            left, right = image[y, max(x - 1, 0)], image[y, min(x + 1, nx - 1)]
            total = max(0.0, 2 * value - left - up) + max(0.0, 2 * value - right - up)
            total += max(0.0, 2 * value - left - down) + max(0.0, 2 * value - right - down)
            out[y, x] = total / 4.0


@njit(cache=True, nogil=True)
def _significance(image, laplacian, median3, read_var, y, x, scratch):
    """S' of one pixel: Laplacian over twice the noise, less its median around (eq. 11–13)."""
    ny, nx = image.shape
    local = min(median3[y, x], _median_box(image, y, x, 2, scratch))
    own = laplacian[y, x] / (2.0 * np.sqrt(max(local, 1.0) + read_var))
    n = 0
    for j in range(max(0, y - 2), min(ny, y + 3)):
        for i in range(max(0, x - 2), min(nx, x + 3)):
            scratch[n] = laplacian[j, i] / (2.0 * np.sqrt(max(median3[j, i], 1.0) + read_var))
            n += 1
    return own - _median_of(scratch, n)


@njit(cache=True, nogil=True)
def _fine_structure(image, median3, read_var, y, x, scratch):
    """Contrast of smooth, star-like structure in sigmas: 3×3 median less its 7×7 median (eq. 14)."""
    smooth = _median_box(median3, y, x, 3, scratch)
    local = _median_box(image, y, x, 2, scratch)
    return max((median3[y, x] - smooth) / np.sqrt(max(local, 1.0) + read_var), _MIN_STRUCTURE)


@njit(cache=True, nogil=True)
def _grow(hits, sharp, threshold):
    """Neighbours (3×3) of hits whose significance exceeds the threshold join them."""
    ny, nx = hits.shape
    found = hits.copy()
    for y in range(ny):
        for x in range(nx):
            if hits[y, x]:
                for j in range(max(0, y - 1), min(ny, y + 2)):
                    for i in range(max(0, x - 1), min(nx, x + 2)):
                        if sharp[j, i] > threshold:
                            found[j, i] = True
    return found


@njit(cache=True, nogil=True)
def _mark_candidates(laplacian, ignore, look, threshold):
    """Surroundings of all pixels whose Laplacian could be significant; only there medians are needed."""
    ny, nx = laplacian.shape
    near = np.zeros(laplacian.shape, np.bool_)
    for y in range(ny):
        for x in range(nx):
            if look[y, x] and not ignore[y, x] and laplacian[y, x] > threshold:
                near[max(0, y - _MARGIN) : y + _MARGIN + 1, max(0, x - _MARGIN) : x + _MARGIN + 1] = True
    return near


@njit(cache=True, nogil=True)
def _find_round(image, ignore, look, work, floor, read_var, sigma, fraction, contrast):
    """One round: significances where `look`, hits among them, grown twice. `work`: planes kept between rounds."""
    laplacian, median3, sharp = work
    ny, nx = image.shape
    scratch = np.empty(49, np.float32)
    _fill_laplacian(image, laplacian, look)
    quiet = 2.0 * np.sqrt(max(floor, 1.0) + read_var)
    near = _mark_candidates(laplacian, ignore, look, sigma * quiet)
    _fill_median3(image, median3, near, scratch)
    hits = np.zeros(image.shape, np.bool_)
    lowest = fraction * sigma * quiet
    for y in range(ny):
        for x in range(nx):
            sharp[y, x] = 0.0
            if not near[y, x]:
                continue
            if ignore[y, x] or laplacian[y, x] <= lowest:
                continue
            sharp[y, x] = _significance(image, laplacian, median3, read_var, y, x, scratch)
            if sharp[y, x] > sigma and sharp[y, x] > contrast * _fine_structure(
                image, median3, read_var, y, x, scratch
            ):
                hits[y, x] = True
    return _grow(_grow(hits, sharp, sigma), sharp, fraction * sigma)


@njit(cache=True, nogil=True)
def _clean(image, found, ignore, fresh, look):
    """Replace fresh hits by the median of good pixels around, and mark their surroundings to be looked at (again)."""
    ny, nx = image.shape
    scratch = np.empty(49, np.float32)
    look[:, :] = False
    for y in range(ny):
        for x in range(nx):
            if not fresh[y, x]:
                continue
            n = 0
            for j in range(max(0, y - 3), min(ny, y + 4)):
                for i in range(max(0, x - 3), min(nx, x + 4)):
                    if not found[j, i] and not ignore[j, i]:
                        scratch[n] = image[j, i]
                        n += 1
            if n:
                image[y, x] = _median_of(scratch, n)
            look[max(0, y - _MARGIN) : y + _MARGIN + 1, max(0, x - _MARGIN) : x + _MARGIN + 1] = True


@njit(cache=True, nogil=True)
def _drop_faint_groups(electrons, cleaned, found, read_var, min_snr):
    """Take back each 8-connected group whose charge above its surroundings is below `min_snr` of its own noise."""
    ny, nx = found.shape
    seen = np.zeros(found.shape, np.bool_)
    members = np.empty((int(found.sum()), 2), np.int32)
    for y in range(ny):
        for x in range(nx):
            if not found[y, x] or seen[y, x]:
                continue
            members[0] = y, x
            seen[y, x] = True
            n, done = 1, 0
            charge, noise = 0.0, 0.0
            while done < n:
                cy, cx = members[done]
                done += 1
                charge += electrons[cy, cx] - cleaned[cy, cx]
                noise += max(cleaned[cy, cx], 1.0) + read_var
                for j in range(max(0, cy - 1), min(ny, cy + 2)):
                    for i in range(max(0, cx - 1), min(nx, cx + 2)):
                        if found[j, i] and not seen[j, i]:
                            seen[j, i] = True
                            members[n] = j, i
                            n += 1
            if charge < min_snr * np.sqrt(noise):
                for k in range(n):
                    found[members[k, 0], members[k, 1]] = False


def find_cosmic_rays(
    electrons: np.ndarray,
    defects: np.ndarray,
    saturated: np.ndarray,
    read_noise_e: float,
    *,
    sigma: float = 4.5,
    fraction: float = 0.15,
    contrast: float = 3.0,
    iterations: int = 4,
    min_snr: float = 6.0,
) -> np.ndarray:
    """Pixels hit by cosmic rays.

    Parameters
    ----------
    electrons : (ny, nx) float32
        Image in electrons with the sky in it (the noise is taken from it).
    defects : (ny, nx) bool
        Pixels without meaning: filled in from around first (beside a dead column every pixel looks sharp), not judged.
    saturated : (ny, nx) bool
        Pixels not to be judged whose values are left as they are.
    read_noise_e : float
        Electrons.
    sigma : float
        Significance of the Laplacian from which a pixel is a candidate.
    fraction : float
        Neighbours of a hit join it from `fraction` × `sigma`.
    contrast : float
        How much sharper than a star-like structure a hit must be; lower finds more and endangers star cores.
    iterations : int
        Rounds, at most; it ends early when a round finds nothing.
    min_snr : float
        Of the summed charge of a connected group of hits, against the noise of its pixels; fainter ones are noise.

    Returns
    -------
    (ny, nx) bool
    """
    original = np.ascontiguousarray(electrons, np.float32)
    image = original.copy()
    ignore = np.ascontiguousarray(defects | saturated, bool)
    look = np.ones(image.shape, bool)
    _clean(image, ignore, saturated, np.ascontiguousarray(defects & ~saturated, bool), look)
    look[:] = True
    sample = tuple(slice(None, None, max(1, size // _SAMPLED)) for size in image.shape)
    good = image[sample][~ignore[sample]]
    floor = 0.8 * float(np.median(good)) if good.size else 0.0
    work = tuple(np.zeros(image.shape, np.float32) for _ in range(3))
    found = np.zeros(image.shape, bool)
    for _ in range(iterations):
        hits = _find_round(image, ignore, look, work, floor, read_noise_e**2, sigma, fraction, contrast)
        fresh = hits & ~found & ~ignore
        if not fresh.any():
            break
        found |= fresh
        _clean(image, found, ignore, fresh, look)
    _drop_faint_groups(original, image, found, read_noise_e**2, min_snr)
    return found


def flag_cosmic_rays(mask: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """`mask` (int16) with COSMIC_RAY set where `hits` (bool) is true."""
    return mask | np.where(hits, np.int16(Mask.COSMIC_RAY), np.int16(0))
