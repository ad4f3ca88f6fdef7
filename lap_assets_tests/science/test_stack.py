"""Clipped combination: what is rejected, what never is, noise, bands, small numbers of inputs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.model.image import Mask, MaskedImage
from lap_assets.science import stack
from lap_assets.science.stack import ClipLimits

LIMITS = ClipLimits()
NOISE = 10.0


def draw_moffat(shape, x, y, flux, fwhm, beta=3.0):
    v, u = np.mgrid[: shape[0], : shape[1]]
    alpha = 0.5 * fwhm / np.sqrt(2 ** (1 / beta) - 1)
    image = np.zeros(shape)
    for one in zip(x, y, flux, strict=True):
        r2 = ((u - one[0]) ** 2 + (v - one[1]) ** 2) / alpha**2
        image += one[2] * (beta - 1) / (np.pi * alpha**2) * (1 + r2) ** -beta
    return image


def make_inputs(fwhms, seed=1, shape=(90, 110), flux=(3e5, 1e5, 2e4, 5e3), noise=NOISE):
    """Warps of the same stars in different seeing, with Poisson-like variance and white noise."""
    rng = np.random.default_rng(seed)
    x, y = np.array([20.3, 55.8, 85.1, 40.0]), np.array([22.7, 60.2, 30.4, 75.5])
    images = []
    for fwhm in fwhms:
        truth = draw_moffat(shape, x, y, flux, fwhm)
        variance = noise**2 + 0.5 * truth
        sci = truth + rng.normal(size=shape) * np.sqrt(variance)
        images.append(MaskedImage(sci.astype(np.float32), np.zeros(shape, np.int16), variance.astype(np.float32)))
    return images


def combine(images, limits=LIMITS, fwhms=None):
    weights = stack.choose_weights([stack.typical_variance(one) for one in images])
    return stack.combine_images(images, weights, limits, fwhms)


@pytest.mark.parametrize(
    "fwhms", [[2.1, 2.4, 2.6, 2.2, 3.0, 2.8], [2.0, 3.25, 3.25], [2.0, 2.0, 3.25], [2.0, 3.25], [2.0, 3.0, 2.0, 3.25]]
)
def test_star_cores_and_wings_are_never_clipped(fwhms):
    """Seeing 0.8–1.3″ at 0.4″/px, stars up to S/N 1000: no pixel within 3 FWHM of a star is rejected; LV-16."""
    result = combine(make_inputs(fwhms), fwhms=fwhms)
    v, u = np.mgrid[:90, :110]
    near = np.zeros((90, 110), bool)
    for x, y in ((20.3, 22.7), (55.8, 60.2), (85.1, 30.4)):
        near |= np.hypot(u - x, v - y) < 3 * 3.25
    clipped = (result.mask & int(Mask.CLIPPED)) != 0
    assert clipped[near].sum() == 0
    assert (result.planes["NINPUT"][near] == len(fwhms)).all()


def test_a_narrow_tolerance_would_clip_them():
    fwhms = [2.1, 2.4, 2.6, 2.2, 3.0, 2.8]
    tight = combine(make_inputs(fwhms), ClipLimits(amplitude=0.1), None)
    assert ((tight.mask & int(Mask.CLIPPED)) != 0)[18:28, 16:26].sum() > 5


def add_hits(images, seed=2):
    """Cosmic rays of 30–500 sigma off the stars; from three inputs on with the negative rings of a resampled hit."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[:90, :110]
    free = np.ones((90, 110), bool)
    for x, y in ((20.3, 22.7), (55.8, 60.2), (85.1, 30.4), (40.0, 75.5)):
        free &= np.hypot(u - x, v - y) > 18
    free[:5], free[-5:], free[:, :5], free[:, -5:] = False, False, False, False
    places = np.argwhere(free)
    for one in images:
        for y, x in places[rng.integers(0, len(places), 12)]:
            amplitude = NOISE * rng.uniform(30, 500)
            one.sci[y, x : x + 2] += amplitude
            one.sci[y, x - 1] += 0.3 * amplitude
            if len(images) > 2:
                one.sci[y - 1, x] -= 0.1 * amplitude


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
def test_cosmic_rays_go(n):
    """At least 98 % of 36 n hit pixels; without clipping they stay."""
    fwhms = [2.5] * n
    images, clean = make_inputs(fwhms), combine(make_inputs(fwhms), None)
    add_hits(images)
    limit = 8 * NOISE / np.sqrt(n)
    dirty, result = combine(images, None), combine(images)
    assert (np.abs(dirty.sci - clean.sci) > limit).sum() > 25 * n
    assert (np.abs(result.sci - clean.sci) > limit).sum() <= 0.02 * 36 * n
    assert ((result.mask & int(Mask.CLIPPED)) != 0).sum() >= 33 * n


