"""Sky frame and division by a response (LV-11): photometry is the same all over the chip, and the variance follows."""

import numpy as np
import pytest

from lap_assets.science.flat import MIN_RESPONSE, divide_response
from lap_assets.science.sky_frame import correct_illumination
from lap_assets_tests.science.star_fields import add_star
from lap_assets_tests.science.star_measures import sum_flux, to_mmag

SHAPE = (160, 160)
PLACES = ((30.0, 30.0), (30.0, 130.0), (130.0, 30.0), (130.0, 130.0))


def illumination():
    """What a screen's light leaves: 4 % from corner to corner."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return (1.0 + 0.02 * (x / 80.0 - 1.0) - 0.02 * (y / 80.0 - 1.0)).astype(np.float32)


def test_stars_in_all_corners_are_equally_bright_afterwards():
    true = np.full(SHAPE, 600.0)
    for x, y in PLACES:
        add_star(true, x, y, 5e4, 3.0)
    image = (true * illumination()).astype(np.float32)
    zero = np.zeros(SHAPE, np.float32)
    flat_image, _, dead = correct_illumination(image, image, illumination(), zero)
    assert not dead.any()

    def spread(one):
        skies = [np.median(one[int(y) - 25 : int(y) + 25, int(x) - 25 : int(x) + 25]) for x, y in PLACES]
        off = [
            to_mmag(sum_flux(one, x, y, sky), sum_flux(true, x, y, 600.0))
            for (x, y), sky in zip(PLACES, skies, strict=True)
        ]
        return np.ptp(off)

    assert spread(image) > 40.0
    assert spread(flat_image) < 0.1


def test_variance_of_the_quotient_is_its_scatter():
    """Image and response both noisy: var(a / r) = var(a) / r² + (a / r)² var(r) / r²."""
    rng = np.random.default_rng(2)
    shape, level, response, noise, response_noise = (300, 300), 2000.0, 0.6, 30.0, 0.012
    image = rng.normal(level * response, noise, shape).astype(np.float32)
    divisor = rng.normal(response, response_noise, shape).astype(np.float32)
    quotient, variance, _ = divide_response(
        image, np.full(shape, noise**2, np.float32), divisor, np.full(shape, response_noise**2, np.float32)
    )
    assert quotient.var() == pytest.approx(np.median(variance), rel=0.03)
    # the response's own noise is a third of it: left out, the variance would lie
    alone = divide_response(image, np.full(shape, noise**2, np.float32), divisor, np.zeros(shape, np.float32))[1]
    assert quotient.var() > 1.3 * np.median(alone)


def test_pixels_too_dark_to_divide_by_or_without_a_number_are_dead():
    response = np.ones((8, 8), np.float32)
    response[2, 3], response[4, 5], response[6, 6] = 0.9 * MIN_RESPONSE, np.nan, -1.0
    image = np.full((8, 8), 100.0, np.float32)
    quotient, variance, dead = divide_response(image, image, response, np.zeros((8, 8), np.float32))
    assert {tuple(place) for place in np.argwhere(dead)} == {(2, 3), (4, 5), (6, 6)}
    assert (quotient[dead] == 0).all() and (variance[dead] == 0).all() and (quotient[~dead] == 100.0).all()


def test_in_place_gives_the_same_pixels_over_the_old_ones():
    rng = np.random.default_rng(4)
    image, variance, response = (rng.uniform(0.5, 2.0, (32, 32)).astype(np.float32) for _ in range(3))
    quotient, result, _ = divide_response(image, variance, response, variance)
    again, over, _ = divide_response(image, variance.copy(), response, variance, in_place=True)
    assert np.array_equal(again, quotient) and np.array_equal(over, result)
    assert again is image
