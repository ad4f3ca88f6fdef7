"""Taking inputs out of a stack: equal to combining the others, nothing left without all, levels, no count needed."""

from dataclasses import replace

import numpy as np
import pytest

from lap_assets.model.image import Mask, MaskedImage
from lap_assets.science.input_removal import remove_inputs
from lap_assets.science.stack import Combination, subtract_level
from lap_assets_tests.science.test_stack import add_hits, combine_images, make_inputs, plan


def copy_image(image):
    return MaskedImage(
        image.sci.copy(), image.mask.copy(), image.var.copy(),
        planes={name: plane.copy() for name, plane in image.planes.items()},
    )  # fmt: skip


def level_and_hit(n, seed):
    """Inputs with planes of background and hits; the planes."""
    rng = np.random.default_rng(seed)
    images = make_inputs(rng.uniform(2.2, 3.0, n), seed=seed)
    add_hits(images, seed)
    levels = rng.normal(0, 5, (n, 3))
    v, u = np.mgrid[:90, :110]
    for one, (c0, c1, c2) in zip(images, levels, strict=True):
        one.sci += (c0 + c1 * (u - 54.5) / 55 + c2 * (v - 44.5) / 45).astype(np.float32)
        one.mask[rng.random(one.shape) < 0.03] |= int(Mask.BAD)
    return images, levels


@pytest.mark.parametrize(("n", "gone"), [(6, [2]), (6, [0, 1, 5]), (12, [3, 11]), (40, [0, 33, 39])])
def test_a_stack_without_some_inputs_is_arithmetic(n, gone):
    """LAP-30, AP-06: equal to the restack with the same rejections to 1e-5 sigma (or the ulp of float32 where a star is
    brighter than 100 sigma), variance to 1e-6; weight sums from the bits.
    """
    images, levels = level_and_hit(n, 7)
    chosen = replace(plan(images), levels=levels)
    full = combine_images(images, chosen)
    rest = [k for k in range(n) if k not in gone]
    for k in rest:  # the same rejections
        lost = (full.used[k // 31] >> (k % 31)) & 1 == 0
        images[k].mask[lost] |= int(Mask.COSMIC_RAY)
    again = combine_images(
        [images[k] for k in rest], Combination(chosen.weights[rest], None, levels=levels[rest])
    ).image
    result = copy_image(full.image)
    remove_inputs(result, full.used, chosen.weights, gone, [images[k] for k in gone], levels[gone])
    sigma = np.sqrt(np.where(again.var > 0, again.var, 1))
    close = np.abs(result.sci.astype(float) - again.sci) <= 1e-5 * sigma + 4 * np.spacing(np.abs(full.image.sci))
    assert close.all()
    faint = np.abs(full.image.sci) < 20 * sigma
    assert (np.abs(result.sci - again.sci) / sigma)[faint].max() < 1e-5
    np.testing.assert_allclose(result.var, again.var, rtol=2e-6)
    assert np.array_equal(result.planes["NINPUT"], again.planes["NINPUT"])
    weight_sum = sum(chosen.weights[k] * ((full.used[k // 31] >> (k % 31)) & 1) for k in range(n))
    count = sum((full.used[k // 31].astype(int) >> (k % 31)) & 1 for k in range(n))
    assert np.array_equal(count, full.image.planes["NINPUT"])
    assert ((weight_sum > 0) == (full.image.var > 0)).all()


def test_nothing_is_left_without_all_inputs():
    images, levels = level_and_hit(3, 3)
    chosen = replace(plan(images), levels=levels)
    full = combine_images(images, chosen)
    empty = copy_image(full.image)
    remove_inputs(empty, full.used, chosen.weights, [0, 1, 2], images, levels)
    assert not empty.sci.any()
    assert not empty.var.any()
    assert (empty.mask & int(Mask.NO_DATA) != 0).all()


def test_levels_are_taken_off_as_from_images():
    """The plane of an input, by its coefficients or off the image before; a stack read without NINPUT is the same."""
    images, levels = level_and_hit(6, 5)
    chosen = replace(plan(images), levels=levels)
    full = combine_images(images, chosen)
    results = [copy_image(full.image) for _ in range(3)]
    del results[2].planes["NINPUT"]
    levelled = [subtract_level(images[k], levels[k]) for k in (1, 4)]
    remove_inputs(results[0], full.used, chosen.weights, [1, 4], [images[k] for k in (1, 4)], levels[[1, 4]])
    remove_inputs(results[1], full.used, chosen.weights, [1, 4], levelled)
    remove_inputs(results[2], full.used, chosen.weights, [1, 4], levelled)
    for other in results[1:]:
        for name in ("sci", "mask", "var"):
            assert np.array_equal(getattr(results[0], name), getattr(other, name))
    assert np.abs(results[0].sci - full.image.sci).max() > 1.0
