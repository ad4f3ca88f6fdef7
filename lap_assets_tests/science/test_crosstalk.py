"""Crosstalk (LV-11): ghosts of bright stars go, whatever order amplifiers are read in; without the step they stay."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.model.camera import Crosstalk
from lap_assets.model.image import Mask
from lap_assets.science.crosstalk import (
    invert_couplings,
    list_source_chips,
    orient_readout,
    subtract_crosstalk,
)
from lap_assets_tests.science.star_fields import add_star, two_amplifier_chip
from lap_assets_tests.science.star_measures import measure_shape, sum_flux, to_mmag

SKY, PEDESTAL = 200.0, 1000.0


def make_chip(name="c0", n=128):
    """A reads from the lower left corner, B from the lower right one."""
    chip = two_amplifier_chip(n)
    a, b = chip.amplifiers
    return chip.model_copy(
        update={"name": name, "amplifiers": (a, b.model_copy(update={"readout": ("right", "bottom")}))}
    )


def to_raw(chip, image):
    """Raw frame with a pedestal, from a trimmed one."""
    raw = np.full(chip.raw_shape, PEDESTAL, np.float32)
    for amp in chip.amplifiers:
        x0, x1, y0, y1 = amp.data
        a, b, c, d = amp.target
        raw[y0:y1, x0:x1] += image[c:d, a:b]
    return raw


def disturb(image, chip, source_image, couplings):
    """What the amplifiers of a chip receive from those of another (the forward model: first order, by hand)."""
    result = image.copy()
    boxes = {amp.name: amp for amp in chip.amplifiers}
    for one in couplings:
        victim, source = boxes[one.victim_amplifier], boxes[one.source_amplifier]
        a, b, c, d = source.target
        signal = orient_readout(source_image[c:d, a:b], source.readout)
        a, b, c, d = victim.target
        orient_readout(result[c:d, a:b], victim.readout)[:] += one.coefficient * signal
    return result


def test_a_ghost_of_a_bright_star_no_longer_biases_the_star_under_it():
    chip = make_chip()
    image = np.full((128, 128), SKY)
    add_star(image, 30.0, 60.0, 4e5, 3.0)  # in A, mirrored to x = 127 − 30 in B
    add_star(image, 97.0 - 2.0, 60.0, 3e3, 3.0)
    couplings = [Crosstalk(victim="c0/B", source="c0/A", coefficient=2e-3)]
    dirty = disturb(image, chip, image, couplings).astype(np.float32) + np.float32(PEDESTAL)
    raw = to_raw(chip, dirty - PEDESTAL)
    clean, flags = subtract_crosstalk(dirty, chip, invert_couplings(couplings), [(chip, raw)])
    level = SKY * 1.002 + PEDESTAL
    true = sum_flux(image, 95.0, 60.0, SKY)
    assert to_mmag(sum_flux(dirty, 95.0, 60.0, level), true) < -200.0  # the ghost is a quarter of the faint star
    assert abs(to_mmag(sum_flux(clean, 95.0, 60.0, SKY + PEDESTAL), true)) < 1.0
    size = measure_shape(image, 95.0, 60.0, SKY)[0]
    assert abs(measure_shape(dirty, 95.0, 60.0, level)[0] / size - 1.0) > 0.02
    assert measure_shape(clean, 95.0, 60.0, SKY + PEDESTAL)[0] == pytest.approx(size, rel=1e-3)
    assert not flags.any()


def test_without_coefficients_nothing_changes():
    chip = make_chip()
    image = np.random.default_rng(1).normal(1000.0, 5.0, (128, 128)).astype(np.float32)
    clean, flags = subtract_crosstalk(image, chip, {}, [])
    assert np.array_equal(clean, image) and not flags.any()


def test_crosstalk_from_another_chip_is_taken_in_the_order_of_read_out():
    victim, source = make_chip("c0"), make_chip("c1")
    other = np.full((128, 128), 50.0)
    other[20, 100] = 30000.0  # in B of c1, read as pixel (20, 27); A of c0 reads that at x = 27
    couplings = [Crosstalk(victim="c0/A", source="c1/B", coefficient=1e-3)]
    factors = invert_couplings(couplings)
    assert list_source_chips(factors, "c0") == ("c1",) and list_source_chips(factors, "c1") == ()
    dirty = disturb(np.full((128, 128), SKY), victim, other, couplings).astype(np.float32)
    assert dirty[20, 27] > SKY + 29.0
    clean, _ = subtract_crosstalk(dirty, victim, factors, [(source, to_raw(source, other))])
    assert np.abs(clean - SKY).max() < 0.01


def test_pixels_under_a_saturated_source_are_flagged_at_the_mirrored_place():
    chip = make_chip()
    image = np.full((128, 128), SKY, np.float32)
    image[40, 10:13] = 60000.0
    factors = invert_couplings([Crosstalk(victim="c0/B", source="c0/A", coefficient=1e-3)])
    _, flags = subtract_crosstalk(image, chip, factors, [(chip, to_raw(chip, image))])
    expected = np.zeros((128, 128), bool)
    expected[40, 115:118] = True
    assert np.array_equal(flags == int(Mask.CROSSTALK), expected)


@settings(max_examples=25, deadline=None)
@given(
    coefficients=st.lists(st.floats(-5e-3, 5e-3), min_size=2, max_size=2),
    seed=st.integers(0, 1000),
)
def test_correction_inverts_couplings_of_two_amplifiers_both_ways(coefficients, seed):
    """Raw signals m = (I + C) t, both at once: t comes back, whatever the two coefficients."""
    chip = make_chip(n=16)
    image = np.random.default_rng(seed).uniform(0.0, 40000.0, (16, 16))
    couplings = [
        Crosstalk(victim="c0/A", source="c0/B", coefficient=coefficients[0]),
        Crosstalk(victim="c0/B", source="c0/A", coefficient=coefficients[1]),
    ]
    dirty = disturb(image, chip, image, couplings).astype(np.float32)
    clean, _ = subtract_crosstalk(dirty, chip, invert_couplings(couplings), [(chip, to_raw(chip, dirty))])
    assert np.abs(clean - image).max() < 0.02  # float32 of 40000


@pytest.mark.parametrize("readout", [("left", "bottom"), ("right", "bottom"), ("left", "top"), ("right", "top")])
def test_the_first_pixel_read_comes_first(readout):
    pixels = np.arange(12).reshape(3, 4)
    corner = pixels[2 if readout[1] == "top" else 0, 3 if readout[0] == "right" else 0]
    assert orient_readout(pixels, readout)[0, 0] == corner


def test_what_comes_by_way_of_a_third_chip_asks_for_no_frame_of_it():
    chain = [
        Crosstalk(victim="c0/A", source="c1/A", coefficient=1e-3),
        Crosstalk(victim="c1/A", source="c2/A", coefficient=1e-3),
    ]
    factors = invert_couplings(chain)
    assert list_source_chips(factors, "c0") == ("c1",)
    assert factors["c0/A", "c1/A"] == pytest.approx(-1e-3)


def test_a_saturated_pixel_is_not_flagged_for_its_own_sake():
    chip = make_chip()
    image = np.full((128, 128), SKY, np.float32)
    image[40, 10] = 60000.0
    couplings = [
        Crosstalk(victim="c0/B", source="c0/A", coefficient=1e-3),
        Crosstalk(victim="c0/A", source="c0/B", coefficient=1e-3),
    ]
    _, flags = subtract_crosstalk(image, chip, invert_couplings(couplings), [(chip, to_raw(chip, image))])
    assert np.argwhere(flags).tolist() == [[40, 117]]
