"""The round Moffat profile: flux, width and pictures against formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.science.moffat import MoffatPsf, stamp_size
from lap_assets.science.psf import measure_shape


@pytest.mark.parametrize(("fwhm", "beta"), [(2.5, 3.0), (3.8, 3.5), (6.0, 2.5)])
def test_enclosed_flux_is_that_of_the_formula(fwhm, beta):
    """Within r: 1 − (1 + r²/α²)^(1 − β), to 2e-3 with pixels cut at the circle."""
    psf = MoffatPsf(fwhm, beta)
    picture = psf.draw()
    u = np.arange(len(picture)) - len(picture) // 2
    radius = 0.9 * psf.radius
    inside = np.hypot(*np.meshgrid(u, u)) <= radius
    alpha2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
    lost = (1 + inside.sum() / np.pi / alpha2) ** (1 - beta)  # of the circle of the same area
    assert picture[inside].sum() == pytest.approx(1 - lost, abs=2e-3)


def test_shifted_pictures_have_their_centre_there():
    """To 5 mpx: the wings are cut off by the picture's edge."""
    psf = MoffatPsf(3.0, 4.0)
    picture = psf.draw(0.3, -0.4)
    u = np.arange(len(picture)) - len(picture) // 2
    core = np.s_[psf.radius - 5 : psf.radius + 6, psf.radius - 5 : psf.radius + 6]
    peak = np.unravel_index(np.argmax(picture), picture.shape)
    assert (u[peak[1]], u[peak[0]]) == (0, 0)
    assert picture[core].sum() == pytest.approx(psf.draw()[core].sum(), abs=5e-3)
    assert psf.draw(1.0, 0.0)[:, 1:] == pytest.approx(psf.draw()[:, :-1])


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
