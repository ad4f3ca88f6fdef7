"""The true optics: where a position on the sky falls on a chip, and what a point source looks like there.

The chips depart from their nominal places, the field is distorted (quadratic and cubic terms), the telescope points a
few arcsec off. The distortion is an exact cubic polynomial of pixel offsets from the tangent point, so that the truth
can be written as TAN-SIP without loss. How much light arrives is the detector's (`detector.py`).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from astropy.io import fits

from lap_assets.sim.design import CHIPS, PIXEL_SCALE_ARCSEC, SurveyDesign, make_rng
from lap_assets.sim.lens import deproject_tangent, project_tangent

_TERMS = tuple((i, order - i) for order in (2, 3) for i in range(order + 1))  # powers of x, y beyond linear


@dataclass(frozen=True)
class ChipPlace:
    """Where a chip sits: pixel (0-based) of the optical axis, rotation [rad], distortion terms in its own pixels."""

    origin: tuple[float, float]
    rotation: float
    terms_x: tuple[float, ...]
    terms_y: tuple[float, ...]

    def pixel_area(self, shape: tuple[int, int]) -> np.ndarray:
        """(ny, nx) float32: area of each pixel on the sky relative to the area on the optical axis."""
        u = np.arange(shape[1])[None, :] - self.origin[0]
        v = np.arange(shape[0])[:, None] - self.origin[1]
        (xu, xv), (yu, yv) = (_slopes(terms, u, v) for terms in (self.terms_x, self.terms_y))
        return ((1.0 + xu) * (1.0 + yv) - xv * yu).astype(np.float32)


@lru_cache(maxsize=4)
def place_chips(design: SurveyDesign) -> dict[str, ChipPlace]:
    """The true places of the chips of this seed's camera: off by up to 3 px and 0.03 degrees from nominal."""
    rng = make_rng(design.seed, "chip places")
    corner = design.corner_px
    scale = np.array([corner ** -(i + j) for i, j in _TERMS])  # a coefficient is then px of shift at the corner
    along_x, along_y = 0.1 * design.corner_distortion_px * rng.normal(size=(2, len(_TERMS)))
    for i, j in ((3, 0), (1, 2)):  # radial term: shift outwards, growing with the cube of the radius
        along_x[_TERMS.index((i, j))] += design.corner_distortion_px
        along_y[_TERMS.index((j, i))] += design.corner_distortion_px
    places = {}
    for chip in CHIPS:
        x0, y0 = design.chip_origin_px(chip)
        dx, dy = rng.uniform(-3.0, 3.0, 2)
        rotation = float(np.radians(rng.uniform(-0.03, 0.03)))
        terms_x, terms_y = _rotate_terms(along_x * scale, along_y * scale, rotation, corner)
        places[chip] = ChipPlace((x0 + dx, y0 + dy), rotation, terms_x, terms_y)
    return places


