"""Judging a master calibration: fit for use by itself, and unchanged against the master before it.

A detector is stable: what changes from one master to the next by more than noise is dust, a failing amplifier, or bad
frames, and somebody should look. The numbers that decide are the caller's; deciding what follows is not done here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lap_assets.errors import UnprocessableData
from lap_assets.model.image import Mask, MaskedImage

FAR_SIGMA = 6.0
# kinds that are divided by; the others are subtracted
_RELATIVE = ("flat", "sky")
_SAMPLE = 1_000_000  # pixels that tell a level


@dataclass(frozen=True)
class MasterLimits:
    """What may change from one master to the next of the same kind.

    Attributes
    ----------
    stability : float
        Change of a pixel that is taken as natural, added to the noise in quadrature; unit of the master.
    max_level_change : float
        Of the chip's level (flat, sky) or amplitude (fringe), relative; for others in the master's unit.
    max_fraction_beyond : float
        Of the pixels beyond 6 sigma.
    max_new_defects : float
        Of the pixels, that are BAD now and were not.
    """

    stability: float
    max_level_change: float
    max_fraction_beyond: float
    max_new_defects: float


@dataclass(frozen=True)
class MasterComparison:
    """One chip of a master against the one before.

    Attributes
    ----------
    fraction_beyond_6sigma : float
        Of the pixels good in both, after the change of level is taken out.
    level_ratio : float
        New level over old (flat, sky), slope of new pattern on old (fringe).
    level_change : float
        `level_ratio` - 1, or the difference of the levels (bias, dark) in the master's unit.
    new_defects : int
        Pixels that are BAD now and were not.
    reasons : tuple of str
        Why it is not ok, one line each.
    """

    fraction_beyond_6sigma: float
    level_ratio: float
    level_change: float
    new_defects: int
    reasons: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.reasons


def require_sound(sci: np.ndarray, kind: str, where: str) -> float:
    """The level (median) of a master; raises `UnprocessableData` where it could calibrate nothing.

    Parameters
    ----------
    sci : (ny, nx) float32
    kind : str
    where : str
        Names it in the error.

    Raises
    ------
    UnprocessableData
        No finite pixel; a flat or sky frame at or below zero; a master of one single value.
    """
    # an odd step: no column stands for all
    finite = sci.reshape(-1)[:: max(1, sci.size // _SAMPLE) | 1]
    finite = finite[np.isfinite(finite)]
    cure = "look at its frames, reject those that are bad and build it again"
    if finite.size == 0:
        raise UnprocessableData(f"{where} holds no number; {cure}")
    level = float(np.median(finite))
    if kind in _RELATIVE and not level > 0:
        raise UnprocessableData(f"{where} has level {level:.4g}, but it must be above zero; {cure}")
    if float(finite.min()) == float(finite.max()) and kind != "sky":
        raise UnprocessableData(f"{where} is {level:.4g} everywhere; {cure}")
    return level


def compare_masters(new: MaskedImage, old: MaskedImage, kind: str, limits: MasterLimits) -> MasterComparison:
    """A master of one chip against the master before it.

    Parameters
    ----------
    new, old : MaskedImage
        With masks and variances.
    kind : str
        bias, dark, flat, sky or fringe.
    limits : MasterLimits

    Raises
    ------
    UnprocessableData
        One of the two holds nothing, or they have different shapes.
    """
    if new.shape != old.shape:
        raise UnprocessableData(f"the new master {kind} has shape {new.shape}, the one before {old.shape}")
    for name, one in (("new", new), ("previous", old)):
        require_sound(one.sci, kind, f"the {name} master {kind}")
    defects = int(np.count_nonzero(_is_bad(new) & ~_is_bad(old)))
    good = _is_good(new) & _is_good(old)
    if not good.any():
        whole = "no pixel is good in both this master and the one before"
        return MasterComparison(1.0, float("nan"), float("nan"), defects, (whole,))
    change, ratio, expected = _relate_levels(new.sci[good], old.sci[good], old.var[good], kind)
    spread = np.sqrt(new.var[good] + old.var[good] * np.float32(ratio**2) + np.float32(limits.stability**2))
    far = float(np.mean(np.abs(new.sci[good] - expected) > FAR_SIGMA * spread))
    reasons = _judge(far, change, defects / new.sci.size, kind, limits)
    return MasterComparison(far, ratio, change, defects, reasons)


def _relate_levels(
    new: np.ndarray, old: np.ndarray, old_variance: np.ndarray, kind: str
) -> tuple[float, float, np.ndarray]:
    """Change of level, ratio of levels, and what the old pixels would be at the new level."""
    if kind in _RELATIVE:
        ratio = float(np.median(new / old))
        return ratio - 1.0, ratio, old * np.float32(ratio)
    if kind == "fringe":
        slope = _fit_slope(new, old, old_variance)
        return slope - 1.0, slope, old * np.float32(slope)
    change = float(np.median(new - old))
    return change, 1.0, old + np.float32(change)


def _fit_slope(new: np.ndarray, old: np.ndarray, old_variance: np.ndarray) -> float:
    """Slope of one pattern on the other; the noise of `old`, which would lower it, is taken out of its power."""
    x, y = old.astype(np.float64) - np.mean(old, dtype=np.float64), new - np.mean(new, dtype=np.float64)
    power = float(np.sum(x * x)) - float(np.sum(old_variance, dtype=np.float64))
    return float(np.sum(x * y)) / power if power > 0 else 0.0


def _judge(far: float, change: float, defects: float, kind: str, limits: MasterLimits) -> tuple[str, ...]:
    reasons: Sequence[tuple[bool, str]] = (
        (
            far > limits.max_fraction_beyond,
            f"fraction beyond {FAR_SIGMA:.0f} sigma {far:.2%} > {limits.max_fraction_beyond:.2%}",
        ),
        (
            not abs(change) <= limits.max_level_change,
            f"level changed by {_write_change(change, kind)}, at most {_write_change(limits.max_level_change, kind)}",
        ),
        (
            defects > limits.max_new_defects,
            f"new defects {defects:.3%} of the pixels > {limits.max_new_defects:.3%}",
        ),
    )
    return tuple(text for wrong, text in reasons if wrong)


def _write_change(change: float, kind: str) -> str:
    unit = {"bias": " adu", "dark": " e-/s"}.get(kind)
    return f"{change:.2%}" if unit is None else f"{change:.3g}{unit}"


def _is_bad(image: MaskedImage) -> np.ndarray:
    return (image.mask & int(Mask.BAD)) != 0


def _is_good(image: MaskedImage) -> np.ndarray:
    return ~_is_bad(image) & np.isfinite(image.sci) & (image.var > 0)
