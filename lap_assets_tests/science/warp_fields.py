"""Chips, skycells and star fields for the tests of the resampling."""

import numpy as np
from astropy.wcs import WCS, Sip

from lap_assets.science import warp
from lap_assets.science.pixel_map import map_pixels

SCALE = 0.4


def skycell_wcs(n=240, scale=SCALE, ra=150.0, dec=2.0):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [n / 2 + 0.5, n / 2 + 0.5]
    wcs.wcs.cd = np.diag([-scale, scale]) / 3600
    wcs.wcs.set()
    return wcs


def chip_wcs(n=240, angle_deg=3.0, scale=SCALE, dx=0.3, dy=-0.2, sip=1.0, ra=150.0, dec=2.0):
    """A turned chip with quadratic and cubic distortion (`sip` times 1e-5, 1e-8)."""
    wcs = skycell_wcs(n, scale, ra, dec)
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    wcs.wcs.cd = np.array([[-c, s], [s, c]]) * scale / 3600
    wcs.wcs.crpix = [n / 2 + 0.5 + dx, n / 2 + 0.5 + dy]
    if sip:
        a, b = np.zeros((4, 4)), np.zeros((4, 4))
        a[2, 0], a[1, 1], a[3, 0], a[1, 2] = 1e-5 * sip, -6e-6 * sip, 1e-8 * sip, 1e-8 * sip
        b[0, 2], b[1, 1], b[0, 3], b[2, 1] = -8e-6 * sip, 5e-6 * sip, 1e-8 * sip, 1e-8 * sip
        wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


def draw_stars(n, x, y, flux, sigma=1.6):
    v, u = np.mgrid[0:n, 0:n]
    image = np.zeros((n, n))
    for one in zip(x, y, flux, strict=True):
        r2 = (u - one[0]) ** 2 + (v - one[1]) ** 2
        image += one[2] * np.exp(-0.5 * r2 / sigma**2) / (2 * np.pi * sigma**2)
    return image


def resample(sci, wcs, mask=None, var=None, n_out=240, **keys):
    """The chip on a skycell of n_out pixels, and its pixel map."""
    mask = np.zeros(sci.shape, np.int16) if mask is None else mask
    var = np.ones(sci.shape, np.float32) if var is None else var
    target = skycell_wcs(n_out)
    out = warp.make_empty_warp((n_out, n_out))
    pixel_map = map_pixels(wcs, sci.shape, target, out.shape)
    warp.warp_chip(out, sci, mask, var, pixel_map, **keys)
    return out, pixel_map


def measure(image, x, y, radius=9):
    """Flux in a box and centroid under a Gaussian window (iterated)."""
    ix, iy = round(float(x)), round(float(y))
    v, u = np.mgrid[iy - radius : iy + radius + 1, ix - radius : ix + radius + 1]
    cut = image[iy - radius : iy + radius + 1, ix - radius : ix + radius + 1].astype(float)
    cx, cy = float(x), float(y)
    for _ in range(12):
        window = np.exp(-0.5 * ((u - cx) ** 2 + (v - cy) ** 2) / 2.0**2) * cut
        cx += 2.0 * np.sum(window * (u - cx)) / window.sum()
        cy += 2.0 * np.sum(window * (v - cy)) / window.sum()
    return cut.sum(), cx, cy


def star_field():
    rng = np.random.default_rng(7)
    gx, gy = np.meshgrid(np.linspace(40, 200, 6), np.linspace(40, 200, 6))
    return gx.ravel() + rng.uniform(-1, 1, 36), gy.ravel() + rng.uniform(-1, 1, 36), np.full(36, 1e5)


def map_columns(pixel_map, first, last):
    """Chip column of a square of skycell pixels."""
    gx, gy = np.meshgrid(np.arange(first, last), np.arange(first, last))
    return pixel_map.interpolate(pixel_map.x, gx, gy)
