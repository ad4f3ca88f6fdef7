"""Astrometry of several exposures at once: one geometry of the focal plane, free star positions, references as priors.

Every exposure has its pointing (an affine map and weak higher terms), all share the places of the chips and the
distortion. Positions of stars are eliminated from the normal equations, as in SCAMP (Bertin 2006, ASP Conf. 351, 112)
and in Gbdes (Bernstein et al. 2017, PASP 129, 074503); chips are rigid and exposures alike as far as the data say so.
Where each exposure points must be known already (`science/astrometry.py`); photometry is `science/jointcal.py`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from astropy.io import fits

from lap_assets.errors import UnprocessableData
from lap_assets.science.astrometry import ChipStars
from lap_assets.science.focal_plane_geometry import (
    Geometry,
    GeometryFit,
    choose_priors,
    lay_out,
    predict_positions,
    prepare_blocks,
    update_geometry,
)
from lap_assets.science.focal_plane_model import estimate_floor
from lap_assets.science.joint_stars import Observations, StarFit, eliminate_stars, match_observations
from lap_assets.science.reference_epoch import propagate_positions
from lap_assets.science.tan_sip import deproject_tan, fit_tan_sip, grid_points, project_tan, read_map

_MAS = 1.0 / 3.6e6
_CLIP_SIGMA = 4.0
_ROUNDS = 4
_CHOOSING_ROUND = 1  # when order and priors are chosen, outliers known
_MIN_OBSERVATIONS = 30
_MIN_REFERENCES = 6
_MIN_REF_ERR_MAS = 1.0
_MIN_SPARE = 0.05  # of a residual's variance, after the star's own position took its share
_TELLING_SPARE = 0.2


@dataclass(frozen=True)
class JointAstrometry:
    """Result of `fit_joint_astrometry`.

    Attributes
    ----------
    headers : mapping of exposure to mapping of chip to Header
        TAN-SIP, for all chips that were given.
    reference_rms_mas : (float, float)
        References about the fitted positions of their stars, in right ascension (·cos δ) and declination.
    repeatability_mas : (float, float)
        Single measurements about their stars' positions, robust, corrected for the mean each star was given.
    n_stars, n_references, n_observations : int
        In the fit.
    order : int
        Of the distortion that all exposures share.
    priors_mas : mapping of str to float
        Widths found for the terms that the data restrain: `shape` (chips that are not rigid), `chip` (a chip's own
        higher terms), `exposure` (an exposure's own).
    """

    headers: dict[str, dict[str, fits.Header]]
    reference_rms_mas: tuple[float, float]
    repeatability_mas: tuple[float, float]
    n_stars: int
    n_references: int
    n_observations: int
    order: int
    priors_mas: dict[str, float]


def fit_joint_astrometry(
    exposures: Mapping[str, Mapping[str, ChipStars]],
    solutions: Mapping[str, Mapping[str, fits.Header]],
    catalog: pd.DataFrame,
    epochs: Mapping[str, float],
    *,
    match_radius_arcsec: float = 0.7,
    max_order: int = 5,
) -> JointAstrometry:
    """Fit all exposures of a run at once.

    Parameters
    ----------
    exposures : mapping of exposure to mapping of chip to ChipStars
        Stars and the headers as they came: the chips' nominal geometry.
    solutions : mapping of exposure to mapping of chip to Header
        Each exposure's own astrometric solution; chips without one are left out.
    catalog : DataFrame
        Reference catalogue around the run, with errors and proper motions.
    epochs : mapping of exposure to float
        Julian years.
    match_radius_arcsec : float
        Within which positions by the solutions belong to one star.
    max_order : int
        Largest order of the shared distortion.

    Raises
    ------
    UnprocessableData
        If the exposures have too few stars in common with each other and with the catalogue.
    """
    solved = {name: solutions[name] for name in sorted(solutions) if solutions[name]}
    if not solved or not len(catalog):
        raise UnprocessableData(
            f"joint astrometry of {len(solved)} solved exposures and {len(catalog)} reference stars: nothing to fit"
        )
    geometry = lay_out(exposures, solved, max_order)
    seen = _gather(geometry, exposures, solved, catalog, epochs, match_radius_arcsec)
    n_references = int(np.isfinite(seen.ref[:, 0]).sum())
    if len(seen.star) < _MIN_OBSERVATIONS or n_references < _MIN_REFERENCES:
        raise UnprocessableData(
            f"{len(seen.star)} observations of {n_references} reference stars in {len(solved)} exposures: too few for "
            "joint astrometry"
        )
    return _describe(geometry, seen, _iterate(geometry, seen))


def _gather(geometry: Geometry, exposures, solutions, catalog, epochs, radius_arcsec: float) -> Observations:
    """Measurements of all exposures, matched with one another and with the references."""
    mean = float(np.mean([epochs[name] for name in geometry.exposures]))
    places = {epoch: _place(geometry, catalog, epoch) for epoch in {mean, *epochs.values()}}
    error = np.stack([catalog.ra_err_mas.to_numpy(float), catalog.dec_err_mas.to_numpy(float)], axis=1)
    error = np.maximum(np.nan_to_num(error, nan=50.0), _MIN_REF_ERR_MAS) * _MAS
    planes, pixels = [], []
    for name in geometry.exposures:
        parts, rows = [], []
        for number, (exposure, chip) in enumerate(geometry.members):
            if exposure != name:
                continue
            one, place = exposures[name][chip], read_map(solutions[name][chip])
            parts.append(np.stack(project_tan(*place(one.x, one.y), geometry.ra0, geometry.dec0), axis=1))
            scale = np.sqrt(abs(np.linalg.det(geometry.turn_pixels(chip))))
            rows.append((np.full(len(one.x), number), one.x, one.y, one.xy_err * scale))
        planes.append(np.concatenate(parts))
        joined = (np.concatenate(column) for column in zip(*rows, strict=True))
        pixels.append(dict(zip(("block", "x", "y", "error"), joined, strict=True)))
    references = [places[epochs[name]] for name in geometry.exposures]
    return match_observations(planes, references, places[mean], error, pixels, radius_arcsec)


def _place(geometry: Geometry, catalog: pd.DataFrame, epoch_yr: float) -> np.ndarray:
    """(n, 2) references at an epoch in the common plane, degrees."""
    return np.stack(project_tan(*propagate_positions(catalog, epoch_yr), geometry.ra0, geometry.dec0), axis=1)


@dataclass(frozen=True)
class _State:
    """Fit and stars after the last round, which observations and references were used, and their scaled residuals."""

    fit: GeometryFit
    stars: StarFit
    used: np.ndarray
    used_ref: np.ndarray
    spare: np.ndarray


def _iterate(geometry: Geometry, seen: Observations) -> _State:
    """Rounds of fit, rejection and choice."""
    blocks = prepare_blocks(geometry, seen)
    fit = geometry.start()
    group = np.zeros(seen.n_stars, np.int64)
    chip_of = np.array([geometry.chips.index(chip) for _, chip in geometry.members])
    group[seen.star] = chip_of[seen.block]
    known, known_ref = np.isfinite(seen.error), np.isfinite(seen.ref[:, 0])
    ref_err = np.sqrt(np.mean(np.where(known_ref[:, None], seen.ref_err, 1.0) ** 2, axis=1))
    used, used_ref, floor, ref_floor = known, known_ref, 0.0, 0.0
    for attempt in range(_ROUNDS):
        used, used_ref = seen.drop_lonely(used, used_ref)
        weight = 1.0 / (seen.error**2 + floor**2)
        ref_weight = 1.0 / (ref_err**2 + ref_floor**2)
        masked = weight * used, np.repeat((ref_weight * used_ref)[:, None], 2, axis=1)
        stars = seen.average(predict_positions(geometry, blocks, fit, seen), *masked)
        wanted = geometry.widest() if attempt == _CHOOSING_ROUND else fit
        active, *_ = geometry.precisions(wanted.order, wanted.priors)
        normal, right = eliminate_stars(blocks.common, seen, stars, masked[0], active, group)
        if attempt == _CHOOSING_ROUND:
            fit = choose_priors(geometry, fit, normal, right)
        fit = update_geometry(geometry, fit, normal, right)
        stars = seen.average(predict_positions(geometry, blocks, fit, seen), *masked)
        share = weight / stars.total[seen.star, 0]
        spare = np.maximum(np.where(used, 1.0 - share, 1.0 + share), _MIN_SPARE)
        share = ref_weight / stars.total[:, 0]
        ref_spare = np.maximum(np.where(used_ref, 1.0 - share, 1.0 + share), _MIN_SPARE)
        state = _State(fit, stars, used, used_ref, spare)
        if attempt == _ROUNDS - 1:
            break
        length = np.hypot(*stars.residual.T) / np.sqrt(spare)
        ref_length = np.hypot(*stars.ref_residual.T) / np.sqrt(ref_spare)
        floor, used = _judge(length, seen.error, used, spare, known)
        ref_floor, used_ref = _judge(ref_length, ref_err, used_ref, ref_spare, known_ref)
    return state


def _judge(
    length: np.ndarray, error: np.ndarray, used: np.ndarray, spare: np.ndarray, known: np.ndarray
) -> tuple[float, np.ndarray]:
    """Scatter beyond the stated errors, and which are within the clipping limit of both together."""
    telling = used & (spare > _TELLING_SPARE)
    floor = estimate_floor(length[telling], error[telling])
    return floor, known & (length < _CLIP_SIGMA * np.sqrt(2.0 * (error**2 + floor**2)))


def _describe(geometry: Geometry, seen: Observations, state: _State) -> JointAstrometry:
    headers: dict[str, dict[str, fits.Header]] = {}
    for exposure, chip in geometry.members:
        shape = geometry.shapes[chip]
        x, y = grid_points(shape)
        plane = geometry.place(state.fit, exposure, chip, x, y)
        sky = deproject_tan(*plane.T, *geometry.centres[exposure])
        headers.setdefault(exposure, {})[chip] = fit_tan_sip(x, y, *sky, shape, min_order=min(state.fit.order, 3))
    stars, used, used_ref = state.stars, state.used, state.used_ref
    telling = used & (state.spare > _TELLING_SPARE)
    scaled = np.abs(stars.residual[telling]) / np.sqrt(state.spare[telling])[:, None]
    repeat = 1.4826 * np.median(scaled, axis=0) / _MAS if telling.any() else np.full(2, np.nan)
    rms = np.sqrt(np.mean(stars.ref_residual[used_ref] ** 2, axis=0)) / _MAS
    return JointAstrometry(
        headers, (float(rms[0]), float(rms[1])), (float(repeat[0]), float(repeat[1])),
        len(np.unique(seen.star[used])), int(used_ref.sum()), int(used.sum()), state.fit.order,
        {name: width / _MAS for name, width in state.fit.priors.items()},
    )  # fmt: skip
