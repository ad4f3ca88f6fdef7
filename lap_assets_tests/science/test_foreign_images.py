"""Calibrated files of other pipelines: codes become our bits, zero weights become flags or missing data."""

import numpy as np
import pytest

from lap_assets.model.image import Mask
from lap_assets.science.foreign_images import complete_variance, translate_mask

TABLE = {1: ("BAD",), 3: ("SATURATED",), 5: ("COSMIC_RAY",)}


def test_codes_and_bits_are_read_differently_and_unknown_codes_are_suspect():
    codes = np.array([[0, 1, 3, 5, 9]])
    as_codes = translate_mask(codes, TABLE, is_bits=False)[0]
    assert as_codes.tolist() == [0, int(Mask.BAD), int(Mask.SATURATED), int(Mask.COSMIC_RAY), int(Mask.SUSPECT)]
    as_bits = translate_mask(np.array([[3, 2, 16]]), {1: ("BAD",), 2: ("BLEED",)}, is_bits=True)[0]
    assert as_bits.tolist() == [int(Mask.BAD | Mask.BLEED), int(Mask.BLEED), int(Mask.SUSPECT)]


def test_planes_are_finite_and_say_where_there_is_no_data():
    sci = np.array([[10.0, 20.0, np.nan, 40.0, 50.0]], np.float32)
    ivar = np.array([[0.25, 0.0, 0.25, 0.0, np.nan]], np.float32)
    mask = np.array([[0, int(Mask.SATURATED), 0, 0, 0]], np.int16)
    sci, mask, var = complete_variance(sci, ivar, mask)
    empty = (mask[0] & int(Mask.NO_DATA)) != 0
    assert empty.tolist() == [False, False, True, True, True]
    assert np.isfinite(sci).all() and np.isfinite(var).all()
    assert var[0].tolist() == pytest.approx([4.0, 4.0, 0.0, 0.0, 0.0])
    assert sci[0].tolist() == pytest.approx([10.0, 20.0, 0.0, 0.0, 0.0])


def test_an_image_without_any_weight_has_no_data():
    _, mask, var = complete_variance(np.ones((2, 2), np.float32), np.zeros((2, 2)), np.zeros((2, 2), np.int16))
    assert (mask & int(Mask.NO_DATA)).all() and not var.any()