def _rotate_terms(
    along_x: np.ndarray, along_y: np.ndarray, rotation: float, corner: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Terms of the focal plane's distortion in the pixels of a chip rotated in it (exact, by interpolation)."""
    grid = np.linspace(-1.0, 1.0, 4)
    u, v = (axis.ravel() for axis in np.meshgrid(grid, grid))
    cos, sin = np.cos(rotation), np.sin(rotation)
    focal = _monomials(corner * (cos * u - sin * v), corner * (sin * u + cos * v))
    shift_x, shift_y = focal @ along_x, focal @ along_y
    own = _monomials(u, v)
    scale = np.array([corner ** -(i + j) for i, j in _TERMS])
    terms = [np.linalg.lstsq(own, shift, rcond=None)[0] * scale for shift in
             (cos * shift_x + sin * shift_y, -sin * shift_x + cos * shift_y)]  # fmt: skip
    return tuple(float(t) for t in terms[0]), tuple(float(t) for t in terms[1])


def _monomials(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, 7) values of the quadratic and cubic monomials."""
    return np.stack([x**i * y**j for i, j in _TERMS], axis=-1)


def _slopes(terms: tuple[float, ...], u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of a distortion along u (1, nx) and v (ny, 1), each (ny, nx)."""
    along_u, along_v = np.zeros((v.size, u.size)), np.zeros((v.size, u.size))
    for (i, j), term in zip(_TERMS, terms, strict=True):
        if i:
            along_u += term * i * u ** (i - 1) * v**j
        if j:
            along_v += term * j * u**i * v ** (j - 1)
    return along_u, along_v


@dataclass(frozen=True)
class Pointing:
    """Where the telescope really pointed: tangent point [deg], field rotation [rad], relative change of scale."""

    ra_deg: float
    dec_deg: float
    rotation: float
    stretch: float


@dataclass(frozen=True)
class ChipWcs:
    """The true WCS of one chip in one exposure; pixels 0-based."""

    place: ChipPlace
    pointing: Pointing
    nx: int
    ny: int

    @property
    def cd_deg(self) -> np.ndarray:
        """(2, 2) FITS CD matrix: chip pixels (after distortion) to tangent plane (east, north) in degrees."""
        angle = self.pointing.rotation + self.place.rotation
        scale = PIXEL_SCALE_ARCSEC / 3600.0 * (1.0 + self.pointing.stretch)
        cos, sin = np.cos(angle), np.sin(angle)
        return scale * np.array([[-cos, sin], [sin, cos]])

    def pixel_to_sky(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ra, dec) [deg] of pixels."""
        u, v = np.asarray(x, float) - self.place.origin[0], np.asarray(y, float) - self.place.origin[1]
        shift = _monomials(u, v)
        u, v = u + shift @ np.array(self.place.terms_x), v + shift @ np.array(self.place.terms_y)
        (a, b), (c, d) = self.cd_deg
        return deproject_tangent(a * u + b * v, c * u + d * v, self.pointing.ra_deg, self.pointing.dec_deg)

    def sky_to_pixel(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (x, y) of positions; meaningful within a few times the field's size."""
        east, north = project_tangent(ra_deg, dec_deg, self.pointing.ra_deg, self.pointing.dec_deg)
        (a, b), (c, d) = self.cd_deg
        det = a * d - b * c
        u0, v0 = (d * east - b * north) / det, (a * north - c * east) / det
        u, v = u0, v0
        for _ in range(8):  # contracts by < 0.02 a step: 1e-12 px
            shift = _monomials(u, v)
            u, v = u0 - shift @ np.array(self.place.terms_x), v0 - shift @ np.array(self.place.terms_y)
        return u + self.place.origin[0], v + self.place.origin[1]

    def jacobians(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
        """(n, 2, 2) d(x, y)/d(west, north) in pixels per arcsec."""
        step = 1.0 / 3600.0
        x0, y0 = self.sky_to_pixel(ra_deg, dec_deg)
        xw, yw = self.sky_to_pixel(ra_deg - step / np.cos(np.radians(dec_deg)), dec_deg)
        xn, yn = self.sky_to_pixel(ra_deg, dec_deg + step)
        return np.stack([np.stack([xw - x0, xn - x0], -1), np.stack([yw - y0, yn - y0], -1)], -2)

    def header(self) -> fits.Header:
        """The same as TAN-SIP cards."""
        header = fits.Header()
        header["WCSAXES"] = 2
        header["NAXIS1"], header["NAXIS2"] = self.nx, self.ny
        header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
        header["CUNIT1"], header["CUNIT2"] = "deg", "deg"
        header["CRVAL1"], header["CRVAL2"] = self.pointing.ra_deg, self.pointing.dec_deg
        header["CRPIX1"], header["CRPIX2"] = self.place.origin[0] + 1.0, self.place.origin[1] + 1.0
        for i, row in enumerate(self.cd_deg):
            for j, value in enumerate(row):
                header[f"CD{i + 1}_{j + 1}"] = float(value)
        header["RADESYS"] = "ICRS"
        for axis, terms in (("A", self.place.terms_x), ("B", self.place.terms_y)):
            header[f"{axis}_ORDER"] = 3
            for (i, j), term in zip(_TERMS, terms, strict=True):
                header[f"{axis}_{i}_{j}"] = term
        return header


@dataclass(frozen=True)
class Seeing:
    """The PSF of one exposure: a Moffat profile whose width and ellipticity vary over the focal plane.

    `fwhm_arcsec` and `e` hold on the axis; the gradients are per half width of the field. Ellipticities are
    (a - b) / (a + b) in the (west, north) frame.
    """

    beta: float
    fwhm_arcsec: float
    e: tuple[float, float]
    fwhm_gradient: tuple[float, float, float]  # relative: along x, y, radius squared
    e_gradient: tuple[float, float, float, float]  # e1 along x, y; e2 along x, y

    def fwhm_at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """FWHM [arcsec] at focal-plane positions in units of the half field."""
        gx, gy, gr = self.fwhm_gradient
        return self.fwhm_arcsec * (1.0 + gx * x + gy * y + gr * (x * x + y * y))

    def shape_at(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ellipticities (e1, e2) at focal-plane positions in units of the half field."""
        ax, ay, bx, by = self.e_gradient
        return self.e[0] + ax * x + ay * y, self.e[1] + bx * x + by * y


def shear_matrices(e1: np.ndarray, e2: np.ndarray) -> np.ndarray:
    """(n, 2, 2) area-preserving maps that turn a circle into an ellipse of ellipticity (a - b)/(a + b) = |e|."""
    norm = 1.0 / np.sqrt(1.0 - e1 * e1 - e2 * e2)
    return np.stack([np.stack([(1 + e1) * norm, e2 * norm], -1), np.stack([e2 * norm, (1 - e1) * norm], -1)], -2)
