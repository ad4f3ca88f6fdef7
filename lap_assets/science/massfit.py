"""Masses of lenses from tangential shear: the profile around a centre and the NFW fit to it.

Here: the binned profile with its errors, and the fit of one halo. Formulas of the halo are `nfw.py`'s, finding the
centre is `massmap.py`'s.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq, minimize_scalar

from lap_assets.errors import UnprocessableData
from lap_assets.science.cosmology import LensGeometry
from lap_assets.science.massmap import ShearSample, rotate_shears
from lap_assets.science.nfw import mean_concentration, reduced_shear

LOG_MASS_RANGE = (12.0, 16.3)  # log10 of M200c [Msun] searched
LOG_CONCENTRATION_RANGE = (0.0, 1.2)  # log10 of c200c searched when it is free


@dataclass(frozen=True)
class HaloFit:
    """The best NFW halo.

    Attributes
    ----------
    m200c_msun, m200c_minus_msun, m200c_plus_msun : float
        Mass and the distances to where chi2 has risen by 1 (concentration refitted where it is free).
    c200c : float
    chi2, chi2_null : float
        Of the best halo and of no halo.
    dof : int
    snr : float
        sqrt(chi2_null - chi2), 0 where the halo is no better.
    """

    m200c_msun: float
    m200c_minus_msun: float
    m200c_plus_msun: float
    c200c: float
    chi2: float
    chi2_null: float
    dof: int
    snr: float


def measure_profile(
    sample: ShearSample, x: float, y: float, edges_mpc: np.ndarray, mpc_per_arcmin: float
) -> pd.DataFrame:
    """Tangential and cross shear in rings around (x, y) [arcmin], a row per ring that holds at least two galaxies.

    Columns: radius_mpc (weighted mean), gamma_t, gamma_x (reduced shear), gamma_err (one component, from the scatter
    of the galaxies themselves), n.
    """
    dx, dy = sample.x - x, sample.y - y
    tangential, cross = rotate_shears(dx, dy, sample.g1, sample.g2)
    radius = np.hypot(dx, dy) * mpc_per_arcmin
    ring = np.digitize(radius, edges_mpc) - 1
    rows = []
    for k in range(len(edges_mpc) - 1):
        inside = ring == k
        w = sample.weight[inside]
        if np.count_nonzero(w > 0) < 2:
            continue
        total = w.sum()
        error = np.sqrt(np.sum(w**2 * (tangential[inside] ** 2 + cross[inside] ** 2)) / 2.0) / total
        means = (np.sum(w * v[inside]) / total for v in (radius, tangential, cross))
        rows.append((*means, error, int(inside.sum())))
    return pd.DataFrame(rows, columns=["radius_mpc", "gamma_t", "gamma_x", "gamma_err", "n"])


def fit_halo(profile: pd.DataFrame, geometry: LensGeometry, concentration: float | str = "relation") -> HaloFit:
    """Fit M200c of an NFW halo (reduced shear) to a profile by least chi2.

    Parameters
    ----------
    profile : columns radius_mpc, gamma_t, gamma_err
    concentration : float, "relation" or "free"
        Fixed, tied to the mass (`nfw.mean_concentration`), or fitted as well.

    Raises
    ------
    UnprocessableData
        With fewer than three rings.
    """
    if len(profile) < 3:
        raise UnprocessableData(
            f"the shear profile has {len(profile)} rings, 3 are needed: too few background galaxies"
        )
    radius, data, error = (profile[k].to_numpy(float) for k in ("radius_mpc", "gamma_t", "gamma_err"))

    def compute_chi2(log_mass: float, c200c: float) -> float:
        model = reduced_shear(radius, 10.0**log_mass, c200c, geometry)
        return float(np.sum(((data - model) / error) ** 2))

    def profile_chi2(log_mass: float) -> tuple[float, float]:
        """chi2 and concentration at a mass."""
        if concentration != "free":
            c = mean_concentration(10.0**log_mass, geometry.z_lens) if concentration == "relation" else concentration
            return compute_chi2(log_mass, float(c)), float(c)
        best = minimize_scalar(
            lambda log_c: compute_chi2(log_mass, 10.0**log_c), bounds=LOG_CONCENTRATION_RANGE, method="bounded"
        )
        return float(best.fun), float(10.0**best.x)

    best = minimize_scalar(
        lambda m: profile_chi2(m)[0], bounds=LOG_MASS_RANGE, method="bounded", options={"xatol": 1e-5}
    )
    chi2, c200c = profile_chi2(best.x)
    low, high = (_find_rise(lambda m: profile_chi2(m)[0] - chi2 - 1.0, best.x, end) for end in LOG_MASS_RANGE)
    null = float(np.sum((data / error) ** 2))
    mass = float(10.0**best.x)
    return HaloFit(
        m200c_msun=mass,
        m200c_minus_msun=mass - 10.0**low,
        m200c_plus_msun=10.0**high - mass,
        c200c=c200c,
        chi2=chi2,
        chi2_null=null,
        dof=len(data) - (2 if concentration == "free" else 1),
        snr=float(np.sqrt(max(null - chi2, 0.0))),
    )


def _find_rise(rise: Callable[[float], float], best: float, end: float) -> float:
    """Where `rise` becomes positive between the best value and the end of the range; the end if nowhere."""
    return float(brentq(rise, best, end, xtol=1e-4)) if rise(end) > 0 else float(end)
