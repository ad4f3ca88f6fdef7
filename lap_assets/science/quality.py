"""Judging what was measured: effective exposure time, cuts on a chip's image quality, and the exposures of a run.

Numbers in, verdicts with their reasons out. Measuring them is the solution's; what follows from a verdict is the
pipeline's.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd


def measure_t_eff(
    fwhm_arcsec: float,
    sky_e_s: float,
    transparency: float,
    reference_fwhm_arcsec: float,
    reference_sky_e_s: float,
) -> float:
    """Effective over nominal exposure time, by which exposures of one band compare (Neilsen et al. 2016, FN-2153).

    t_eff = η² (FWHM₀ / FWHM)² (sky₀ / sky): the exposure is as deep for faint point sources as one of t_eff times its
    length in reference conditions. NaN where one of the values is not known or not above zero.

    Parameters
    ----------
    fwhm_arcsec, sky_e_s : float
        Of the exposure; the sky in electrons per second and pixel.
    transparency : float
        Light that came through, 1 in reference conditions.
    """
    values = np.array([fwhm_arcsec, sky_e_s, transparency, reference_fwhm_arcsec, reference_sky_e_s], float)
    if not (np.isfinite(values).all() and (values > 0).all()):
        return float("nan")
    return float(transparency**2 * (reference_fwhm_arcsec / fwhm_arcsec) ** 2 * reference_sky_e_s / sky_e_s)


def judge_measures(measures: Mapping[str, float | None], limits: Mapping[str, float | None]) -> str:
    """Why a chip is not good enough: what exceeds its largest allowed value; empty where nothing does (LV-12).

    Parameters
    ----------
    measures : mapping
        Numbers by name; None or NaN (not measured) passes.
    limits : mapping
        Largest allowed values by the same names; None: no cut.
    """
    reasons = []
    for name, limit in limits.items():
        value = measures.get(name)
        if limit is not None and value is not None and value > limit:
            reasons.append(f"{name} {value:.3g} > {limit:g}")
    return ", ".join(reasons)


def select_chips(
    chips: pd.DataFrame,
    *,
    max_distance_deg: float | None = None,
    visit_sigma: float = 2.0,
    visit_fraction: float = 0.7,
    chip_sigma: float = 3.0,
    chip_fraction: float = 0.5,
    min_good_chips: int = 1,
) -> pd.DataFrame:
    """Which chips of the exposures of a run are used, and why others are not (LV-13).

    Left out are, one after the other: chips too far from the field; chips with fewer reference stars than μ − 3σ of all
    chips; exposures with fewer than μ − 2σ of all exposures; exposures with too few chips left. As μ and σ of a handful
    of equals leave out the last one for a star or two, a number counts as low only if it is also below a fraction of μ.

    Parameters
    ----------
    chips : DataFrame
        exposure, chip, n_reference, distance_deg: one row per good chip.
    max_distance_deg : float or None
        None: chips are used however far they are.
    visit_sigma, visit_fraction, chip_sigma, chip_fraction : float
    min_good_chips : int

    Returns
    -------
    DataFrame
        The rows with `used` (bool) and `reason` (str), sorted by exposure and chip.
    """
    table = chips.sort_values(["exposure", "chip"], ignore_index=True).assign(used=True, reason="")
    if max_distance_deg is not None:
        _leave_out(table, table.distance_deg > max_distance_deg, f"farther than {max_distance_deg:g} deg")
    low, limit = _find_low(table.n_reference[table.used], chip_sigma, chip_fraction)
    _leave_out(table, table.n_reference.index.isin(low.index), f"fewer than {limit:.0f} reference stars on the chip")
    visits = table[table.used].groupby("exposure").n_reference.sum()
    low, limit = _find_low(visits, visit_sigma, visit_fraction)
    _leave_out(table, table.exposure.isin(low.index), f"exposure with fewer than {limit:.0f} reference stars")
    left = table[table.used].groupby("exposure").size()
    few = left[left < min_good_chips]
    _leave_out(table, table.exposure.isin(few.index), f"exposure with fewer than {min_good_chips} good chips")
    return table


def _find_low(counts: pd.Series, sigma: float, fraction: float) -> tuple[pd.Series, float]:
    """Counts below both mean − sigma · scatter and fraction · mean, and that limit."""
    if not len(counts):
        return counts, 0.0
    limit = min(float(counts.mean() - sigma * counts.std(ddof=0)), fraction * float(counts.mean()))
    return counts[counts < limit], limit


def _leave_out(table: pd.DataFrame, where: pd.Series | np.ndarray, reason: str) -> None:
    rows = table.used & where
    table.loc[rows, "reason"] = reason
    table.loc[rows, "used"] = False
