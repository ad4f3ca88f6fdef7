"""Joint photometric calibration: the zero points of the exposures of a run, and their structure over the focal plane.

Stars seen in several exposures say what each exposure is off by; reference magnitudes, where there are any, keep what
all exposures have in common (a gradient of the flat field) out of the result. Star magnitudes are eliminated, so that
the system is as large as the number of exposures (Padmanabhan et al. 2008, ApJ 674, 1217; Burke et al. 2018, AJ 155,
41). Joint astrometry does not belong here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.spatial import cKDTree

_MAX_ROUNDS = 10
_ERR_FLOOR_MAG = 0.003  # flat-field and aperture errors that no photon statistics knows
_PRIOR_MAG = 0.05  # of a focal-plane term: what nothing measures stays near zero
_FOLDS = 5  # one star in so many is held out when an order is chosen
_MIN_HELD_OUT = 20  # measurements, to choose an order by them
_SIGNIFICANT = 3.0  # standard errors by which a higher order must predict better
REFERENCE = -1  # "exposure" of reference magnitudes


@dataclass(frozen=True)
class Structure:
    """What is fitted beside one number per exposure.

    Attributes
    ----------
    order : int
        Of each exposure's own polynomial over the focal plane (clouds, extinction); 0: none.
    shared : int
        Of the polynomial that all exposures share (flat field), whose terms begin above `order`; 0: none.
    colour : bool
        A term in the stars' colour that all exposures share; only reference magnitudes tell it.
    """

    order: int = 0
    shared: int = 0
    colour: bool = False

    @property
    def degree(self) -> int:
        """Of the polynomial each exposure ends with."""
        return max(self.order, self.shared)


@dataclass(frozen=True)
class JointZeroPoints:
    """Result of `solve_zero_points`.

    Attributes
    ----------
    table : DataFrame
        exposure, dzp_mag, dzp_err_mag, n_stars: one row per exposure, sorted. zero point + dzp_mag is the one to use.
        `term_10_mag`, `term_01_mag`, …: coefficients of `evaluate_terms`, to be added to it over the focal plane.
    repeatability_mmag : float
        Robust scatter of single measurements about the stars' means after the fit (NaN without common stars).
    n_stars : int
        Stars seen in two exposures or more.
    structure : Structure
        The one chosen.
    colour_mag : float
        Coefficient of (colour − median colour), 0 without that term.
    """

    table: pd.DataFrame
    repeatability_mmag: float
    n_stars: int
    structure: Structure = Structure()
    colour_mag: float = 0.0


def match_stars(stars: Mapping[str, pd.DataFrame], radius_arcsec: float) -> pd.DataFrame:
    """Group the stars of several exposures by position.

    Exposures are taken in sorted order; each star joins the nearest star already known within the radius (mutual
    nearest), else founds a new one.

    Parameters
    ----------
    stars : mapping of exposure to DataFrame
        ra, dec [deg], mag, mag_err; more columns are passed on.

    Returns
    -------
    DataFrame
        star (int), exposure (int, index in sorted order), mag, mag_err, and what else there was.
    """
    known = np.zeros((0, 3))
    rows = []
    reach = 2.0 * np.sin(np.radians(radius_arcsec / 3600.0) / 2.0)
    for number, exposure in enumerate(sorted(stars)):
        table = stars[exposure]
        if not len(table):
            continue
        vectors = _unit_vectors(table.ra.to_numpy(float), table.dec.to_numpy(float))
        ids = np.full(len(table), -1)
        if len(known):
            distance, index = cKDTree(known).query(vectors, distance_upper_bound=reach)
            near = np.nonzero(np.isfinite(distance))[0]
            _, back = cKDTree(vectors).query(known[index[near]])
            mutual = near[back == near]
            ids[mutual] = index[mutual]
        new = ids < 0
        ids[new] = len(known) + np.arange(int(new.sum()))
        known = np.vstack([known, vectors[new]])
        rows.append(table.drop(columns=["ra", "dec"]).assign(star=ids, exposure=number))
    columns = ["star", "exposure", "mag", "mag_err"]
    if not rows:
        return pd.DataFrame({name: [] for name in columns})
    joined = pd.concat(rows, ignore_index=True)
    return joined[columns + [name for name in joined.columns if name not in columns]]


def solve_zero_points(
    measurements: pd.DataFrame,
    exposures: Sequence[str],
    min_stars: int = 5,
    clip_sigma: float = 4.0,
    candidates: Sequence[Structure] = (Structure(),),
) -> JointZeroPoints:
    """Corrections dzp that make the magnitudes of common stars agree best, of mean 0 over the exposures that have them.

    Minimises Σ (mag + dzp_exposure + terms − m_star)² / err² with the m_star eliminated, rejecting outliers between
    rounds. An exposure with fewer than `min_stars` common stars keeps its own zero point: dzp 0, n_stars 0. Of several
    structures the first is taken whose successors do not predict stars that were held out significantly better.

    Parameters
    ----------
    measurements : DataFrame
        From `match_stars`; `exposure` counts in the order of sorted `exposures`. Focal-plane terms need columns u, v
        (−1 … 1), reference magnitudes ref_mag and ref_err (NaN where unknown), a colour term colour.
    exposures : sequence of str
    candidates : sequence of Structure
        In rising order.
    """
    names = sorted(exposures)
    data = _Data.read(measurements, names, min_stars, clip_sigma)
    chosen = candidates[0]
    for one in candidates[1:]:
        if _predicts_better(data, chosen, one):
            chosen = one
    keep, fit = _solve(data, chosen, np.isfinite(data.mag) & np.isfinite(data.weight))
    _, counts = _drop_lonely(data, keep)
    dzp = np.where(counts > 0, fit.dzp, 0.0)
    table = pd.DataFrame(
        {"exposure": names, "dzp_mag": dzp, "dzp_err_mag": np.where(counts > 0, fit.dzp_err, 0.0), "n_stars": counts}
    )
    for (i, j), values in zip(list_terms(chosen.degree), fit.terms.T, strict=True):
        table[f"term_{i}{j}_mag"] = np.where(counts > 0, values, 0.0)
    table.attrs["units"] = {name: "mag" for name in table.columns if name.endswith("_mag")}
    measured = keep & (data.exposure != REFERENCE)
    repeatability = _measure_repeatability(data.star, fit.residual, measured)
    return JointZeroPoints(table, repeatability, len(np.unique(data.star[keep])), chosen, fit.colour)


def list_terms(degree: int) -> list[tuple[int, int]]:
    """Powers (i, j) of the terms u^i v^j from first order up to `degree`."""
    return [(total - j, j) for total in range(1, degree + 1) for j in range(total + 1)]


def evaluate_terms(coefficients: Sequence[float], u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Correction in mag at focal-plane positions, to be added to the zero point; any shape.

    Each term is u^i v^j less its mean over the square −1 … 1, so that the zero point stays that of the whole field.
    `coefficients` stand in the order of `list_terms`.
    """
    total = np.zeros(np.shape(u))
    degree = next(n for n in range(20) if len(list_terms(n)) >= len(coefficients))
    for (i, j), value in zip(list_terms(degree), coefficients, strict=True):
        if value:
            total = total + value * _term(u, v, i, j)
    return total


