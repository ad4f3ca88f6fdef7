"""Saturation (LV-11): full pixels and bleed trails are told apart, round cores are not called trails."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation

from lap_assets.model.image import Mask
from lap_assets.science.saturation import flag_saturation
from lap_assets_tests.science.star_fields import add_star, two_amplifier_chip

SATURATED, BLEED = int(Mask.SATURATED), int(Mask.BLEED)


def saturated_star(trail: int):
    chip = two_amplifier_chip(128)
    image = np.full((128, 128), 1500.0)
    add_star(image, 40.0, 64.0, 3e6, 3.0)
    image[64 - trail : 65 + trail, 40] = 60000.0
    return np.minimum(image, 60000.0).astype(np.float32), chip


def test_core_is_saturated_and_the_trail_is_bleed():
    image, chip = saturated_star(trail=30)
    mask = flag_saturation(image, chip.amplifiers)
    assert (mask[image >= 50000.0] & SATURATED != 0).all()
    assert (mask[64 + 15 : 64 + 31, 40] & BLEED != 0).all() and (mask[64 - 30 : 64 - 14, 40] & BLEED != 0).all()
    assert mask[64, 40] & BLEED == 0
    assert mask[64 + 35, 40] == 0


def test_a_star_without_trail_has_no_bleed_and_a_field_without_saturation_no_flags():
    image, chip = saturated_star(trail=0)
    mask = flag_saturation(image, chip.amplifiers)
    assert (mask & SATURATED != 0).any() and not (mask & BLEED != 0).any()
    assert not flag_saturation(np.full((128, 128), 40000.0, np.float32), chip.amplifiers).any()


def test_each_amplifier_has_its_own_limit():
    chip = two_amplifier_chip(32)
    chip = chip.model_copy(
        update={"amplifiers": (chip.amplifiers[0], chip.amplifiers[1].model_copy(update={"saturation_adu": 30000.0}))}
    )
    image = np.zeros((32, 32), np.float32)
    image[8, 8] = image[8, 24] = 40000.0
    mask = flag_saturation(image, chip.amplifiers, grow_px=0)
    assert mask[8, 8] == 0 and mask[8, 24] == SATURATED


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), grow_px=st.integers(0, 3), part=st.floats(0.0, 0.3))
def test_saturated_is_what_is_full_and_its_surroundings_and_no_more(seed, grow_px, part):
    """Whatever the groups look like: SATURATED is the full pixels grown, BLEED lies within it."""
    full = np.random.default_rng(seed).uniform(size=(32, 32)) < part
    mask = flag_saturation(np.where(full, 55000.0, 100.0).astype(np.float32), two_amplifier_chip(32).amplifiers,
                           grow_px=grow_px)  # fmt: skip
    grown = binary_dilation(full, np.ones((3, 3), bool), iterations=grow_px) if grow_px else full
    assert np.array_equal((mask & SATURATED) != 0, grown)
    assert not ((mask & BLEED != 0) & ~grown).any()
