"""Distances and densities that lensing needs, in a flat Lambda-CDM universe.

Here: angular-diameter distances, critical densities, the geometry of one lens and one source plane. Profiles of haloes
are `nfw.py`'s.
"""

from dataclasses import dataclass

import numpy as np
from astropy import units as u
from astropy.constants import G, c
from astropy.cosmology import FlatLambdaCDM

from lap_assets.errors import BadInput

ARCMIN_RAD = np.pi / 180.0 / 60.0


@dataclass(frozen=True)
class LensGeometry:
    """One lens plane and one (effective) source plane.

    Attributes
    ----------
    z_lens, z_source : float
    mpc_per_arcmin : float
        Proper transverse distance at the lens.
    rho_crit_msun_mpc3 : float
        Critical density of the universe at the lens redshift.
    sigma_crit_msun_mpc2 : float
        Critical surface density, c^2 D_s / (4 pi G D_l D_ls).
    """

    z_lens: float
    z_source: float
    mpc_per_arcmin: float
    rho_crit_msun_mpc3: float
    sigma_crit_msun_mpc2: float


def lens_geometry(z_lens: float, z_source: float, h0_km_s_mpc: float = 70.0, omega_m: float = 0.3) -> LensGeometry:
    """The geometry of a lens at `z_lens` before sources at `z_source`; `BadInput` unless 0 < z_lens < z_source."""
    if not 0.0 < z_lens < z_source:
        raise BadInput(
            f"lensing needs 0 < lens redshift < source redshift, not {z_lens} and {z_source}: change settings"
        )
    universe = FlatLambdaCDM(H0=h0_km_s_mpc, Om0=omega_m)
    chi_lens, chi_source = universe.comoving_distance(z_lens), universe.comoving_distance(z_source)
    d_lens, d_source = chi_lens / (1.0 + z_lens), chi_source / (1.0 + z_source)
    d_between = (chi_source - chi_lens) / (1.0 + z_source)  # flat space
    sigma = (c**2 / (4 * np.pi * G) * d_source / (d_lens * d_between)).to_value(u.Msun / u.Mpc**2)
    return LensGeometry(
        z_lens=float(z_lens),
        z_source=float(z_source),
        mpc_per_arcmin=float(d_lens.to_value(u.Mpc) * ARCMIN_RAD),
        rho_crit_msun_mpc3=float(universe.critical_density(z_lens).to_value(u.Msun / u.Mpc**3)),
        sigma_crit_msun_mpc2=float(sigma),
    )
