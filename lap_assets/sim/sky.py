"""The true sky: stars and their reference catalogue, background galaxies behind the lens, cluster members, transients.

Tables only; nothing here knows a pixel. Shapes and shears are in the (west, north) frame of skycells; ellipticities
are (a - b) / (a + b). Magnitudes are AB, as seen (lensed).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from astropy.time import Time

from lap_assets.sim.design import REF_EPOCH_YR, SurveyDesign, make_rng
from lap_assets.sim.lens import Lens, deproject_tangent, project_tangent

REFCAT_MAG = (14.0, 20.5)
SIGMA_E = 0.26  # per component
_REFCAT_SCATTER_MAS = 20.0
_BANDS = ("g", "r", "i")


@dataclass(frozen=True)
class Sky:
    """Everything there is to see, as tables (columns in `writer.py`), and the lens."""

    lens: Lens
    stars: pd.DataFrame
    galaxies: pd.DataFrame
    refcat: pd.DataFrame


def draw_sky(design: SurveyDesign) -> Sky:
    """The sky of a design's seed."""
    lens = _draw_lens(design)
    stars = _draw_stars(design)
    refcat, matched = _draw_refcat(design, stars)
    stars["in_refcat"] = matched
    galaxies = pd.concat(
        [_draw_members(design, lens), _draw_foreground(design), _draw_background(design, lens)], ignore_index=True
    )
    # members reach farther than a small field does
    east, north = project_tangent(galaxies["ra"], galaxies["dec"], design.ra_deg, design.dec_deg)
    half_east, half_north = design.sky_half_deg
    galaxies = galaxies[(np.abs(east) < half_east) & (np.abs(north) < half_north)].reset_index(drop=True)
    galaxies.insert(0, "galaxy_id", np.arange(len(galaxies)))
    return Sky(lens, stars, galaxies, refcat)


def _draw_lens(design: SurveyDesign) -> Lens:
    rng = make_rng(design.seed, "lens")
    angle, distance = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(*design.lens.offset_arcsec) / 3600.0
    ra, dec = deproject_tangent(distance * np.cos(angle), distance * np.sin(angle), design.ra_deg, design.dec_deg)
    return Lens(design.lens, float(ra), float(dec))


def _draw_positions(design: SurveyDesign, rng: np.random.Generator, per_arcmin2: float) -> np.ndarray:
    """(2, n) tangent-plane (east, north) in degrees, uniform over the populated sky."""
    half = design.sky_half_deg
    count = rng.poisson(per_arcmin2 * 4.0 * half[0] * half[1] * 3600.0)
    return np.stack([rng.uniform(-h, h, count) for h in half])


def _draw_magnitudes(rng: np.random.Generator, count: int, bright: float, faint: float, slope: float) -> np.ndarray:
    """Magnitudes with number counts proportional to 10**(slope m)."""
    low, high = 10.0 ** (slope * bright), 10.0 ** (slope * faint)
    return np.log10(rng.uniform(low, high, count)) / slope


# stars -------------------------------------------------------------------------------------------------------------


def _draw_stars(design: SurveyDesign) -> pd.DataFrame:
    rng = make_rng(design.seed, "stars")
    bright, faint = REFCAT_MAG[0], REFCAT_MAG[1]
    # steep counts over the catalogue's range, flatter beyond; both continue to the limits of what is drawn
    within = 1.0 - 10.0 ** (0.28 * (bright - faint))
    excess = 1.0 - 10.0 ** (0.28 * (design.brightest_star_mag - faint))
    upper = _draw_positions(design, rng, design.star_density * excess / within)
    lower = _draw_positions(design, rng, design.star_density * 0.8)
    east, north = np.concatenate([upper, lower], axis=1)
    mag_r = np.concatenate([
        _draw_magnitudes(rng, upper.shape[1], design.brightest_star_mag, faint, 0.28),
        _draw_magnitudes(rng, lower.shape[1], faint, 23.5, 0.1),
    ])  # fmt: skip
    ra, dec = deproject_tangent(east, north, design.ra_deg, design.dec_deg)
    colour = np.where(rng.random(len(ra)) < 0.6, rng.normal(0.55, 0.15, len(ra)), rng.normal(1.35, 0.12, len(ra)))
    colour = np.clip(colour, 0.1, 1.6)
    red = np.where(colour < 1.15, 0.4 * colour - 0.05, rng.uniform(0.5, 1.6, len(ra)))
    stars = pd.DataFrame({"star_id": np.arange(len(ra)), "ra": ra, "dec": dec})
    stars["mag_g"], stars["mag_r"], stars["mag_i"] = mag_r + colour, mag_r, mag_r - red
    return stars


