"""Amplifier matching (LV-11): the step in the sky between amplifiers goes, gradients and stars are none."""

import numpy as np
import pytest

from lap_assets.model.camera import Amplifier
from lap_assets.science.gain import match_amplifiers, measure_amplifier_steps, scale_variance
from lap_assets_tests.science.star_fields import observe, star_field, two_amplifier_chip
from lap_assets_tests.science.star_measures import sum_flux, to_mmag

SHAPE = (512, 512)


def quarters(gains=(1.0, 1.0, 1.0, 1.0)):
    """Four amplifiers, each a quarter of the chip: lower left, lower right, upper left, upper right."""
    boxes = {"LL": (0, 256, 0, 256), "LR": (256, 512, 0, 256), "UL": (0, 256, 256, 512), "UR": (256, 512, 256, 512)}
    return [
        Amplifier(name=name, data=box, target=box, gain=gain)
        for (name, box), gain in zip(boxes.items(), gains, strict=True)
    ]


def sky_with_stars(seed):
    """Stars on a sky with a slope of 8 % over the chip."""
    rng = np.random.default_rng(seed)
    stars, x, y, flux = star_field(rng, SHAPE, 100, 3.0)
    slope = 1.0 + 0.08 * (np.arange(512) / 512.0 - 0.5)[None, :]
    return rng, stars + 1000.0 * (slope - 1.0), x, y, flux


def apply(image, amplifiers, factors):
    result = image.copy()
    for amp, factor in zip(amplifiers, factors, strict=True):
        x0, x1, y0, y1 = amp.target
        result[y0:y1, x0:x1] *= factor
    return result


def test_steps_between_four_amplifiers_are_removed_and_stars_agree_again():
    rng, light, x, y, flux = sky_with_stars(1)
    wrong = np.array([1.03, 0.98, 1.01, 0.99])
    image = apply(observe(rng, light, 1000.0), quarters(), wrong)
    factors = measure_amplifier_steps(image, np.ones(SHAPE, bool), quarters())
    product = np.array([factors[amp.name] for amp in quarters()]) * wrong
    assert np.ptp(product) / product.mean() < 2e-3
    assert np.ptp(wrong) > 0.04
    matched, _ = match_amplifiers(image, image, quarters(), factors)
    inside = [(a, b, f) for a, b, f in zip(x, y, flux, strict=True) if f > 5e4 and abs(a - 256) > 14 < abs(b - 256)]

    def spread(one):
        skies = [np.median(one[int(b) - 14 : int(b) + 15, int(a) - 14 : int(a) + 15]) for a, b, _ in inside]
        return np.std([to_mmag(sum_flux(one, a, b, s), f) for (a, b, f), s in zip(inside, skies, strict=True)])

    assert len(inside) >= 5
    assert spread(image) > 1.5 * spread(matched)


def test_a_slope_of_the_sky_is_no_step():
    rng, light, *_ = sky_with_stars(2)
    image = observe(rng, light, 1000.0)
    factors = measure_amplifier_steps(image, np.ones(SHAPE, bool), quarters())
    assert max(abs(factor - 1.0) for factor in factors.values()) < 2e-3


def test_a_bright_star_on_the_border_does_not_pull_the_step():
    rng, light, *_ = sky_with_stars(3)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    light += 3e4 * np.exp(-np.hypot(x - 270, y - 60) / 6.0)
    chip = two_amplifier_chip(512)
    image = observe(rng, light, 1000.0)
    factors = measure_amplifier_steps(image, np.ones(SHAPE, bool), chip.amplifiers)
    assert abs(factors["A"] / factors["B"] - 1.0) < 3e-3


def test_where_nothing_can_be_measured_nothing_is_changed():
    chip = two_amplifier_chip(512)
    image = np.full(SHAPE, 1000.0, np.float32)
    assert measure_amplifier_steps(image, np.zeros(SHAPE, bool), chip.amplifiers) == {"A": 1.0, "B": 1.0}
    assert measure_amplifier_steps(-image, np.ones(SHAPE, bool), chip.amplifiers) == {"A": 1.0, "B": 1.0}
    assert measure_amplifier_steps(image, np.ones(SHAPE, bool), chip.amplifiers[:1]) == {"A": 1.0}


def test_variance_scales_with_the_square_of_the_factor():
    image, variance = (np.full(SHAPE, value, np.float32) for value in (100.0, 10.0))
    matched, result = match_amplifiers(image, variance, quarters(), {"LL": 1.1, "LR": 1.0, "UL": 1.0, "UR": 0.9})
    assert matched[0, 0] == pytest.approx(110.0) and result[0, 0] == pytest.approx(12.1)
    assert result[400, 400] == pytest.approx(8.1)
    assert scale_variance(variance, quarters((2.0, 1.0, 1.0, 3.0)))[[0, 400], [0, 400]] == pytest.approx([40.0, 90.0])
