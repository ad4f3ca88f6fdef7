"""Shapes: injected shear comes back, the PSF's own does not leak in, neighbours are removed, members recognised."""

import galsim
import numpy as np
import pandas as pd
import pytest
from astropy.wcs import WCS

from lap_assets.errors import NoWork
from lap_assets.model.tessellation import load_tessellation
from lap_assets.science.plane import turn_to_sky
from lap_assets.science.shear import (
    calibrate_shears,
    find_red_sequence,
    measure_response,
    measure_shapes,
    select_shapes,
    weigh_shapes,
)
from lap_assets.settings import ShearCatalogSettings
from lap_assets_tests.science.lensing_fields import StampPsf, draw_galaxies

SETTINGS = ShearCatalogSettings()
PSF = galsim.Moffat(beta=3, fwhm=0.95).shear(e1=0.05, e2=-0.04)
CELL = load_tessellation(
    {"kind": "local", "name": "t", "ra_deg": 150.0, "dec_deg": 30.0, "pixel_scale_arcsec": 0.4, "skycell_px": 1500,
     "grid": [1, 1], "overlap_px": 0}
).cell("t.0")  # fmt: skip


def measure_field(image, x, y, psf=PSF, segments=None, ids=None):
    objects = pd.DataFrame({"x": x, "y": y, "segment": np.zeros(len(x), int) if ids is None else ids})
    segments = np.zeros(image.shape, np.int32) if segments is None else segments
    empty = np.zeros(image.shape, bool)
    return measure_shapes(image, np.ones_like(image), empty, segments, objects, StampPsf(psf, 0.4), 41)


def build_table(shapes, x, y, wcs, m=0.0):
    limits = SETTINGS.min_resolution, SETTINGS.max_ellipticity, SETTINGS.max_ellipticity_err, SETTINGS.max_filled
    good = select_shapes(shapes, *limits)
    kept = shapes[good]
    e1, e2 = turn_to_sky(kept["e1"], kept["e2"], x[good], y[good], wcs)
    ra, dec = wcs.all_pix2world(x[good], y[good], 0)
    return pd.DataFrame(
        {
            "ra": ra, "dec": dec, "e1": e1, "e2": e2, "weight": weigh_shapes(kept["e_err"], SETTINGS.shape_noise),
            "response": measure_response(kept["e1"], kept["e2"], kept["e_err"], m),
        }
    )  # fmt: skip


def mean_shear(table):
    sample = calibrate_shears(table, 150.0, 30.0)
    return np.average(sample.g1, weights=sample.weight), np.average(sample.g2, weights=sample.weight)


@pytest.fixture(scope="module")
def sheared_fields():
    """Mean calibrated shear for g1 = +-0.05 on the sky (same galaxies, g2 = 0.03), S/N 40, raw and calibrated."""
    wcs = WCS(CELL.header())
    raw, calibrated = {}, {}
    for g1 in (0.05, -0.05):
        image, x, y = draw_galaxies(3, 400, g1, 0.03, 40.0, PSF, mirrored=True)
        shapes = measure_field(image, x, y)
        raw[g1] = mean_shear(build_table(shapes, x, y, wcs))
        calibrated[g1] = mean_shear(build_table(shapes, x, y, wcs, SETTINGS.calibration_m))
    return raw, calibrated


def test_injected_shear_is_recovered_with_its_sign_on_the_sky(sheared_fields):
    """LV-21: |m| < 0.04 (statistical error 0.015) after calibration, c < 3e-3 under a PSF of 6 % ellipticity."""
    _, calibrated = sheared_fields
    plus, minus = calibrated[0.05], calibrated[-0.05]
    assert (plus[0] - minus[0]) / 0.1 - 1.0 == pytest.approx(0.0, abs=0.04)
    assert (plus[0] + minus[0]) / 2 == pytest.approx(0.0, abs=3e-3)
    assert (plus[1] + minus[1]) / 2 == pytest.approx(0.03, abs=3e-3)


def test_calibration_takes_off_what_the_estimator_has_too_much(sheared_fields):
    """Negative: without calibration_m the shear is too large by about that much."""
    raw, calibrated = sheared_fields
    slope = [(r[0.05][0] - r[-0.05][0]) / 0.1 for r in (raw, calibrated)]
    assert slope[0] == pytest.approx((1 + SETTINGS.calibration_m) * slope[1], rel=1e-9)
    assert slope[0] > 1.0


def test_without_psf_correction_shapes_follow_the_psf():
    """Negative: told that the PSF is round, the mean ellipticity is a good part of the PSF's; told the truth, none."""
    strong = galsim.Moffat(beta=3, fwhm=0.95).shear(e1=0.2)
    image, x, y = draw_galaxies(5, 150, 0.0, 0.0, 60.0, strong)
    right = measure_field(image, x, y, strong)
    wrong = measure_field(image, x, y, galsim.Moffat(beta=3, fwhm=0.95))
    assert abs(right["e1"].mean()) < 0.02
    assert wrong["e1"].mean() > 0.08