def _draw_refcat(design: SurveyDesign, stars: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """A Gaia-like catalogue of the stars: at its own epoch, scattered, some missing, some without a counterpart."""
    rng = make_rng(design.seed, "refcat")
    years = Time(design.nights[0]).jyear - REF_EPOCH_YR
    listed = stars["mag_r"].between(*REFCAT_MAG).to_numpy() & (rng.random(len(stars)) > 0.08)
    true = stars[listed]
    extra = _draw_positions(design, rng, 0.05 * design.star_density)
    ra, dec = deproject_tangent(extra[0], extra[1], design.ra_deg, design.dec_deg)
    count, false = len(true), len(ra)
    pm = rng.normal(0.0, 3.0, (2, count + false))
    ra, dec = np.append(true["ra"], ra), np.append(true["dec"], dec)
    # the stars stand where truth has them during the survey; the catalogue has them where they were at its epoch
    scatter = rng.normal(0.0, _REFCAT_SCATTER_MAS, (2, count + false))
    east, north = (scatter - pm * years) / 3.6e6
    pm_measured = pm + rng.normal(0.0, 0.1, pm.shape)
    mags = {band: np.append(true[f"mag_{band}"], rng.uniform(15.0, 20.5, false)) for band in _BANDS}
    mags = {band: mag + rng.normal(0.0, 0.01, len(mag)) for band, mag in mags.items()}
    refcat = pd.DataFrame({
        "source_id": rng.permutation(count + false) + 4_000_000, "ra": ra + east / np.cos(np.radians(dec)),
        "dec": dec + north, "pmra": pm_measured[0], "pmdec": pm_measured[1], "ra_err_mas": _REFCAT_SCATTER_MAS,
        "dec_err_mas": _REFCAT_SCATTER_MAS, "ref_epoch_yr": REF_EPOCH_YR,
    })  # fmt: skip
    for band in _BANDS:
        refcat[f"mag_{band}"] = mags[band]
    refcat["phot_g_mean_mag"] = mags["r"] + 0.15
    return refcat.sort_values("source_id", ignore_index=True), listed


# galaxies ----------------------------------------------------------------------------------------------------------


def _draw_ellipticities(rng: np.random.Generator, count: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Two components of scatter `sigma` each, |e| < 0.75 (drawn again beyond)."""
    e = rng.normal(0.0, sigma, (2, count))
    while (beyond := np.hypot(*e) > 0.75).any():
        e[:, beyond] = rng.normal(0.0, sigma, (2, int(beyond.sum())))
    return e[0], e[1]


def _draw_background(design: SurveyDesign, lens: Lens) -> pd.DataFrame:
    """Galaxies behind the cluster: z about 0.85 +- 0.2 in [0.45, 1.6], sheared, magnified and displaced."""
    rng = make_rng(design.seed, "background")
    east, north = _draw_positions(design, rng, design.galaxy_density)
    count = len(east)
    mag_r = _draw_magnitudes(rng, count, 19.5, design.faint_mag, 0.35)
    z = rng.normal(0.85, 0.2, count)
    while (beyond := (z < 0.45) | (z > 1.6)).any():
        z[beyond] = rng.normal(0.85, 0.2, int(beyond.sum()))
    re = 0.5 * 10.0 ** (-0.05 * (mag_r - 22.5)) * np.exp(rng.normal(0.0, 0.25, count))
    table = _galaxy_table(design, east, north, z, np.clip(re, 0.3, 0.9), mag_r)
    table["sersic"] = np.where(rng.random(count) < 0.8, 1.0, 2.5)
    table["e1"], table["e2"] = _draw_ellipticities(rng, count, SIGMA_E)
    _set_colours(table, rng.normal(0.65, 0.25, count), rng.normal(0.40, 0.18, count))
    return lens_galaxies(table, lens)


def _draw_foreground(design: SurveyDesign) -> pd.DataFrame:
    """Field galaxies nearer than the cluster."""
    rng = make_rng(design.seed, "foreground")
    east, north = _draw_positions(design, rng, design.field_density)
    count = len(east)
    mag_r = _draw_magnitudes(rng, count, 17.0, 21.5, 0.4)
    re = np.clip(1.2 * 10.0 ** (-0.15 * (mag_r - 19.0)) * np.exp(rng.normal(0.0, 0.2, count)), 0.4, 3.0)
    table = _galaxy_table(design, east, north, rng.uniform(0.05, 0.18, count), re, mag_r)
    table["sersic"] = np.where(rng.random(count) < 0.6, 1.0, 2.5)
    table["e1"], table["e2"] = _draw_ellipticities(rng, count, SIGMA_E)
    _set_colours(table, rng.normal(0.6, 0.15, count), rng.normal(0.3, 0.08, count))
    return table


def _draw_members(design: SurveyDesign, lens: Lens) -> pd.DataFrame:
    """Cluster members: projected NFW profile out to 8', Schechter function, red sequence, one brightest galaxy."""
    rng = make_rng(design.seed, "members")
    count = int(rng.poisson(180))
    # radius where the projected NFW mass (c = 4, r200 = 10') is a uniform fraction of that within 8'
    grid = np.linspace(0.0, 8.0 / 2.5, 400)[1:]
    mass = np.log(grid / 2.0) + _nfw_arc(grid)
    radius = np.interp(rng.uniform(0.0, mass[-1], count), mass, grid) * 2.5 / 60.0
    angle = rng.uniform(0.0, 2.0 * np.pi, count)
    radius[0] = 0.0
    east0, north0 = project_tangent(lens.ra_deg, lens.dec_deg, design.ra_deg, design.dec_deg)
    mag_r = _draw_schechter(rng, count, 18.2, -1.0, 16.8, 22.5)
    mag_r[0] = 16.2
    re = np.clip(1.1 * 10.0 ** (-0.17 * (mag_r - 18.5)) * np.exp(rng.normal(0.0, 0.15, count)), 0.3, 2.2)
    re[0] = 3.5
    east, north = east0 + radius * np.cos(angle), north0 + radius * np.sin(angle)
    table = _galaxy_table(design, east, north, np.full(count, lens.design.z), re, mag_r)
    table["sersic"], table["member"] = 2.5, True
    table["e1"], table["e2"] = _draw_ellipticities(rng, count, 0.15)
    g_r = 1.25 - 0.03 * (mag_r - 18.0) + rng.normal(0.0, 0.03, count)
    _set_colours(table, g_r, 0.45 - 0.01 * (mag_r - 18.0) + rng.normal(0.0, 0.02, count))
    return table


def _nfw_arc(x: np.ndarray) -> np.ndarray:
    """The arc term of the projected NFW mass at x = r / r_s (Bartelmann 1996, A&A 313, 697)."""
    inside = x < 1.0
    root = np.sqrt(np.abs(1.0 - x * x))
    low = np.arccosh(1.0 / np.minimum(x, 1.0))
    high = np.arccos(1.0 / np.maximum(x, 1.0))
    return np.divide(np.where(inside, low, high), root, out=np.ones_like(x), where=root > 0)


def _draw_schechter(
    rng: np.random.Generator, count: int, knee: float, slope: float, bright: float, faint: float
) -> np.ndarray:
    """Magnitudes from a Schechter function."""
    mag = np.linspace(bright, faint, 600)
    ratio = 10.0 ** (-0.4 * (mag - knee))
    total = np.cumsum(ratio ** (slope + 1.0) * np.exp(-ratio))
    return np.interp(rng.uniform(0.0, total[-1], count), total, mag)


def _galaxy_table(
    design: SurveyDesign, east: np.ndarray, north: np.ndarray, z: np.ndarray, re: np.ndarray, mag_r: np.ndarray
) -> pd.DataFrame:
    ra, dec = deproject_tangent(east, north, design.ra_deg, design.dec_deg)
    table = pd.DataFrame({"ra": ra, "dec": dec, "z": z, "mag_g": mag_r, "mag_r": mag_r, "mag_i": mag_r})
    table["re_arcsec"] = re
    for name in ("e1", "e2", "g1", "g2", "kappa"):
        table[name] = 0.0
    table["magnification"], table["sersic"], table["member"] = 1.0, 1.0, False
    return table


def _set_colours(table: pd.DataFrame, g_r: np.ndarray, r_i: np.ndarray) -> None:
    table["mag_g"], table["mag_i"] = table["mag_r"] + g_r, table["mag_r"] - r_i


def lens_galaxies(table: pd.DataFrame, lens: Lens) -> pd.DataFrame:
    """Put galaxies where the lens shows them, with the shear, convergence and magnification there.

    Images stretched by more than 1 / 0.3 along either axis (near the Einstein radius) are left out: strong lensing is
    not modelled.
    """
    west, north = lens.measure_offsets(table["ra"].to_numpy(), table["dec"].to_numpy())
    source = np.maximum(np.hypot(west, north), 1e-3)
    z = table["z"].to_numpy()
    seen = lens.displace(source, z)
    kappa, gamma = lens.compute_profile(seen, z)
    weak = (1.0 - kappa - gamma > 0.3) & (1.0 - kappa > 0.3)
    table, west, north, source, seen = table[weak].copy(), west[weak], north[weak], source[weak], seen[weak]
    kappa, gamma = kappa[weak], gamma[weak]
    cos2, sin2 = (west**2 - north**2) / source**2, 2.0 * west * north / source**2
    stretch = seen / source / 3600.0
    table["ra"], table["dec"] = deproject_tangent(-west * stretch, north * stretch, lens.ra_deg, lens.dec_deg)
    table["kappa"] = kappa
    table["g1"], table["g2"] = -gamma / (1.0 - kappa) * cos2, -gamma / (1.0 - kappa) * sin2
    table["magnification"] = 1.0 / ((1.0 - kappa) ** 2 - gamma**2)
    for band in _BANDS:
        table[f"mag_{band}"] -= 2.5 * np.log10(table["magnification"])
    return table


def image_maps(galaxies: pd.DataFrame) -> np.ndarray:
    """(n, 2, 2) maps from a circular profile of unit half-light radius to arcsec (west, north) on the lensed sky."""
    e1, e2, g1, g2 = (galaxies[name].to_numpy() for name in ("e1", "e2", "g1", "g2"))
    norm = galaxies["re_arcsec"].to_numpy() / np.sqrt(1.0 - e1**2 - e2**2)
    inner = np.array([[(1 + e1) * norm, e2 * norm], [e2 * norm, (1 - e1) * norm]])
    # inverse of A = (1 - kappa) [[1 - g1, -g2], [-g2, 1 + g1]], with det A = 1 / magnification
    norm = np.sqrt(galaxies["magnification"].to_numpy() / (1.0 - g1**2 - g2**2))
    outer = np.array([[(1 + g1) * norm, g2 * norm], [g2 * norm, (1 - g1) * norm]])
    return np.einsum("ijn,jkn->nik", outer, inner)


# transients --------------------------------------------------------------------------------------------------------


def draw_transients(
    design: SurveyDesign, sky: Sky, is_covered: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> pd.DataFrame:
    """Transients of the last night: one magnitude in all bands, every other one beside a galaxy.

    They lie where `is_covered(ra, dec)` holds, not within 10" of a star brighter than 16 mag, 30" from each other.
    """
    rng = make_rng(design.seed, "transients")
    galaxies = sky.galaxies
    hosts = galaxies[galaxies["mag_r"].between(19.5, 22.5)]
    bright = sky.stars[sky.stars["mag_r"] < 16.0]
    low, high = design.transient_mag
    # one per step of magnitude, so that every seed spans the range
    mags = low + (high - low) * (np.arange(design.transients) + rng.uniform(0.0, 1.0, design.transients)) / max(
        design.transients, 1
    )
    chosen: list[tuple[float, float]] = []
    while len(chosen) < design.transients:
        if len(chosen) % 2:
            host = hosts.iloc[int(rng.integers(len(hosts)))]
            distance, angle = rng.uniform(0.4, 1.2) / 3600.0, rng.uniform(0.0, 2.0 * np.pi)
            ra, dec = deproject_tangent(
                distance * np.cos(angle), distance * np.sin(angle), float(host["ra"]), float(host["dec"])
            )
        else:
            east, north = (rng.uniform(-half, half) for half in design.sky_half_deg)
            ra, dec = deproject_tangent(east, north, design.ra_deg, design.dec_deg)
        place = (float(ra), float(dec))
        if (
            is_covered(np.array([ra]), np.array([dec]))[0]
            and _nearest_arcsec(place, bright["ra"].to_numpy(), bright["dec"].to_numpy()) > 10.0
            and _nearest_arcsec(place, *np.array(chosen).reshape(-1, 2).T) > 30.0
        ):
            chosen.append(place)
    places = np.array(chosen).reshape(-1, 2)
    return pd.DataFrame({
        "transient_id": np.arange(design.transients), "ra": places[:, 0], "dec": places[:, 1],
        "mag": rng.permutation(mags), "night": design.nights[-1],
    })  # fmt: skip


def _nearest_arcsec(place: tuple[float, float], ra: np.ndarray, dec: np.ndarray) -> float:
    """Distance from a place to the nearest of some positions; infinite if there are none."""
    if len(ra) == 0:
        return np.inf
    east, north = project_tangent(ra, dec, *place)
    return float(np.hypot(east, north).min() * 3600.0)
