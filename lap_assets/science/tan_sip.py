"""Gnomonic projection, and TAN-SIP headers fitted to a smooth map from pixels to the sky.

The SIP convention is that of Shupe et al. (2005, ASP Conf. 347, 491). Where the map comes from (stars, another header)
is the caller's.
"""

from collections.abc import Callable

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
        parts, residual_px = _fit_order(x, y, ra, dec, shape, order)
        if residual_px < _TOLERANCE_PX:
            break
    return _write_header(shape, *parts)


def read_map(header: fits.Header) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Function from 0-based pixels (x, y) to (ra, dec) in degrees, for any celestial header.

    Plain TAN and TAN-SIP headers are evaluated here, which takes a hundredth of the time that `astropy.wcs.WCS` needs
    to read a header; all others (TPV, for one) by astropy.
    """
    if not _is_plain(header):
        wcs = WCS(header)
        return lambda x, y: tuple(wcs.all_pix2world(x, y, 0))
    crpix = [header[f"CRPIX{i}"] - 1.0 for i in (1, 2)]
    ra0, dec0 = header["CRVAL1"], header["CRVAL2"]
    cd = [[header.get(f"CD{i}_{j}", 0.0) for j in (1, 2)] for i in (1, 2)]
    sip = [_read_polynomial(header, name) for name in "AB"]

    def place(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u, v = np.asarray(x, float) - crpix[0], np.asarray(y, float) - crpix[1]
        p, q = u + _evaluate_polynomial(sip[0], u, v), v + _evaluate_polynomial(sip[1], u, v)
        return deproject_tan(cd[0][0] * p + cd[0][1] * q, cd[1][0] * p + cd[1][1] * q, ra0, dec0)

    return place


def _is_plain(header: fits.Header) -> bool:
    """Whether a header holds nothing but what `read_map` evaluates by itself."""
    keys = set(header)
    types = str(header.get("CTYPE1", "")), str(header.get("CTYPE2", ""))
    units = {str(header.get(f"CUNIT{i}", "deg")).strip() for i in (1, 2)}
    return (
        types in (("RA---TAN", "DEC--TAN"), ("RA---TAN-SIP", "DEC--TAN-SIP"))
        and "CD1_1" in keys
        and units <= {"deg", "degree", "degrees"}
        and float(header.get("LONPOLE", 180.0)) == 180.0
        and not any(key.startswith(("PV1_", "PV2_", "PC1_", "PC2_", "CPDIS", "D2IM")) for key in keys)
    )


def _read_polynomial(header: fits.Header, name: str) -> list[tuple[int, int, float]]:
    order = int(header.get(f"{name}_ORDER", 0)) if str(header["CTYPE1"]).endswith("SIP") else 0
    powers = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]
    found = [(i, j, header.get(f"{name}_{i}_{j}", 0.0)) for i, j in powers]
    return [(i, j, float(value)) for i, j, value in found if value]


def _evaluate_polynomial(terms: list[tuple[int, int, float]], u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return sum((value * u**i * v**j for i, j, value in terms), np.zeros_like(u))


def convert_header(header: fits.Header, shape: tuple[int, int], points: int = 12) -> fits.Header:
    """TAN or TAN-SIP form of any celestial header (TPV, for one) over an image of `shape`."""
    x, y = grid_points(shape, points)
    ra, dec = read_map(header)(x, y)
    return fit_tan_sip(x, y, ra, dec, shape)


def grid_points(shape: tuple[int, int], points: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """A grid of points² pixel positions that spans an image, flattened."""
    x, y = np.meshgrid(np.linspace(-0.5, shape[1] - 0.5, points), np.linspace(-0.5, shape[0] - 0.5, points))
    return x.ravel(), y.ravel()


def _fit_order(x, y, ra, dec, shape, order) -> tuple[tuple, float]:
    """Arguments of `_write_header` after `shape`, and the largest residual in pixels."""
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
    return ((cx + 1, cy + 1), (ra0, dec0), cd, order, sip), float(np.abs(residual).max())


def _write_header(shape, crpix, crval, cd, order, sip) -> fits.Header:
    suffix = "-SIP" if order >= 2 else ""
    cards = [
        ("NAXIS", 2), ("NAXIS1", int(shape[1])), ("NAXIS2", int(shape[0])), ("CTYPE1", f"RA---TAN{suffix}"),
        ("CTYPE2", f"DEC--TAN{suffix}"), ("CUNIT1", "deg"), ("CUNIT2", "deg"), ("CRVAL1", crval[0]),
        ("CRVAL2", crval[1]), ("CRPIX1", float(crpix[0])), ("CRPIX2", float(crpix[1])),
    ]  # fmt: skip
    cards += [(f"CD{i + 1}_{j + 1}", float(cd[i, j])) for i in (0, 1) for j in (0, 1)]
    cards.append(("RADESYS", "ICRS"))
    if order >= 2:
        cards += [("A_ORDER", order), ("B_ORDER", order)]
        for (i, j), (a, b) in sorted(sip.items()):
            cards += [(f"A_{i}_{j}", float(a)), (f"B_{i}_{j}", float(b))]
        cards += _list_inverse(crpix, shape, order, sip)
    return fits.Header(cards)


def _list_inverse(crpix, shape: tuple[int, int], order: int, sip) -> list[tuple[str, float]]:
    """AP and BP by least squares on a grid: u = U + Σ AP U^p V^q with (U, V) = (u, v) + SIP(u, v)."""
    x, y = grid_points(shape, 16)
    u, v = x + 1 - crpix[0], y + 1 - crpix[1]
    scale = 0.5 * max(shape)
    big_u = u + sum(a * u**i * v**j for (i, j), (a, _) in sip.items())
    big_v = v + sum(b * u**i * v**j for (i, j), (_, b) in sip.items())
    powers = [(total - j, j) for total in range(order + 1) for j in range(total + 1)]
    design = np.stack([(big_u / scale) ** i * (big_v / scale) ** j for i, j in powers], axis=1)
    solution, *_ = np.linalg.lstsq(design, np.stack([u - big_u, v - big_v], axis=1), rcond=None)
    cards: list[tuple[str, float]] = [("AP_ORDER", order), ("BP_ORDER", order)]
    for (i, j), (a, b) in zip(powers, solution, strict=True):
        cards += [(f"AP_{i}_{j}", float(a) / scale ** (i + j)), (f"BP_{i}_{j}", float(b) / scale ** (i + j))]
    return cards