def test_noise_is_ideal_and_the_mean_unbiased():
    """Pure noise of unequal inputs: scatter within 1 % of ideal inverse variance, χ 1, no bias, few clipped."""
    rng = np.random.default_rng(5)
    sigmas = np.array([8.0, 10.0, 12.0, 20.0, 9.0, 11.0])
    shape = (300, 300)
    images = [
        MaskedImage(
            rng.normal(0, s, shape).astype(np.float32), np.zeros(shape, np.int16), np.full(shape, s * s, np.float32)
        )
        for s in sigmas
    ]
    result = combine(images)
    ideal = 1 / np.sqrt(np.sum(sigmas**-2.0))
    assert result.sci.std() == pytest.approx(ideal, rel=0.01)
    assert np.std(result.sci / np.sqrt(result.var)) == pytest.approx(1.0, abs=0.01)
    assert abs(result.sci.mean()) < 4 * ideal / 300
    assert ((result.mask & int(Mask.CLIPPED)) != 0).mean() < 1e-3
    assert (result.planes["NINPUT"] >= 5).all()
    assert result.planes["NINPUT"].dtype == np.int16


def test_masked_inputs_do_not_count_and_saturation_stays():
    images = make_inputs([2.5, 2.5, 2.5])
    images[0].mask[10:20, 10:20] = int(Mask.COSMIC_RAY)
    images[0].sci[10:20, 10:20] = 1e7
    images[1].mask[30, 30] = int(Mask.SATURATED)
    for one in images:
        one.mask[50:55, 100:] |= int(Mask.NO_DATA)
        one.sci[50:55, 100:], one.var[50:55, 100:] = 0, 0
    images[2].mask[70:72, 5] = int(Mask.BAD)
    result = combine(images)
    assert (result.planes["NINPUT"][10:20, 10:20] == 2).all()
    assert result.sci[10:20, 10:20].max() < 3e5
    assert result.mask[30, 30] & int(Mask.SATURATED)
    empty = np.s_[50:55, 100:]
    assert (result.mask[empty] & int(Mask.NO_DATA)).all()
    assert (result.sci[empty] == 0).all()
    assert (result.var[empty] == 0).all()
    assert (result.mask[70:72, 5] & int(Mask.BAD) == 0).all()


def test_single_input_passes_through():
    images = make_inputs([2.5])
    images[0].sci[40, 40] += 1e5
    result = combine(images)
    assert np.array_equal(result.sci, images[0].sci)
    assert np.allclose(result.var, images[0].var)
    assert (result.planes["NINPUT"] == 1).all()


def test_inputs_without_variance_get_no_weight():
    assert stack.choose_weights([4.0, float("nan"), 1.0, 0.0, float("inf")]).tolist() == [0.2, 0.0, 0.8, 0.0, 0.0]
    assert not stack.choose_weights([float("nan")]).any()
    images = make_inputs([2.5, 2.5, 2.5])
    images[1].var[:] = 0
    result = combine(images)
    assert (result.planes["NINPUT"] == 2).all()


def test_bands_do_not_matter():
    images = make_inputs([2.1, 2.4, 2.6, 2.2, 3.0, 2.8])
    rng = np.random.default_rng(6)
    for one in images:
        one.sci[rng.random(one.shape) < 0.02] += 500
    weights = stack.choose_weights([stack.typical_variance(one) for one in images])

    def read_rows(index, first, last):
        return images[index].sci[first:last], images[index].mask[first:last], images[index].var[first:last]

    whole = stack.combine_rows(read_rows, weights, (90, 110), LIMITS, None, band_rows=128)
    thin = stack.combine_rows(read_rows, weights, (90, 110), LIMITS, None, band_rows=7)
    for name in ("sci", "mask", "var"):
        assert np.array_equal(getattr(whole, name), getattr(thin, name)), name
    assert np.array_equal(whole.planes["NINPUT"], thin.planes["NINPUT"])


def test_covariance_of_a_mean():
    assert stack.combine_covariance([1.3, 1.3], np.array([0.5, 0.5]), [4.0, 4.0]) == pytest.approx(1.3)
    assert stack.combine_covariance([1.0, 2.0], np.array([0.5, 0.5]), [4.0, 4.0]) == pytest.approx(1.5)
    assert stack.combine_covariance([1.2, 9.0], np.array([1.0, 0.0]), [4.0, float("nan")]) == pytest.approx(1.2)


@given(n=st.integers(1, 60), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_sorting_network_sorts(n, seed):
    values = np.random.default_rng(seed).integers(0, 9, n)
    expected = np.sort(values)
    for low, high in stack.sorting_network(n):
        values[low], values[high] = min(values[low], values[high]), max(values[low], values[high])
    assert np.array_equal(values, expected)


@given(n=st.integers(1, 7), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_mean_lies_within_its_inputs(n, seed):
    rng = np.random.default_rng(seed)
    shape = (9, 11)
    images = [
        MaskedImage(
            rng.normal(0, 50, shape).astype(np.float32),
            np.where(rng.random(shape) < 0.3, int(Mask.BAD), 0).astype(np.int16),
            rng.uniform(1, 9, shape).astype(np.float32),
        )
        for _ in range(n)
    ]
    result = combine(images)
    cube = np.array([np.where(one.mask == 0, one.sci, np.nan) for one in images])
    some = np.isfinite(cube).any(axis=0)
    low, high = np.where(some, cube, 0), np.where(some, cube, 0)
    low, high = np.nanmin(low, axis=0), np.nanmax(high, axis=0)
    assert np.array_equal(result.planes["NINPUT"] > 0, some)
    assert (result.sci[some] >= low[some] - 1e-3).all()
    assert (result.sci[some] <= high[some] + 1e-3).all()
    assert np.isfinite(result.var).all()
