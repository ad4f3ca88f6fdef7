"""Plots: drawn without a display, repeatable to the byte, small as thumbnails, fit for empty tables."""

from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lap_assets.qa.plots import (
    plot_focal_plane,
    plot_mass_map,
    plot_profile,
    plot_shears,
    plot_transients,
    plot_zero_points,
)
from lap_assets.science.massmap import MapGrid

RNG = np.random.default_rng(1)
GRID = MapGrid(-3.0, -2.0, 0.1, 61, 41)
YY, XX = np.mgrid[0:41, 0:61]
SNR = RNG.normal(0, 1, (41, 61)) + 7 * np.exp(-((XX - 45) ** 2 + (YY - 20) ** 2) / 60.0)
PEAKS = pd.DataFrame({"x_arcmin": [1.5], "y_arcmin": [0.0]})
SHEARS = pd.DataFrame(
    {"ra": RNG.uniform(10, 10.2, 500), "dec": RNG.uniform(0, 0.2, 500), "e1": 0.2, "e2": 0.0, "weight": 1.0}
)
PROFILE = pd.DataFrame({"radius_mpc": [0.3, 0.6, 1.2], "gamma_t": [0.1, 0.05, 0.03], "gamma_x": 0.0, "gamma_err": 0.02})
CHIPS = {f"c{k}": ((k, 0.0), (k + 0.9, 0.0), (k + 0.9, 0.9), (k, 0.9)) for k in range(3)}
ZERO_POINTS = pd.DataFrame(
    {
        "exposure": [f"simcam-{k:06d}" for k in range(5)],
        "dzp_mag": [0.004, -0.011, 0.0, 0.002, 0.005],
        "dzp_err_mag": [0.001, 0.002, 0.0, 0.001, 0.001],
        "n_stars": [200, 30, 0, 150, 210],
    }
)
MANY_ZERO_POINTS = pd.DataFrame(
    {
        "exposure": [f"simcam-{k:06d}" for k in range(300)],
        "dzp_mag": RNG.normal(0, 0.02, 300),
        "dzp_err_mag": 0.002,
        "n_stars": RNG.integers(0, 3, 300),
    }
)
TRANSIENTS = pd.DataFrame(
    {
        "ra": RNG.uniform(359.9, 360.1, 400) % 360.0,
        "dec": RNG.uniform(30.0, 30.2, 400),
        "snr_max": 6.0 + RNG.pareto(1.0, 400),
        "first_mjd": RNG.uniform(60000.0, 60010.0, 400),
    }
)
SOURCES = pd.DataFrame({"ra": RNG.uniform(359.9, 360.1, 4000) % 360.0, "dec": RNG.uniform(30.0, 30.2, 4000)})

PLOTS = {
    "map": lambda small: plot_mass_map(SNR, GRID, PEAKS, thumbnail=small),
    "empty map": lambda small: plot_mass_map(np.zeros((1, 1)), MapGrid(0, 0, 0.1, 1, 1), PEAKS[:0], thumbnail=small),
    "shears": lambda small: plot_shears(SHEARS, thumbnail=small),
    "no shears": lambda small: plot_shears(SHEARS[:0], thumbnail=small),
    "profile": lambda small: plot_profile(PROFILE, PROFILE["gamma_t"].to_numpy(), thumbnail=small),
    "focal plane": lambda small: plot_focal_plane(CHIPS, {"c0": 1.0, "c1": 2.0}, "FWHM", ["c2"], thumbnail=small),
    "no chips": lambda small: plot_focal_plane({}, {}, "FWHM", thumbnail=small),
    "zero points": lambda small: plot_zero_points(ZERO_POINTS, thumbnail=small),
    "many zero points": lambda small: plot_zero_points(MANY_ZERO_POINTS, thumbnail=small),
    "no zero points": lambda small: plot_zero_points(ZERO_POINTS[:0], thumbnail=small),
    "transients": lambda small: plot_transients(TRANSIENTS, SOURCES, thumbnail=small),
    "one transient": lambda small: plot_transients(TRANSIENTS[:1], SOURCES[:1], thumbnail=small),
    "sources alone": lambda small: plot_transients(TRANSIENTS[:0], SOURCES, thumbnail=small),
    "no sources": lambda small: plot_transients(TRANSIENTS[:0], SOURCES[:0], thumbnail=small),
}


