"""Variance of chips: it is that of the noise, for sky and for stars, and does not follow the noise itself."""

import numpy as np
import pytest

from lap_assets.science.variance import estimate_variance
from lap_assets_tests.science.star_fields import add_star, observe


def test_variance_is_the_scatter_of_repeated_exposures_for_sky_and_star():
    rng = np.random.default_rng(1)
    truth = np.zeros((128, 128))
    add_star(truth, 64.0, 64.0, 4e4, 3.0)
    exposures = np.array([observe(rng, truth, 400.0, 5.0) for _ in range(300)])
    var = estimate_variance(exposures[0], np.full(truth.shape, 5.0, np.float32))
    assert np.median(var) == pytest.approx(425.0, rel=0.02)
    assert var[64, 64] == pytest.approx(exposures[:, 64, 64].var(), rel=0.25)


def test_a_weighted_mean_of_the_sky_is_not_biased_low():
    rng = np.random.default_rng(2)
    noise = np.full((256, 256), 3.0, np.float32)
    biases, naive = [], []
    for _ in range(6):
        image = observe(rng, np.zeros((256, 256)), 100.0, 3.0)
        for var, out in ((estimate_variance(image, noise), biases), (np.maximum(image, 0) + 9.0, naive)):
            out.append(np.sum(image / var) / np.sum(1.0 / var) - 100.0)
    assert abs(np.mean(biases)) < 0.2
    assert np.mean(naive) < -0.7  # with each pixel's own count the mean is low by about one electron
