"""Master flat (LV-11): vignetting, dust, amplifier and chip steps go when the flat is divided out."""

import numpy as np
import pytest

from lap_assets.errors import UnprocessableData
from lap_assets.science.flat import MIN_RESPONSE, apply_gain, build_flat, divide_flat, relate_chip
from lap_assets_tests.science.star_fields import two_amplifier_chip


def response(shape=(128, 128), level=1.0):
    y, x = np.mgrid[: shape[0], : shape[1]]
    vignetting = 1.0 - 0.2 * ((x / shape[1]) ** 2 + (y / shape[0]) ** 2) / 2
    dust = 1.0 - 0.05 * np.exp(-((x - 40) ** 2 + (y - 70) ** 2) / 60.0)
    step = np.where(x < shape[1] // 2, 1.0, 1.03)  # true gains differ from nominal ones
    return (level * vignetting * dust * step).astype(np.float32)


def frames_of(rng, truth, light, n=5):
    return rng.poisson(light * truth, (n, *truth.shape)).astype(np.float32)


def test_response_is_recovered_to_photon_noise_and_divides_out():
    rng = np.random.default_rng(1)
    truth = response()
    flat, variance = build_flat(frames_of(rng, truth, 30000.0), np.full(truth.shape, 5.0), 1.0)
    ratio = flat / truth
    assert ratio.std() / ratio.mean() == pytest.approx(np.sqrt(1 / 30000.0 / 5), rel=0.15)
    assert np.median(np.sqrt(variance)) == pytest.approx(ratio.std() * np.median(truth), rel=0.2)
    sky = 1000.0 * truth
    assert np.ptp(sky) > 150.0
    assert divide_flat(sky, flat).std() < 1000.0 * 0.004


def test_cosmic_ray_in_a_flat_frame_is_rejected():
    rng = np.random.default_rng(2)
    frames = frames_of(rng, np.ones((64, 64)), 20000.0)
    frames[2, 30, 30] += 30000.0
    flat, _ = build_flat(frames, np.full((64, 64), 5.0), 1.0)
    assert abs(flat[30, 30] - 1.0) < 0.02


def test_one_number_normalises_all_chips_so_that_their_steps_are_in_the_flats():
    rng = np.random.default_rng(3)
    truths = {"c0": response(level=1.0), "c1": response(level=0.9)}
    levels = {name: float(np.median(30000.0 * truth[32:96, 32:96])) for name, truth in truths.items()}
    values = {}
    for name, truth in truths.items():
        flat, _ = build_flat(frames_of(rng, truth, 30000.0), np.full(truth.shape, 5.0), relate_chip(levels, name))
        values[name] = float(np.median(divide_flat(500.0 * truth, flat)))
    assert values["c0"] == pytest.approx(values["c1"], rel=1e-3)
    # each chip normalised by itself would leave 10 %
    alone = {n: float(np.median(500.0 * t / (t / np.median(t[32:96, 32:96])))) for n, t in truths.items()}
    assert alone["c1"] / alone["c0"] == pytest.approx(0.9, rel=0.01)


def test_dark_flats_and_chips_without_light_are_refused():
    with pytest.raises(UnprocessableData, match="no light"):
        build_flat(np.zeros((3, 16, 16), np.float32), np.ones((16, 16)), 1.0)
    with pytest.raises(UnprocessableData, match="c1"):
        relate_chip({"c0": 1000.0, "c1": -3.0}, "c1")


def test_dead_pixels_give_zero_not_infinity_and_gain_follows_the_amplifier():
    flat = np.ones((8, 8), np.float32)
    flat[3, 3] = MIN_RESPONSE / 2
    assert divide_flat(np.full((8, 8), 100.0, np.float32), flat)[3, 3] == 0.0
    chip = two_amplifier_chip(16)
    electrons = apply_gain(np.ones((16, 16), np.float32), chip.amplifiers)
    assert np.allclose(electrons[:, :8], 1.5) and np.allclose(electrons[:, 8:], 1.6)