@pytest.mark.parametrize("name", PLOTS)
def test_plots_repeat_to_the_byte_and_thumbnails_are_small(name):
    small, large = PLOTS[name](True), PLOTS[name](False)
    assert small == PLOTS[name](True)
    assert large == PLOTS[name](False)
    assert len(small) <= 10_000
    assert Image.open(BytesIO(large)).size > Image.open(BytesIO(small)).size
    assert b"Software" not in small + large and b"tIME" not in small + large


def dark_red(data):
    """Columns and rows of the pixels that are clearly red, as fractions of the picture."""
    picture = np.asarray(Image.open(BytesIO(data)).convert("RGB")).astype(int)
    red = (picture[..., 0] > 100) & (picture[..., 1] < 60) & (picture[..., 2] < 80)
    rows, columns = np.nonzero(red)
    return columns.mean() / picture.shape[1], rows.mean() / picture.shape[0]


def test_east_is_to_the_left_in_maps():
    """The peak of the map lies at x = +1.5' (east): left of the middle; mirrored, right of it."""
    east = dark_red(plot_mass_map(SNR, GRID, PEAKS, thumbnail=True))
    west = dark_red(plot_mass_map(SNR[:, ::-1], GRID, PEAKS[:0], thumbnail=True))
    assert east[0] < 0.45 < 0.55 < west[0]


def count_pixels(data, red, green, blue):
    """Pixels within 55 of a colour in each channel."""
    picture = np.asarray(Image.open(BytesIO(data)).convert("RGB")).astype(int)
    return int((np.abs(picture - (red, green, blue)) < 55).all(axis=-1).sum())


def test_failed_chips_are_outlined_in_red():
    failed, good = (plot_focal_plane(CHIPS, {}, "x", failed) for failed in (["c1"], []))
    assert count_pixels(failed, 255, 0, 0) > 50 > count_pixels(good, 255, 0, 0)


@pytest.mark.parametrize("small", [True, False])
def test_exposures_without_common_stars_are_crossed_out_in_red(small):
    """One of five is not tied to the others; when all are, nothing is red."""
    tied = ZERO_POINTS.assign(n_stars=100)
    assert count_pixels(plot_zero_points(ZERO_POINTS, thumbnail=small), 255, 0, 0) > 5
    assert count_pixels(plot_zero_points(tied, thumbnail=small), 255, 0, 0) == 0


def test_zero_points_do_not_depend_on_the_order_of_the_rows():
    assert plot_zero_points(ZERO_POINTS[::-1]) == plot_zero_points(ZERO_POINTS)


def test_a_field_at_ra_0_stays_together():
    """Two chips of 0.4 degrees on both sides of RA 0 fill the plot as they do elsewhere; so do transients."""
    chips = {"c0": ((359.5, 0), (359.9, 0), (359.9, 0.9), (359.5, 0.9)), "c1": ((0, 0), (0.4, 0), (0.4, 0.9), (0, 0.9))}
    moved = {name: tuple(((ra + 40.0) % 360.0, dec) for ra, dec in corners) for name, corners in chips.items()}
    values = {"c0": 1.0, "c1": 2.0}
    for face in ((68, 1, 84), (253, 231, 37)):  # both ends of viridis
        here, there = (
            count_pixels(plot_focal_plane(one, values, "x", thumbnail=True), *face) for one in (chips, moved)
        )
        assert here == pytest.approx(there, rel=0.1) and there > 1000
    grey = [
        count_pixels(plot_transients(TRANSIENTS[:0], SOURCES.assign(ra=(SOURCES["ra"] + shift) % 360.0)), 153, 153, 153)
        for shift in (0.0, 40.0)
    ]
    assert grey[0] == pytest.approx(grey[1], rel=0.1) and grey[1] > 10_000


def test_transients_of_high_snr_are_larger():
    one = TRANSIENTS[:1].assign(first_mjd=60000.99)  # the end of its day: yellow, like nothing else in the plot
    faint, bright = (plot_transients(one.assign(snr_max=snr), SOURCES[:0], thumbnail=True) for snr in (6.0, 600.0))
    assert count_pixels(bright, 253, 235, 81) > 2 * count_pixels(faint, 253, 235, 81) > 0
