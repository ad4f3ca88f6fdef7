"""The round Moffat profile: flux, width and pictures against formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.science.moffat import MoffatPsf, stamp_size
from lap_assets.science.psf import measure_shape


@pytest.mark.parametrize(("fwhm", "beta"), [(2.5, 3.0), (3.8, 3.5), (6.0, 2.5)])
def test_enclosed_flux_is_that_of_the_formula(fwhm, beta):
    """Within r: 1 − (1 + r²/α²)^(1 − β) of all, both within 2 FWHM and within the stamp, to 2e-3 of their ratio."""
    stamp = MoffatPsf(fwhm, beta).evaluate()
    u = np.arange(len(stamp)) - len(stamp) // 2
    distance = np.hypot(*np.meshgrid(u, u))
    alpha2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
    held, sums = [], []
    for radius in (2.0 * fwhm, len(stamp) // 2 - 1):
        inside = distance <= radius
        held.append(1 - (1 + inside.sum() / np.pi / alpha2) ** (1 - beta))  # of the circle of the same area
        sums.append(stamp[inside].sum())
    assert sums[0] / sums[1] == pytest.approx(held[0] / held[1], abs=2e-3)


@settings(max_examples=25, deadline=None)
@given(fwhm=st.floats(2.0, 8.0), beta=st.floats(2.2, 6.0))
def test_stamps_sum_to_one_hold_four_fwhm_and_are_as_wide_as_they_say(fwhm, beta):
    """A pixel broadens what it averages, by less than its own width in squares."""
    stamp = MoffatPsf(fwhm, beta).evaluate()
    assert stamp.sum() == pytest.approx(1.0)
    assert stamp.shape == (stamp_size(fwhm),) * 2
    assert len(stamp) % 2 == 1 and len(stamp) // 2 >= 4 * fwhm - 1
    assert 0.995 * fwhm < measure_shape(stamp).fwhm_px < np.hypot(fwhm, 1.0)


def test_many_are_one_repeated():
    psf = MoffatPsf(3.3)
    many = psf.evaluate_many(np.zeros(4), np.ones(4))
    assert many.shape == (4, stamp_size(3.3), stamp_size(3.3))
    assert (many == psf.evaluate(17.0, 3.0)).all()
