"""Gnomonic projection, and TAN-SIP headers fitted to a smooth map from pixels to the sky.

The SIP convention is that of Shupe et al. (2005, ASP Conf. 347, 491). Where the map comes from (stars, another header)
is the caller's.
"""

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from lap_assets.errors import UnprocessableData

MAX_ORDER = 5
_TOLERANCE_PX = 1e-3  # the order is raised until the header follows the map this closely


def project_tan(ra: np.ndarray, dec: np.ndarray, ra0: float, dec0: float) -> tuple[np.ndarray, np.ndarray]:
    """Standard coordinates (xi east, eta north) in degrees about (ra0, dec0); NaN on the far hemisphere."""
    a, d, d0 = np.radians(np.asarray(ra) - ra0), np.radians(dec), np.radians(dec0)
    cosine = np.sin(d) * np.sin(d0) + np.cos(d) * np.cos(d0) * np.cos(a)
    safe = np.where(cosine > 1e-6, cosine, np.nan)
    xi = np.cos(d) * np.sin(a) / safe
    eta = (np.sin(d) * np.cos(d0) - np.cos(d) * np.sin(d0) * np.cos(a)) / safe
    return np.degrees(xi), np.degrees(eta)


def deproject_tan(xi: np.ndarray, eta: np.ndarray, ra0: float, dec0: float) -> tuple[np.ndarray, np.ndarray]:
    """Right ascension and declination in degrees of standard coordinates in degrees about (ra0, dec0)."""
    x, y, d0 = np.radians(xi), np.radians(eta), np.radians(dec0)
    depth = np.cos(d0) - y * np.sin(d0)
    ra = ra0 + np.degrees(np.arctan2(x, depth))
    dec = np.degrees(np.arctan2(np.sin(d0) + y * np.cos(d0), np.hypot(x, depth)))
    return ra % 360.0, dec


def fit_tan_sip(
    x: np.ndarray, y: np.ndarray, ra: np.ndarray, dec: np.ndarray, shape: tuple[int, int], min_order: int = 1
) -> fits.Header:
    """TAN or TAN-SIP header through points of a smooth map.

    The order is the lowest, from `min_order` to 5, that follows the points to 1e-3 px. CRPIX is the image's centre.
    Inverse coefficients (AP, BP) are fitted as well.

    Parameters
    ----------
    x, y : (n,) arrays
        0-based pixels; at least 36 of them, spread over the image.
    ra, dec : (n,) arrays
        Degrees.
    shape : (ny, nx)

    Returns
    -------
    Header with NAXIS1, NAXIS2 and the WCS cards.

    Raises
    ------
    UnprocessableData
        If the map is singular.
    """
    for order in range(min_order, MAX_ORDER + 1):
        header, residual_px = _fit_order(x, y, ra, dec, shape, order)
        if residual_px < _TOLERANCE_PX:
            break
    return header


def convert_header(header: fits.Header, shape: tuple[int, int], points: int = 12) -> fits.Header:
    """TAN or TAN-SIP form of any celestial header (TPV, for one) over an image of `shape`."""
    x, y = grid_points(shape, points)
    ra, dec = WCS(header).all_pix2world(x, y, 0)
    return fit_tan_sip(x, y, ra, dec, shape)


