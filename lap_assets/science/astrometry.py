"""Astrometric solution of an exposure: where the telescope really pointed, and each chip's map to the sky.

Header positions are corrected by one model for all chips, `science/focal_plane_model.py`, after the pointing was found
by `science/pointing_search.py`; headers are written by `science/tan_sip.py`. Solutions of several exposures are
combined in `science/joint_astrometry.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from astropy.io import fits
from scipy.spatial import cKDTree

from lap_assets.errors import UnprocessableData
from lap_assets.science.focal_plane_model import Block, Fit, count_higher, fit_blocks, legendre_terms, make_block
from lap_assets.science.pointing_search import find_pointing, find_shift
from lap_assets.science.reference_epoch import EpochError, measure_epoch_error, propagate_positions
from lap_assets.science.tan_sip import (
    MAX_ORDER,
    convert_header,
    deproject_tan,
    fit_tan_sip,
    grid_points,
    project_tan,
    read_map,
)

__all__ = [
    "INPUT_WCS",
    "ChipAstrometry",
    "ChipStars",
    "keep_headers",
    "mean_direction",
    "propagate_positions",
    "solve_exposure",
]

_ARCSEC = 1.0 / 3600.0
_MIN_CHIP_STARS = 5  # for an affine term of its own
_MIN_OFFSET_STARS = 2
_MIN_SMOOTHED_CHIPS = 3  # that tell where one without stars lies
_MIN_REF_ERR_MAS = 1.0
_CHIP_OFFSETS_ARCSEC = (6.0, 2.0)  # of chips beside their nominal places
# the way from nominal places to the solution: matching radius in units of the final one, order as far as it is trusted
_APPROACH = ((3.0, 3), (2.0, 5), (1.0, 99))
_MAX_SCALE_ERROR = 0.02  # of the headers
_MIN_OVER_CHANCE = 3.0  # matches over those that random positions would give
_EPOCH_ROUNDS = 4
_MIN_EPOCH_SHARE = 0.3
INPUT_WCS = -1  # "order" of a chip whose header was taken as it is


@dataclass(frozen=True)
class ChipStars:
    """What astrometry needs of a chip: centroids [pix], their errors [pix], fluxes, header, shape (ny, nx)."""

    x: np.ndarray
    y: np.ndarray
    xy_err: np.ndarray
    flux: np.ndarray
    header: fits.Header
    shape: tuple[int, int]


@dataclass
class ChipAstrometry:
    """Solution of one chip.

    Attributes
    ----------
    header : Header
        TAN or TAN-SIP.
    order : int
        Of the correction: 2 and more, 1 (affine), 0 (offset), −1 (the header as given).
    n_matched : int
        Stars in the fit.
    rms_mas : (float, float)
        Residuals against the catalogue in right ascension (·cos δ) and declination, the catalogue's errors included.
    stars, refs : int arrays
        Indices of the stars of the fit and of their rows in the catalogue.
    note : str
        What was done otherwise than asked (a lower order); empty where nothing was.
    """

    header: fits.Header
    order: int
    n_matched: int = 0
    rms_mas: tuple[float, float] = (float("nan"), float("nan"))
    stars: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    refs: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    note: str = ""


def solve_exposure(
    chips: Mapping[str, ChipStars],
    catalog: pd.DataFrame,
    epoch_yr: float,
    *,
    trusted: bool,
    pointing_radius_arcsec: float = 120.0,
    match_radius_arcsec: float = 1.0,
    max_order: int = 5,
    max_rotation_deg: float = 2.0,
    fit_epoch: bool = False,
) -> dict[str, ChipAstrometry]:
    """Astrometric solution of all chips of an exposure.

    Where residuals grow with the stars' proper motions the solutions' notes name the epoch that the positions speak
    for.

    Parameters
    ----------
    chips : mapping of chip name to ChipStars
    catalog : DataFrame
        Reference catalogue around the exposure; rows whose position is not finite are left out.
    epoch_yr : float
        Julian year of the exposure.
    trusted : bool
        The headers hold a measured WCS (good to `match_radius_arcsec`): no search for the pointing, and with too few
        stars the headers are kept, shifted if two stars or more allow it.
    pointing_radius_arcsec, max_rotation_deg, match_radius_arcsec : float
    max_order : int
        Largest order of the distortion; lowered, with a note in the solutions, where the stars are too few for it.
    fit_epoch : bool
        Solve again with the epoch that the positions speak for, where it is significantly another.

    Raises
    ------
    UnprocessableData
        If the pointing is not found and the headers are not trusted, if the headers' pixel scale or parity is wrong,
        or if the catalogue has no star here.
    """
    options = {
        "trusted": trusted, "pointing_radius_arcsec": pointing_radius_arcsec, "max_order": max_order,
        "match_radius_arcsec": match_radius_arcsec, "max_rotation_deg": max_rotation_deg,
    }  # fmt: skip
    used, share = epoch_yr, 1.0
    solutions, error = _solve(chips, catalog, used, **options)
    for _ in range(_EPOCH_ROUNDS if fit_epoch else 0):
        if not error.significant:
            break
        step, before = error.years / share, error.years
        used += step
        solutions, error = _solve(chips, catalog, used, **options)
        # the terms of the chips take up some of the motions: what a step did says how much
        share = float(np.clip((before - error.years) / step, _MIN_EPOCH_SHARE, 1.0))
    if error.significant or used != epoch_yr:
        _add_note(
            solutions,
            f"the reference stars are where they should be in {used + error.years / share:.2f}, not in {epoch_yr:.2f} "
            f"(+- {error.err_years:.3f} yr): check the epoch of the catalogue",
        )
    return solutions


def _solve(
    chips: Mapping[str, ChipStars],
    catalog: pd.DataFrame,
    epoch_yr: float,
    *,
    trusted: bool,
    pointing_radius_arcsec: float,
    match_radius_arcsec: float,
    max_order: int,
    max_rotation_deg: float,
) -> tuple[dict[str, ChipAstrometry], EpochError]:
    """`solve_exposure` at one epoch, and what the residuals say of it."""
    problem = _Problem(chips, catalog, epoch_yr)
    if not trusted:
        problem.align_pointing(pointing_radius_arcsec, max_rotation_deg)
        for radius in _CHIP_OFFSETS_ARCSEC:
            problem.align_chips(max(radius, match_radius_arcsec))
    matched = problem.match(match_radius_arcsec)
    if _affordable_order(matched, max_order) < 1:
        return _shift_headers(problem, matched, trusted), EpochError(0.0, np.inf)
    for factor, limit in _APPROACH[-1:] if trusted else _APPROACH:
        matched = problem.match(factor * match_radius_arcsec)
        order = max(1, _affordable_order(matched, min(max_order, limit)))
        problem.correct(_complete_fit(problem, fit_blocks(_build_blocks(problem, matched, order), order, free=True)))
    radius = max(0.5 * match_radius_arcsec, 0.3)
    matched = problem.match(radius)
    order = _affordable_order(matched, max_order)
    if order < 1:
        return _shift_headers(problem, matched, trusted), EpochError(0.0, np.inf)
    fit = _complete_fit(problem, fit_blocks(_build_blocks(problem, matched, order), order))
    problem.correct(fit)
    solutions = _write_solutions(problem, fit, matched)
    if not trusted:
        _refuse_chance(problem, matched, radius)
        _refuse_scale(problem)
    if order < max_order:
        count = sum(len(match.stars) for match in matched.values())
        _add_note(solutions, f"too few stars for order {max_order} ({count} matched): order {order} at most")
    return solutions, _measure_epoch(fit, matched, catalog, problem.rows)


def keep_headers(chips: Mapping[str, ChipStars]) -> dict[str, ChipAstrometry]:
    """Headers as they are, in TAN-SIP form: what is left where there is no reference catalogue."""
    return {name: ChipAstrometry(convert_header(chip.header, chip.shape), INPUT_WCS) for name, chip in chips.items()}


# ---- matching


@dataclass
class _Match:
    """Matched pairs of one chip: indices of stars and catalogue rows."""

    stars: np.ndarray
    refs: np.ndarray


class _Problem:
    """The stars of an exposure in one tangent plane, as the current corrections place them."""

    def __init__(self, chips: Mapping[str, ChipStars], catalog: pd.DataFrame, epoch_yr: float) -> None:
        self.chips = dict(sorted(chips.items()))
        self.maps = {name: read_map(chip.header) for name, chip in self.chips.items()}
        centres = [
            self.maps[name](0.5 * (chip.shape[1] - 1), 0.5 * (chip.shape[0] - 1)) for name, chip in self.chips.items()
        ]
        self.ra0, self.dec0 = mean_direction(np.array(centres))
        self._place_catalog(catalog, epoch_yr)
        # every chip: standard coordinates = header's + these functions of (x, y, position so far), one after the other
        self.corrections: dict[str, list] = {name: [] for name in self.chips}
        self.nominal = {name: self.header_position(name, chip.x, chip.y) for name, chip in self.chips.items()}
        self.current = dict(self.nominal)
        corners = [self.header_position(name, *_corners(chip.shape)) for name, chip in self.chips.items()]
        self.field = float(np.abs(np.concatenate(corners)).max())
        self.scale_deg = {name: _pixel_scale(self, name) for name in self.chips}

    def _place_catalog(self, catalog: pd.DataFrame, epoch_yr: float) -> None:
        ra, dec = propagate_positions(catalog, epoch_yr)
        ref = np.stack(project_tan(ra, dec, self.ra0, self.dec0), axis=1)
        self.rows = np.nonzero(np.isfinite(ref).all(axis=1))[0]
        if not len(self.rows):
            raise UnprocessableData(
                f"the reference catalogue has no star around RA {self.ra0:.4f}, DEC {self.dec0:+.4f}: "
                "ingest one that covers this field"
            )
        self.ref = ref[self.rows]
        errors = np.stack([catalog.ra_err_mas.to_numpy(float), catalog.dec_err_mas.to_numpy(float)], axis=1)
        self.ref_err = np.maximum(np.nan_to_num(errors[self.rows], nan=50.0), _MIN_REF_ERR_MAS) / 3.6e6
        self.tree = cKDTree(self.ref)

    def header_position(self, name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n, 2) standard coordinates in degrees by the header alone."""
        return np.stack(project_tan(*self.maps[name](x, y), self.ra0, self.dec0), axis=1)

    def place(self, name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n, 2) standard coordinates in degrees, corrections applied."""
        plane = self.header_position(name, x, y)
        for correction in self.corrections[name]:
            plane = plane + correction(x, y, plane)
        return plane

    def match(self, radius_arcsec: float) -> dict[str, _Match]:
        """Mutual nearest neighbours within a radius, per chip; `refs` count in `self.ref`."""
        matched = {}
        for name, plane in self.current.items():
            if not len(plane):
                matched[name] = _Match(np.zeros(0, int), np.zeros(0, int))
                continue
            distance, index = self.tree.query(plane, distance_upper_bound=radius_arcsec * _ARCSEC)
            near = np.nonzero(np.isfinite(distance))[0]
            _, back = cKDTree(plane).query(self.ref[index[near]])
            stars = near[back == near]
            matched[name] = _Match(stars, index[stars])
        return matched

    def align_pointing(self, radius_arcsec: float, max_rotation_deg: float) -> None:
        """Apply the common shift and rotation; raises `UnprocessableData` where there is none."""
        chosen = {name: _brightest(chip) for name, chip in self.chips.items()}
        plane = np.concatenate([self.current[name][rows] for name, rows in chosen.items()])
        flux = np.concatenate([self.chips[name].flux[rows] for name, rows in chosen.items()])
        plane = plane[np.argsort(-flux, kind="stable")]
        found = find_pointing(plane, self.ref, radius_arcsec, max_rotation_deg)
        for name in self.chips:
            self._add(name, lambda x, y, plane: plane @ found.matrix.T + found.shift - plane)

    def align_chips(self, radius_arcsec: float) -> None:
        """Shift each chip by the mode of its pair offsets, where it has one."""
        for name, chip in self.chips.items():
            shift = find_shift(self.current[name][_brightest(chip)], self.ref, radius_arcsec)
            if shift is not None:
                self._add(name, lambda x, y, plane, s=shift: np.broadcast_to(s, plane.shape))

    def correct(self, fit: Fit) -> None:
        """Replace all corrections by those of a fit (which includes what came before)."""
        for name in self.chips:
            self.corrections[name], self.current[name] = [], self.nominal[name]
            self._add(name, lambda x, y, plane, n=name: fit.evaluate(n, x, y, plane / self.field))

    def _add(self, name: str, correction) -> None:
        chip, plane = self.chips[name], self.current[name]
        self.corrections[name].append(correction)
        self.current[name] = plane + correction(chip.x, chip.y, plane)


# ---- fitting


def _build_blocks(problem: _Problem, matched: dict[str, _Match], order: int) -> dict[str, Block]:
    """What the fit needs of each chip that has stars enough."""
    blocks = {}
    for name, match in matched.items():
        if len(match.stars) < _MIN_CHIP_STARS:
            continue
        chip, plane = problem.chips[name], problem.nominal[name][match.stars]
        star_err = chip.xy_err[match.stars] * problem.scale_deg[name]
        error = np.sqrt(np.mean(problem.ref_err[match.refs] ** 2, axis=1) + star_err**2)
        blocks[name] = make_block(
            chip.shape, chip.x[match.stars], chip.y[match.stars], plane / problem.field,
            problem.ref[match.refs] - plane, error, order,
        )  # fmt: skip
    return blocks


def _complete_fit(problem: _Problem, fit: Fit) -> Fit:
    """Give chips with too few stars what the corrections of the others, smoothed over the field, make of their headers.

    Where fewer than three chips were fitted, the corrections so far (the common pointing) stand in.
    """
    missing = [name for name in problem.chips if name not in fit.local]
    if not missing:
        return fit
    grids = {name: _nominal_grid(problem, name) for name in problem.chips}
    known = sorted(fit.local)
    order = 3 if len(known) >= 20 else 1
    design = np.concatenate([legendre_terms(grids[name][2] / problem.field, 0, order) for name in known] or [[]])
    values = [fit.evaluate(name, x, y, plane / problem.field) for name, (x, y, plane) in grids.items() if name in known]
    for name in missing:
        x, y, plane = grids[name]
        if len(known) >= _MIN_SMOOTHED_CHIPS:
            smooth, *_ = np.linalg.lstsq(design, np.concatenate(values), rcond=None)
            target = legendre_terms(plane / problem.field, 0, order) @ smooth
        else:
            target = problem.place(name, x, y) - plane
        fit.inherit(name, problem.chips[name].shape, x, y, plane / problem.field, target)
    return fit


def _nominal_grid(problem: _Problem, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = grid_points(problem.chips[name].shape, 5)
    return x, y, problem.header_position(name, x, y)


def _refuse_chance(problem: _Problem, matched: dict[str, _Match], radius_arcsec: float) -> None:
    """Raise where not many more stars match than random positions would."""
    area = float(np.prod(np.ptp(problem.ref, axis=0)))
    density = len(problem.ref) / max(area, 1e-12)
    chance = sum(len(chip.x) for chip in problem.chips.values()) * density * np.pi * (radius_arcsec * _ARCSEC) ** 2
    count = sum(len(match.stars) for match in matched.values())
    if count < _MIN_OVER_CHANCE * chance:
        raise UnprocessableData(
            f"{count} stars match the reference catalogue, where chance makes {chance:.0f}: no astrometric solution"
        )


def _refuse_scale(problem: _Problem) -> None:
    """Raise where the solution's pixel scale is not the headers'."""
    ratios = [_pixel_scale(problem, name, problem.place) / scale for name, scale in problem.scale_deg.items()]
    error = 1.0 / float(np.median(ratios)) - 1.0
    if abs(error) > _MAX_SCALE_ERROR:
        raise UnprocessableData(
            f"the pixel scale of the headers is wrong by {100 * error:+.1f} %: check the camera's file"
        )


# ---- results


def _write_solutions(problem: _Problem, fit: Fit, matched: dict[str, _Match]) -> dict[str, ChipAstrometry]:
    solutions = {}
    for name, chip in problem.chips.items():
        x, y = grid_points(chip.shape)
        sky = deproject_tan(*problem.place(name, x, y).T, problem.ra0, problem.dec0)
        header = fit_tan_sip(x, y, *sky, chip.shape, min_order=min(fit.chip_order, MAX_ORDER))
        one = ChipAstrometry(header, fit.chip_order if name in fit.used else 0)
        if name in fit.used:
            used = fit.used[name]
            one.stars, one.refs = matched[name].stars[used], problem.rows[matched[name].refs[used]]
            one.n_matched = int(used.sum())
            one.rms_mas = _rms_mas(fit.residual[name][used])
        solutions[name] = one
    return solutions


def _measure_epoch(fit: Fit, matched: dict[str, _Match], catalog: pd.DataFrame, rows: np.ndarray) -> EpochError:
    motion = catalog[["pmra", "pmdec"]].to_numpy(float)[rows]
    names = sorted(fit.used)
    residual = [fit.residual[name][fit.used[name]] * 3.6e6 for name in names]
    moved = [motion[matched[name].refs[fit.used[name]]] for name in names]
    return measure_epoch_error(np.concatenate(residual), np.concatenate(moved))


def _add_note(solutions: dict[str, ChipAstrometry], text: str) -> None:
    for one in solutions.values():
        one.note = f"{one.note}; {text}" if one.note else text


def _rms_mas(residual_deg: np.ndarray) -> tuple[float, float]:
    ra, dec = np.sqrt(np.mean((residual_deg * 3.6e6) ** 2, axis=0))
    return float(ra), float(dec)


def _shift_headers(problem: _Problem, matched: dict[str, _Match], trusted: bool) -> dict[str, ChipAstrometry]:
    """Too few stars for a fit: the headers, shifted alike by the mean offset where two stars or more give one."""
    count = sum(len(match.stars) for match in matched.values())
    if not trusted and count < _MIN_OFFSET_STARS:
        raise UnprocessableData(f"{count} stars match the reference catalogue: too few for an astrometric solution")
    pieces = [
        problem.ref[match.refs]
        - problem.place(name, problem.chips[name].x[match.stars], problem.chips[name].y[match.stars])
        for name, match in matched.items()
    ]
    offsets = np.concatenate(pieces)
    shift = np.median(offsets, axis=0) if count >= _MIN_OFFSET_STARS else np.zeros(2)
    solutions = {}
    for (name, chip), own in zip(problem.chips.items(), pieces, strict=True):
        x, y = grid_points(chip.shape)
        sky = deproject_tan(*(problem.place(name, x, y) + shift).T, problem.ra0, problem.dec0)
        one = ChipAstrometry(fit_tan_sip(x, y, *sky, chip.shape), 0 if count >= _MIN_OFFSET_STARS else INPUT_WCS)
        match = matched[name]
        one.n_matched, one.stars, one.refs = len(match.stars), match.stars, problem.rows[match.refs]
        if len(own):
            one.rms_mas = _rms_mas(own - shift)
        solutions[name] = one
    return solutions


def _affordable_order(matched: dict[str, _Match], max_order: int) -> int:
    """Largest order with at least three stars per coefficient; 0 where not one chip can have an affine term."""
    counts = [len(match.stars) for match in matched.values() if len(match.stars) >= _MIN_CHIP_STARS]
    if not counts:
        return 0
    for order in range(max_order, 1, -1):
        if sum(counts) >= 3 * (3 * len(counts) + count_higher(order)):
            return order
    return 1


def _brightest(chip: ChipStars, number: int = 150) -> np.ndarray:
    """Rows of the brightest stars, brightest first."""
    return np.argsort(-chip.flux, kind="stable")[:number]


def _corners(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([0.0, shape[1], shape[1], 0.0]), np.array([0.0, 0.0, shape[0], shape[0]])


def _pixel_scale(problem: _Problem, name: str, place=None) -> float:
    """Degrees per pixel along a chip's diagonal, by its header or by another map of pixels to the tangent plane."""
    ny, nx = problem.chips[name].shape
    ends = (place or problem.header_position)(name, np.array([0.0, nx - 1.0]), np.array([0.0, ny - 1.0]))
    return float(np.hypot(*(ends[1] - ends[0])) / np.hypot(nx - 1, ny - 1))


def mean_direction(positions: np.ndarray) -> tuple[float, float]:
    """Right ascension and declination in degrees of the mean of directions (n, 2), anywhere on the sky."""
    ra, dec = np.radians(positions).T
    x, y, z = np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)
    mean = np.array([x.mean(), y.mean(), z.mean()])
    return float(np.degrees(np.arctan2(mean[1], mean[0])) % 360.0), float(
        np.degrees(np.arctan2(mean[2], np.hypot(*mean[:2])))
    )
