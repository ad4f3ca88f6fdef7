"""Sky frame (LV-11): illumination that a screen does not show is found between the stars and divided out."""

import numpy as np
import pytest

from lap_assets.errors import UnprocessableData
from lap_assets.science.master_sky import build_sky, measure_sky_level, smooth_illumination
from lap_assets.science.sky_frame import correct_illumination

N, SKIES = 256, (300.0, 500.0, 700.0, 450.0, 600.0, 800.0, 520.0, 640.0)


def illumination():
    y, x = np.mgrid[:N, :N] / N - 0.5
    return 1.0 + 0.04 * x - 0.06 * y**2


def object_frames(rng, stars=True):
    """Sky frames with a tenth of the pixels under sources, left out or not."""
    frames = np.stack([rng.poisson(sky * illumination()) for sky in SKIES]).astype(np.float32)
    lit = rng.random(frames.shape) < 0.1
    frames[lit] = np.nan if not stars else frames[lit] + 2000.0
    return frames


def test_illumination_is_found_on_large_scales_and_goes_from_an_exposure():
    rng = np.random.default_rng(1)
    sky, variance = build_sky(object_frames(rng, stars=False), SKIES, 1.0, np.full((N, N), 5.0))
    assert (sky / illumination()).std() == pytest.approx(np.sqrt(np.median(variance)), rel=0.05)
    smooth, noise = smooth_illumination(sky, variance, 64)
    assert np.abs(smooth / illumination() - 1.0).max() < 0.004
    assert np.ptp(illumination()) > 0.05
    image, _, dead = correct_illumination((1000 * illumination()).astype("f4"), np.ones((N, N), "f4"), smooth, noise)
    assert np.ptp(image) < 8.0 and not dead.any()


def test_sources_that_are_left_in_are_rejected_where_frames_do_not_share_them():
    rng = np.random.default_rng(2)
    frames = object_frames(rng, stars=True)
    sky, _ = build_sky(frames, SKIES, 1.0, np.full((N, N), 5.0))
    assert sky.mean() / illumination().mean() == pytest.approx(1.0, abs=0.01)
    raw, _ = build_sky(frames, SKIES, 1.0, np.full((N, N), 5.0), clip_sigma=1e4)
    assert raw.mean() / illumination().mean() > 1.2


def test_level_of_the_mosaic_stays_and_holes_are_filled():
    frames = np.stack([np.full((64, 64), sky, np.float32) for sky in SKIES])
    frames[:, 10:20, 10:20] = np.nan
    sky, variance = build_sky(frames, SKIES, 0.97, np.full((64, 64), 5.0))
    assert np.isnan(sky[15, 15]) and sky[40, 40] == pytest.approx(0.97)
    for mesh in (0, 32):
        smooth, noise = smooth_illumination(sky, variance, mesh)
        assert np.abs(smooth - 0.97).max() < 1e-5 and np.isfinite(noise).all() and (noise > 0).all()


def test_sky_level_is_that_between_the_sources():
    rng = np.random.default_rng(3)
    values = rng.normal(500.0, 22.0, 100_000)
    values[:8000] += rng.exponential(300.0, 8000)
    assert measure_sky_level(values) == pytest.approx(500.0, abs=1.5)
    assert np.median(values) - 500.0 > 1.9
    assert np.isnan(measure_sky_level(np.array([np.nan])))
    assert measure_sky_level(np.full(10, 3.0)) == 3.0


def test_frames_and_chips_without_sky_are_refused():
    with pytest.raises(UnprocessableData, match="no sky"):
        build_sky(np.zeros((2, 8, 8), np.float32), (100.0, -1.0), 1.0, np.ones((8, 8)))
    with pytest.raises(UnprocessableData, match="free enough"):
        smooth_illumination(np.full((64, 64), np.nan, np.float32), np.full((64, 64), np.nan, np.float32), 32)
