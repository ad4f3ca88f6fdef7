"""Light on a chip: fluxes, positions, noise, and when the transients shine."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from astropy.wcs import WCS

from lap_assets.sim.design import BANDS, NOMINAL_GAIN, OVERSCAN_COLUMNS, make_design
from lap_assets.sim.detector import make_detectors, make_throughput
from lap_assets.sim.optics import place_chips
from lap_assets.sim.scene import draw_objects, make_chip_frame, make_wcs
from lap_assets.sim.schedule import plan_frames
from lap_assets.sim.sky import Sky, draw_sky

DESIGN = make_design("tiny", 6)
FRAMES = [frame for frame in plan_frames(DESIGN) if frame.kind == "object"]
FRAME = FRAMES[1]
CHIP = "c2"
NO_TRANSIENTS = pd.DataFrame({"ra": [], "dec": [], "mag": []}, dtype=float)
APERTURE_PX = 12.0


def put_stars(mag, step=44):
    """A sky of equal stars on a grid of the chip in `FRAME`, and nothing else; also their nominal pixels."""
    size = DESIGN.chip_px
    grid = np.arange(30.0, size - 30.0, step)
    x, y = (v.ravel() for v in np.meshgrid(grid, grid + 0.37))
    ra, dec = make_wcs(DESIGN, FRAME, CHIP).pixel_to_sky(x, y)
    stars = pd.DataFrame({"ra": ra, "dec": dec} | {f"mag_{band}": np.full(len(ra), mag) for band in "gri"})
    full = draw_sky(DESIGN)
    return Sky(full.lens, stars, full.galaxies.iloc[:0], full.refcat), x, y


def calibrate(raw, detector, band):
    """Flat-fielded electrons (ny, nx) by the truth of the detector; defects are left in."""
    strip, half = OVERSCAN_COLUMNS, detector.shape[1] // 2
    raw = raw.astype(float)
    data = raw[:, strip:-strip] - detector.bias_adu
    data[:, :half] -= raw[:, :strip].mean(axis=1)[:, None]
    data[:, half:] -= raw[:, -strip:].mean(axis=1)[:, None]
    area = place_chips(DESIGN)[CHIP].pixel_area(detector.shape)
    flat = make_throughput(DESIGN, band)[CHIP] * area * NOMINAL_GAIN / detector.gain_map()
    return data * NOMINAL_GAIN / flat, area


def test_fluxes_of_stars_are_recovered_to_the_millimag():
    """30 stars of 17.5 mag, apertures with their own sky: within the noise they claim, mean within 1 mmag."""
    sky, x, y = put_stars(17.5)
    detector = make_detectors(DESIGN)[CHIP]
    made = make_chip_frame(DESIGN, FRAME, CHIP, sky, NO_TRANSIENTS)
    image, area = calibrate(made.raw, detector, FRAME.band)
    bad = detector.defects | made.cosmic_rays
    rows, columns = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    true = 10 ** (0.4 * (FRAME.zero_point_mag - 17.5))
    dmag, sigma = [], []
    for one_x, one_y in zip(x, y, strict=True):
        distance = np.hypot(columns - one_x, rows - one_y)
        inside, ring = distance < APERTURE_PX, (distance > 16) & (distance < 23) & ~bad
        if (bad & inside).any():
            continue
        sky_level = image[ring].mean()
        # fluxes gain the pixel's area by a flat that shows it; undone here with the truth
        flux = ((image[inside] - sky_level) * area[inside]).sum()
        variance = true + inside.sum() * image[ring].var() * (1 + inside.sum() / ring.sum())
        dmag.append(-2.5 * np.log10(flux / true))
        sigma.append(1.0857 * np.sqrt(variance) / true)
    dmag, sigma = np.array(dmag), np.array(sigma)
    assert len(dmag) > 25 and sigma.mean() < 0.01
    # beyond 12 px a Moffat profile keeps up to 1e-3 of its light
    rim = (1 + (APERTURE_PX / (made.fwhm_arcsec / 0.4 / 0.97)) ** 2) ** (1 - FRAME.seeing.beta)
    assert abs(dmag.mean() - 1.0857 * rim) < 3 * sigma.mean() / np.sqrt(len(dmag))
    assert 0.6 < ((dmag - dmag.mean()) / sigma).std() < 1.4


def test_star_images_lie_where_the_truth_header_says():
    """Flux-weighted centroids of noiseless stars agree with the TAN-SIP header within 1 mas."""
    sky, _, _ = put_stars(17.0)
    image = draw_objects(DESIGN, FRAME, CHIP, sky, NO_TRANSIENTS)
    header = make_wcs(DESIGN, FRAME, CHIP).header()
    x, y = WCS(header).all_world2pix(sky.stars["ra"], sky.stars["dec"], 0)
    for one_x, one_y in zip(x, y, strict=True):
        # iterated on a round aperture: free of the stamp's place
        cx, cy = one_x, one_y
        for _ in range(6):
            rows, columns = np.mgrid[round(cy) - 12 : round(cy) + 13, round(cx) - 12 : round(cx) + 13]
            weight = np.exp(-((columns - cx) ** 2 + (rows - cy) ** 2) / (2 * 1.4**2))
            light = image[rows, columns] * weight
            cx += 2 * ((light * columns).sum() / light.sum() - cx)
            cy += 2 * ((light * rows).sum() / light.sum() - cy)
        assert np.hypot(cx - one_x, cy - one_y) * 400.0 < 1.0


def test_sky_has_the_level_and_the_noise_truth_claims():
    sky, _, _ = put_stars(17.0)
    empty = Sky(sky.lens, sky.stars.iloc[:0], sky.galaxies, sky.refcat)
    detector = make_detectors(DESIGN)[CHIP]
    made = make_chip_frame(DESIGN, FRAME, CHIP, empty, NO_TRANSIENTS)
    image, area = calibrate(made.raw, detector, FRAME.band)
    good = ~detector.defects & ~made.cosmic_rays
    level = (image * area)[good].mean()
    assert level == pytest.approx(made.sky_e, rel=3e-3)
    assert made.sky_e == pytest.approx(BANDS[FRAME.band].sky_e, rel=0.13)
    neighbours = (image[:, 1:] - image[:, :-1])[good[:, 1:] & good[:, :-1]]
    assert neighbours.std() / np.sqrt(2) == pytest.approx(np.sqrt(level + detector.read_noise_e[0] ** 2), rel=0.05)
    assert 0 < made.cosmic_rays.sum() < 0.01 * image.size


def test_transients_shine_in_the_last_night_only():
    sky, _, _ = put_stars(20.0)
    place = sky.stars.iloc[[len(sky.stars) // 2]]
    empty = Sky(sky.lens, sky.stars.iloc[:0], sky.galaxies, sky.refcat)
    transient = pd.DataFrame({"ra": place["ra"], "dec": place["dec"], "mag": [20.0]})
    for frame in FRAMES:
        light = draw_objects(DESIGN, replace(frame, pointing=FRAME.pointing), CHIP, empty, transient).sum()
        if frame.night == DESIGN.nights[-1]:
            assert light == pytest.approx(10 ** (0.4 * (frame.zero_point_mag - 20.0)), rel=1e-3)
        else:
            assert light == 0.0


@pytest.mark.parametrize("band", sorted(BANDS))
def test_faintest_transient_is_a_7_sigma_difference_in_the_worst_conditions(band):
    """22.5 mag at 1.2", transparency 0.85, a template of four exposures."""
    flux = 0.85 * 10 ** (0.4 * (BANDS[band].zero_point_mag - 22.5))
    beta, radius = 3.0, 1.2 / 0.4 / (2 * np.sqrt(2 ** (1 / 3.0) - 1))
    area = np.pi * radius**2 * (2 * beta - 1) / (beta - 1) ** 2  # 1 / integral of the squared Moffat profile
    noise = np.sqrt(area * (1.1 * BANDS[band].sky_e + 25.0) * 1.25)
    assert flux / noise > 7.0
