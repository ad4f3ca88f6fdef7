"""From the sky to a tangent plane and back, for positions and for shapes.

Here: the gnomonic projection and the turning of spin-2 quantities between the local east-north frame, the plane's
frame and an image's pixel frame. Image coordinate systems themselves are astropy's.
"""

import numpy as np
from astropy.wcs import WCS


def project_positions(
    ra_deg: np.ndarray, dec_deg: np.ndarray, ra0_deg: float, dec0_deg: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gnomonic projection about a tangent point.

    Returns
    -------
    x, y : (n,) float64
        East and north, arcmin.
    north_angle : (n,) float64
        Direction of local north in the plane, radians from +y towards +x (meridians converge).
    """
    dra = np.radians(np.asarray(ra_deg, dtype=np.float64) - ra0_deg)
    dec, dec0 = np.radians(np.asarray(dec_deg, dtype=np.float64)), np.radians(dec0_deg)
    sin, cos, sin0, cos0 = np.sin(dec), np.cos(dec), np.sin(dec0), np.cos(dec0)
    depth = sin * sin0 + cos * cos0 * np.cos(dra)
    x, y = cos * np.sin(dra) / depth, (sin * cos0 - cos * sin0 * np.cos(dra)) / depth
    depth_slope = cos * sin0 - sin * cos0 * np.cos(dra)  # derivatives along the meridian
    x_slope = (-sin * np.sin(dra) - x * depth_slope) / depth
    y_slope = (cos * cos0 + sin * sin0 * np.cos(dra) - y * depth_slope) / depth
    arcmin = np.degrees(1.0) * 60.0
    return x * arcmin, y * arcmin, np.arctan2(x_slope, y_slope)


def unproject_positions(
    x_arcmin: np.ndarray, y_arcmin: np.ndarray, ra0_deg: float, dec0_deg: float
) -> tuple[np.ndarray, np.ndarray]:
    """Inverse of `project_positions`: RA in [0, 360) and Dec, degrees."""
    scale = np.radians(1.0 / 60.0)
    x, y = np.asarray(x_arcmin) * scale, np.asarray(y_arcmin) * scale
    sin0, cos0 = np.sin(np.radians(dec0_deg)), np.cos(np.radians(dec0_deg))
    dra = np.arctan2(x, cos0 - y * sin0)
    dec = np.arctan2(sin0 + y * cos0, np.hypot(x, cos0 - y * sin0))
    ra = (ra0_deg + np.degrees(dra)) % 360.0
    return np.where(ra < 360.0, ra, 0.0), np.degrees(dec)  # the remainder of -1e-16 rounds to 360


def turn_to_plane(e1: np.ndarray, e2: np.ndarray, north_angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shapes in local (east, north) frames to the frame of a tangent plane; see `project_positions`."""
    turned = (np.asarray(e1) + 1j * np.asarray(e2)) * np.exp(-2j * np.asarray(north_angle))
    return turned.real, turned.imag


def turn_to_sky(
    e1: np.ndarray, e2: np.ndarray, x: np.ndarray, y: np.ndarray, wcs: WCS
) -> tuple[np.ndarray, np.ndarray]:
    """Shapes measured in pixels to the local sky frame: e1 > 0 along east-west, e2 > 0 along north-east to south-west.

    In an image with x to the west and y to the north this is (e1, -e2). The small shear of the projection itself
    (3e-4 at 2 degrees from the tangent point of a TAN image) is left in.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    ra, dec = wcs.all_pix2world(np.concatenate([x - 0.5, x + 0.5, x, x]), np.concatenate([y, y, y - 0.5, y + 0.5]), 0)
    left, right, below, above = np.split(ra, 4)
    cos = np.cos(np.radians(dec[: len(x)]))
    along_x = _wrap(right - left) * cos + 1j * (dec[len(x) : 2 * len(x)] - dec[: len(x)])
    along_y = _wrap(above - below) * cos + 1j * (dec[3 * len(x) :] - dec[2 * len(x) : 3 * len(x)])
    mirrored = (along_x.conj() * along_y).imag < 0  # x, y are left-handed on the sky seen with east to the right
    shape = np.asarray(e1) + 1j * np.asarray(e2)
    turned = np.where(mirrored, shape.conj(), shape) * (along_x / np.abs(along_x)) ** 2
    return turned.real, turned.imag


def _wrap(dra_deg: np.ndarray) -> np.ndarray:
    return (dra_deg + 180.0) % 360.0 - 180.0
