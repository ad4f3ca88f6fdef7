"""Crosstalk: the faint copy of one amplifier's signal in another that is read at the same time.

Pixels belong together that are read at the same moment, so amplifiers are compared in the order of read-out, whatever
their corner. Coefficients are the camera file's; measuring them belongs elsewhere, reading the source chips is
`pipeline/signature.py`'s.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from lap_assets.model.camera import Amplifier, Chip, Crosstalk
from lap_assets.model.image import Mask

Pair = tuple[str, str]  # victim, source: CHIP/AMPLIFIER


def invert_couplings(couplings: Iterable[Crosstalk]) -> dict[Pair, float]:
    """Factors that undo linear couplings: (I + C)⁻¹ − I by (victim, source).

    Raw signals are m = (I + C) t, so that t = m + Σ factor · m: exact also where amplifiers of a chip disturb each
    other. What comes by way of a third chip (a millionth) is left out: its frame would have to be read for it.
    """
    couplings = list(couplings)
    given = {(one.victim, one.source) for one in couplings}
    names = sorted({name for one in couplings for name in (one.victim, one.source)})
    number = {name: k for k, name in enumerate(names)}
    matrix = np.eye(len(names))
    for one in couplings:
        matrix[number[one.victim], number[one.source]] += one.coefficient
    factors = np.linalg.inv(matrix) - np.eye(len(names))
    pairs = [(names[j], names[i]) for j, i in np.argwhere(factors)]
    near = [pair for pair in pairs if pair in given or _chip_of(pair[0]) == _chip_of(pair[1])]
    return {pair: float(factors[number[pair[0]], number[pair[1]]]) for pair in near}


def list_source_chips(factors: Mapping[Pair, float], chip: str) -> tuple[str, ...]:
    """Chips whose raw frames are needed to correct `chip`, sorted, itself included if it is its own source."""
    return tuple(sorted({_chip_of(source) for victim, source in factors if _chip_of(victim) == chip}))


def orient_readout(pixels: np.ndarray, readout: tuple[str, str]) -> np.ndarray:
    """View of an amplifier's pixels with the one that is read first at [0, 0]."""
    return pixels[:: -1 if readout[1] == "top" else 1, :: -1 if readout[0] == "right" else 1]


def subtract_crosstalk(
    image: np.ndarray, chip: Chip, factors: Mapping[Pair, float], sources: Iterable[tuple[Chip, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Remove what other amplifiers left in the amplifiers of a chip.

    Parameters
    ----------
    image : (ny, nx) float32
        Trimmed frame of the victim, raw ADU.
    chip : Chip
        The victim.
    factors : mapping of (victim, source) to float
        From `invert_couplings`.
    sources : iterable of (Chip, (raw_ny, raw_nx) array)
        Raw frames of the chips of `list_source_chips`, taken one at a time.

    Returns
    -------
    image : (ny, nx) float32
    flags : (ny, nx) int16
        CROSSTALK where the source was saturated: its signal, and so the correction, is not known.
    """
    result, flags = image.copy(), np.zeros(image.shape, np.int16)
    for source, raw in sources:
        for amp in source.amplifiers:
            victims = [
                (one, factors[pair])
                for one in chip.amplifiers
                if (pair := (f"{chip.name}/{one.name}", f"{source.name}/{amp.name}")) in factors
            ]
            if victims:
                signal, saturated = _measure_signal(raw, amp)
                for one, factor in victims:
                    own = source.name == chip.name and one.name == amp.name
                    _add_signal(result, one, np.float32(factor), signal)
                    if not own:
                        _flag_pixels(flags, one, saturated)
    return result, flags


def _measure_signal(raw: np.ndarray, amp: Amplifier) -> tuple[np.ndarray, np.ndarray]:
    """ADU above the pedestal in the order of read-out, and where the pixel is saturated."""
    x0, x1, y0, y1 = amp.data
    pixels = np.asarray(raw[y0:y1, x0:x1], np.float32)
    pedestal = 0.0
    if amp.overscan is not None:
        a, b, c, d = amp.overscan
        pedestal = float(np.median(raw[c:d, a:b]))
    signal = np.where(np.isfinite(pixels), pixels - np.float32(pedestal), np.float32(0.0))
    return orient_readout(signal, amp.readout), orient_readout(pixels >= amp.saturation_adu, amp.readout)


def _add_signal(image: np.ndarray, victim: Amplifier, factor: np.float32, signal: np.ndarray) -> None:
    """Add `factor` times the signal to the victim's pixels; those read when the other has none left stay."""
    x0, x1, y0, y1 = victim.target
    mine = orient_readout(image[y0:y1, x0:x1], victim.readout)
    ny, nx = min(mine.shape[0], signal.shape[0]), min(mine.shape[1], signal.shape[1])
    mine[:ny, :nx] += factor * signal[:ny, :nx]


def _flag_pixels(flags: np.ndarray, victim: Amplifier, saturated: np.ndarray) -> None:
    """Flag the victim's pixels that were read together with saturated ones."""
    x0, x1, y0, y1 = victim.target
    mine = orient_readout(flags[y0:y1, x0:x1], victim.readout)
    rows, columns = np.nonzero(saturated[: mine.shape[0], : mine.shape[1]])
    mine[rows, columns] = int(Mask.CROSSTALK)


def _chip_of(name: str) -> str:
    return name.partition("/")[0]
