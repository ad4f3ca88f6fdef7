"""The matching kernel's basis, the stamps it is fitted on, and the fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.model.image import Mask, MaskedImage
from lap_assets.science.matching_kernel import KernelLimits, choose_stamps, fit_kernel, make_basis
from lap_assets_tests.science.difference_fields import draw_moffat, make_pair

WHITE = np.ones((1, 1))


@settings(max_examples=15, deadline=None)
@given(sigma=st.floats(0.0, 6.0))
def test_only_the_first_member_carries_flux(sigma):
    """LAP-30 (Alard 2000): sum 1, the others 0, so that the kernel's sum is one coefficient everywhere."""
    basis = make_basis(sigma)
    sums = basis.images.sum(axis=(1, 2))
    assert basis.images.shape[0] == 31
    assert sums[0] == pytest.approx(1.0)
    assert np.abs(sums[1:]).max() < 1e-10
    assert basis.images.shape[1] == 2 * basis.radius + 1


def test_stamps_are_whole_bright_in_both_and_spread_over_the_field():
    science, template, (x, y, flux) = make_pair(3.2, 2.5)
    bright = int(np.argmax(np.where((x > 60) & (x < 340) & (y > 60) & (y < 340), flux, 0)))
    template.mask[round(y[bright]), round(x[bright])] |= int(Mask.SATURATED)
    px, py = choose_stamps(template, science, 7, 6, KernelLimits(max_stamps=16))
    assert len(px) == 16
    assert np.hypot(px - x[bright], py - y[bright]).min() > 3
    nearest = np.hypot(px[:, None] - x, py[:, None] - y).min(axis=1)
    assert nearest.max() < 1.5
    assert ((px >= 13) & (px < 387) & (py >= 13) & (py < 387)).all()
    quadrants = (px > 200) + 2 * (py > 200)
    assert np.bincount(quadrants, minlength=4).min() >= 2


def fit(science, template, limits=None, sigma=0.85):
    limits = limits or KernelLimits()
    basis = make_basis(sigma)
    x, y = choose_stamps(template, science, 7, basis.radius, limits)
    bad = np.zeros(science.shape, bool)
    return fit_kernel(template.sci, bad, template, science, x, y, 7, basis, limits, WHITE), basis, (x, y)


def test_kernel_of_noiseless_images_is_theirs():
    """LAP-30: flux ratio 1.02 to 1 % (the wings of a Moffat profile reach beyond any kernel), background 3 nJy, and no
    change over the field, of noiseless images.
    """
    n = 300
    rng = np.random.default_rng(7)
    x, y, flux = rng.uniform(20, n - 20, 40), rng.uniform(20, n - 20, 40), 10 ** rng.uniform(4.3, 5.3, 40)
    planes = [1.02 * draw_moffat(n, x, y, flux, 3.2) + 3.0, draw_moffat(n, x, y, flux, 2.5)]
    images = [
        MaskedImage(one.astype(np.float32), np.zeros((n, n), np.int16), np.full((n, n), 1.0, np.float32))
        for one in planes
    ]
    found, basis, _ = fit(*images)
    kernels, sky = found.split_kernel(basis)
    assert kernels[0].sum() == pytest.approx(1.02, abs=0.01)
    assert sky[0] == pytest.approx(3.0, abs=2.0)
    assert np.abs(kernels[1:]).sum(axis=(1, 2)).max() < 0.05


def test_noise_of_the_convolved_image_does_not_weaken_the_kernel():
    """LAP-30: a noisy sharper image would pull the flux ratio down by per cents; it stays within 1 %."""
    ratios = []
    for seed in range(4):
        science, template, _ = make_pair(3.2, 2.5, noise=(8.0, 40.0), seed=seed, n_stars=150)
        found, basis, _ = fit(science, template, KernelLimits(min_stamp_snr=10))
        ratios.append(found.split_kernel(basis)[0][0].sum())
    assert np.mean(ratios) == pytest.approx(1.02, abs=0.01)


def test_every_sixth_of_many_stamps_has_no_part_in_the_fit():
    science, template, _ = make_pair(3.2, 2.5)
    found, _, (x, _) = fit(science, template)
    assert len(x) >= 24
    assert found.left_out.sum() == len(x) // 6
    assert not (found.used & found.left_out).any()
    few, _, (x, _) = fit(science, template, KernelLimits(max_stamps=12))
    assert not few.left_out.any()


def test_a_neighbour_that_varies_does_not_enter_the_kernel():
    """LAP-30: beside each of ten stars stands a source that only the science image has: the kernel's sum stays within
    0.2 % of what it is without them.
    """
    n = 400
    gx, gy = (grid.ravel() for grid in np.meshgrid(np.arange(40, 370, 55.0), np.arange(40, 370, 55.0)))
    beside = np.random.default_rng(3).choice(gx.size, 10, replace=False)
    found = []
    for extra in (0.0, 8e3):
        rng = np.random.default_rng(4)
        science = 1.02 * draw_moffat(n, gx, gy, np.full(gx.size, 5e4), 3.2)
        science += draw_moffat(n, gx[beside] + 5.5, gy[beside] + 3.0, np.full(10, extra), 3.2)
        template = draw_moffat(n, gx, gy, np.full(gx.size, 5e4), 2.5)
        images = []
        for truth, sigma in ((science, 10.0), (template, 5.0)):
            sci, var = truth + rng.normal(0, sigma, (n, n)), np.full((n, n), sigma**2, np.float32)
            images.append(MaskedImage(sci.astype(np.float32), np.zeros((n, n), np.int16), var))
        fitted, basis, _ = fit(*images)
        found.append(fitted.split_kernel(basis)[0][0].sum())
    assert found[1] == pytest.approx(found[0], abs=0.002)
