"""Plots: drawn without a display, repeatable to the byte, small as thumbnails, fit for empty tables."""

from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lap_assets.qa.plots import plot_focal_plane, plot_mass_map, plot_profile, plot_shears
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

PLOTS = {
    "map": lambda small: plot_mass_map(SNR, GRID, PEAKS, thumbnail=small),
    "empty map": lambda small: plot_mass_map(np.zeros((1, 1)), MapGrid(0, 0, 0.1, 1, 1), PEAKS[:0], thumbnail=small),
    "shears": lambda small: plot_shears(SHEARS, thumbnail=small),
    "no shears": lambda small: plot_shears(SHEARS[:0], thumbnail=small),
    "profile": lambda small: plot_profile(PROFILE, PROFILE["gamma_t"].to_numpy(), thumbnail=small),
    "focal plane": lambda small: plot_focal_plane(CHIPS, {"c0": 1.0, "c1": 2.0}, "FWHM", ["c2"], thumbnail=small),
    "no chips": lambda small: plot_focal_plane({}, {}, "FWHM", thumbnail=small),
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


def test_failed_chips_are_outlined_in_red():
    def count_red(data):
        picture = np.asarray(Image.open(BytesIO(data)).convert("RGB")).astype(int)
        return np.sum((picture[..., 0] > 200) & (picture[..., 1] < 60) & (picture[..., 2] < 60))

    assert count_red(plot_focal_plane(CHIPS, {}, "x", ["c1"])) > 50 > count_red(plot_focal_plane(CHIPS, {}, "x"))
