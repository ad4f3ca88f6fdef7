"""The linear model of several exposures' geometry: chips on a focal plane, its distortion, and where exposures point.

Columns of the design, their priors, and how widths of priors and the order are chosen. Which measurements belong to one
star, and the elimination of stars, are `science/joint_stars.py`'s.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from astropy.io import fits
from scipy.linalg import cho_factor, cho_solve

from lap_assets.errors import UnprocessableData
from lap_assets.science.astrometry import ChipStars, mean_direction
from lap_assets.science.focal_plane_model import count_higher, legendre_terms
from lap_assets.science.joint_stars import Observations
from lap_assets.science.tan_sip import deproject_tan, grid_points, project_tan, read_map

SkyMap = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # pixels to right ascension and declination

_MAS = 1.0 / 3.6e6
_OWN_ORDER = 3  # of the terms of single chips and single exposures
_N_OWN = 7  # terms of orders 2 and 3
_RIGID, _SHAPE = 3, 3  # columns of a chip: shift and rotation; scale and two shears
# widths of priors that are tried, mas at the edge of chip or field; 0: no such terms
_WIDTHS = {
    "shape": (0.0, 3.0, 30.0, 300.0, 3000.0),
    "chip": (0.0, 2.0, 6.0, 20.0, 100.0),
    "exposure": (0.0, 2.0, 6.0, 20.0),
}
_FIRST_WIDTHS = {"shape": 300.0, "chip": 0.0, "exposure": 0.0}
_GAUGE = [0, 3, 4]  # of an exposure's affine terms: both shifts, and the second axis along the first
_FREE_DEG = 0.01  # width of what is free: far beyond any error, near enough for the matrix to stay regular


@dataclass(frozen=True)
class Geometry:
    """What is fixed: nominal chips, tangent points, first affine maps, and the meaning of the parameters.

    The focal plane is that of a reference exposure, in degrees. Parameters, in order: each chip's shift, rotation,
    scale and shears, then its own terms of both axes; the shared terms of both axes; each exposure's affine map, then
    its own terms of both axes.

    Attributes
    ----------
    members : list of (exposure, chip)
        The blocks, in order.
    centres : mapping of exposure to (ra, dec)
        Tangent points.
    first : mapping of exposure to (offset (2,), matrix (2, 2))
        Focal plane to the exposure's tangent plane, to start from.
    """

    exposures: list[str]
    chips: list[str]
    members: list[tuple[str, str]]
    shapes: dict[str, tuple[int, int]]
    base: dict[str, tuple[SkyMap, tuple[float, float], np.ndarray, np.ndarray]]
    centres: dict[str, tuple[float, float]]
    first: dict[str, tuple[np.ndarray, np.ndarray]]
    ra0: float
    dec0: float
    extent: float
    max_order: int

    @property
    def n_columns(self) -> int:
        per_chip, per_exposure = self._sizes
        return per_chip * len(self.chips) + 2 * self.n_shared + per_exposure * len(self.exposures)

    @property
    def n_shared(self) -> int:
        return count_higher(self.max_order)

    @property
    def widths(self) -> dict[str, tuple[float, ...]]:
        """Widths of priors to try, mas; below order 3 only the chips' shapes are free."""
        return _WIDTHS if self.max_order >= _OWN_ORDER else {"shape": _WIDTHS["shape"]}

    @property
    def _sizes(self) -> tuple[int, int]:
        return _RIGID + _SHAPE + 2 * _N_OWN, 6 + 2 * _N_OWN

    def start(self) -> "GeometryFit":
        """The nominal geometry, with the widths of priors that the first fit uses."""
        widths = {name: width * _MAS for name, width in _FIRST_WIDTHS.items()}
        return GeometryFit(self.max_order, widths, np.zeros(self.n_columns))

    def widest(self) -> "GeometryFit":
        """The nominal geometry with all terms there are."""
        widths = dict.fromkeys(_WIDTHS, 0.0) | {name: grid[-1] * _MAS for name, grid in self.widths.items()}
        return GeometryFit(self.max_order, widths, np.zeros(self.n_columns))

    def nominal(self, chip: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n, 2) focal-plane positions of pixels by the nominal geometry, degrees."""
        wcs, centre, offset, matrix = self.base[chip]
        return np.stack(project_tan(*wcs(x, y), *centre), axis=1) @ matrix.T + offset

    def columns(self, exposure: str, chip: str) -> np.ndarray:
        """Indices of the parameters that act on one chip of one exposure."""
        per_chip, per_exposure = self._sizes
        first_shared = per_chip * len(self.chips)
        first_exposure = first_shared + 2 * self.n_shared
        return np.concatenate(
            [
                per_chip * self.chips.index(chip) + np.arange(per_chip),
                first_shared + np.arange(2 * self.n_shared),
                first_exposure + per_exposure * self.exposures.index(exposure) + np.arange(per_exposure),
            ]
        )

    def design(self, chip: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Nominal positions (n, 2), and how the parameters of `columns` move them, (2, n, k)."""
        ny, nx = self.shapes[chip]
        plane = self.nominal(chip, x, y)
        middle = self.nominal(chip, np.array([0.5 * (nx - 1)]), np.array([0.5 * (ny - 1)]))[0]
        reach = np.abs(self.nominal(chip, *grid_points((ny, nx), 2)) - middle).max()
        u, v = ((plane - middle) / reach).T
        one, none = np.ones_like(u), np.zeros_like(u)
        rigid = np.array([[one, none, -v, u, u, v], [none, one, u, v, -v, u]]).transpose(0, 2, 1)
        pixel = np.stack([x - 0.5 * (nx - 1), y - 0.5 * (ny - 1)], axis=1) / (0.5 * max(nx, ny))
        focal = plane / self.extent
        own = _both_axes(legendre_terms(pixel, 2, _OWN_ORDER))
        shared = _both_axes(legendre_terms(focal, 2, self.max_order))
        pointing = _both_axes(legendre_terms(focal, 0, 1))
        far = _both_axes(legendre_terms(focal, 2, _OWN_ORDER))
        return plane, np.concatenate([rigid, own, shared, pointing, far], axis=2)

    def place(self, fit: "GeometryFit", exposure: str, chip: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n, 2) positions of pixels in the exposure's own tangent plane, degrees."""
        plane, design = self.design(chip, x, y)
        moved = plane + (design @ fit.values[self.columns(exposure, chip)]).T
        offset, matrix = self.first[exposure]
        return moved @ matrix.T + offset

    def to_common(self, exposure: str, plane: np.ndarray) -> np.ndarray:
        """(n, 2) positions of an exposure's tangent plane in the common one."""
        return np.stack(project_tan(*deproject_tan(*plane.T, *self.centres[exposure]), self.ra0, self.dec0), axis=1)

    def turn(self, exposure: str) -> np.ndarray:
        """(2, 2) derivative of common-plane positions by focal-plane positions, in the middle of the exposure."""
        step = 1e-3
        points = np.array([[0.0, 0.0], [step, 0.0], [0.0, step]]) @ self.first[exposure][1].T + self.first[exposure][0]
        common = self.to_common(exposure, points)
        return (common[1:] - common[0]).T / step

    def turn_pixels(self, chip: str) -> np.ndarray:
        """(2, 2) derivative of focal-plane positions by pixels, degrees, in the middle of a chip."""
        ny, nx = self.shapes[chip]
        x, y = 0.5 * (nx - 1) + np.array([0.0, 1.0, 0.0]), 0.5 * (ny - 1) + np.array([0.0, 0.0, 1.0])
        plane = self.nominal(chip, x, y)
        return (plane[1:] - plane[0]).T

    def precisions(self, order: int, widths: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which parameters take part, their priors' inverse variances, and which of these are priors proper."""
        per_chip, per_exposure = self._sizes
        free = 1.0 / _FREE_DEG**2
        active, precision = np.ones(self.n_columns, bool), np.full(self.n_columns, free)
        chip = np.arange(per_chip * len(self.chips)).reshape(-1, per_chip)
        shared = per_chip * len(self.chips) + np.arange(2 * self.n_shared).reshape(2, -1)
        exposure = per_chip * len(self.chips) + 2 * self.n_shared
        exposure = exposure + np.arange(per_exposure * len(self.exposures)).reshape(-1, per_exposure)
        active[shared[:, count_higher(order) :]] = False
        # the focal plane's zero point and direction are those of the first exposure; its scale and shears are free
        active[exposure[0, _GAUGE]] = False
        restrained = {
            "shape": chip[:, _RIGID : _RIGID + _SHAPE], "chip": chip[:, _RIGID + _SHAPE :], "exposure": exposure[:, 6:],
        }  # fmt: skip
        proper = np.zeros(self.n_columns, bool)
        for name, rows in restrained.items():
            active[rows] = widths[name] > 0
            precision[rows], proper[rows] = 1.0 / max(widths[name], 1e-12) ** 2, True
        return active, precision, proper & active


@dataclass(frozen=True)
class GeometryFit:
    """Order of the shared distortion, widths of priors by name [deg], and all parameters [deg]."""

    order: int
    priors: dict[str, float]
    values: np.ndarray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Blocks:
    """Designs of all blocks at their observations: constant through a fit."""

    plane: list[np.ndarray]
    local: list[np.ndarray]
    common: list[tuple[np.ndarray, np.ndarray]]


def lay_out(
    exposures: Mapping[str, Mapping[str, ChipStars]],
    solutions: Mapping[str, Mapping[str, fits.Header]],
    max_order: int,
) -> Geometry:
    """Geometry to start from: nominal chips by their headers as they came, pointings by the solutions.

    The reference exposure is the one with most chips (the first of them); chips that it lacks are taken from others.
    """
    names = sorted(solutions, key=lambda name: (-len(solutions[name]), name))
    shapes, headers = {}, {}
    for name in names:
        for chip in sorted(solutions[name]):
            shapes.setdefault(chip, exposures[name][chip].shape)
            headers.setdefault(chip, (name, exposures[name][chip].header))
    base = _join_headers(names, exposures, headers, shapes, solutions)
    chips = sorted(shapes)
    solved = {
        name: {chip: read_map(header) for chip, header in sorted(solutions[name].items())} for name in names
    }  # fmt: skip
    centres = {name: mean_direction(_middles(solved[name], shapes)) for name in names}
    ra0, dec0 = mean_direction(np.array(list(centres.values())))
    geometry = Geometry(
        names, chips, [(name, chip) for name in names for chip in sorted(solutions[name])], shapes, base, centres, {},
        ra0, dec0, 1.0, max_order,
    )  # fmt: skip
    corners = np.concatenate([geometry.nominal(chip, *grid_points(shapes[chip], 2)) for chip in chips])
    first = {}
    for name in names:
        pairs = [
            (geometry.nominal(chip, *grid_points(shapes[chip], 5)), _project(wcs, shapes[chip], centres[name]))
            for chip, wcs in solved[name].items()
        ]
        first[name] = _fit_affine(*(np.concatenate(one) for one in zip(*pairs, strict=True)))
    return replace(geometry, first=first, extent=float(np.abs(corners).max()))


def prepare_blocks(geometry: Geometry, seen: Observations) -> Blocks:
    """Designs at all observations."""
    starts = np.searchsorted(seen.block, np.arange(len(geometry.members) + 1))
    planes, local, common = [], [], []
    for k, (exposure, chip) in enumerate(geometry.members):
        rows = slice(starts[k], starts[k + 1])
        plane, design = geometry.design(chip, seen.x[rows], seen.y[rows])
        planes.append(plane)
        local.append(design)
        turned = np.tensordot(geometry.turn(exposure), design, axes=1)
        common.append((geometry.columns(exposure, chip), turned))
    return Blocks(planes, local, common)


def predict_positions(geometry: Geometry, blocks: Blocks, fit: GeometryFit, seen: Observations) -> np.ndarray:
    """(n, 2) positions of all observations in the common plane, at the mean epoch."""
    pieces = []
    for k, (exposure, _) in enumerate(geometry.members):
        moved = blocks.plane[k] + (blocks.local[k] @ fit.values[blocks.common[k][0]]).T
        offset, matrix = geometry.first[exposure]
        pieces.append(geometry.to_common(exposure, moved @ matrix.T + offset))
    return np.concatenate(pieces) - seen.moved


def update_geometry(geometry: Geometry, fit: GeometryFit, normal: np.ndarray, right: np.ndarray) -> GeometryFit:
    """Solution of the normal equations, which are for changes of the parameters of `fit`."""
    active, precision, _ = geometry.precisions(fit.order, fit.priors)
    values = np.where(active, fit.values, 0.0)
    wanted = (right + normal @ fit.values)[active]
    values[active] = cho_solve(_factorise(normal, active, precision), wanted)
    return replace(fit, values=values)


def choose_priors(geometry: Geometry, fit: GeometryFit, normal: np.ndarray, right: np.ndarray) -> GeometryFit:
    """Order of the distortion by what each lowers chi², widths of the priors by the marginal likelihood.

    The marginal likelihood of a linear Gaussian model is exact (MacKay 1992, Neural Comp. 4, 415); widths are taken
    from a coarse grid, one kind of term after the other.
    """
    wanted = right + normal @ fit.values
    widths = dict(fit.priors)
    for name, grid in geometry.widths.items():
        scores = [_weigh_evidence(geometry, normal, wanted, fit.order, widths | {name: one * _MAS})[0] for one in grid]
        widths[name] = grid[int(np.argmax(scores))] * _MAS
    gains = {
        order: _weigh_evidence(geometry, normal, wanted, order, widths)[1] for order in range(1, geometry.max_order + 1)
    }
    order = 1
    for one in range(2, geometry.max_order + 1):
        terms = 2 * (count_higher(one) - count_higher(order))
        if gains[one] - gains[order] > terms + 3.0 * np.sqrt(2.0 * terms):
            order = one
    return replace(fit, order=order, priors=widths)


def _weigh_evidence(geometry, normal, wanted, order, widths) -> tuple[float, float]:
    """Logarithm of the marginal likelihood, and what the parameters lower chi² by; up to constants."""
    active, precision, proper = geometry.precisions(order, widths)
    factor = _factorise(normal, active, precision)
    gain = float(wanted[active] @ cho_solve(factor, wanted[active]))
    logdet = 2.0 * float(np.log(np.diag(factor[0])).sum())
    return 0.5 * (gain - logdet + float(np.log(precision[proper]).sum())), gain


def _factorise(normal: np.ndarray, active: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, bool]:
    """Cholesky factor of the active part of the normal matrix with its priors."""
    try:
        return cho_factor(normal[np.ix_(active, active)] + np.diag(precision[active]))
    except np.linalg.LinAlgError:
        raise UnprocessableData("the stars do not determine the geometry: the normal matrix is singular") from None


def _both_axes(terms: np.ndarray) -> np.ndarray:
    """(2, n, 2k) design of vectors: the terms along the first axis, then along the second."""
    none = np.zeros_like(terms)
    return np.stack([np.concatenate([terms, none], axis=1), np.concatenate([none, terms], axis=1)])


def _join_headers(names, exposures, headers, shapes, solutions):
    """Per chip: header's WCS, tangent point, and the affine map that brings it into the plane of the first exposure."""
    identity = np.zeros(2), np.eye(2)
    wcs = {
        name: {chip: read_map(exposures[name][chip].header) for chip in sorted(solutions[name])}
        for name in sorted({name for name, _ in headers.values()} | {names[0]})
    }
    centres = {name: mean_direction(_middles(one, shapes)) for name, one in wcs.items()}
    maps = {names[0]: identity}
    for name in wcs:
        common = sorted(wcs[name].keys() & wcs[names[0]].keys())
        if name != names[0] and common:
            pairs = [
                [_project(wcs[one][chip], shapes[chip], centres[one]) for chip in common] for one in (name, names[0])
            ]
            maps[name] = _fit_affine(*(np.concatenate(one) for one in pairs))
    return {
        chip: (wcs[name][chip], centres[name], *maps.get(name, identity)) for chip, (name, _) in headers.items()
    }  # fmt: skip


def _middles(wcs: Mapping[str, SkyMap], shapes) -> np.ndarray:
    return np.array([one(0.5 * (shapes[chip][1] - 1), 0.5 * (shapes[chip][0] - 1)) for chip, one in wcs.items()])


def _project(place: SkyMap, shape: tuple[int, int], centre: tuple[float, float]) -> np.ndarray:
    return np.stack(project_tan(*place(*grid_points(shape, 5)), *centre), axis=1)


def _fit_affine(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offset (2,) and matrix (2, 2) with target = matrix @ source + offset, by least squares."""
    solution, *_ = np.linalg.lstsq(np.column_stack([np.ones(len(source)), source]), target, rcond=None)
    return solution[0], solution[1:].T
