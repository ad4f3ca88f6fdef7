"""Floats of long-lived images as integers, with subtractive dither (FITS standard 4.0, section 10.2, DITHER_2).

A pixel is rounded to a multiple of its row's step after a known random number below one step was added, which is taken
off when it is read: the error is at most half a step, has no bias and is independent of the value (R. White and
P. Greenfield 1999; Pence, White, Seaman 2010, PASP 122, 1065). Exact zeros stay. How large the steps may be is decided
here, coding the integers is `rice.py`'s.
"""

from functools import lru_cache

import numpy as np

from lap_assets.store.plane_passes import load_kernels

SIGMA_FRACTION = 1.0 / 16.0  # step of an image: adds 1/(12·16²) of the variance, 0.016 % of the standard deviation
VARIANCE_FRACTION = 1.0 / 512.0  # step of a variance: half of it, 0.98e-3, is the largest relative error
_STEPS_PER_OCTAVE = 4  # of which steps are: the last bit of a variance does not change the step of its row
_N_RANDOM = 10_000
_LOWEST = -2147483637  # the least integer of a pixel: those below have meanings
_MAX_RANGE = 2.0**31  # of a row, in steps
_MAX_VALUE = 1e37  # larger floats are not risked to become infinite


def choose_variance_steps(variance: np.ndarray) -> np.ndarray:
    """Steps of the rows of a variance plane: a fixed fraction of the least positive value of each, at most.

    Parameters
    ----------
    variance : (ny, nx) float32

    Returns
    -------
    (ny,) float64
        Rows without a positive value have the least step of all; zeros where there is no positive value at all.
    """
    return _round_steps(VARIANCE_FRACTION * _find_least(variance))


def choose_image_steps(variance: np.ndarray) -> np.ndarray:
    """Steps of the rows of an image with this variance (ny, nx): a fixed fraction of the least noise of each."""
    return _round_steps(SIGMA_FRACTION * np.sqrt(_find_least(variance)))


def _round_steps(steps: np.ndarray) -> np.ndarray:
    """The next smaller ones of few: where two machines differ in the last bit, they round to the same grid."""
    rounded, known = np.zeros_like(steps), steps > 0
    octaves = np.floor(np.log2(steps[known]) * _STEPS_PER_OCTAVE + 1e-9) / _STEPS_PER_OCTAVE
    rounded[known] = np.exp2(octaves)
    return rounded


def _find_least(variance: np.ndarray) -> np.ndarray:
    bits = np.empty(len(variance), np.int32)
    load_kernels().find_least(variance.view(np.int32), bits)
    least = bits.view(np.float32).astype(np.float64)
    known = np.isfinite(least)
    return np.where(known, least, least[known].min() if known.any() else 0.0)


def quantise_rows(rows: np.ndarray, steps: np.ndarray, first: int, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows of an image as integers.

    Parameters
    ----------
    rows : (n, nx) float32
        Finite.
    steps : (n,) float64
    first : int
        Number of the first of these rows in the image.
    seed : int
        1 to 10000 (ZDITHER0).

    Returns
    -------
    (integers, zeros) : (n, nx) int32 and (n,) float64
        A pixel is about `integers * step + zero`, exactly what `restore_rows` says. None: a row's values are too
        large, or too far apart for its step, so that the image has to stay as it is.
    """
    zeros = _choose_zeros(rows, steps)
    if zeros is None:
        return None
    integers = np.empty(rows.shape, np.int32)
    load_kernels().quantise(rows, steps, zeros, first + seed - 1, *_make_randoms(), integers)
    return integers, zeros


def _choose_zeros(rows: np.ndarray, steps: np.ndarray) -> np.ndarray | None:
    """What the integer 0 stands for in each row; None where the values of one do not fit.

    Integers begin just above those that have a meaning: near to that of an exact zero, which then costs few bits.
    """
    low, high = np.empty(len(rows), np.float32), np.empty(len(rows), np.float32)
    load_kernels().find_ranges(rows.view(np.int32), low.view(np.int32), high.view(np.int32))
    low, high = (np.where(np.isnan(low), 0.0, edge.astype(np.float64)) for edge in (low, high))  # nothing but zeros
    if not (steps > 0).all() or max(-low.min(), high.max()) > _MAX_VALUE or ((high - low) / steps).max() > _MAX_RANGE:
        return None
    return (np.floor(low / steps) - _LOWEST) * steps


def restore_rows(integers: np.ndarray, steps: np.ndarray, zeros: np.ndarray, first: int, seed: int) -> np.ndarray:
    """Rows of an image, (n, nx) float32, from what `quantise_rows` made of them."""
    rows = np.empty(integers.shape, np.float32)
    load_kernels().restore(integers, steps, zeros, first + seed - 1, *_make_randoms(), rows)
    return rows


@lru_cache(maxsize=1)
def _make_randoms() -> tuple[np.ndarray, np.ndarray]:
    """The standard's random numbers, and where in them the dither of a row begins (appendix I)."""
    seed, values = 1, np.empty(_N_RANDOM, np.float32)
    for i in range(_N_RANDOM):
        seed = 16807 * seed % 2147483647
        values[i] = seed / 2147483647
    return values, (values * np.float32(500.0)).astype(np.int64)
