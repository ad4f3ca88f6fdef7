"""The one entry for differences: choice of method, bad input, and the judgement of a subtraction."""

from dataclasses import replace

import numpy as np
import pytest

from lap_assets.errors import BadInput, UnprocessableData
from lap_assets.model.image import Mask, MaskedImage
from lap_assets.science.diff import DiffLimits, judge_difference, subtract_images
from lap_assets.science.moffat import MoffatPsf
from lap_assets_tests.science.difference_fields import draw_psfs, make_pair, read_covariances

WIDTHS = (3.2, 2.5)
METHODS = ("alard_lupton", "zogy")


def subtract(science, template, method, psfs=None):
    factors = read_covariances(science, template)
    return subtract_images(science, template, *(psfs or draw_psfs(*WIDTHS)), DiffLimits(method=method), factors)


def assert_finite(difference):
    image = difference.image
    for plane in (image.sci, image.var, difference.kernel, difference.correlation):
        assert np.isfinite(plane).all()
    assert difference.score is None or np.isfinite(difference.score).all()
    assert (image.var[image.usable] > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_methods_share_one_interface(method):
    """LAP-30: the method is a matter of configuration; a good subtraction is judged good by either."""
    science, template, _ = make_pair(*WIDTHS)
    difference = subtract(science, template, method)
    assert difference.method == method
    assert difference.decorrelated
    assert difference.n_matched >= 20
    assert difference.psf.evaluate(200.0, 200.0).sum() == pytest.approx(1.0, abs=1e-6)
    assert len(difference.psf.evaluate_many(np.array([1.0, 399.0]), np.array([5.0, 5.0]))) == 2
    assert (difference.score is not None) == (method == "zogy")
    assert judge_difference(difference, DiffLimits()) == ""
    assert_finite(difference)


def test_unknown_methods_and_other_shapes_are_refused():
    science, template, _ = make_pair(*WIDTHS)
    with pytest.raises(BadInput, match="no method 'hotpants'"):
        subtract(science, template, "hotpants")
    small = MaskedImage(template.sci[:99], template.mask[:99], template.var[:99], template.header)
    with pytest.raises(BadInput, match="not of one grid"):
        subtract(science, small, "zogy")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("which", [0, 1])
def test_an_image_without_a_good_pixel_is_the_datas_fault(method, which):
    """LV-17: one line that says what is wrong."""
    pair = make_pair(*WIDTHS)[:2]
    pair[which].mask[:] = int(Mask.NO_DATA)
    pair[which].var[:] = 0
    with pytest.raises(UnprocessableData, match="unsaturated object") as told:
        subtract(*pair, method)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("method", METHODS)
def test_fields_without_stars_are_the_datas_fault(method):
    science, template, _ = make_pair(*WIDTHS, n_stars=0)
    with pytest.raises(UnprocessableData, match="in both images"):
        subtract(science, template, method)


@pytest.mark.parametrize("method", METHODS)
def test_a_wcs_off_by_five_arcseconds_is_caught(method):
    """LV-17: a template displaced by 20 px (5″): refused, or judged bad, never believed."""
    science, template, _ = make_pair(*WIDTHS)
    moved = MaskedImage(*(np.roll(plane, 20, axis=1) for plane in (template.sci, template.mask, template.var)))
    moved.header["NOISECOV"] = template.header["NOISECOV"]
    try:
        difference = subtract(science, moved, method)
    except UnprocessableData as told:
        assert "WCS" in str(told) or "no star" in str(told) or "flux ratio" in str(told)
    else:
        assert judge_difference(difference, DiffLimits())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("which", [0, 1])
def test_islands_of_nan_and_bad_variances_are_masked(method, which):
    """LV-17: NaN islands, zero, negative and infinite variances: finite planes, none of these pixels usable, the rest
    as good as before.
    """
    pair = make_pair(*WIDTHS)[:2]
    one = pair[which]
    bad = np.zeros(one.shape, bool)
    for k, (row, column) in enumerate([(60, 80), (150, 300), (250, 120), (330, 260), (200, 200)]):
        cut = np.s_[row : row + 12, column : column + 9]
        bad[cut] = True
        if k == 0:
            one.sci[cut] = np.nan
        elif k == 1:
            one.sci[cut] = np.inf
        else:
            one.var[cut] = (0.0, -5.0, np.inf)[k - 2]
    difference = subtract(*pair, method)
    assert_finite(difference)
    inner = bad & np.roll(bad, 4, axis=0) & np.roll(bad, -4, axis=0)
    assert not difference.image.usable[inner].any()
    assert difference.image.usable.mean() > 0.75
    assert difference.sky_chi == pytest.approx(1.0, abs=0.04)
    assert judge_difference(difference, DiffLimits()) == ""


@pytest.mark.parametrize("method", METHODS)
def test_a_template_of_half_the_field_gives_half_a_difference(method):
    science, template, _ = make_pair(*WIDTHS)
    template.mask[:, 220:] = int(Mask.NO_DATA)
    template.sci[:, 220:] = 0
    template.var[:, 220:] = 0
    difference = subtract(science, template, method)
    assert_finite(difference)
    assert not difference.image.usable[:, 224:].any()
    assert difference.image.usable[20:-20, 20:200].mean() > 0.95
    assert difference.sky_chi == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("width", [np.nan, 0.0, 500.0])
def test_an_impossible_psf_is_named(width):
    science, template, _ = make_pair(*WIDTHS)
    with pytest.raises(UnprocessableData, match="PSF of the template"):
        subtract(science, template, "zogy", (MoffatPsf(3.0), MoffatPsf(width)))


def test_what_is_wrong_with_a_subtraction_is_said_in_one_line():
    """LAP-30: each of the criteria, named with its number."""
    science, template, _ = make_pair(*WIDTHS)
    good = subtract(science, template, "alard_lupton")
    for change, words in (
        ({"n_matched": 2}, "2 stars in both"),
        ({"astrometric_offset_px": (3.0, 4.0)}, "5.00 px"),
        ({"kernel_sum": 0.5}, "flux ratio 0.5"),
        ({"kernel_sum": -1.0}, "flux ratio -1"),
        ({"stamp_chi2": 9.0}, "chi2 9.0"),
        ({"left_out_chi2": 7.0}, "chi2 7.0"),
        ({"sky_chi": 1.6}, "1.60 times"),
        ({"sky_chi": float("nan")}, "nan times"),
    ):
        said = judge_difference(replace(good, **change), DiffLimits())
        assert words in said
        assert "\n" not in said
    assert judge_difference(replace(good, left_out_chi2=float("nan")), DiffLimits()) == ""
