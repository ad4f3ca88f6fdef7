"""The cluster as a gravitational lens: shear, convergence, displacement, and the aperture-mass S/N to expect from it.

Positions and shears are in the frame of skycells and of GalSim: first axis to the west, second to the north, arcsec.
What is lensed (the galaxies) belongs to `sky.py`.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property

import galsim
import numpy as np
from astropy.cosmology import FlatLambdaCDM

from lap_assets.sim.design import LensDesign

COSMOLOGY = FlatLambdaCDM(H0=70.0, Om0=0.3)
_REFERENCE_Z = 1.0  # source redshift at which the radial profile is tabulated


@dataclass(frozen=True)
class Lens:
    """An NFW lens at (ra, dec) [deg] on the sky."""

    design: LensDesign
    ra_deg: float
    dec_deg: float

    @cached_property
    def _halo(self) -> galsim.NFWHalo:
        # GalSim takes the mass in Msun/h
        mass = self.design.m200c_msun * COSMOLOGY.h
        return galsim.NFWHalo(
            mass=mass, conc=self.design.c200c, redshift=self.design.z, omega_m=COSMOLOGY.Om0, omega_lam=COSMOLOGY.Ode0
        )

    @cached_property
    def _profile(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Radius [arcsec], convergence and shear at the reference redshift, on a logarithmic grid."""
        radius = np.geomspace(0.5, 3600.0, 1500)
        along = (radius, np.zeros_like(radius))
        with warnings.catch_warnings():  # GalSim 2.8 with numpy 2.3 warns of memory it then never reads
            warnings.simplefilter("ignore", UserWarning)
            kappa = self._halo.getConvergence(along, z_s=_REFERENCE_Z)
            gamma1, gamma2 = self._halo.getShear(along, z_s=_REFERENCE_Z, reduced=False)
        return radius, np.asarray(kappa), np.hypot(gamma1, gamma2)

    def compute_efficiency(self, z: np.ndarray) -> np.ndarray:
        """(n,) D_ls / D_s, zero for sources in front of the lens; 1 - chi_l / chi_s in a flat universe."""
        grid = np.linspace(0.0, 6.0, 1200)
        chi = np.interp(np.asarray(z, float), grid, COSMOLOGY.comoving_distance(grid).value)
        chi_lens = COSMOLOGY.comoving_distance(self.design.z).value
        return np.maximum(1.0 - np.divide(chi_lens, chi, out=np.full_like(chi, np.inf), where=chi > 0), 0.0)

    def _scale(self, z: np.ndarray) -> np.ndarray:
        return self.compute_efficiency(z) / self.compute_efficiency(np.array([_REFERENCE_Z]))[0]

    def compute_profile(self, radius_arcsec: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Convergence and tangential shear (n,) at radii for sources at redshifts z."""
        return self._look_up(radius_arcsec, self._scale(z))

    def _look_up(self, radius_arcsec: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        grid, kappa, gamma = self._profile
        log_r, log_grid = np.log(np.clip(radius_arcsec, grid[0], grid[-1])), np.log(grid)
        return scale * np.interp(log_r, log_grid, kappa), scale * np.interp(log_r, log_grid, gamma)

    def displace(self, source_arcsec: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Radii (n,) [arcsec] of the outer images of sources at radii `source_arcsec` without the lens.

        Solves beta = theta - alpha(theta) by bisection, with alpha = theta * (mean convergence inside theta) and mean
        convergence = kappa + gamma_t (Bartelmann & Schneider 2001, Phys. Rep. 340, section 3.1).
        """
        beta = np.asarray(source_arcsec, float)
        scale = self._scale(z)
        low, high = self._critical_radius(scale), beta + 120.0  # no cluster deflects by 120"
        for _ in range(50):
            middle = 0.5 * (low + high)
            kappa, gamma = self._look_up(middle, scale)
            too_small = middle * (1.0 - kappa - gamma) < beta
            low, high = np.where(too_small, middle, low), np.where(too_small, high, middle)
        return 0.5 * (low + high)

    def _critical_radius(self, scale: np.ndarray) -> np.ndarray:
        """Einstein radii (n,) [arcsec]: where the mean convergence is one; zero where it never is."""
        grid, kappa, gamma = self._profile
        needed = np.divide(1.0, scale, out=np.full_like(scale, np.inf), where=scale > 0)
        mean = (kappa + gamma)[::-1]  # rises towards the centre
        return np.interp(needed, mean, grid[::-1], right=0.0)

    def measure_offsets(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Offsets (n,) of positions from the lens in arcsec to the west and to the north (tangent plane)."""
        east, north = project_tangent(ra_deg, dec_deg, self.ra_deg, self.dec_deg)
        return -3600.0 * east, 3600.0 * north


def project_tangent(ra_deg: np.ndarray, dec_deg: np.ndarray, ra0: float, dec0: float) -> tuple[np.ndarray, np.ndarray]:
    """Gnomonic projection of (ra, dec) about (ra0, dec0): (east, north), all in degrees."""
    dra, dec, dec0 = np.radians(np.asarray(ra_deg) - ra0), np.radians(dec_deg), np.radians(dec0)
    depth = np.sin(dec0) * np.sin(dec) + np.cos(dec0) * np.cos(dec) * np.cos(dra)
    east = np.cos(dec) * np.sin(dra) / depth
    north = (np.cos(dec0) * np.sin(dec) - np.sin(dec0) * np.cos(dec) * np.cos(dra)) / depth
    return np.degrees(east), np.degrees(north)


def deproject_tangent(east: np.ndarray, north: np.ndarray, ra0: float, dec0: float) -> tuple[np.ndarray, np.ndarray]:
    """Inverse of `project_tangent`: (ra, dec) in degrees of tangent-plane coordinates in degrees."""
    xi, eta, dec0 = np.radians(east), np.radians(north), np.radians(dec0)
    depth = np.cos(dec0) - eta * np.sin(dec0)
    ra = ra0 + np.degrees(np.arctan2(xi, depth))
    dec = np.degrees(np.arctan2(np.sin(dec0) + eta * np.cos(dec0), np.hypot(xi, depth)))
    return ra % 360.0, dec


def filter_schirmer(x: np.ndarray) -> np.ndarray:
    """Schirmer et al. (2007, A&A 462, 875) weight Q (not normalised) at x = radius / filter radius, zero beyond 1."""
    x = np.clip(np.asarray(x, float), 1e-6, None)
    ramp = np.tanh(x / 0.15) / (x / 0.15)
    cut = 1.0 + np.exp(6.0 - 150.0 * np.minimum(x, 1.0)) + np.exp(-47.0 + 50.0 * np.minimum(x, 1.0))
    return np.where(x <= 1.0, ramp / cut, 0.0)


def predict_snr(radius_arcsec: np.ndarray, shear_tangential: np.ndarray, sigma_e: float, filter_arcsec: float) -> float:
    """Expected aperture-mass S/N at the lens for galaxies at given radii with given true tangential shear.

    Sum(Q g_t) / (sigma_e sqrt(sum Q^2)), sigma_e per component (Schneider 1996, MNRAS 283, 837, eq. 19).
    """
    weight = filter_schirmer(radius_arcsec / filter_arcsec)
    noise = sigma_e * np.sqrt(np.sum(weight**2))
    return float(np.sum(weight * shear_tangential) / noise) if noise > 0 else 0.0
