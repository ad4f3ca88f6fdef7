"""Fringe pattern (LV-11): found from frames of different amplitude, and taken off an exposure with what was found."""

import numpy as np
import pytest

from lap_assets.errors import UnprocessableData
from lap_assets.science.fringe import fit_fringe, subtract_fringe
from lap_assets.science.master_fringe import build_fringe, measure_fringe_amplitudes
from lap_assets.science.source_mask import bin_rows

N, SKIES = 256, np.array([2000.0, 3000.0, 4000.0, 2500.0, 3500.0, 3000.0])
# fringes do not follow the whole sky, only its lines
AMPLITUDES = np.array([60.0, 45.0, 120.0, 50.0, 70.0, 0.0])


def pattern():
    """Mean zero, unit robust amplitude."""
    y, x = np.mgrid[:N, :N]
    waves = np.sin(x / 8.0 + 2 * np.sin(y / 40.0))
    return (waves - waves.mean()) / (1.4826 * np.median(np.abs(waves - waves.mean())))


def frames_of(rng, amplitudes=AMPLITUDES):
    """Frames without their smooth sky, a twentieth of the blocks under sources."""
    light = SKIES[:, None, None] + amplitudes[:, None, None] * pattern()
    frames = (rng.poisson(light) - SKIES[:, None, None]).astype(np.float32)
    for one in frames:
        blocks = rng.random((N // 4, N // 4)) < 0.05
        one[np.kron(blocks, np.ones((4, 4), bool))] = np.nan
    return frames


def build(rng):
    frames = frames_of(rng)
    found, _ = measure_fringe_amplitudes(np.stack([bin_rows(one) for one in frames]), SKIES)
    shown = found > 0
    return (*build_fringe(frames[shown], found[shown], SKIES[shown], np.full((N, N), 5.0)), found)


def test_amplitudes_are_those_of_the_frames_and_one_without_fringes_is_told():
    found = build(np.random.default_rng(1))[2]
    assert found[5] == 0.0
    assert np.allclose(found[:5], AMPLITUDES[:5], rtol=0.06)


def test_pattern_is_recovered_to_the_noise_that_it_states():
    made, variance, _ = build(np.random.default_rng(2))
    pull = (made - pattern()) / np.sqrt(variance)
    assert pull.std() == pytest.approx(1.0, abs=0.06) and abs(made.mean()) < 0.01


def test_fringes_of_an_exposure_go_with_the_pattern_and_bias_photometry_without():
    rng = np.random.default_rng(3)
    made, variance, _ = build(rng)
    image = rng.poisson(3000.0 + 90.0 * pattern()).astype(np.float32)
    amplitude, error = fit_fringe(image, np.ones((N, N), bool), made)
    scale = np.polyfit(pattern().ravel(), made.ravel(), 1)[0]
    assert abs(amplitude * scale - 90.0) < 2.0 and error < 1.0
    clean, _ = subtract_fringe(image, image, made, variance, amplitude)
    # sums over 8 x 8 pixels, as an aperture of that size sees it
    before, after = (one.reshape(N // 8, 8, N // 8, 8).sum((1, 3)).std() for one in (image, clean))
    assert before > 3000.0 and after < 1.25 * np.sqrt(64 * (3000.0 + 90.0**2 * np.median(variance)))


def test_frames_without_a_pattern_in_common_are_refused():
    rng = np.random.default_rng(4)
    noise = np.stack([bin_rows(one) for one in frames_of(rng, np.zeros(6))])
    with pytest.raises(UnprocessableData, match="no fringe pattern in common"):
        measure_fringe_amplitudes(noise, SKIES)
    with pytest.raises(UnprocessableData, match="at least two"):
        measure_fringe_amplitudes(noise[:1], SKIES[:1])
    with pytest.raises(UnprocessableData, match="no sky between"):
        measure_fringe_amplitudes(np.full((3, 8, 8), np.nan, np.float32), SKIES[:3])
