"""Cosmic rays (LV-11): found as completely as astroscrappy finds them, star cores spared, dead columns no trap."""

import astroscrappy
import numpy as np
import pytest

from lap_assets.model.image import Mask
from lap_assets.science.cosmic_rays import find_cosmic_rays, flag_cosmic_rays
from lap_assets_tests.science.star_fields import add_cosmic_rays, observe, star_field

SKY, NOISE = 800.0, 5.0


@pytest.fixture(scope="module", params=[2.1, 3.0], ids=["fwhm 2.1 px", "fwhm 3.0 px"])
def field(request):
    rng = np.random.default_rng(4)
    stars, x, y, _ = star_field(rng, (512, 512), 150, request.param, flux=(1e3, 1e6))
    image = observe(rng, stars, SKY, NOISE)
    truth = add_cosmic_rays(rng, image, 60, 5.0 * np.sqrt(SKY + NOISE**2))
    return image, truth, np.rint(x).astype(int), np.rint(y).astype(int)


def find(image, **changes):
    nothing = np.zeros(image.shape, bool)
    return find_cosmic_rays(image, nothing, nothing, NOISE, **changes)


def test_at_least_96_per_cent_of_the_pixels_above_5_sigma_are_found(field):
    image, truth, _, _ = field
    found = find(image)
    assert found[truth].mean() >= 0.96
    assert (found & ~truth).sum() < 0.1 * truth.sum() + 0.0005 * truth.size


def test_not_less_complete_than_astroscrappy(field):
    image, truth, _, _ = field
    theirs, _ = astroscrappy.detect_cosmics(
        image, gain=1.0, readnoise=NOISE, satlevel=1e9, sigclip=4.5, sigfrac=0.3, objlim=5.0, niter=4, sepmed=True
    )
    assert find(image)[truth].mean() >= theirs[truth].mean() - 0.005


def test_star_cores_are_spared(field):
    """Within a pixel of 150 stars of up to 1e6 electrons, away from true hits, next to nothing is flagged."""
    image, truth, x, y = field
    found = find(image)
    flagged = [
        (found & ~truth)[b - 1 : b + 2, a - 1 : a + 2].any() and not truth[b - 4 : b + 5, a - 4 : a + 5].any()
        for a, b in zip(x, y, strict=True)
    ]
    assert sum(flagged) <= 2


def test_a_dead_column_does_not_make_its_neighbours_cosmic_rays():
    rng = np.random.default_rng(5)
    image = observe(rng, np.zeros((256, 256)), SKY, NOISE)
    dead = np.zeros(image.shape, bool)
    dead[:, 100] = True
    image[dead] = 10.0
    nothing = np.zeros_like(dead)
    assert find_cosmic_rays(image, dead, nothing, NOISE).sum() < 20
    assert find_cosmic_rays(image, nothing, dead, NOISE).sum() > 200  # left in as it is, it does


def test_deterministic_and_the_input_is_untouched():
    rng = np.random.default_rng(6)
    image = observe(rng, np.zeros((128, 128)), SKY, NOISE)
    add_cosmic_rays(rng, image, 10, 100.0)
    before = image.copy()
    assert np.array_equal(find(image), find(image))
    assert np.array_equal(image, before)
    assert flag_cosmic_rays(np.zeros((1, 1), np.int16), np.ones((1, 1), bool))[0, 0] == int(Mask.COSMIC_RAY)


def test_noise_alone_is_no_cosmic_ray():
    """LV-11: a million pixels of sky; without the judgement of whole groups some of its peaks are flagged."""
    rng = np.random.default_rng(7)
    image = observe(rng, np.zeros((1024, 1024)), SKY, NOISE)
    assert find(image).sum() == 0
    assert find(image, min_snr=0.0).sum() > 10


def test_lone_hits_are_kept_down_to_the_limit_set():
    """LV-11: pixels of 12 sigma are hits at a limit of 6, and none of them at one of 20."""
    rng = np.random.default_rng(8)
    image = observe(rng, np.zeros((256, 256)), SKY, NOISE)
    lone = np.zeros(image.shape, bool)
    lone[10:250:20, 10:250:20] = True
    image[lone] += 12.0 * np.sqrt(SKY + NOISE**2)
    assert find(image)[lone].mean() > 0.95
    assert find(image, min_snr=20.0)[lone].sum() == 0
