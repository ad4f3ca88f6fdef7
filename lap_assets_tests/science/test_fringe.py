"""Fringes (LV-11): the amplitude is found among stars and galaxies, and the sky around stars is right again."""

import numpy as np
import pytest

from lap_assets.errors import UnprocessableData
from lap_assets.science.fringe import fit_fringe, subtract_fringe
from lap_assets_tests.science.star_fields import observe, star_field
from lap_assets_tests.science.star_measures import sum_flux

SHAPE = (512, 512)


def make_pattern():
    """Curved stripes, mean about 0, unit amplitude."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return np.sin(np.hypot(x + 200.0, y - 700.0) / 6.0 + 2.0 * np.sin(x / 90.0)).astype(np.float32)


def expose(seed, amplitude, n_stars=80):
    """An exposure with stars, a sloping sky and fringes; star places and fluxes; the sky without fringes."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    stars, sx, sy, flux = star_field(rng, SHAPE, n_stars, 3.5, (3e3, 1e6))
    sky = 1500.0 + 0.05 * x + 0.03 * y
    return observe(rng, stars + amplitude * make_pattern() + (sky - 1500.0), 1500.0), sx, sy, flux, sky


@pytest.mark.parametrize("amplitude", [0.0, 8.0, 40.0])
def test_amplitude_is_found_within_three_of_its_errors(amplitude):
    image, *_ = expose(1, amplitude)
    found, error = fit_fringe(image, np.ones(SHAPE, bool), make_pattern())
    assert abs(found - amplitude) < 3.0 * error + 0.005 * amplitude
    assert error < 0.3  # 262144 pixels of 39 electrons noise: 0.11 at best


def test_masked_pixels_do_not_count():
    image, *_ = expose(2, 20.0)
    usable = np.ones(SHAPE, bool)
    image[100:180, 50:450] += 3e4 * (1.0 - make_pattern()[100:180, 50:450])
    usable[100:180, 50:450] = False
    found, error = fit_fringe(image, usable, make_pattern())
    assert abs(found - 20.0) < 4.0 * error


def test_background_around_stars_is_right_once_the_fringes_are_gone():
    image, x, y, _, sky = expose(3, 40.0)
    pattern, zero = make_pattern(), np.zeros(SHAPE, np.float32)
    amplitude, _ = fit_fringe(image, np.ones(SHAPE, bool), pattern)
    clean, _ = subtract_fringe(image, zero, pattern, zero, amplitude)

    def scatter(one):
        """Of the light of empty apertures half way between stars of the grid."""
        places = [(a, b) for a in range(48, 480, 32) for b in range(48, 480, 32)]
        free = [(a, b) for a, b in places if np.hypot(x - a, y - b).min() > 20.0]
        return np.std([sum_flux(one - sky, a, b, radius=5.0) for a, b in free])

    noise = np.sqrt(np.pi * 25.0 * (1500.0 + 25.0))
    assert scatter(image) > 3.0 * noise
    assert scatter(clean) < 1.5 * noise


def test_noise_of_the_pattern_enters_the_variance():
    rng = np.random.default_rng(5)
    noisy = (make_pattern() + rng.normal(0.0, 0.1, SHAPE)).astype(np.float32)
    image = (1000.0 + 50.0 * make_pattern()).astype(np.float32)
    clean, variance = subtract_fringe(image, np.zeros(SHAPE, np.float32), noisy, np.full(SHAPE, 0.01, np.float32), 50.0)
    assert clean.var() == pytest.approx(variance.mean(), rel=0.02)
    assert variance.mean() == pytest.approx(25.0, rel=1e-3)


def test_a_flat_pattern_and_a_masked_frame_are_refused_with_the_reason():
    image, *_ = expose(4, 0.0, n_stars=5)
    with pytest.raises(UnprocessableData, match="pattern is flat"):
        fit_fringe(image, np.ones(SHAPE, bool), np.zeros(SHAPE, np.float32))
    with pytest.raises(UnprocessableData, match="too few"):
        fit_fringe(image, np.zeros(SHAPE, bool), make_pattern())