# ---- the fit


@dataclass(frozen=True)
class _Data:
    """Measurements and, after them, the reference magnitudes of the same stars (exposure −1)."""

    star: np.ndarray
    exposure: np.ndarray
    mag: np.ndarray
    weight: np.ndarray
    u: np.ndarray
    v: np.ndarray
    colour: np.ndarray
    n_exposures: int
    min_stars: int
    clip_sigma: float

    @classmethod
    def read(cls, table: pd.DataFrame, names: list[str], min_stars: int, clip_sigma: float) -> "_Data":
        def column(name: str, default: float) -> np.ndarray:
            return table[name].to_numpy(float) if name in table else np.full(len(table), default)

        star = table["star"].to_numpy(int)
        colour = column("colour", np.nan)
        known = np.isfinite(colour)
        colour = np.where(known, colour - (np.median(colour[known]) if known.any() else 0.0), 0.0)
        reference, first = column("ref_mag", np.nan), np.zeros(len(table), bool)
        rows = np.nonzero(np.isfinite(reference))[0]
        first[rows[np.unique(star[rows], return_index=True)[1]]] = True  # a star's reference counts once
        error = np.concatenate([column("mag_err", 0.0), column("ref_err", 0.01)[first]])
        n_reference = int(first.sum())
        return cls(
            np.concatenate([star, star[first]]),
            np.concatenate([table["exposure"].to_numpy(int), np.full(n_reference, REFERENCE)]),
            np.concatenate([table["mag"].to_numpy(float), reference[first]]),
            1.0 / (error**2 + _ERR_FLOOR_MAG**2),
            *(np.concatenate([column(name, 0.0), np.zeros(n_reference)]) for name in ("u", "v")),
            np.concatenate([colour, np.zeros(n_reference)]), len(names), min_stars, clip_sigma,
        )  # fmt: skip


