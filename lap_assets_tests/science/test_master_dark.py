"""Master dark (LV-11): the current of every pixel from frames of different lengths, cosmic rays left out."""

import numpy as np
import pytest

from lap_assets.errors import UnprocessableData
from lap_assets.science.dark import subtract_dark
from lap_assets.science.master_dark import build_dark, carry_bias_noise

TIMES = (60.0, 300.0, 300.0, 900.0, 900.0)


def frames_of(rng, current, read_noise=5.0):
    return np.stack([rng.poisson(current * t) + rng.normal(0, read_noise, current.shape) for t in TIMES]).astype("f4")


def test_current_is_recovered_to_the_noise_that_it_states_and_goes_from_an_exposure():
    rng = np.random.default_rng(1)
    current = 0.05 + 0.05 * np.linspace(0, 1, 200)[:, None] * np.ones(200)
    current[50, 60] = 20.0
    dark, variance = build_dark(frames_of(rng, current), TIMES, np.full(current.shape, 5.0))
    cold = current < 1
    off = (dark - current)[cold]
    assert (off / np.sqrt(variance[cold])).std() == pytest.approx(1.0, abs=0.03)
    assert abs(off.mean()) < 5 * off.std() / np.sqrt(off.size)
    # weights by time squared where read noise rules: better than the mean of the rates
    plain = np.mean([f / t for f, t in zip(frames_of(rng, current), TIMES, strict=True)], axis=0)
    assert (dark - current)[cold].std() < 0.5 * (plain - current)[cold].std()
    exposure = (400.0 * current).astype(np.float32)
    assert np.ptp(exposure[cold]) > 19.0 and exposure[50, 60] == 8000.0
    image, _ = subtract_dark(exposure, np.ones_like(exposure), dark, variance, 400.0)
    assert abs(image[cold].mean()) < 0.1 and abs(image[50, 60]) < 5 * 400 * np.sqrt(variance[50, 60])


def test_cosmic_rays_of_long_darks_are_left_out():
    rng = np.random.default_rng(2)
    frames = frames_of(rng, np.full((100, 100), 0.02))
    frames[4, :, ::10] += 3000.0
    dark, _ = build_dark(frames, TIMES, np.full((100, 100), 5.0))
    assert abs(dark[:, ::10].mean() - dark[:, 1::10].mean()) < 0.003
    kept, _ = build_dark(frames, TIMES, np.full((100, 100), 5.0), clip_sigma=1e4)
    assert kept[:, ::10].mean() - kept[:, 1::10].mean() > 1.0


def test_noise_of_the_bias_is_the_same_in_all_frames_and_does_not_average_out():
    rng = np.random.default_rng(3)
    bias = rng.normal(0, 2.0, (100, 100))
    frames = (np.zeros((5, 100, 100)) - bias).astype(np.float32)
    dark, _ = build_dark(frames, TIMES, np.full((100, 100), 5.0))
    carried = carry_bias_noise(np.full((100, 100), 4.0, np.float32), TIMES)
    assert dark.std() == pytest.approx(np.sqrt(carried[0, 0]), rel=0.03)


def test_frames_without_an_exposure_time_are_refused():
    with pytest.raises(UnprocessableData, match="above 0 s"):
        build_dark(np.zeros((2, 4, 4), np.float32), (300.0, 0.0), np.ones((4, 4)))
    with pytest.raises(UnprocessableData, match="above 0 s"):
        build_dark(np.zeros((2, 4, 4), np.float32), (300.0, float("nan")), np.ones((4, 4)))
