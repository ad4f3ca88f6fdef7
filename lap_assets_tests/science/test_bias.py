"""Master bias (LV-11): the fixed pattern is found to the expected noise, cosmic rays do not enter it."""

import numpy as np
import pytest

from lap_assets.errors import UnprocessableData
from lap_assets.science.bias import build_bias, subtract_bias
from lap_assets.science.frame_combination import combine_frames


def pattern(shape=(96, 96)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (4.0 * np.exp(-x / 20.0) + 0.5 * np.sin(y / 7.0)).astype(np.float32)


def test_pattern_is_recovered_to_the_noise_of_the_mean_and_removed():
    rng = np.random.default_rng(1)
    truth = pattern()
    frames = (truth + rng.normal(0, 3.0, (9, *truth.shape))).astype(np.float32)
    bias, variance, noise = build_bias(frames)
    assert noise == pytest.approx(3.0, rel=0.03)
    assert (bias - truth).std() == pytest.approx(1.0, rel=0.05)  # 3 / sqrt(9)
    assert np.median(variance) == pytest.approx(1.0, rel=0.06)
    science = truth + rng.normal(0, 0.1, truth.shape)
    columns = np.ptp(science.mean(axis=0))
    assert columns > 3.5
    assert np.ptp(subtract_bias(science, bias).mean(axis=0)) < 1.0


def test_cosmic_rays_in_single_frames_do_not_enter():
    rng = np.random.default_rng(2)
    frames = rng.normal(0, 3.0, (5, 64, 64)).astype(np.float32)
    hit = np.zeros((5, 64, 64), bool)
    hit.reshape(-1)[rng.permutation(hit.size)[:100]] = True
    frames[hit] += 500.0
    bias, _, _ = build_bias(frames)
    assert np.abs(bias[hit.any(axis=0)]).max() < 6.0
    assert frames.mean(axis=0)[hit.any(axis=0)].min() > 80.0  # a plain mean keeps them


def test_clipping_leaves_honest_gaussian_noise_alone():
    rng = np.random.default_rng(3)
    frames = rng.normal(0, 1.0, (5, 100, 100)).astype(np.float32)
    mean, _, count = combine_frames(frames, 1.0, clip_sigma=5.0)
    assert np.array_equal(count, np.full(count.shape, 5))
    assert np.allclose(mean, frames.mean(axis=0), atol=1e-5)


def test_no_frames_or_a_single_one_are_refused():
    with pytest.raises(UnprocessableData):
        build_bias(np.zeros((1, 8, 8), np.float32))
    with pytest.raises(UnprocessableData):
        combine_frames(np.zeros((0, 8, 8), np.float32), 1.0)
