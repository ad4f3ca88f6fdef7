"""Proper motions: applied rightly, and a wrong epoch is found from residuals."""

import numpy as np
import pandas as pd
import pytest

from lap_assets.science.reference_epoch import measure_epoch_error, propagate_positions


def test_proper_motion_is_applied_with_the_cosine_of_declination():
    """LV-07: 100 mas/yr for ten years at declination 60; unknown motions leave a position as it is."""
    catalog = pd.DataFrame(
        {"ra": [10.0, 20.0], "dec": [60.0, -30.0], "pmra": [100.0, np.nan], "pmdec": [-50.0, np.nan]}
    ).assign(ref_epoch_yr=2016.0)
    ra, dec = propagate_positions(catalog, 2026.0)
    assert (ra[0] - 10.0) * 3.6e6 * np.cos(np.radians(60)) == pytest.approx(1000.0)
    assert (dec[0] - 60.0) * 3.6e6 == pytest.approx(-500.0)
    assert (ra[1], dec[1]) == (20.0, -30.0)


@pytest.mark.parametrize("years", [-1.5, 0.8])
def test_an_epoch_wrong_by_years_is_found_to_percent_despite_outliers(years):
    """LV-07: references moved to an epoch `years` too early lag behind; centroids of 8 mas, 5 % wrong matches."""
    rng = np.random.default_rng(1)
    motion = rng.normal(0, 14.0, (1500, 2)) + np.array([-5.0, -4.0])
    residual = -years * motion + rng.normal(0, 8.0, motion.shape)
    residual[:75] += rng.normal(0, 300.0, (75, 2))
    found = measure_epoch_error(residual, motion)
    assert found.years == pytest.approx(years, abs=4 * found.err_years)
    assert found.err_years < 0.02
    assert found.significant


def test_a_right_epoch_is_left_alone():
    rng = np.random.default_rng(2)
    motion = rng.normal(0, 14.0, (1500, 2))
    assert not measure_epoch_error(rng.normal(0, 8.0, motion.shape), motion).significant


def test_few_stars_and_unmoving_ones_say_nothing():
    rng = np.random.default_rng(3)
    motion, residual = rng.normal(0, 14.0, (20, 2)), rng.normal(0, 8.0, (20, 2))
    assert not measure_epoch_error(residual + 5 * motion, motion).significant
    assert not measure_epoch_error(rng.normal(0, 8.0, (200, 2)), np.zeros((200, 2))).significant
    assert not measure_epoch_error(rng.normal(0, 8.0, (200, 2)), np.full((200, 2), np.nan)).significant