@dataclass(frozen=True)
class _Fit:
    """Values per exposure, residuals of all measurements (0 where not used), and the vector of all parameters."""

    dzp: np.ndarray
    dzp_err: np.ndarray
    terms: np.ndarray
    colour: float
    residual: np.ndarray
    vector: np.ndarray


def _solve(data: _Data, structure: Structure, keep: np.ndarray) -> tuple[np.ndarray, _Fit]:
    """The fit after rejection of outliers, and what was kept."""
    n_terms = len(list_terms(structure.degree))
    none = np.zeros(data.n_exposures)
    fit = _Fit(none, none * np.nan, np.zeros((data.n_exposures, n_terms)), 0.0, np.zeros(len(data.mag)), np.zeros(0))
    design = _make_design(data, structure)
    for _ in range(_MAX_ROUNDS):
        keep, _counts = _drop_lonely(data, keep)
        if not keep.any():
            break
        fit = _solve_once(data, structure, design, keep)
        spread = max(1.4826 * float(np.median(np.abs(fit.residual[keep]))), 1e-4)
        scaled = np.abs(fit.residual) / np.sqrt(spread**2 + 1.0 / data.weight)
        fresh = keep & (scaled < data.clip_sigma)
        if np.array_equal(fresh, keep):
            break
        keep = fresh
    return keep, fit


