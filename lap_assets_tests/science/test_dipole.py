"""Dipoles: fluxes, separation and orientation of a positive beside a negative source, against truth."""

import numpy as np
import pytest

from lap_assets.science.dipole import fit_dipoles
from lap_assets_tests.science.difference_fields import draw_moffat

N, FWHM, SIGMA = 61, 3.4, 10.0


def make_stamp():
    stamp = draw_moffat(31, [15], [15], [1.0], FWHM, half=15)
    return stamp[None] / stamp.sum()


def fit(positive, negative, standing=0.0, seed=1, start_off=0.6, masked=None):
    """A difference with both sources and noise of 10, fitted from places 0.6 px off."""
    rng = np.random.default_rng(seed)
    image = draw_moffat(N, *np.array([positive, negative]).T, FWHM) + rng.normal(0, SIGMA, (N, N))
    usable = np.ones((N, N), bool)
    if masked is not None:
        usable[masked] = False
        image[masked] = 1e7
    start = np.array([[*positive, *negative]]) + np.array([start_off, -start_off, 0, -start_off, start_off, 0])
    start[:, 2] *= 0.7
    start[:, 5] *= 0.7
    variance = np.full((N, N), SIGMA**2)
    return fit_dipoles(
        image.astype(np.float32), variance.astype(np.float32), usable, make_stamp(), np.zeros(1), start,
        np.array([standing]), FWHM,
    )  # fmt: skip


@pytest.mark.parametrize("angle", [0.0, 70.0, 160.0, -110.0])
def test_wide_dipoles_are_measured_without_help(angle):
    """1.3 FWHM apart, S/N of 60: places to 0.1 px, separation to 0.1 px, angle to 2 degrees, fluxes to 5 %."""
    apart = 1.3 * FWHM
    dx, dy = 0.5 * apart * np.cos(np.radians(angle)), 0.5 * apart * np.sin(np.radians(angle))
    truth = (30.3 + dx, 29.8 + dy, 5000.0), (30.3 - dx, 29.8 - dy, -4000.0)
    fits = fit(*truth)
    assert np.abs(fits.positive[0, :2] - truth[0][:2]).max() < 0.1
    assert np.abs(fits.negative[0, :2] - truth[1][:2]).max() < 0.1
    assert fits.separation_px[0] == pytest.approx(apart, abs=0.1)
    assert (fits.angle_deg[0] - angle + 180.0) % 360.0 - 180.0 == pytest.approx(0.0, abs=2.0)
    assert fits.positive[0, 2] == pytest.approx(5000, rel=0.05)
    assert fits.negative[0, 2] == pytest.approx(-4000, rel=0.05)
    assert fits.chi2[0] == pytest.approx(1.0, abs=0.25)


def test_what_stands_on_the_template_tells_close_ones_apart():
    """0.3 px apart (a registration error), where flux and separation are one: the template's flux makes both right."""
    truth = (30.0, 30.0, 12000.0), (30.3, 30.0, -12000.0)
    near = fit(*truth, standing=12000.0, start_off=0.8)
    assert near.separation_px[0] == pytest.approx(0.3, rel=0.15)
    assert near.negative[0, 2] == pytest.approx(-12000, rel=0.15)
    assert near.positive[0, 2] + near.negative[0, 2] == pytest.approx(0.0, abs=300)
    assert abs(near.angle_deg[0]) == pytest.approx(180.0, abs=5.0)


def test_many_of_them_are_unbiased():
    """40 noisy ones at S/N 15: mean flux of each sign to 3 %, separations to 0.1 px."""
    fits = [fit((28.0, 30.4, 1300.0), (32.4, 30.1, -1300.0), seed=seed) for seed in range(40)]
    positive, negative = (np.array([getattr(one, sign)[0, 2] for one in fits]) for sign in ("positive", "negative"))
    assert positive.mean() == pytest.approx(1300, rel=0.03)
    assert negative.mean() == pytest.approx(-1300, rel=0.03)
    apart = np.mean([one.separation_px[0] for one in fits])
    assert apart == pytest.approx(np.hypot(4.4, 0.3), abs=0.1)


def test_masked_pixels_do_not_enter_and_nothing_usable_is_not_known():
    truth = (28.0, 30.0, 5000.0), (32.5, 30.0, -5000.0)
    holed = fit(*truth, masked=np.s_[31:33, 27:34])
    assert holed.separation_px[0] == pytest.approx(4.5, abs=0.15)
    blind = fit(*truth, masked=np.s_[:, :])
    assert np.isnan(blind.positive).all() and np.isnan(blind.separation_px).all() and np.isnan(blind.chi2).all()
