"""Bad pixels in a subtraction: found, filled, followed through a kernel."""

import numpy as np
from scipy.signal import fftconvolve

from lap_assets.model.image import NO_WEIGHT, Mask, MaskedImage
from lap_assets.science.difference_masks import (
    fill_masked,
    find_bad,
    join_flags,
    merge_masks,
    share_of_bad,
    spread_flags,
)


def test_bad_is_what_is_flagged_or_not_finite_or_without_variance():
    sci = np.array([[1, np.nan, np.inf, 1, 1, 1, 1]], np.float32)
    var = np.array([[1, 1, 1, 0, -1, np.inf, 1]], np.float32)
    mask = np.array([[0, 0, 0, 0, 0, 0, int(Mask.BAD)]], np.int16)
    assert find_bad(sci, mask, var, int(NO_WEIGHT))[0].tolist() == [False] + [True] * 6


def test_holes_take_the_mean_of_their_surroundings_and_large_ones_zero():
    image = np.full((60, 60), 7.0, np.float32)
    bad = np.zeros(image.shape, bool)
    bad[10, 10] = bad[30:33, 20:23] = True
    bad[30:55, 30:55] = True
    image[bad] = np.nan
    (filled,) = fill_masked(bad, image)
    assert filled[10, 10] == 7.0
    assert (filled[30:33, 20:23] == 7.0).all()
    assert filled[42, 42] == 0.0
    assert np.isfinite(filled).all()
    assert (filled[~bad] == 7.0).all()
    assert fill_masked(np.zeros_like(bad), filled)[0] is filled


def test_share_of_bad_pixels_is_the_convolution_of_the_mask():
    rng = np.random.default_rng(2)
    bad = rng.random((80, 90)) < 0.05
    bad[30:50, 40:] = True
    kernel = rng.normal(size=(9, 9))
    weight = np.abs(kernel) / np.abs(kernel).sum()
    expected = fftconvolve(bad.astype(float), weight, mode="same")
    assert np.abs(share_of_bad(bad, kernel) - expected).max() < 1e-6


def test_flags_spread_as_far_as_told():
    mask = np.zeros((20, 20), np.int16)
    mask[10, 5] = int(Mask.SATURATED)
    near = spread_flags(mask, int(Mask.SATURATED | Mask.BLEED), 2)
    assert near.sum() == 25
    assert near[8:13, 3:8].all()


def test_mask_of_a_difference_says_where_each_image_fails():
    """LV-17: one bad pixel under a wide kernel does not count, many do; the other image's flags stay."""
    shape = (40, 40)
    planes = [
        MaskedImage(np.ones(shape, np.float32), np.zeros(shape, np.int16), np.ones(shape, np.float32)) for _ in range(2)
    ]
    sharp, broad = planes
    bad = np.zeros(shape, bool)
    bad[20, 10] = bad[18:23, 28:33] = True
    sharp.mask[bad] = int(Mask.BAD)
    broad.mask[12, 12] = int(Mask.COSMIC_RAY)
    broad.sci[14, 20] = np.nan
    mask = merge_masks(sharp, broad, bad, np.ones((5, 5)), 0.1)
    assert mask[20, 10] == 0
    assert mask[20, 30] & int(Mask.BAD) and mask[20, 30] & int(Mask.EDGE)
    assert mask[12, 12] == int(Mask.COSMIC_RAY)
    assert mask[14, 20] == int(Mask.NO_DATA)
    assert (mask[:2] & int(Mask.EDGE)).all()
    assert not mask[8, 8]


def test_bad_pixels_of_one_image_are_joined_with_flags_of_the_other():
    bad = np.array([[True, False, False, False]])
    mask = np.array([[0, int(Mask.NO_DATA), int(Mask.COSMIC_RAY), int(Mask.EDGE | Mask.DETECTED)]], np.int16)
    bits = np.int16(Mask.NO_DATA | Mask.EDGE)
    assert join_flags(bad, mask, bits).tolist() == [[True, True, False, True]]


def test_where_both_images_are_convolved_holes_reach_as_far_as_a_kernel_of_their_own_says():
    """LV-17: a kernel that rings would flag 10 px about a gap; its own flags 2, and single pixels alone."""
    shape = (60, 60)
    sharp, broad = (
        MaskedImage(np.ones(shape, np.float32), np.zeros(shape, np.int16), np.ones(shape, np.float32)) for _ in range(2)
    )
    bad = np.zeros(shape, bool)
    bad[:, 40:] = bad[30, 20] = True
    ringing = np.full((21, 21), 0.01)
    ringing[10, 10] = 1.0
    mask = merge_masks(sharp, broad, bad, ringing, 0.1, reach=np.ones((5, 5)))
    edge = mask[11:-11, 11:-11] & int(Mask.EDGE) != 0
    assert edge[:, 38 - 11 :].all()
    assert edge[30 - 11, 20 - 11]
    assert edge[:, : 38 - 11].sum() == 1
    assert (merge_masks(sharp, broad, bad, ringing, 0.1)[11:-11, 34] & int(Mask.EDGE)).all()
