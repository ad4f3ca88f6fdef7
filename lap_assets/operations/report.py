"""The report: what became of every unit, and for a simulated survey truth against measured.

Reads products and truth tables; the numbers themselves are `qa/metrics.py`'s.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from lap_assets.errors import NotFound
from lap_assets.model.ids import DataId, join_key
from lap_assets.model.products import PRODUCTS
from lap_assets.model.sphere import unit_vectors
from lap_assets.model.states import DONE, DROPPED, RESULTS
from lap_assets.model.survey import Survey
from lap_assets.operations.workspace import Workspace
from lap_assets.pipeline.joint_correction import read_correction, to_wcs
from lap_assets.qa.metrics import match_positions, measure_offsets
from lap_assets.qa.noise import compute_rms, measure_aperture_noise

MAX_LISTED = 40
BRIGHT_MAG = (17.0, 19.5)  # stars neither saturated nor limited by photons
ISOLATION_ARCSEC, ISOLATION_MAG = 4.0, 5.0
APERTURE_RADIUS_PX = 3.0
MATCH_ARCSEC = 1.0
NJY_ZERO_POINT_MAG = 31.4


def summarize_states(space: Workspace, survey: Survey) -> dict[str, Any]:
    """Counts of units by product and state, and the reason of each that is not done."""
    states = space.ledger.partition_states(survey.collection)
    table = space.ledger.units(survey.collection)
    counts = {name: Counter(u.state for u in table if u.data_id.product == name) for name in PRODUCTS}
    failed = {f"{p} {k}": s.reason for (p, k), s in states.items() if s.state not in RESULTS}
    other = {str(u.data_id): f"{u.state}: {u.reason}" for u in table if u.state in RESULTS - {DONE, DROPPED}}
    return {
        "products": {name: dict(count) for name, count in counts.items() if count},
        "units_done": sum(u.state == DONE for u in table),
        "units_other": len(other),
        "units_failed": sum(u.state not in RESULTS or u.state == "dropped" for u in table),
        "not_done": dict(list((failed | other).items())[:MAX_LISTED]),
    }


def compare_with_truth(space: Workspace, survey: Survey, truth: Path) -> dict[str, Any]:
    """Truth against measured for a simulated survey; a number that cannot be had is None."""
    if not (truth / "lens.json").is_file():
        raise NotFound(f"{truth} is no truth folder of a simulated survey (no lens.json)")
    (cell,) = survey.bands_of if len(survey.bands_of) == 1 else (next(iter(survey.bands_of)),)
    parts = (compare_astrometry, compare_photometry, compare_depth, compare_transients, compare_lensing)
    report: dict[str, Any] = {}
    for part in parts:
        report |= part(space, survey, cell, truth)
    return report


def compare_astrometry(space: Workspace, survey: Survey, cell: str, truth: Path) -> dict[str, Any]:
    """RMS per axis of the solved minus the true sky position over a grid of pixels of every good chip, mas.

    With the astrometry that warps are made with (joint, where there is one), and with each exposure's own.
    """
    used, own = [], []
    for exposure, facts in survey.exposures.items():
        data_id = DataId(survey.collection, "solutions", exposure)
        if space.repo.pin(data_id) is None:
            continue
        joint = space.repo.pin(DataId(survey.collection, "joint_solutions", join_key(cell, facts.band)))
        headers = read_correction(space.repo, (joint,) if joint else (), exposure).headers
        chips = space.repo.read_json(data_id, "solution.json")["chips"]
        for chip, solution in chips.items():
            if solution["state"] == "good":
                true = WCS(fits.Header.fromstring((truth / "wcs" / f"{exposure}_{chip}.hdr").read_text(), sep="\n"))
                for cards, differences in ((solution["wcs"], own), (headers.get(chip, solution["wcs"]), used)):
                    differences.append(subtract_wcs(to_wcs(cards), true, cards))
    if not used:
        return {"astrometry_rms_mas": None}
    rms, rms_own = (np.sqrt(np.mean(np.concatenate(one) ** 2, axis=0)) for one in (used, own))
    return {
        "astrometry_rms_mas": round(float(rms.max()), 2),
        "astrometry_rms_mas_per_axis": [round(float(r), 2) for r in rms],
        "astrometry_own_rms_mas": round(float(rms_own.max()), 2),
    }


def subtract_wcs(solved: WCS, true: WCS, cards: dict[str, Any]) -> np.ndarray:
    """(n, 2) differences of two WCS on a grid of pixels, mas along RA (on the sky) and Dec."""
    nx, ny = int(cards["NAXIS1"]), int(cards["NAXIS2"])
    x, y = (a.ravel() for a in np.meshgrid(np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9)))
    ra, dec = solved.all_pix2world(x, y, 0)
    ra0, dec0 = true.all_pix2world(x, y, 0)
    return np.column_stack(measure_offsets(ra, dec, ra0, dec0))


def read_objects(space: Workspace, survey: Survey, cell: str) -> pd.DataFrame | None:
    """The object catalogue of a cell, or None."""
    try:
        return space.repo.get("object_catalogs", collection=survey.collection, cell=cell)
    except NotFound:
        return None


def compare_photometry(space: Workspace, survey: Survey, cell: str, truth: Path) -> dict[str, Any]:
    """RMS and offset of measured minus true magnitude of isolated bright stars, worst band, and their places' rms."""
    objects = read_objects(space, survey, cell)
    if objects is None:
        return {"photometry_rms_mmag": None}
    stars = pd.read_parquet(truth / "stars.parquet")
    everything = pd.concat([stars, pd.read_parquet(truth / "galaxies.parquet")], ignore_index=True)
    rms, offset, positions = {}, {}, []
    for band in survey.bands_of[cell]:
        bright = stars[stars[f"mag_{band}"].between(*BRIGHT_MAG)]
        bright = bright[is_isolated(bright, everything, f"mag_{band}")]
        mine, theirs = match_positions(objects["ra"], objects["dec"], bright["ra"], bright["dec"], MATCH_ARCSEC)
        found, true = objects.iloc[mine], bright.iloc[theirs]
        flux = found[f"flux_aper2_{band}"].to_numpy()
        good = (flux > 0) & (found[f"flags_{band}"].to_numpy() == 0)
        delta = NJY_ZERO_POINT_MAG - 2.5 * np.log10(flux[good]) - true[f"mag_{band}"].to_numpy()[good]
        rms[band], offset[band] = (1e3 * value for value in compute_rms(delta))
        positions.append(np.column_stack(measure_offsets(found["ra"], found["dec"], true["ra"], true["dec"]))[good])
    spread = [compute_rms(axis)[0] for axis in np.concatenate(positions).T]
    return {
        "photometry_rms_mmag": round(max(rms.values()), 2),
        "photometry_rms_mmag_per_band": {band: round(value, 2) for band, value in rms.items()},
        "photometry_offset_mmag_per_band": {band: round(value, 2) for band, value in offset.items()},
        "star_position_rms_mas": round(max(spread), 2),
    }


