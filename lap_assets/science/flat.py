"""Master flat: relative response of every pixel of the mosaic, built from evenly lit frames, and its application.

One number normalises all chips of a camera, so that steps between chips and amplifiers are in the flat and dividing by
it leaves one zero point per exposure. Illumination corrections from stars and fringes do not belong here.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numba import njit

from lap_assets.errors import UnprocessableData
from lap_assets.model.camera import Amplifier
from lap_assets.science.frame_combination import FrameNoise, combine_frames

MIN_RESPONSE = 0.2  # below this a pixel is dead or fully vignetted: dividing would only blow up noise


def apply_gain(image: np.ndarray, amplifiers: Sequence[Amplifier]) -> np.ndarray:
    """ADU to electrons with the nominal gain of each amplifier; (ny, nx) float32."""
    result = image.copy()
    for amp in amplifiers:
        x0, x1, y0, y1 = amp.target
        result[y0:y1, x0:x1] *= np.float32(amp.gain)
    return result


def read_noise_map(amplifiers: Sequence[Amplifier], shape: tuple[int, int]) -> np.ndarray:
    """Nominal read noise of each pixel in electrons, (ny, nx) float32."""
    noise = np.zeros(shape, np.float32)
    for amp in amplifiers:
        x0, x1, y0, y1 = amp.target
        noise[y0:y1, x0:x1] = amp.read_noise_e
    return noise


def measure_level(image: np.ndarray) -> float:
    """Level of a flat frame: the median of its middle half, away from edges and amplifier ends."""
    ny, nx = image.shape
    return float(np.median(image[ny // 4 : ny - ny // 4, nx // 4 : nx - nx // 4]))


def measure_sample_level(sample: np.ndarray) -> float:
    """Level of a flat frame from some of its pixels, any shape: the median of those that are finite; NaN: none is."""
    finite = sample[np.isfinite(sample)]
    return float(np.median(finite)) if finite.size else float("nan")


def relate_chip(levels: Mapping[str, float], chip: str) -> float:
    """Level of a chip relative to the mean over the chips, from one frame that all chips share.

    Raises `UnprocessableData` when the chip's level is missing or not above zero.
    """
    lit = {name: level for name, level in sorted(levels.items()) if np.isfinite(level) and level > 0}
    if chip not in lit:
        raise UnprocessableData(f"chip {chip}: its flat frames hold no light; reject them or mark the chip broken")
    return lit[chip] / float(np.mean(list(lit.values())))


def build_flat(
    frames: np.ndarray,
    read_noise: np.ndarray,
    relative_level: float,
    clip_sigma: float = 5.0,
    levels: Sequence[float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Master flat of a chip, or a stretch of its rows.

    Parameters
    ----------
    frames : (n, ny, nx) float32
        Electrons, overscan and bias removed.
    read_noise : (ny, nx) float32
        Electrons.
    relative_level : float
        From `relate_chip`: what the middle of this chip is relative to the mosaic.
    clip_sigma : float
    levels : sequence of float, optional
        Level of each frame in electrons; None: measured on these frames.

    Returns
    -------
    flat, variance : (ny, nx) float32
        Relative response, about 1 over the mosaic.

    Raises
    ------
    UnprocessableData
        A frame without light.
    """
    lit = np.array([measure_level(frame) for frame in frames] if levels is None else levels, np.float32)
    if np.any(~np.isfinite(lit)) or np.any(lit <= 0):
        raise UnprocessableData("a flat frame holds no light; reject it and build again")
    scale = lit / np.float32(relative_level)
    flat, variance, _ = combine_frames(
        frames, np.asarray(read_noise, np.float32) ** 2, FrameNoise.of(scale), clip_sigma
    )
    return flat, variance


def divide_flat(image: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """`image` divided by the flat; pixels below `MIN_RESPONSE` become 0 (mask them with the defects)."""
    alive = flat >= MIN_RESPONSE
    return np.where(alive, image / np.where(alive, flat, 1.0), 0.0).astype(np.float32)


def divide_response(
    image: np.ndarray,
    variance: np.ndarray,
    response: np.ndarray,
    response_variance: np.ndarray,
    in_place: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image and variance divided by a relative response, the response's own noise added.

    var(a / r) = var(a) / r² + a² var(r) / r⁴. Pixels below `MIN_RESPONSE`, or without a number there, become 0.

    Parameters
    ----------
    image, variance, response, response_variance : (ny, nx) float32
    in_place : bool
        Write the results over `image` and `variance`: two planes less, where memory counts.

    Returns
    -------
    image, variance : (ny, nx) float32
    dead : (ny, nx) bool
        Pixels that could not be divided.
    """
    quotient, result = (image, variance) if in_place else (np.empty_like(image), np.empty_like(variance))
    dead = np.empty(image.shape, bool)
    _divide_response(image, variance, response, response_variance, np.float32(MIN_RESPONSE), quotient, result, dead)
    return quotient, result, dead


@njit(cache=True, nogil=True)
def _divide_response(image, variance, response, response_variance, least, quotient, result, dead):
    ny, nx = image.shape
    for y in range(ny):
        for x in range(nx):
            if response[y, x] >= least:  # not of NaN
                inverse = np.float32(1.0) / response[y, x]
                value = image[y, x] * inverse
                quotient[y, x] = value
                result[y, x] = (variance[y, x] + value * value * response_variance[y, x]) * inverse * inverse
                dead[y, x] = False
            else:
                quotient[y, x] = 0.0
                result[y, x] = 0.0
                dead[y, x] = True