def test_errors_of_shapes_are_their_scatter():
    """The same galaxy 100 times at S/N 25: scatter of e1 within 25 % of the mean error."""
    rng = np.random.default_rng(6)
    galaxy = galsim.Convolve(galsim.Exponential(half_light_radius=0.6).shear(g1=0.1), PSF)
    stamp = galaxy.drawImage(nx=45, ny=45, scale=0.4).array
    stamp = stamp * 25.0 / np.sqrt(np.sum(stamp**2))
    image = (np.tile(stamp, (10, 10)) + rng.normal(0, 1, (450, 450))).astype(np.float32)
    y, x = (np.mgrid[0:10, 0:10] * 45.0 + 22.0).reshape(2, -1)
    shapes = measure_field(image, x, y)
    assert shapes["e1"].std() == pytest.approx(shapes["e_err"].mean(), rel=0.25)


def test_neighbours_are_replaced_and_reported():
    """A neighbour 9 px away pulls e1 by 0.1 and more if left; replaced by symmetry, by less than 0.05."""
    galaxy = galsim.Convolve(galsim.Exponential(half_light_radius=0.6), PSF)
    one = galaxy.drawImage(nx=61, ny=61, scale=0.4).array * 1000
    other = galaxy.drawImage(nx=61, ny=61, scale=0.4, offset=(9, 0)).array * 1000
    rng = np.random.default_rng(7)
    image = (one + other + rng.normal(0, 0.05, one.shape)).astype(np.float32)
    segments = np.where(one > other, 1, 2) * ((one + other) > 0.1)
    place = np.array([30.0]), np.array([30.0])
    alone = measure_field((one + rng.normal(0, 0.05, one.shape)).astype(np.float32), *place).iloc[0]
    left = measure_field(image, *place).iloc[0]
    taken = measure_field(image, *place, segments=segments.astype(np.int32), ids=np.array([1])).iloc[0]
    assert abs(left["e1"] - alone["e1"]) > 0.1 or np.isnan(left["e1"])
    assert taken["e1"] == pytest.approx(alone["e1"], abs=0.05)
    assert left["filled"] == 0.0 < taken["filled"]


def test_what_is_no_galaxy_fails_quietly_or_is_cut():
    """Noise and stars: nothing raises; no star passes the cut on resolution."""
    rng = np.random.default_rng(8)
    noise = rng.normal(0, 1, (200, 200)).astype(np.float32)
    shapes = measure_field(noise, np.array([50.0, 100.0, 0.0]), np.array([50.0, 120.0, 199.0]))
    assert len(shapes) == 3
    star = PSF.drawImage(nx=61, ny=61, scale=0.4).array * 5000
    shapes = measure_field((star + rng.normal(0, 1, star.shape)).astype(np.float32), np.array([30.0]), np.array([30.0]))
    assert not select_shapes(shapes, 0.3, 2.0, 0.5, 0.2).any()


def test_weights_and_response_follow_their_formulas():
    assert weigh_shapes(np.array([0.0, 0.3]), 0.4) == pytest.approx([1 / 0.16, 1 / 0.25])
    assert measure_response(0.6, 0.2, 0.1, 0.05) == pytest.approx(2 * (1 - (0.2 - 0.01)) * 1.05)


def test_shears_of_nothing_are_no_work():
    with pytest.raises(NoWork, match="no background galaxy"):
        calibrate_shears(pd.DataFrame({"ra": [], "dec": []}), 0.0, 0.0)


def make_colours(rng, n_members, n_field=600):
    mag = rng.uniform(17.5, 21.5, n_members + n_field)
    colour = np.concatenate(
        [1.1 - 0.02 * (mag[:n_members] - 19) + rng.normal(0, 0.03, n_members), rng.normal(0.7, 0.5, n_field)]
    )
    return colour, mag


def test_red_sequence_is_found_where_it_is():
    """60 members within 600 field galaxies: colour to 0.02 mag, width to 0.02."""
    colour, mag = make_colours(np.random.default_rng(9), 60)
    sequence = find_red_sequence(colour, mag, (17.0, 21.5))
    assert sequence.colour == pytest.approx(1.1 - 0.02 * (sequence.pivot_mag - 19), abs=0.02)
    assert sequence.significance > 4
    member = np.abs(sequence.distance(colour, mag)) < 0.1
    assert member[:60].mean() > 0.9
    assert member[60:].mean() < 0.25


def test_no_red_sequence_without_members():
    """Negative: in twenty fields without a cluster at most one fluctuation is taken for a sequence."""
    found = [find_red_sequence(*make_colours(np.random.default_rng(k), 0), (17.0, 21.5)) for k in range(20)]
    assert sum(one is not None for one in found) <= 1
    assert find_red_sequence(np.zeros(5), np.full(5, 20.0), (17.0, 21.5)) is None
