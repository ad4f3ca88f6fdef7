"""The sky of a difference: its pixels, its polynomial, its scatter."""

import numpy as np
import pytest

from lap_assets.model.image import MaskedImage
from lap_assets.science.difference_sky import THIN, choose_sky, fit_sky, measure_chi, subtract_sky


def test_polynomial_of_the_sky_is_found_between_sources():
    rng = np.random.default_rng(5)
    ny, nx = 500, 400
    v, u = np.mgrid[:ny, :nx]
    level = 5.0 + 3.0 * (u - 200) / 200 - 2.0 * (v - 250) / 250
    sci = (level + rng.normal(0, 10, (ny, nx))).astype(np.float32)
    sci[200:260, 100:160] += 500
    image = MaskedImage(sci, np.zeros((ny, nx), np.int16), np.full((ny, nx), 100, np.float32))
    sky = choose_sky(image, image)
    assert not sky[240 // 3, 130 // 3]
    assert sky.mean() > 0.9
    coefficients = fit_sky(image.sci[THIN], sky, image.shape, 1)
    # medians of 40 blocks, each good to 0.6
    assert coefficients == pytest.approx([5.0, 3.0, -2.0], abs=0.5)
    subtract_sky(image.sci, image.var, coefficients)
    assert measure_chi(image, sky) == pytest.approx(1.0, abs=0.02)
    assert len(fit_sky(image.sci[THIN], np.zeros_like(sky), image.shape, 1)) == 1
    assert np.isnan(measure_chi(image, np.zeros_like(sky)))
