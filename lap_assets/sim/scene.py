"""The light that falls on one chip in one frame, in electrons, and the frame the chip then gives.

Joins the sky's tables, the optics and the detector; files are `writer.py`'s.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lap_assets.sim.artifacts import draw_cosmic_rays, spread_bleed
from lap_assets.sim.design import FULL_WELL_E, PIXEL_SCALE_ARCSEC, SurveyDesign, make_rng
from lap_assets.sim.detector import make_detectors, make_throughput
from lap_assets.sim.optics import ChipWcs, place_chips, shear_matrices
from lap_assets.sim.schedule import Frame
from lap_assets.sim.sky import Sky, image_maps
from lap_assets.sim.stamps import Table, draw_stamps, tabulate_profile

_STAMP_SIZES = (32, 48, 64, 96, 128, 192, 256)
_BATCH_PIXELS = 256 * 1024  # of stamps drawn at once: stays in the cache
_COSMIC_RAYS_PER_S_PER_MPX = 0.25
COSMIC_RAY_SIGMA = 3.0  # pixels with a deposit beyond this many sigma of noise count as hit in the truth


@dataclass
class ChipFrame:
    """What one chip gave: the raw frame, and what is true of it."""

    raw: np.ndarray
    cosmic_rays: np.ndarray | None = None
    sky_e: float = 0.0
    read_noise_e: float = 0.0
    throughput: float = 1.0  # mean over the chip
    fwhm_arcsec: float = 0.0
    psf_e1: float = 0.0
    psf_e2: float = 0.0


def make_wcs(design: SurveyDesign, frame: Frame, chip: str) -> ChipWcs:
    """The true WCS of a chip in an object frame."""
    return ChipWcs(place_chips(design)[chip], frame.pointing, design.chip_px, design.chip_px)


def make_chip_frame(design: SurveyDesign, frame: Frame, chip: str, sky: Sky, transients: pd.DataFrame) -> ChipFrame:
    """Simulate one chip of one frame; depends on the design, the frame and the chip alone."""
    rng = make_rng(design.seed, "noise", frame.number, chip)
    detector = make_detectors(design)[chip]
    result = ChipFrame(np.empty(0))
    collected = np.zeros(detector.shape, np.float32)
    if frame.kind != "bias":
        area = place_chips(design)[chip].pixel_area(detector.shape)
        throughput = make_throughput(design, frame.band)[chip]
        if frame.kind == "flat":
            # Gaussian for Poisson: at 30,000 electrons nobody can tell
            expected = frame.light_e * area * throughput
            collected = expected + np.sqrt(expected) * rng.standard_normal(detector.shape, dtype=np.float32)
        else:
            background = draw_background(design, frame, chip, area)
            light = background + draw_objects(design, frame, chip, sky, transients)
            if frame.trail is not None:
                light += _draw_trail(design, frame, chip)
            light *= throughput
            collected = rng.poisson(np.maximum(light, 0.0)).astype(np.float32)
            rate = _COSMIC_RAYS_PER_S_PER_MPX * frame.exptime_s * light.size / 1024**2
            hits = draw_cosmic_rays(detector.shape, int(rng.poisson(rate)), rng)
            collected += hits
            result.cosmic_rays = hits > COSMIC_RAY_SIGMA * np.sqrt(light + detector.read_noise_e[0] ** 2)
            result.sky_e = float(np.mean(background))
            result.read_noise_e = float(np.mean(detector.read_noise_e))
            result.throughput = float(np.mean(throughput))
            _describe_psf(design, frame, chip, result)
    collected += rng.poisson(detector.hot_e)
    result.raw = detector.read_out(spread_bleed(collected, FULL_WELL_E), rng)
    return result


def _describe_psf(design: SurveyDesign, frame: Frame, chip: str, result: ChipFrame) -> None:
    centre = np.array([0.5 * (design.chip_px - 1)])
    x, y = _focal_plane(design, chip, centre, centre)
    e1, e2 = frame.seeing.shape_at(x, y)
    result.fwhm_arcsec = float(frame.seeing.fwhm_at(x, y)[0])
    result.psf_e1, result.psf_e2 = float(e1[0]), float(e2[0])


def _focal_plane(design: SurveyDesign, chip: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Focal-plane positions in units of the half field."""
    x0, y0 = place_chips(design)[chip].origin
    return (x - x0) / design.half_field_px, (y - y0) / design.half_field_px


def draw_background(design: SurveyDesign, frame: Frame, chip: str, area: np.ndarray) -> np.ndarray:
    """(ny, nx) float32 electrons of sky before the throughput."""
    pixels = np.arange(design.chip_px)
    x, y = _focal_plane(design, chip, pixels[None, :], pixels[:, None])
    light = frame.light_e * (1.0 + frame.sky_slope[0] * x + frame.sky_slope[1] * y) * area
    return light.astype(np.float32)