def _drop_lonely(data: _Data, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave out stars seen once and exposures with too few stars, until nothing changes; also counts per exposure."""
    keep, n = keep.copy(), data.n_exposures
    measured = data.exposure != REFERENCE
    while True:
        seen = np.bincount(data.star[keep], minlength=int(data.star.max()) + 1 if len(data.star) else 1)
        common = keep & (seen[data.star] > 1) if len(data.star) else keep
        counts = np.bincount(data.exposure[common & measured], minlength=n)
        counts = np.where(counts < data.min_stars, 0, counts)
        fresh = common & (~measured | (counts[data.exposure] > 0))
        if np.array_equal(fresh, keep):
            return keep, counts
        keep = fresh


def _make_design(data: _Data, structure: Structure) -> sparse.csr_matrix:
    """Derivatives of the corrected magnitudes: per exposure 1 and its terms, then reference, shared terms, colour."""
    own = list_terms(structure.order)
    shared = [term for term in list_terms(structure.shared) if sum(term) > structure.order]
    width = 1 + len(own)
    n_columns = data.n_exposures * width + 1 + len(shared) + structure.colour
    rows = np.nonzero(data.exposure != REFERENCE)[0]
    reference = np.nonzero(data.exposure == REFERENCE)[0]
    u, v, first = data.u[rows], data.v[rows], data.exposure[rows] * width
    pieces = [(rows, first, np.ones(len(rows)))]
    pieces += [(rows, first + 1 + k, _term(u, v, *term)) for k, term in enumerate(own)]
    last = data.n_exposures * width
    pieces.append((reference, np.full(len(reference), last), np.ones(len(reference))))
    pieces += [(rows, np.full(len(rows), last + 1 + k), _term(u, v, *term)) for k, term in enumerate(shared)]
    if structure.colour:
        pieces.append((rows, np.full(len(rows), n_columns - 1), data.colour[rows]))
    row, column, value = (np.concatenate(part) for part in zip(*pieces, strict=True))
    return sparse.csr_matrix((value, (row, column)), shape=(len(data.mag), n_columns))


def _solve_once(data: _Data, structure: Structure, design: sparse.csr_matrix, keep: np.ndarray) -> _Fit:
    """Normal equations with the stars' magnitudes eliminated; the mean of dzp is fixed to 0."""
    rows = np.nonzero(keep)[0]
    _, index = np.unique(data.star[rows], return_inverse=True)
    weight, mag, part = data.weight[rows], data.mag[rows], design[rows]
    stars = sparse.csr_matrix((np.ones(len(rows)), (np.arange(len(rows)), index)))
    weighted = part.multiply(weight[:, None]).tocsr()
    total = np.bincount(index, weights=weight)
    cross = (weighted.T @ stars).tocsr()
    normal = (part.T @ weighted - cross.multiply(1.0 / total) @ cross.T).toarray()
    mean_mag = np.bincount(index, weights=weight * mag) / total
    right = -(weighted.T @ mag - cross @ mean_mag)
    width = 1 + len(list_terms(structure.order))
    zero_points = np.arange(data.n_exposures) * width
    active = np.zeros(len(right), bool)
    active[np.unique(part.indices)] = True
    fixed = np.zeros(len(right))
    fixed[zero_points[active[zero_points]]] = 1.0
    # what moves all zero points (and the reference) alike is not in the data: this direction is held at 0
    strength = np.trace(normal) / max(float(fixed.sum()), 1.0) ** 2
    normal += strength * np.outer(fixed, fixed)
    prior = np.full(len(right), _PRIOR_MAG**-2.0)
    prior[[*zero_points, data.n_exposures * width]] = 0.0
    normal[np.diag_indices_from(normal)] += prior
    inverse = np.linalg.pinv(normal[np.ix_(active, active)], hermitian=True)
    vector = np.zeros(len(right))
    vector[active] = inverse @ right[active]
    vector[zero_points[active[zero_points]]] -= vector[zero_points[active[zero_points]]].mean()
    errors = np.full(len(right), np.nan)
    fixed = fixed[active]
    centring = np.eye(len(fixed)) - np.outer(fixed, fixed) / max(float(fixed.sum()), 1.0)
    errors[active] = np.sqrt(np.maximum(np.diag(centring @ inverse @ centring.T), 0.0))
    corrected = mag + part @ vector
    residual = np.zeros(len(data.mag))
    residual[rows] = corrected - (np.bincount(index, weights=weight * corrected) / total)[index]
    terms = _join_terms(data, structure, vector)
    colour = float(vector[-1]) if structure.colour else 0.0
    return _Fit(vector[zero_points], errors[zero_points], terms, colour, residual, vector)


def _join_terms(data: _Data, structure: Structure, vector: np.ndarray) -> np.ndarray:
    """Coefficients (n_exposures, n_terms) of each exposure's own and of the shared terms, as `list_terms` has them."""
    own, every = list_terms(structure.order), list_terms(structure.degree)
    width = 1 + len(own)
    terms = np.zeros((data.n_exposures, len(every)))
    terms[:, : len(own)] = vector[: data.n_exposures * width].reshape(-1, width)[:, 1:]
    shared = vector[data.n_exposures * width + 1 :][: len(every) - len(own)]
    terms[:, len(own) :] = shared
    return terms


def _predicts_better(data: _Data, simple: Structure, rich: Structure) -> bool:
    """Whether a richer structure, fitted without some stars, makes the measurements of these agree better."""
    held = data.star % _FOLDS == 0
    usable = np.isfinite(data.mag) & np.isfinite(data.weight)
    misfits = []
    for structure in (simple, rich):
        keep, fit = _solve(data, structure, usable & ~held)
        if not keep.any():
            return False
        test, _ = _drop_lonely(replace(data, min_stars=1), usable & held)
        if test.sum() < _MIN_HELD_OUT:
            return False
        corrected = data.mag + _make_design(data, structure) @ fit.vector
        star, weight = data.star[test], data.weight[test]
        total = np.bincount(star, weights=weight)
        mean = np.bincount(star, weights=weight * corrected[test]) / np.maximum(total, 1e-30)
        # outliers count with their clipping limit
        misfits.append(np.minimum(weight * (corrected[test] - mean[star]) ** 2, data.clip_sigma**2))
    gain = misfits[0] - misfits[1]
    return bool(gain.mean() > _SIGNIFICANT * gain.std() / np.sqrt(len(gain)))


def _measure_repeatability(star: np.ndarray, residual: np.ndarray, keep: np.ndarray) -> float:
    """Robust scatter of single measurements in mmag, corrected for the mean each star was given (n/(n−1))."""
    if not keep.any():
        return float("nan")
    seen = np.bincount(star[keep])[star[keep]]
    unbiased = residual[keep] * np.sqrt(seen / np.maximum(seen - 1, 1))
    several = seen > 1
    return float(1000.0 * 1.4826 * np.median(np.abs(unbiased[several]))) if several.any() else float("nan")


def _term(u: np.ndarray, v: np.ndarray, i: int, j: int) -> np.ndarray:
    mean = 0.0 if i % 2 or j % 2 else 1.0 / ((i + 1) * (j + 1))
    return np.asarray(u) ** i * np.asarray(v) ** j - mean


def _unit_vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=1)