def is_isolated(stars: pd.DataFrame, everything: pd.DataFrame, mag: str) -> np.ndarray:
    """(n,) bool: no true neighbour within `ISOLATION_ARCSEC` of more than a hundredth of the star's light."""
    fainter = everything[everything[mag] < stars[mag].max() + ISOLATION_MAG]
    places = unit_vectors(fainter["ra"], fainter["dec"])
    near = cKDTree(places).query_ball_point(
        unit_vectors(stars["ra"], stars["dec"]), np.radians(ISOLATION_ARCSEC / 3600)
    )
    mags, mine = fainter[mag].to_numpy(), stars[mag].to_numpy()
    # the star itself is among them
    return np.array([np.sum(mags[found] < one + ISOLATION_MAG) <= 1 for found, one in zip(near, mine, strict=True)])


def compare_depth(space: Workspace, survey: Survey, cell: str, truth: Path) -> dict[str, Any]:
    """Noise of empty apertures on the final stacks against the ideal weighting of the true sky and read noise."""
    exposures = pd.read_parquet(truth / "exposures.parquet")
    objects = read_objects(space, survey, cell)
    ratios = {}
    for band in survey.bands_of[cell]:
        ideal = ideal_noise_njy(exposures[exposures["band"] == band])
        measured = []
        for data_id in space.repo.units(survey.collection, "final_stacks", join_key(cell, band)):
            if space.repo.pin(data_id) is None or objects is None:
                continue
            image = space.repo.read_image(data_id)
            full = image.planes["NINPUT"] >= len(survey.members(cell, band))
            x, y = WCS(image.header).all_world2pix(objects["ra"], objects["dec"], 0)
            measured.append(measure_aperture_noise(image.sci, image.usable & full, x, y, APERTURE_RADIUS_PX))
        noise = np.array([m for m in measured if np.isfinite(m)])
        ratios[band] = float(ideal / np.sqrt(np.mean(noise**2))) if len(noise) else None
    known = [ratio for ratio in ratios.values() if ratio is not None]
    return {"stack_depth_ratio": round(min(known), 3) if known else None, "stack_depth_ratio_per_band": ratios}


