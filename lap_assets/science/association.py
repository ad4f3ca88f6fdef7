"""Association of the sources of many differences into objects, and their light curves.

Here: who belongs to whom, the object table, ids, forced fluxes. Not here: detection (`diff_sources`), which
differences of a cell are read (`pipeline/transients`).
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from lap_assets.model.image import MaskedImage
from lap_assets.science.difference import Psf
from lap_assets.science.source_search import shift_stamp, tabulate_psf

TRANSIENT_COLUMNS = (
    "transient_id", "ra", "dec", "n_detections", "n_bands", "n_nights", "snr_max", "flux_max", "first_mjd", "last_mjd"
)  # fmt: skip
TRANSIENT_UNITS = {"ra": "deg", "dec": "deg", "flux_max": "nJy", "first_mjd": "d", "last_mjd": "d"}


def associate_sources(
    sources: pd.DataFrame,
    radius_arcsec: float = 1.0,
    min_detections: int = 2,
    min_snr_max: float = 5.5,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Join detections within a radius into objects; keep those seen often enough.

    Seeds are taken by falling S/N; each gathers the unassigned sources within the radius, at most one per exposure (the
    nearest). So the result does not depend on the order of the rows.

    Parameters
    ----------
    sources : DataFrame
        ra, dec [deg], flux [nJy], snr, exposure, band, night, mjd. Flagged sources must be gone already.
    radius_arcsec : float
    min_detections : int
        Exposures in which an object must be detected.
    min_snr_max : float
        Least |S/N| of its best detection.

    Returns
    -------
    objects : DataFrame
        Columns `TRANSIENT_COLUMNS`; position weighted by S/N²; sorted by id.
    membership : (n_sources,) int64
        Row of `objects` each source belongs to, −1 for none.
    """
    n = len(sources)
    membership = np.full(n, -1, np.int64)
    if n == 0:
        return _make_objects([], sources), membership
    ra, dec = (sources[name].to_numpy(float) for name in ("ra", "dec"))
    snr = np.abs(sources["snr"].to_numpy(float))
    exposure = sources["exposure"].astype(str).to_numpy()
    vectors = _unit_vectors(ra, dec)
    near = cKDTree(vectors).query_ball_point(vectors, 2.0 * np.sin(0.5 * np.radians(radius_arcsec / 3600.0)))
    taken = np.zeros(n, bool)
    groups = []
    for seed in np.lexsort((dec, ra, exposure, -snr)):
        if taken[seed]:
            continue
        free = [other for other in near[seed] if not taken[other]]
        distance = np.linalg.norm(vectors[free] - vectors[seed], axis=1)
        group: dict[str, int] = {}
        for at in np.lexsort((-snr[free], distance)):
            group.setdefault(exposure[free[at]], free[at])
        # the rest of an exposure's sources here are pieces of the same residual: gone, not objects of their own
        taken[free] = True
        members = sorted(group.values())
        if len(members) >= min_detections and snr[members].max() >= min_snr_max:
            groups.append(members)
    objects = _make_objects(groups, sources)
    order = np.argsort(objects["transient_id"].to_numpy(str), kind="stable")
    for row, at in enumerate(order):
        membership[groups[at]] = row
    objects = objects.iloc[order].reset_index(drop=True)
    objects.attrs["units"] = TRANSIENT_UNITS
    return objects, membership


def _make_objects(groups: list[list[int]], sources: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for members in groups:
        some = sources.iloc[members]
        weight = some["snr"].to_numpy(float) ** 2
        mean = (_unit_vectors(some["ra"].to_numpy(float), some["dec"].to_numpy(float)) * weight[:, None]).sum(axis=0)
        ra = float(np.degrees(np.arctan2(mean[1], mean[0])) % 360.0)
        dec = float(np.degrees(np.arctan2(mean[2], np.hypot(mean[0], mean[1]))))
        best = int(np.argmax(weight))
        rows.append(
            (
                name_position(ra, dec), ra, dec, len(members), some["band"].nunique(), some["night"].nunique(),
                float(np.sqrt(weight[best])), float(some["flux"].iloc[best]), float(some["mjd"].min()),
                float(some["mjd"].max()),
            )
        )  # fmt: skip
    return pd.DataFrame(rows, columns=list(TRANSIENT_COLUMNS))


def name_position(ra_deg: float, dec_deg: float) -> str:
    """Name of an object from its position: `T150.11423+02.20511-3fa2`; the tail tells apart what rounding joins."""
    digest = hashlib.sha256(f"{ra_deg:.9f} {dec_deg:.9f}".encode()).hexdigest()[:4]
    return f"T{ra_deg:09.5f}{dec_deg:+09.5f}-{digest}"


def _unit_vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    a, d = np.radians(ra), np.radians(dec)
    return np.column_stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])


def force_psf_flux(
    image: MaskedImage, x: Sequence[float], y: Sequence[float], psf: Psf, filter_gain: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """PSF fluxes at given places of a difference image.

    Parameters
    ----------
    image : MaskedImage
        nJy.
    x, y : (n,) px
    psf : Psf
        `PsfGrid` or `MoffatPsf`.
    filter_gain : float
        By how much correlated noise raises the variance of a PSF-weighted sum (`source_search.correlated_gain`).

    Returns
    -------
    flux, flux_err : (n,) float64
        nJy; NaN where less than 60 % of the PSF is usable.
    usable : (n,) float64
        Fraction of the PSF (Σ P²) on usable pixels.
    """
    ny, nx = image.shape
    x, y = np.asarray(x, float), np.asarray(y, float)
    good, local = image.usable, tabulate_psf(psf, image.shape)
    stamps, cells = local.flat, local.locate(x, y)
    radius, profile = stamps.shape[-1] // 2, np.empty(stamps.shape[1:])
    flux, error, usable = np.full(len(x), np.nan), np.full(len(x), np.nan), np.zeros(len(x))
    for one, (px, py) in enumerate(zip(x, y, strict=True)):
        ix, iy = int(np.floor(px + 0.5)), int(np.floor(py + 0.5))
        x0, x1 = max(ix - radius, 0), min(ix + radius + 1, nx)
        y0, y1 = max(iy - radius, 0), min(iy + radius + 1, ny)
        if x0 >= x1 or y0 >= y1:
            continue
        shift_stamp(stamps[cells[one]], px - ix, py - iy, profile)
        whole = float(np.sum(profile**2))
        cut = np.s_[y0:y1, x0:x1]
        part = profile[y0 - iy + radius : y1 - iy + radius, x0 - ix + radius : x1 - ix + radius]
        part = np.where(good[cut], part, 0.0)
        square = float(np.sum(part**2))
        usable[one] = square / whole
        if usable[one] < 0.6:
            continue
        flux[one] = np.sum(part * np.where(good[cut], image.sci[cut], 0.0)) / square
        variance = np.sum(part**2 * np.where(good[cut], image.var[cut], 0.0)) / square**2
        error[one] = np.sqrt(variance * filter_gain)
    return flux, error, usable
