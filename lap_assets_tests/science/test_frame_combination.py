"""Combining frames (LV-11): median and clipped mean of each pixel, honest variances, pixels and frames left out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.errors import UnprocessableData
from lap_assets.science.frame_combination import FrameNoise, combine_frames, fill_rows, measure_frame_noise


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 70), seed=st.integers(0, 10**6), lost=st.floats(0.0, 0.6))
def test_median_is_that_of_the_values_that_are_there(n, seed, lost):
    rng = np.random.default_rng(seed)
    frames = rng.normal(0, 10, (n, 3, 131)).astype(np.float32)
    frames[rng.random(frames.shape) < lost] = np.nan
    there = np.isfinite(frames)
    empty = ~there.any(axis=0)
    # nothing but the median itself passes a clip at nothing, and an even number of values has none at its median
    mean, _, count = combine_frames(frames, 1e-12, clip_sigma=1e-3)
    odd = there.sum(axis=0) % 2 == 1
    expected = np.nanmedian(np.where(empty, np.float32(0), frames), axis=0)
    assert np.array_equal(mean[odd], expected[odd])
    mean, variance, count = combine_frames(frames, 1.0, clip_sigma=1e6)
    assert np.array_equal(count, there.sum(axis=0))
    assert np.isnan(mean[empty]).all() and np.isnan(variance[empty]).all()
    total = np.where(there, frames, 0).sum(axis=0, dtype=np.float64)
    assert np.allclose(mean[~empty], total[~empty] / count[~empty], atol=1e-4)


def test_frames_of_different_light_are_weighed_by_what_they_tell_and_the_variance_is_that_of_the_result():
    """Five flats of 1,000 to 60,000 electrons: scatter and variance are those of the electrons of them all."""
    rng = np.random.default_rng(1)
    levels = np.array([1000.0, 5000.0, 20000.0, 40000.0, 60000.0])
    frames = rng.poisson(levels[:, None, None], (5, 300, 300)).astype(np.float32)
    frames += rng.normal(0, 6.0, frames.shape).astype(np.float32)
    mean, variance, count = combine_frames(frames, 36.0, FrameNoise.of(levels))
    ideal = 1.0 / np.sum(levels**2 / (levels + 36.0))
    assert (mean - 1.0).var() == pytest.approx(ideal, rel=0.03)
    assert np.median(variance) == pytest.approx(ideal, rel=0.02)
    assert abs(mean.mean() - 1.0) < 4 * np.sqrt(ideal / mean.size)
    assert (count == 5).mean() > 0.9999
    plain = (frames / levels[:, None, None]).mean(axis=0)
    assert plain.var() > 5 * ideal  # one faint frame spoils an unweighted mean


def test_backgrounds_taken_off_keep_their_noise():
    rng = np.random.default_rng(2)
    skies = np.array([100.0, 900.0, 2500.0])
    frames = (rng.poisson(skies[:, None, None], (3, 200, 200)) - skies[:, None, None]).astype(np.float32)
    noise = FrameNoise.of([1.0, 1.0, 1.0], backgrounds=skies, photons=False)
    mean, variance, _ = combine_frames(frames, 0.0, noise)
    assert mean.var() == pytest.approx(1 / np.sum(1 / skies), rel=0.05)
    assert np.median(variance) == pytest.approx(mean.var(), rel=0.05)


def test_a_cosmic_ray_is_rejected_by_the_expected_noise_and_does_not_vouch_for_itself():
    frames = np.full((5, 8, 8), 1000.0, np.float32)
    frames[1, 3, 4] += (
        250.0  # 7 sigma of the level's noise, with that of the median's; photons of its own would allow it
    )
    mean, _, count = combine_frames(frames, 25.0, FrameNoise.of(np.full(5, 1000.0)))
    assert mean[3, 4] == pytest.approx(1.0, abs=1e-6) and count[3, 4] == 4
    kept, _, _ = combine_frames(frames, 25.0, FrameNoise.of(np.full(5, 1000.0)), clip_sigma=1e3)
    assert kept[3, 4] == pytest.approx(1.05, abs=1e-5)  # switched off, it is still there


def test_where_two_halves_contradict_each_other_the_median_stands_and_its_variance_says_so():
    frames = np.array([10.0, 12.0, 900.0, 902.0], np.float32)[:, None, None]
    mean, variance, count = combine_frames(frames, 1.0)
    assert mean[0, 0] == 456.0 and count[0, 0] == 0
    assert variance[0, 0] > 444.0**2


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(1, 39), seed=st.integers(0, 1000))
def test_rows_may_be_combined_in_any_stretches(cut, seed):
    """What is read in bands is what would be read at once, to the last bit."""
    rng = np.random.default_rng(seed)
    frames, read = rng.normal(5, 1, (6, 40, 50)).astype(np.float32), rng.uniform(1, 2, (40, 50)).astype(np.float32)
    noise = FrameNoise.of(np.full(6, 2.0))
    whole = combine_frames(frames, 1.5, noise)
    parts = [combine_frames(frames[:, rows], 1.5, noise) for rows in (slice(0, cut), slice(cut, 40))]
    for k in range(3):
        assert np.array_equal(np.concatenate([part[k] for part in parts]), whole[k])
    assert combine_frames(frames, read, noise)[0].shape == (40, 50)


def test_small_differences_at_high_levels_are_not_lost():
    """A signal of 1e-4 on 60,000 counts: float32 sums of the counts themselves would round it away."""
    rng = np.random.default_rng(3)
    frames = (60000.0 + rng.integers(-2, 3, (50, 20, 20))).astype(np.float32)
    mean, _, _ = combine_frames(frames, 4.0, clip_sigma=5.0)
    assert np.abs(mean - frames.mean(axis=0, dtype=np.float64)).max() < 0.005


def test_counts_minus_levels_without_saturated_ones():
    raw = np.array([[1000, 1010, 65535], [990, 60000, 59999]], np.uint16)
    image = np.empty(raw.shape, np.float32)
    fill_rows(raw, np.array([1000.0, 990.0], np.float32), np.float32(60000.0), image)
    assert np.array_equal(image, [[0, 10, np.nan], [0, np.nan, 59009]], equal_nan=True)


def test_noise_of_frames_and_what_cannot_be_combined():
    rng = np.random.default_rng(4)
    frames = rng.normal(3, 4.0, (3, 100, 100)).astype(np.float32)
    frames[0, :30] = np.nan
    assert measure_frame_noise(frames) == pytest.approx(4.0, rel=0.02)
    with pytest.raises(UnprocessableData, match="at least two"):
        measure_frame_noise(frames[:1])
    with pytest.raises(UnprocessableData, match="no number"):
        measure_frame_noise(np.full((2, 4, 4), np.nan, np.float32))
    with pytest.raises(UnprocessableData, match="cannot combine"):
        combine_frames(np.zeros((0, 4, 4), np.float32), 1.0)
    with pytest.raises(UnprocessableData, match="cannot combine"):
        combine_frames(np.zeros((2, 4, 4), np.float32), np.ones((3, 3), np.float32))