def ideal_noise_njy(exposures: pd.DataFrame) -> float:
    """Noise per pixel, nJy, of the best weighting: photons of the sky and read noise, at true zero points."""
    columns = ["sky_e", "read_noise_e", "throughput", "zero_point_mag"]
    mean = exposures.groupby("exposure")[columns].mean()
    scale = 10.0 ** (0.4 * (NJY_ZERO_POINT_MAG - mean["zero_point_mag"]))
    electrons = mean["sky_e"] * mean["throughput"] + mean["read_noise_e"] ** 2
    variance = electrons * (scale / mean["throughput"]) ** 2
    return float(np.sqrt(1.0 / np.sum(1.0 / variance)))


def compare_transients(space: Workspace, survey: Survey, cell: str, truth: Path) -> dict[str, Any]:
    """Injected transients found and missed, and false ones."""
    injected = pd.read_parquet(truth / "transients.parquet")
    report: dict[str, Any] = {"transients_injected": len(injected), "transients_found": None, "transients_false": None}
    try:
        found = space.repo.get("transients", collection=survey.collection, cell=cell)
    except NotFound:
        return report
    mine, theirs = match_positions(found["ra"], found["dec"], injected["ra"], injected["dec"], MATCH_ARCSEC)
    missed = injected.drop(injected.index[theirs])
    report |= {"transients_found": len(set(theirs)), "transients_false": len(found) - len(set(mine))}
    return report | {"transients_missed_mag": [round(float(mag), 2) for mag in missed["mag"]]}


def compare_lensing(space: Workspace, survey: Survey, cell: str, truth: Path) -> dict[str, Any]:
    """Peak of the mass map, its distance from the true centre, B-mode, and the fitted mass."""
    lens = json.loads((truth / "lens.json").read_text())
    keys = (
        "massmap_peak_snr",
        "massmap_expected_snr",
        "massmap_offset_arcmin",
        "massmap_b_rms",
        "mass_ratio",
        "mass_deviation_sigma",
    )
    report: dict[str, Any] = dict.fromkeys(keys)
    try:
        peaks = space.repo.get("mass_maps", member="peaks.parquet", collection=survey.collection, cell=cell)
        planes = space.repo.get("mass_maps", collection=survey.collection, cell=cell)
    except NotFound:
        return report
    if len(peaks):
        best = peaks.loc[peaks["snr"].idxmax()]
        expected = {float(radius): snr for radius, snr in lens["expected_snr"].items()}
        nearest = min(expected, key=lambda radius: abs(radius - best["radius_arcmin"]))
        dx = (best["ra"] - lens["ra"]) * np.cos(np.deg2rad(lens["dec"]))
        report["massmap_peak_snr"] = round(float(best["snr"]), 2)
        report["massmap_expected_snr"] = round(float(expected[nearest]), 2)
        report["massmap_offset_arcmin"] = round(float(60 * np.hypot(dx, best["dec"] - lens["dec"])), 3)
    b_mode = planes["SNR_B"][0]
    report["massmap_b_rms"] = round(float(np.std(b_mode[b_mode != 0])), 2) if np.any(b_mode) else None
    try:
        fit = space.repo.get("mass_fits", collection=survey.collection, cell=cell)
    except NotFound:
        return report
    excess = fit["m200c_msun"] - lens["m200c_msun"]
    error = fit["m200c_minus_msun"] if excess > 0 else fit["m200c_plus_msun"]  # the side towards the truth
    report["mass_ratio"] = round(fit["m200c_msun"] / lens["m200c_msun"], 3)
    report["mass_deviation_sigma"] = round(excess / error, 2)
    return report


def describe_comparison(report: dict[str, Any]) -> list[str]:
    """Lines of the comparison with truth, where there is one."""
    names = [
        name for name in report if name.startswith(("astrometry", "photometry", "star", "stack", "transients", "mass"))
    ]
    return [f"  {name} = {report[name]}" for name in names]
