"""Amplifier matching: what is left of the step between the amplifiers of a chip, measured on the sky and removed.

Nominal gains are applied by `science/flat.py`; measuring gains from pairs of flats belongs elsewhere.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lap_assets.model.camera import Amplifier

_STRIP_PX = 32  # two strips of this width on each side of a border
_PIECE_PX = 32  # along it
_MIN_PIXELS = 200
_CLIP_SIGMA = 3.0


def measure_amplifier_steps(image: np.ndarray, usable: np.ndarray, amplifiers: Sequence[Amplifier]) -> dict[str, float]:
    """Factor by which each amplifier must be multiplied so that the sky goes on smoothly across their borders.

    The sky at a border is extrapolated from two strips on each side (clipped means), so that a gradient is no step;
    the logarithms of all steps of a chip are solved together, with mean 0 over its area.

    Parameters
    ----------
    image : (ny, nx) float32
        Sky included, > 0.
    usable : (ny, nx) bool
    amplifiers : sequence of Amplifier

    Returns
    -------
    dict of str to float
        By amplifier; 1 where no border could be measured.
    """
    rows, steps = [], []
    for j, one in enumerate(amplifiers):
        for i, other in enumerate(amplifiers):
            if i != j and (step := _measure_border(image, usable, one, other)) is not None:
                row = np.zeros(len(amplifiers))
                row[j], row[i] = 1.0, -1.0
                rows.append(row)
                steps.append(-step)
    if not rows:
        return {amp.name: 1.0 for amp in amplifiers}
    area = np.array([(a.target[1] - a.target[0]) * (a.target[3] - a.target[2]) for a in amplifiers], float)
    solution = np.linalg.lstsq(np.vstack([*rows, area / area.sum()]), np.array([*steps, 0.0]), rcond=None)[0]
    return {amp.name: float(np.exp(value)) for amp, value in zip(amplifiers, solution, strict=True)}


def scale_variance(variance: np.ndarray, amplifiers: Sequence[Amplifier]) -> np.ndarray:
    """ADU² to electrons² with the square of the nominal gain of each amplifier; (ny, nx) float32."""
    result = np.empty_like(variance)
    for amp in amplifiers:
        x0, x1, y0, y1 = amp.target
        np.multiply(variance[y0:y1, x0:x1], np.float32(amp.gain**2), out=result[y0:y1, x0:x1])
    return result


def match_amplifiers(
    image: np.ndarray, variance: np.ndarray, amplifiers: Sequence[Amplifier], factors: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Image and variance with each amplifier multiplied by its factor (squared for the variance)."""
    image, variance = image.copy(), variance.copy()
    for amp in amplifiers:
        x0, x1, y0, y1 = amp.target
        image[y0:y1, x0:x1] *= np.float32(factors[amp.name])
        variance[y0:y1, x0:x1] *= np.float32(factors[amp.name] ** 2)
    return image, variance


def _measure_border(image: np.ndarray, usable: np.ndarray, one: Amplifier, other: Amplifier) -> float | None:
    """log(sky of `one` / sky of `other`) at the border where `other` begins right of or above `one`; None: no border.

    The median over pieces of the border: a bright star near it spoils few of them.
    """
    x0, x1, y0, y1 = one.target
    a0, a1, b0, b1 = other.target
    if x1 == a0 and max(y0, b0) < min(y1, b1):
        turned, along, border, side = False, (max(y0, b0), min(y1, b1)), x1, min(x1 - x0, a1 - a0)
    elif y1 == b0 and max(x0, a0) < min(x1, a1):
        turned, along, border, side = True, (max(x0, a0), min(x1, a1)), y1, min(y1 - y0, b1 - b0)
    else:
        return None
    width = min(_STRIP_PX, side // 2)
    steps = []
    for start in range(along[0], along[1], _PIECE_PX):
        piece = slice(start, min(start + _PIECE_PX, along[1]))
        strips = [slice(border + k * width, border + (k + 1) * width) for k in (-2, -1, 0, 1)]
        places = [(strip, piece) if turned else (piece, strip) for strip in strips]
        step = _measure_step([image[place][usable[place]] for place in places])
        if step is not None:
            steps.append(step)
    return float(np.median(steps)) if steps else None


def _measure_step(strips: list[np.ndarray]) -> float | None:
    """log(before / after) of the levels extrapolated to the border from the two strips on each side of it."""
    levels = [_clip_mean(values) for values in strips]
    if any(level is None for level in levels):
        return None
    far_left, left, right, far_right = levels
    before, after = 1.5 * left - 0.5 * far_left, 1.5 * right - 0.5 * far_right
    return float(np.log(before / after)) if before > 0 and after > 0 else None


def _clip_mean(values: np.ndarray) -> float | None:
    """Clipped mean around the median: sources and their wings are left out."""
    for _ in range(5):
        if values.size < _MIN_PIXELS:
            return None
        middle = np.median(values)
        spread = 1.4826 * np.median(np.abs(values - middle))
        kept = values[np.abs(values - middle) <= _CLIP_SIGMA * spread]
        if kept.size == values.size:
            break
        values = kept
    return float(np.mean(values, dtype=np.float64))