def _draw_trail(design: SurveyDesign, frame: Frame, chip: str) -> np.ndarray:
    shape = (design.chip_px, design.chip_px)
    width = frame.seeing.fwhm_arcsec / PIXEL_SCALE_ARCSEC
    trail = frame.trail.draw(place_chips(design)[chip].origin, shape, width, frame.seeing.beta)
    return trail.astype(np.float32)


def draw_objects(design: SurveyDesign, frame: Frame, chip: str, sky: Sky, transients: pd.DataFrame) -> np.ndarray:
    """(ny, nx) float32 electrons of stars, galaxies and transients before the throughput."""
    image = np.zeros((design.chip_px, design.chip_px), np.float32)
    column = f"mag_{frame.band}"
    points = [sky.stars[["ra", "dec", column]].to_numpy()]
    if frame.transients:
        points.append(transients[["ra", "dec", "mag"]].to_numpy())
    ra, dec, mag = np.concatenate(points).T
    _add_objects(image, design, frame, chip, (ra, dec, mag), None, None)
    maps = image_maps(sky.galaxies)
    for index in np.unique(sky.galaxies["sersic"]):
        of_kind = (sky.galaxies["sersic"] == index).to_numpy()
        ra, dec, mag = sky.galaxies.loc[of_kind, ["ra", "dec", column]].to_numpy().T
        _add_objects(
            image, design, frame, chip, (ra, dec, mag), tabulate_profile("sersic", float(index)), maps[of_kind]
        )
    return image


def _add_objects(
    image: np.ndarray, design: SurveyDesign, frame: Frame, chip: str, objects: tuple[np.ndarray, ...],
    profile: Table | None, maps: np.ndarray | None,
) -> None:  # fmt: skip
    """Add objects (ra, dec, mag) of one profile to the image; `maps` from the profile to arcsec on the sky."""
    wcs = make_wcs(design, frame, chip)
    ra, dec, mag = objects
    x, y = wcs.sky_to_pixel(ra, dec)
    margin = 0.5 * _STAMP_SIZES[-1]
    near = (np.abs(x - 0.5 * design.chip_px) < 0.5 * design.chip_px + margin) & (
        np.abs(y - 0.5 * design.chip_px) < 0.5 * design.chip_px + margin
    )
    ra, dec, x, y = ra[near], dec[near], x[near], y[near]
    flux = 10.0 ** (0.4 * (frame.zero_point_mag - mag[near]))
    jacobian = wcs.jacobians(ra, dec)
    xf, yf = _focal_plane(design, chip, x, y)
    fwhm = frame.seeing.fwhm_at(xf, yf)
    psf_maps = np.einsum("nij,njk->nik", jacobian, shear_matrices(*frame.seeing.shape_at(xf, yf)) * fwhm[:, None, None])
    profile_maps = None if maps is None else np.einsum("nij,njk->nik", jacobian, maps[near])
    sizes = _choose_sizes(flux, profile_maps, extended=profile is not tabulate_profile("sersic", 1.0))
    psf = tabulate_profile("moffat", frame.seeing.beta)
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    for size in np.unique(sizes):
        reach = size // 2 + 1
        last = design.chip_px + reach
        visible = (column > -reach) & (column < last) & (row > -reach) & (row < last)
        chosen = np.flatnonzero((sizes == size) & visible)
        step = max(_BATCH_PIXELS // int(size) ** 2, 1)
        for start in range(0, len(chosen), step):
            part = chosen[start : start + step]
            stamps = draw_stamps(
                int(size), x[part] - column[part], y[part] - row[part], flux[part], psf, psf_maps[part],
                profile, None if profile_maps is None else profile_maps[part],
            )  # fmt: skip
            for stamp, x0, y0 in zip(stamps, column[part] - size // 2, row[part] - size // 2, strict=True):
                _add_stamp(image, stamp, int(x0), int(y0))


def _choose_sizes(flux: np.ndarray, maps: np.ndarray | None, extended: bool) -> np.ndarray:
    """(n,) stamp width that leaves less than a fraction of an electron per pixel at the rim."""
    if maps is None:
        half = np.where(flux < 2e5, 16, np.where(flux < 5e6, 32, 64)).astype(float)
    else:
        radius = np.sqrt(np.sum(maps**2, axis=(1, 2)))  # >= the semi-major half-light radius in pixels
        half = (10.0 if extended else 6.0) * radius * np.clip(1.0 + 0.12 * np.log10(flux / 3e3), 0.7, 2.0) + 6.0
    sizes = np.array(_STAMP_SIZES)
    return sizes[np.minimum(np.searchsorted(sizes, 2.0 * half), len(sizes) - 1)]


def _add_stamp(image: np.ndarray, stamp: np.ndarray, x0: int, y0: int) -> None:
    """Add a stamp whose first pixel is (x0, y0), cut at the image's edges."""
    ny, nx = image.shape
    size = len(stamp)
    left, right, low, high = max(x0, 0), min(x0 + size, nx), max(y0, 0), min(y0 + size, ny)
    if left < right and low < high:
        image[low:high, left:right] += stamp[low - y0 : high - y0, left - x0 : right - x0]
