"""Overscan (LV-11): the level of each row goes, whatever its drift, and the sky's noise does not grow."""

import numpy as np
import pytest

from lap_assets.errors import UnprocessableData
from lap_assets.science.overscan import assemble_chip, check_overscan, measure_overscan, subtract_overscan
from lap_assets_tests.science.star_fields import two_amplifier_chip


def raw_frame(rng, chip, sky=1000.0, noise=3.0):
    """Raw frame with a drifting level per amplifier; returns it and the drifts."""
    rows = np.arange(chip.raw_ny)
    drift = {"A": 500.0 + 8.0 * np.sin(rows / 40.0), "B": 700.0 - 0.05 * rows}
    raw = rng.normal(0.0, noise, chip.raw_shape)
    for amp in chip.amplifiers:
        for x0, x1, y0, y1 in (amp.data, amp.overscan):
            raw[y0:y1, x0:x1] += drift[amp.name][:, None]
        x0, x1, y0, y1 = amp.data
        raw[y0:y1, x0:x1] += sky
    return np.clip(np.rint(raw), 0, 65535).astype(np.uint16), drift


def test_drifting_levels_are_removed_to_a_third_of_an_adu():
    chip, rng = two_amplifier_chip(256), np.random.default_rng(1)
    raw, drift = raw_frame(rng, chip)
    image = subtract_overscan(assemble_chip(raw, chip), raw, chip.amplifiers)
    rows = image.reshape(256, 2, 128).mean(axis=2)
    assert np.abs(rows - 1000.0).max() < 5 * 3.0 / np.sqrt(128) + 0.35
    assert image.std() < 3.0 * 1.02 + 0.05
    # without the step it is all still there
    before = assemble_chip(raw, chip)
    assert np.ptp(before[:, :128].mean(axis=1)) > 12.0
    assert abs(before[:, 128:].mean() - before[:, :128].mean()) > 150.0
    assert drift["A"].mean() > 490


def test_a_hot_pixel_in_the_overscan_does_not_print_a_stripe():
    chip, rng = two_amplifier_chip(128), np.random.default_rng(2)
    raw, _ = raw_frame(rng, chip)
    clean = measure_overscan(raw, chip.amplifiers[0])
    raw[60, 3] = 60000
    assert np.abs(measure_overscan(raw, chip.amplifiers[0]) - clean).max() < 0.3


def test_an_amplifier_without_overscan_is_left_alone():
    chip, rng = two_amplifier_chip(128), np.random.default_rng(3)
    raw, _ = raw_frame(rng, chip)
    bare = chip.amplifiers[0].model_copy(update={"overscan": None})
    image = assemble_chip(raw, chip)
    assert np.array_equal(subtract_overscan(image, raw, [bare])[:, :64], image[:, :64])


@pytest.mark.parametrize("shape", [(128, 159), (127, 160), (160,)])
def test_a_raw_frame_of_another_shape_is_unprocessable(shape):
    with pytest.raises(UnprocessableData, match="c0"):
        assemble_chip(np.zeros(shape, np.uint16), two_amplifier_chip(128))


@pytest.mark.parametrize(("mode", "scatter_adu"), [("row", 0.6), ("spline", 0.2), ("median", 6.5)])
def test_each_mode_follows_the_drift_as_far_as_it_can(mode, scatter_adu):
    """A swing of 16 ADU over the chip: rows and spline follow it, one number per amplifier cannot."""
    chip, rng = two_amplifier_chip(256), np.random.default_rng(4)
    raw, drift = raw_frame(rng, chip)
    off = measure_overscan(raw, chip.amplifiers[0], mode=mode, knot_rows=32) - drift["A"]
    assert abs(off.mean()) < 0.3
    assert off.std() < scatter_adu
    if mode == "median":
        assert np.ptp(measure_overscan(raw, chip.amplifiers[0], mode=mode)) == 0.0 and off.std() > 4.0


def test_bad_rows_of_the_overscan_do_not_bend_the_spline():
    chip, rng = two_amplifier_chip(256), np.random.default_rng(5)
    raw, drift = raw_frame(rng, chip)
    raw[100:106, :16] += 5000  # a cosmic ray along the strip
    amplifier = chip.amplifiers[0]
    assert np.abs(measure_overscan(raw, amplifier, mode="spline", knot_rows=32) - drift["A"]).max() < 1.0
    assert np.abs(measure_overscan(raw, amplifier, mode="row") - drift["A"]).max() > 1000.0


def test_a_good_overscan_passes_and_a_short_one_is_fitted_with_fewer_knots():
    chip, rng = two_amplifier_chip(256), np.random.default_rng(6)
    raw, _ = raw_frame(rng, chip)
    check_overscan(raw, chip)
    few = chip.amplifiers[0].model_copy(update={"overscan": (0, 16, 0, 3), "data": (16, 144, 0, 3)})
    assert measure_overscan(raw, few, mode="spline").shape == (3,)


@pytest.mark.parametrize(
    ("fill", "says"),
    [(0, "is empty"), (60000, "is empty"), ("sky", "scatters by"), ("high", "above the light")],
)
def test_an_overscan_that_is_none_is_refused_with_chip_and_amplifier(fill, says):
    chip, rng = two_amplifier_chip(128), np.random.default_rng(7)
    raw, _ = raw_frame(rng, chip)
    strip = raw[:, 144:160]
    if fill == "sky":
        strip[:] = rng.poisson(1000.0, strip.shape)
    elif fill == "high":
        strip += 5000
    else:
        strip[:] = fill
    with pytest.raises(UnprocessableData, match=f"chip c0, amplifier B: the overscan .*{says}"):
        check_overscan(raw, chip)
