"""What the joint calibration of a run says about one exposure: how a warp is to be made of its chips.

The calibration itself is `joint_solutions.py`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from lap_assets.model.ids import Pin
from lap_assets.science.jointcal import evaluate_terms, list_terms
from lap_assets.science.tan_sip import project_tan
from lap_assets.store.repo import Repo


@dataclass(frozen=True)
class JointCorrection:
    """Corrections of one exposure.

    Attributes
    ----------
    dzp_mag : float
        To be added to the zero point of its solution.
    terms : tuple of float
        Of `jointcal.evaluate_terms`, mag; empty where there are none.
    centre : (ra, dec, radius)
        Of the focal plane, degrees.
    left_out : mapping of chip to reason
        Chips that are not used.
    headers : mapping of chip to cards
        Joint astrometry, where there is any.
    """

    dzp_mag: float = 0.0
    terms: tuple[float, ...] = ()
    centre: tuple[float, float, float] = (0.0, 0.0, 1.0)
    left_out: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def scale_at(self, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        """Flux factor by the focal-plane terms at places on the sky (degrees), of any shape; 1 where there are none."""
        if not any(self.terms):
            return np.ones(np.shape(ra))
        ra0, dec0, radius = self.centre
        u, v = (axis.reshape(np.shape(ra)) / radius for axis in project_tan(np.ravel(ra), np.ravel(dec), ra0, dec0))
        return 10.0 ** (-0.4 * evaluate_terms(self.terms, u, v))


def read_correction(repo: Repo, pins: tuple[Pin, ...], exposure: str) -> JointCorrection:
    """The corrections of an exposure from the joint solution of its run; none where there is no joint solution."""
    if not pins:
        return JointCorrection()
    table = repo.read_table(pins[0], "zeropoints.parquet")
    mine = table[table["exposure"] == exposure]
    if not len(mine):
        return JointCorrection()
    row = mine.iloc[0]
    n_terms = sum(name.startswith("term_") for name in table.columns)
    degree = next(n for n in range(n_terms + 1) if len(list_terms(n)) >= n_terms)
    terms = tuple(float(row[f"term_{i}{j}_mag"]) for i, j in list_terms(degree))
    centre = tuple(float(row[name]) for name in ("ra_deg", "dec_deg", "radius_deg")) if terms else (0.0, 0.0, 1.0)
    selection = repo.read_table(pins[0], "selection.parquet")
    gone = selection[(selection.exposure == exposure) & ~selection.used]
    return JointCorrection(
        float(row["dzp_mag"]), terms, centre, dict(zip(gone.chip, gone.reason, strict=True)),
        repo.read_json(pins[0], "astrometry.json").get(exposure, {}),
    )  # fmt: skip


def to_wcs(cards: Mapping[str, Any]) -> WCS:
    """World coordinate system of header cards as a document keeps them."""
    return WCS(fits.Header(list(cards.items())))