def grid_points(shape: tuple[int, int], points: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """A grid of points² pixel positions that spans an image, flattened."""
    x, y = np.meshgrid(np.linspace(-0.5, shape[1] - 0.5, points), np.linspace(-0.5, shape[0] - 0.5, points))
    return x.ravel(), y.ravel()


def _fit_order(x, y, ra, dec, shape, order) -> tuple[fits.Header, float]:
    ny, nx = shape
    cx, cy = 0.5 * (nx - 1), 0.5 * (ny - 1)
    scale = 0.5 * max(nx, ny)
    u, v = (np.asarray(x) - cx) / scale, (np.asarray(y) - cy) / scale
    powers = [(total - j, j) for total in range(order + 1) for j in range(total + 1)]
    design = np.stack([u**i * v**j for i, j in powers], axis=1)
    middle = int(np.argmin(np.hypot(u, v)))
    ra0, dec0 = float(ra[middle]), float(dec[middle])
    for _ in range(4):
        plane = np.stack(project_tan(ra, dec, ra0, dec0), axis=1)
        solution, *_ = np.linalg.lstsq(design, plane, rcond=None)
        # the constant term says how far the tangent point is from the image's centre
        ra0, dec0 = (float(one) for one in deproject_tan(*solution[0], ra0, dec0))
    plane = np.stack(project_tan(ra, dec, ra0, dec0), axis=1)
    solution, *_ = np.linalg.lstsq(design[:, 1:], plane, rcond=None)
    coefficients = dict(zip(powers[1:], solution, strict=True))
    cd = np.stack([coefficients[1, 0], coefficients[0, 1]], axis=1) / scale
    if not np.all(np.isfinite(cd)) or abs(np.linalg.det(cd)) < 1e-14:
        raise UnprocessableData("the map from pixels to the sky is singular")
    residual = np.linalg.solve(cd, (design[:, 1:] @ solution - plane).T)
    sip = {key: np.linalg.solve(cd, value) / scale ** sum(key) for key, value in coefficients.items() if sum(key) >= 2}
    header = _write_header(shape, (cx + 1, cy + 1), (ra0, dec0), cd, order, sip)
    return header, float(np.abs(residual).max())


def _write_header(shape, crpix, crval, cd, order, sip) -> fits.Header:
    header = fits.Header()
    suffix = "-SIP" if order >= 2 else ""
    header["NAXIS"], header["NAXIS1"], header["NAXIS2"] = 2, int(shape[1]), int(shape[0])
    header["CTYPE1"], header["CTYPE2"] = f"RA---TAN{suffix}", f"DEC--TAN{suffix}"
    header["CUNIT1"], header["CUNIT2"] = "deg", "deg"
    header["CRVAL1"], header["CRVAL2"] = crval
    header["CRPIX1"], header["CRPIX2"] = float(crpix[0]), float(crpix[1])
    for i in (0, 1):
        for j in (0, 1):
            header[f"CD{i + 1}_{j + 1}"] = float(cd[i, j])
    header["RADESYS"] = "ICRS"
    if order >= 2:
        header["A_ORDER"], header["B_ORDER"] = order, order
        for (i, j), (a, b) in sorted(sip.items()):
            header[f"A_{i}_{j}"], header[f"B_{i}_{j}"] = float(a), float(b)
        _add_inverse(header, shape, order, sip)
    return header


def _add_inverse(header: fits.Header, shape: tuple[int, int], order: int, sip) -> None:
    """AP and BP by least squares on a grid: u = U + Σ AP U^p V^q with (U, V) = (u, v) + SIP(u, v)."""
    x, y = grid_points(shape, 16)
    u, v = x + 1 - header["CRPIX1"], y + 1 - header["CRPIX2"]
    scale = 0.5 * max(shape)
    big_u = u + sum(a * u**i * v**j for (i, j), (a, _) in sip.items())
    big_v = v + sum(b * u**i * v**j for (i, j), (_, b) in sip.items())
    powers = [(total - j, j) for total in range(order + 1) for j in range(total + 1)]
    design = np.stack([(big_u / scale) ** i * (big_v / scale) ** j for i, j in powers], axis=1)
    solution, *_ = np.linalg.lstsq(design, np.stack([u - big_u, v - big_v], axis=1), rcond=None)
    header["AP_ORDER"], header["BP_ORDER"] = order, order
    for (i, j), (a, b) in zip(powers, solution, strict=True):
        header[f"AP_{i}_{j}"], header[f"BP_{i}_{j}"] = float(a) / scale ** (i + j), float(b) / scale ** (i + j)
