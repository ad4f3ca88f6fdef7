"""Simulated shear samples and galaxy images that the lensing tests share, from GalSim and plain formulas only."""

import warnings

import galsim
import numpy as np

from lap_assets.science.massmap import ShearSample

H, OMEGA_M, Z_SOURCE = 0.7, 0.3, 0.8
GALSIM_ROUNDING = 2e-3  # GalSim rounds rho_crit (2.7722e11 for 2.7754e11), R200's factor and c/H0


def galsim_halo(m200c_msun, c200c=4.0, z=0.2, x_arcsec=0.0, y_arcsec=0.0):
    return galsim.NFWHalo(
        mass=m200c_msun * H, conc=c200c, redshift=z, omega_m=OMEGA_M, halo_pos=galsim.PositionD(x_arcsec, y_arcsec)
    )


def lensed_sample(rng, side_arcmin, density, m200c_msun, sigma, x0=0.0, y0=0.0):
    """Galaxies on a square about (0, 0) arcmin behind a halo at (x0, y0); reduced shear plus Gaussian noise."""
    n = int(density * side_arcmin**2)
    x, y = rng.uniform(-side_arcmin / 2, side_arcmin / 2, (2, n))
    noise = rng.normal(0.0, 1.0, (2, n)) * sigma
    g1, g2 = np.zeros(n), np.zeros(n)
    if m200c_msun:
        halo = galsim_halo(m200c_msun, x_arcsec=60 * x0, y_arcsec=60 * y0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # GalSim's own use of numpy
            g1, g2 = halo.getShear([60 * x, 60 * y], Z_SOURCE, reduced=True)
        g1, g2 = np.clip(g1, -0.9, 0.9), np.clip(g2, -0.9, 0.9)
    return ShearSample(x, y, g1 + noise[0], g2 + noise[1], np.ones(n))


class StampPsf:
    """A PSF that is one GalSim profile everywhere."""

    def __init__(self, profile, scale, size=31):
        self.stamp = profile.drawImage(nx=size, ny=size, scale=scale).array.astype(float)
        self.stamp /= self.stamp.sum()

    def evaluate(self, x, y):
        return self.stamp

    def evaluate_many(self, x, y):
        return np.repeat(self.stamp[None], len(x), axis=0)


def draw_galaxies(seed, n, g1, g2, snr, psf, pitch=44, scale=0.4, mirrored=False):
    """Round-about galaxies on a grid: n pairs of opposite ellipticity, sheared by (g1, g2), noise of one per pixel.

    `snr` is that of a matched filter. With `mirrored` the shear is meant in a frame whose x runs against the pixels'.
    Returns the image, x, y.
    """
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(2 * n)))
    image = rng.normal(0.0, 1.0, (side * pitch, side * pitch))
    xs, ys = [], []
    for k in range(2 * n):
        if k % 2 == 0:
            radius, e = rng.uniform(0.3, 0.8), rng.normal(0.0, 0.22, 2)
            e *= min(1.0, 0.7 / np.hypot(*e))
        galaxy = galsim.Exponential(half_light_radius=radius).shear(g1=e[0], g2=e[1]).shear(g1=g1, g2=g2)
        e = -e
        if mirrored:
            galaxy = galaxy.transform(-1, 0, 0, 1)
        dx, dy = rng.uniform(-0.5, 0.5, 2)
        stamp = galsim.Convolve(galaxy, psf).drawImage(nx=pitch, ny=pitch, scale=scale, offset=(dx, dy)).array
        j, i = (k // side) * pitch, (k % side) * pitch
        image[j : j + pitch, i : i + pitch] += stamp * (snr / np.sqrt(np.sum(stamp**2)))
        xs.append(i + (pitch - 1) / 2 + dx)
        ys.append(j + (pitch - 1) / 2 + dy)
    return image.astype(np.float32), np.array(xs), np.array(ys)
