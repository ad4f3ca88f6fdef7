"""Defects (LV-11): injected bad pixels and columns are found, dust and vignetting are not taken for defects."""

import numpy as np

from lap_assets.model.image import Mask
from lap_assets.science.defects import find_dead_pixels, find_hot_pixels, flag_defects


def test_hot_pixels_and_a_faint_hot_column_are_found_and_little_else():
    rng = np.random.default_rng(1)
    bias = rng.normal(0, 1.3, (256, 256)).astype(np.float32)
    bias += 3.0 * np.exp(-np.arange(256) / 15.0)[None, :].astype(np.float32)  # a pattern, no defect
    truth = np.zeros(bias.shape, bool)
    truth[40, 60], truth[200, 100] = True, True
    bias[truth] += 40.0
    bias[128:, 77] += 12.0
    truth[128:, 77] = True
    found = find_hot_pixels(bias, sigma=12.0, noise=1.3)
    assert found[truth].all()
    assert (found & ~truth).sum() <= 10


def test_dead_pixels_and_columns_are_found_but_neither_dust_nor_vignetting():
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:256, :256]
    ring = np.abs(np.hypot(x - 90, y - 150) - 14.0)
    flat = 1.0 - 0.15 * ((x - 128) ** 2 + (y - 128) ** 2) / 128**2 - 0.06 * np.exp(-((ring / 5.0) ** 2))
    flat *= np.where(x < 128, 1.0, 1.03)
    flat = (flat + rng.normal(0, 0.003, flat.shape)).astype(np.float32)
    truth = np.zeros(flat.shape, bool)
    truth[10, 10] = truth[100, 200] = True
    flat[truth] *= 0.5
    flat[64:, 50] *= 0.9  # ten per cent low: not by single pixels, but as a column
    truth[64:, 50] = True
    found = find_dead_pixels(flat, tolerance=0.2, sigma=10.0)
    assert found[truth].all()
    assert (found & ~truth).sum() <= 10


def test_flags_are_added_to_what_is_there():
    mask = np.array([[int(Mask.SATURATED), 0]], np.int16)
    flagged = flag_defects(mask, np.array([[True, False]]))
    assert flagged[0, 0] == int(Mask.SATURATED | Mask.BAD) and flagged[0, 1] == 0
    assert flagged.dtype == np.int16
