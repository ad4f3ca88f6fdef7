"""Rounding of floats: how far off, without bias, and never more than was promised."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lap_assets.store.quantisation import choose_image_steps, choose_variance_steps, quantise_rows, restore_rows

SIGMA = 10.0


def round_rows(rows, steps, first=0, seed=77):
    integers, zeros = quantise_rows(rows, steps, first, seed)
    return restore_rows(integers, steps, zeros, first, seed)


def make_noise(shape=(200, 3000)):
    rng = np.random.default_rng(4)
    image = rng.normal(3.0, SIGMA, shape).astype(np.float32)
    image[rng.random(shape) < 0.03] = 0.0
    image[7, 11] = 3e5  # a star
    return image


def test_an_image_gains_less_than_a_thousandth_of_its_noise():
    """The step is a 16th of the least noise of the row: 0.016 % of sigma is added, and no bias."""
    image = make_noise()
    steps = choose_image_steps(np.full(image.shape, SIGMA**2, np.float32))
    change = (round_rows(image, steps) - image).astype(np.float64)[image != 0]
    assert np.abs(change).max() <= SIGMA / 32 * (1 + 1e-6) + 0.02  # the star is a float32 of steps of 0.03
    assert np.hypot(SIGMA, change.std()) / SIGMA - 1 < 2e-4
    assert abs(change.mean()) < 4 * SIGMA / 16 / np.sqrt(12 * change.size)
    assert abs(np.corrcoef(change, image[image != 0])[0, 1]) < 0.01


def test_exact_zeros_stay():
    image = make_noise()
    back = round_rows(image, np.full(len(image), SIGMA / 16))
    assert (back[image == 0] == 0).all() and np.count_nonzero(back == 0) == np.count_nonzero(image == 0)


def test_steps_follow_the_least_noise_of_each_row():
    variance = np.full((4, 50), 100.0, np.float32)
    variance[1, 3], variance[2, :], variance[0, 9] = 4.0, 0.0, -5.0
    for steps, most in (
        (choose_image_steps(variance) * 16, np.array([10, 2, 2, 10])),
        (choose_variance_steps(variance) * 512, np.array([100, 4, 4, 100])),
    ):
        assert (steps <= most * (1 + 1e-9)).all() and (steps > most * 0.84).all()
    assert (choose_image_steps(np.zeros((3, 5), np.float32)) == 0).all()


@given(hnp.arrays(np.float32, (3, 40), elements=st.floats(0, 2**20, width=32).map(lambda v: v if v > 1e-3 else 0.0)))
@settings(deadline=None)
def test_a_variance_keeps_three_digits_or_is_left_alone(variance):
    steps = choose_variance_steps(variance)
    found = quantise_rows(variance, steps, 0, 5)
    if found is None:
        assert not variance.any() or variance.max() / steps.min() > 2**31
        return
    back = restore_rows(found[0], steps, found[1], 0, 5)
    assert (np.abs(back.astype(np.float64) - variance) <= 1e-3 * variance).all()


def test_a_last_bit_of_difference_moves_few_pixels():
    """Two machines that disagree in the last bit of image and variance round nearly all pixels to the same value."""
    image, rng = make_noise(), np.random.default_rng(9)
    variance = (SIGMA**2 * (1 + 0.1 * rng.random(image.shape))).astype(np.float32)
    other, other_variance = (np.nextafter(plane, np.float32(np.inf)) for plane in (image, variance))
    other[image == 0] = 0.0
    mine = round_rows(image, choose_image_steps(variance))
    theirs = round_rows(other, choose_image_steps(other_variance))
    moved = np.abs(theirs - mine) > 1e-3
    assert 0 < moved.mean() < 1e-4 and np.abs(theirs - mine).max() <= SIGMA / 16 + 0.04


def test_rounding_again_moves_nothing():
    """Who publishes again what he read does not lose twice: a step is 0.6, here a millionth of it is left."""
    image = make_noise()
    steps = choose_image_steps(np.full(image.shape, SIGMA**2, np.float32))
    once = round_rows(image, steps)
    again = np.abs(round_rows(once, steps) - once)
    assert again[once < 1e5].max() < 1e-5


def test_dither_goes_on_through_rows_longer_than_its_list():
    image = np.random.default_rng(1).normal(0, 5, (3, 25_000)).astype(np.float32)
    back = round_rows(image, np.full(3, 0.5), first=9_999, seed=10_000)
    assert np.abs(back - image).max() <= 0.2501


@pytest.mark.parametrize("row", [[1e38, 1.0], [1e30, -1.0], [-2e8, 1.0]])
def test_values_too_large_or_too_far_apart_for_the_step_are_left_alone(row):
    assert quantise_rows(np.array([row], np.float32), np.array([0.05]), 0, 1) is None
    assert quantise_rows(np.array([[1.0, 2.0]], np.float32), np.array([0.0]), 0, 1) is None
