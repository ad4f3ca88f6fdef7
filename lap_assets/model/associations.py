"""Associations: which master calibrations an exposure is calibrated with, how well they fit, and what it waits for.

Pure rules over calibration sets (PHX-01, PHX-02, PHX-08). What sets and exposures there are is `survey.py`'s, reading
them `ledger/`'s, and whether anything is done about it `lap/`'s.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lap_assets.model.survey import CalibrationSet

# states of a calibration set; `built`: made, and held until somebody certifies it
VIRTUAL, BUILT, CERTIFIED, REJECTED = "virtual", "built", "certified", "rejected"
EXECUTABLE, WAITS, LACKS = "executable", "waits", "lacks"
ALL_BANDS = "all"
PER_BAND = frozenset({"flat", "sky", "fringe"})
# without these, where its camera's stages ask for them, an exposure cannot be calibrated; others are used if there
NEEDED = ("bias", "flat")
# days in which the score of a master of this kind halves: dust moves on flats, the glow of the sky hardly changes
HALF_LIFE_DAYS = {"bias": 60.0, "dark": 60.0, "flat": 30.0, "sky": 90.0, "fringe": 365.0}
HALF_LIFE_C = 10.0  # the same for a difference of the detector's temperature
_OF_STATE = {CERTIFIED: 1.0, VIRTUAL: 0.9, BUILT: 0.5}
_TOO_EARLY = 0.5  # for a master that begins only after the exposure


@dataclass(frozen=True)
class Choice:
    """One master chosen for an exposure.

    Attributes
    ----------
    state, reason : str
        Of its calibration set.
    score : float
        1 for a certified master of the same night and temperature, less the worse it fits; > 0.
    """

    kind: str
    key: str
    state: str
    score: float
    reason: str = ""

    @property
    def waits(self) -> str:
        """What it waits for, in one line; empty where it is certified."""
        if self.state == CERTIFIED:
            return ""
        verb = "to be built" if self.state == VIRTUAL else "to be certified"
        return f"{self.kind} {self.key} {verb}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True)
class Association:
    """One science exposure with the masters it is calibrated with (PHX-01).

    Attributes
    ----------
    choices : tuple of Choice
        In the order in which masters build on one another.
    lacks : tuple of str
        Why there is no master of a kind that is needed, one line each.
    """

    exposure: str
    choices: tuple[Choice, ...] = ()
    lacks: tuple[str, ...] = ()

    @property
    def waits(self) -> tuple[str, ...]:
        """What masters have to be built or certified first, one line each (PHX-02)."""
        return tuple(one.waits for one in self.choices if one.waits)

    @property
    def status(self) -> str:
        """`executable` (all masters are certified), `waits` (for one to be built or certified) or `lacks` (frames)."""
        return LACKS if self.lacks else WAITS if self.waits else EXECUTABLE

    @property
    def score(self) -> float:
        """How well the masters fit, 0 to 1: as well as the worst of them (PHX-08); 0 where one is lacking."""
        return 0.0 if self.lacks else min((one.score for one in self.choices), default=1.0)


def name_band(kind: str, band: str) -> str:
    """The band under which masters of a kind are filed that an exposure in `band` is calibrated with."""
    return band if kind in PER_BAND else ALL_BANDS


def measure_distance(one: "CalibrationSet", night: str, temperature_c: float | None = None) -> float:
    """How far a set is from an exposure, in half-lives of its score: by age, and by temperature where both are known.

    Parameters
    ----------
    night : str
        Of the exposure, ISO date.
    temperature_c : float, optional
        Of the detector during the exposure.
    """
    distance = _measure_age(one, night)
    if temperature_c is not None and one.temperature_c is not None:
        distance += abs(temperature_c - one.temperature_c) / HALF_LIFE_C
    return distance


def score_set(one: "CalibrationSet", night: str, temperature_c: float | None = None) -> float:
    """How well a set fits an exposure, 0 to 1 (PHX-08): halved by each half-life of distance, lowered by its state."""
    early = _TOO_EARLY if one.valid_from > night else 1.0
    return early * _OF_STATE.get(one.state, 0.0) * 2.0 ** -measure_distance(one, night, temperature_c)


def choose_master(
    ordered: Sequence["CalibrationSet"], night: str, temperature_c: float | None = None
) -> "CalibrationSet | None":
    """The set that an exposure of a night is calibrated with; None where none may be used.

    Of those in force (begun, not expired) the nearest in time and temperature, at equal distance a certified one; where
    none has begun yet, the nearest of the later ones. One that was built and is not certified comes last of all, one
    that was rejected never. Whether a set is only virtual makes no difference otherwise: it will be built, and an
    exposure must not change its masters back and forth meanwhile.

    Parameters
    ----------
    ordered : sequence of CalibrationSet
        Of one camera, kind and band, sorted by `valid_from` and key.
    """
    begun = bisect_right(ordered, night, key=lambda one: one.valid_from)
    for held in (False, True):
        for side in (ordered[:begun][::-1], ordered[begun:]):
            found = _find_nearest(side, night, temperature_c, held)
            if found is not None:
                return found
    return None


def find_previous(sets: Iterable["CalibrationSet"], new: "CalibrationSet") -> str | None:
    """Key of the certified master that a new one is compared with: the last before it, else the first after it.

    Parameters
    ----------
    sets : iterable of CalibrationSet
        In any order; only those of the camera, kind and band of `new` count.
    """
    use = (new.camera, new.kind, new.band)
    same = [one for one in sets if (one.camera, one.kind, one.band) == use and one.key != new.key]
    ordered = sorted((one.valid_from, one.key) for one in same if one.state == CERTIFIED)
    before = [key for start, key in ordered if start <= new.valid_from]
    return before[-1] if before else ordered[0][1] if ordered else None


def describe_lack(kind: str, band: str, night: str, withdrawn: "CalibrationSet | None" = None) -> str:
    """Why there is no master of a kind for an exposure, and what to do, in one line."""
    what = f"{kind} frames" + (f" of band {band}" if kind in PER_BAND else "")
    if withdrawn is None:
        return f"no {what} are valid on {night}: ingest them with --kind calibration"
    because = f" ({withdrawn.reason})" if withdrawn.reason else ""
    return f"{withdrawn.key} was rejected{because} and no other {what} are valid on {night}: ingest others"


def _find_nearest(
    outwards: Sequence["CalibrationSet"], night: str, temperature_c: float | None, held: bool
) -> "CalibrationSet | None":
    """The nearest of sets that are given in the order of their age."""
    best, least = None, (float("inf"), True)
    for one in outwards:
        if _measure_age(one, night) > least[0]:
            break  # all that follow are older still
        if (one.state == BUILT) != held or one.state == REJECTED or (one.valid_to and one.valid_to < night):
            continue
        rank = (measure_distance(one, night, temperature_c), one.state != CERTIFIED)
        if rank < least:
            best, least = one, rank
    return best


def _measure_age(one: "CalibrationSet", night: str) -> float:
    return abs(_count_days(night) - _count_days(one.valid_from)) / HALF_LIFE_DAYS[one.kind]


@lru_cache(maxsize=65536)
def _count_days(night: str) -> int:
    """Days of an ISO date since the year 1; 0 for a night that a camera names otherwise: then their order decides."""
    try:
        return date.fromisoformat(night).toordinal()
    except ValueError:
        return 0
