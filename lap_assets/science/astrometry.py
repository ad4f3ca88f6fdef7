"""Astrometric solution of an exposure: where the telescope really pointed, and each chip's map to the sky.

Header positions are corrected by an affine term per chip and a polynomial in focal-plane coordinates that all chips
share; chips whose stars ask for more get their own higher terms. The fit is
`science/astrometric_fit.py`, headers are written by `science/tan_sip.py`; solutions of several exposures are combined
elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.wcs import WCS
from scipy.ndimage import uniform_filter
from scipy.spatial import cKDTree

from lap_assets.errors import UnprocessableData
from lap_assets.science.astrometric_fit import Block, Fit, choose_fit, count_higher, fit_blocks, make_block
from lap_assets.science.tan_sip import convert_header, deproject_tan, fit_tan_sip, grid_points, project_tan

_ARCSEC = 1.0 / 3600.0
_BIN_ARCSEC = 1.5  # of the offset histogram; three bins tolerate chips misplaced by 2″
_MAX_ROTATION_DEG = 0.4
_MIN_CHIP_STARS = 6  # for an affine term of its own
_MIN_OFFSET_STARS = 2
_MIN_REF_ERR_MAS = 1.0
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
        Of the correction: 3, 2, 1 (affine), 0 (offset), −1 (the header as given).
    n_matched : int
        Stars in the fit.
    rms_mas : (float, float)
        Residuals against the catalogue in right ascension (·cos δ) and declination, the catalogue's errors included.
    stars, refs : int arrays
        Indices of the stars of the fit and of their rows in the catalogue.
    """

    header: fits.Header
    order: int
    n_matched: int = 0
    rms_mas: tuple[float, float] = (float("nan"), float("nan"))
    stars: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    refs: np.ndarray = field(default_factory=lambda: np.zeros(0, int))


def propagate_positions(catalog: pd.DataFrame, epoch_yr: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions (ra, dec) in degrees of catalogue rows at `epoch_yr`, linear proper motion applied (0 if unknown)."""
    years = epoch_yr - catalog.ref_epoch_yr.to_numpy(float)
    dec = catalog.dec.to_numpy(float)
    pmra, pmdec = (np.nan_to_num(catalog[name].to_numpy(float)) for name in ("pmra", "pmdec"))
    ra = catalog.ra.to_numpy(float) + years * pmra / 3.6e6 / np.maximum(np.cos(np.radians(dec)), 1e-6)
    return ra % 360.0, dec + years * pmdec / 3.6e6


def solve_exposure(
    chips: Mapping[str, ChipStars],
    catalog: pd.DataFrame,
    epoch_yr: float,
    *,
    trusted: bool,
    pointing_radius_arcsec: float = 40.0,
    match_radius_arcsec: float = 1.0,
    max_order: int = 3,
) -> dict[str, ChipAstrometry]:
    """Astrometric solution of all chips of an exposure.

    Parameters
    ----------
    chips : mapping of chip name to ChipStars
    catalog : DataFrame
        Reference catalogue around the exposure.
    epoch_yr : float
        Julian year of the exposure.
    trusted : bool
        The headers hold a measured WCS (good to `match_radius_arcsec`): no search for the pointing, and with too few
        stars the headers are kept, shifted if two stars or more allow it.
    pointing_radius_arcsec, match_radius_arcsec : float
    max_order : int
        Largest order of the distortion.

    Raises
    ------
    UnprocessableData
        If the pointing is not found and the headers are not trusted.
    """
    problem = _Problem(chips, catalog, epoch_yr)
    if not trusted:
        problem.align_pointing(pointing_radius_arcsec)
        for radius in (6.0, 2.0):
            problem.align_chips(max(radius, match_radius_arcsec), 1.0)
    radius = match_radius_arcsec
    matched = problem.match(radius)
    order = _affordable_order(matched, max_order)
    if order < 1:
        return _shift_headers(problem, matched, trusted)
    for _ in range(2):
        problem.correct(_complete_fit(problem, fit_blocks(_build_blocks(problem, matched, order), order)))
        matched = problem.match(max(0.5 * match_radius_arcsec, 0.3))
    fits = [fit_blocks(_build_blocks(problem, matched, one), one) for one in range(1, order + 1)]
    fit = _complete_fit(problem, choose_fit(fits))
    problem.correct(fit)
    return _write_solutions(problem, fit, matched)


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
        ra, dec = propagate_positions(catalog, epoch_yr)
        centres = [
            WCS(c.header).all_pix2world([[0.5 * (c.shape[1] - 1), 0.5 * (c.shape[0] - 1)]], 0)[0]
            for c in self.chips.values()
        ]
        self.ra0, self.dec0 = _mean_direction(np.array(centres))
        self.ref = np.stack(project_tan(ra, dec, self.ra0, self.dec0), axis=1)
        errors = np.stack([catalog.ra_err_mas.to_numpy(float), catalog.dec_err_mas.to_numpy(float)], axis=1)
        self.ref_err = np.maximum(np.nan_to_num(errors, nan=50.0), _MIN_REF_ERR_MAS) / 3.6e6
        finite = np.isfinite(self.ref).all(axis=1)
        self.ref = np.where(finite[:, None], self.ref, 1e3)  # far away: matches nothing
        self.tree = cKDTree(self.ref)
        self.wcs = {name: WCS(chip.header) for name, chip in self.chips.items()}
        # every chip: standard coordinates = header's + [1, u, v, …]·coefficients; starts with none
        self.corrections: dict[str, list] = {name: [] for name in self.chips}
        self.field = max(
            float(np.abs(self.place(name, *_corners(chip.shape))).max()) for name, chip in self.chips.items()
        )
        self.scale_deg = {name: _pixel_scale(self, name) for name in self.chips}

    def header_position(self, name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n, 2) standard coordinates in degrees by the header alone."""
        return np.stack(project_tan(*self.wcs[name].all_pix2world(x, y, 0), self.ra0, self.dec0), axis=1)

    def place(self, name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n, 2) standard coordinates in degrees, corrections applied."""
        plane = self.header_position(name, x, y)
        for correction in self.corrections[name]:
            plane = plane + correction(x, y, plane)
        return plane

    def match(self, radius_arcsec: float) -> dict[str, _Match]:
        """Mutual nearest neighbours within a radius, per chip."""
        matched = {}
        for name, chip in self.chips.items():
            if not len(chip.x):
                matched[name] = _Match(np.zeros(0, int), np.zeros(0, int))
                continue
            plane = self.place(name, chip.x, chip.y)
            distance, index = self.tree.query(plane, distance_upper_bound=radius_arcsec * _ARCSEC)
            near = np.nonzero(np.isfinite(distance))[0]
            _, back = cKDTree(plane).query(self.ref[index[near]])
            stars = near[back == near]
            matched[name] = _Match(stars, index[stars])
        return matched

    def align_pointing(self, radius_arcsec: float) -> None:
        """Find the common shift and rotation by a histogram of pair offsets; raises `UnprocessableData`."""
        plane = np.concatenate([self.place(n, *_brightest(c)) for n, c in self.chips.items()])
        shift, angle, found = _search_offset(plane, self.ref, radius_arcsec, self.field)
        if not found:
            raise UnprocessableData(
                f"no match with the reference catalogue within {radius_arcsec:.0f} arcsec of the pointing "
                f"({len(plane)} bright sources, {len(self.ref)} catalogue stars): check RA, DEC and the catalogue"
            )
        rotation = _rotation(angle)
        for corrections in self.corrections.values():
            corrections.append(lambda x, y, plane, r=rotation, s=shift: plane @ r.T + s - plane)

    def align_chips(self, radius_arcsec: float, bin_arcsec: float) -> None:
        """Shift each chip by the mode of its pair offsets, where it has one."""
        for name, chip in self.chips.items():
            plane = self.place(name, *_brightest(chip))
            shift, _, found = _search_offset(plane, self.ref, radius_arcsec, 0.0, bin_arcsec / 2)
            if found:
                self.corrections[name].append(lambda x, y, plane, s=shift: np.broadcast_to(s, plane.shape))

    def correct(self, fit: Fit) -> None:
        """Replace all corrections by those of a fit (which includes what came before)."""
        for name in self.chips:
            self.corrections[name] = [lambda x, y, plane, n=name: fit.evaluate(n, x, y, plane / self.field)]


def _search_offset(
    plane: np.ndarray, ref: np.ndarray, radius_arcsec: float, field_deg: float, bin_arcsec: float = _BIN_ARCSEC
) -> tuple[np.ndarray, float, bool]:
    """Shift [deg] and rotation [deg] that most pairs share, and whether the peak stands out.

    Rotations up to 0.4° are tried in steps that move the edge of the field by one bin; a field of 0 tries none.
    """
    none = np.zeros(2), 0.0, False
    if len(plane) < 3:
        return none
    reach = radius_arcsec * _ARCSEC + field_deg * np.radians(_MAX_ROTATION_DEG)
    tree = cKDTree(ref)
    pairs = tree.query_ball_point(plane, reach)
    left = np.repeat(np.arange(len(plane)), [len(p) for p in pairs])
    right = np.concatenate([np.sort(np.asarray(p, int)) for p in pairs]) if len(left) else np.zeros(0, int)
    if len(left) < 3:
        return none
    size = bin_arcsec * _ARCSEC
    half = int(np.ceil(radius_arcsec / bin_arcsec))
    steps = int(np.ceil(np.radians(_MAX_ROTATION_DEG) * field_deg / size)) if field_deg > 0 else 0
    best = (-1.0, 0.0, np.zeros(2), 0.0)
    for step in sorted(range(-steps, steps + 1), key=lambda k: (abs(k), k)):
        angle = step * _MAX_ROTATION_DEG / max(steps, 1)
        offset = ref[right] - plane[left] @ _rotation(angle).T
        bins = np.rint(offset / size).astype(int) + half
        inside = np.all((bins >= 0) & (bins <= 2 * half), axis=1)
        counts = np.bincount(bins[inside] @ np.array([2 * half + 1, 1]), minlength=(2 * half + 1) ** 2)
        summed = 9.0 * uniform_filter(counts.reshape(2 * half + 1, -1).astype(float), 3, mode="constant")
        peak = float(summed.max())
        if peak > best[0] + 0.5:
            i, j = np.unravel_index(int(np.argmax(summed)), summed.shape)
            near = inside & (np.abs(bins - (i, j)).max(axis=1) <= 1)
            best = (peak, float(summed.mean()), np.median(offset[near], axis=0), angle)
    peak, background, shift, angle = best
    enough = peak >= max(5.0, 0.1 * min(len(plane), len(ref)))
    return shift, angle, bool(enough and peak > background + 6.0 * np.sqrt(background + 1.0))


# ---- fitting


def _build_blocks(problem: _Problem, matched: dict[str, _Match], order: int) -> dict[str, Block]:
    """What the fit needs of each chip that has stars enough."""
    blocks = {}
    for name, match in matched.items():
        if len(match.stars) < _MIN_CHIP_STARS:
            continue
        chip = problem.chips[name]
        x, y = chip.x[match.stars], chip.y[match.stars]
        plane = problem.header_position(name, x, y)
        star_err = chip.xy_err[match.stars] * problem.scale_deg[name]
        error = np.sqrt(np.mean(problem.ref_err[match.refs] ** 2, axis=1) + star_err**2)
        blocks[name] = make_block(
            chip.shape, x, y, plane / problem.field, problem.ref[match.refs] - plane, error, order
        )
    return blocks


def _complete_fit(problem: _Problem, fit: Fit) -> Fit:
    """Give chips with too few stars what the corrections so far (the common pointing) make of their headers."""
    for name, chip in problem.chips.items():
        if name not in fit.affine:
            x, y = grid_points(chip.shape)
            plane = problem.header_position(name, x, y)
            fit.inherit(name, chip.shape, x, y, plane / problem.field, problem.place(name, x, y) - plane)
    return fit


# ---- results


def _write_solutions(problem: _Problem, fit: Fit, matched: dict[str, _Match]) -> dict[str, ChipAstrometry]:
    solutions = {}
    for name, chip in problem.chips.items():
        x, y = grid_points(chip.shape)
        sky = deproject_tan(*problem.place(name, x, y).T, problem.ra0, problem.dec0)
        header = fit_tan_sip(x, y, *sky, chip.shape, min_order=fit.order)
        one = ChipAstrometry(header, fit.order if name in fit.used else 0)
        if name in fit.used:
            used = fit.used[name]
            one.stars, one.refs, one.n_matched = matched[name].stars[used], matched[name].refs[used], int(used.sum())
            one.rms_mas = _rms_mas(fit.residual[name][used])
        solutions[name] = one
    return solutions


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
        one.n_matched, one.stars, one.refs = len(match.stars), match.stars, match.refs
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


def _brightest(chip: ChipStars, number: int = 150) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-chip.flux, kind="stable")[:number]
    return chip.x[order], chip.y[order]


def _corners(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([0.0, shape[1], shape[1], 0.0]), np.array([0.0, 0.0, shape[0], shape[0]])


def _pixel_scale(problem: _Problem, name: str) -> float:
    ny, nx = problem.chips[name].shape
    ends = problem.header_position(name, np.array([0.0, nx - 1.0]), np.array([0.0, ny - 1.0]))
    return float(np.hypot(*(ends[1] - ends[0])) / np.hypot(nx - 1, ny - 1))


def _rotation(angle_deg: float) -> np.ndarray:
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[c, -s], [s, c]])


def _mean_direction(positions: np.ndarray) -> tuple[float, float]:
    ra, dec = np.radians(positions).T
    x, y, z = np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)
    mean = np.array([x.mean(), y.mean(), z.mean()])
    return float(np.degrees(np.arctan2(mean[1], mean[0])) % 360.0), float(
        np.degrees(np.arctan2(mean[2], np.hypot(*mean[:2])))
    )
