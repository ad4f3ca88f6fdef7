"""Pictures: small, deterministic, the right way up, and showing what is there."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lap_assets.model.image import Mask
from lap_assets.qa.pictures import MAX_THUMBNAIL_BYTES, colour_picture, shrink_image, stretch_asinh, thumbnail


def field(shape=(400, 300), seed=1):
    rng = np.random.default_rng(seed)
    image = rng.normal(1000.0, 5.0, shape).astype(np.float32)
    image[30:36, 20:26] += 500.0  # bottom left
    return image


def decode(data):
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (160, 160), (1024, 1024), (1500, 700)])
def test_thumbnails_are_small_and_keep_the_aspect(shape):
    data = thumbnail(np.random.default_rng(2).normal(0, 1, shape).astype(np.float32))
    assert len(data) <= MAX_THUMBNAIL_BYTES
    height, width, _ = decode(data).shape
    assert max(height, width) <= 160
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.35)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-6, 1e9), seed=st.integers(0, 99))
def test_thumbnails_of_any_scale_fit_and_repeat(scale, seed):
    image = (field(seed=seed) * scale).astype(np.float32)
    first = thumbnail(image)
    assert first == thumbnail(image)
    assert len(first) <= MAX_THUMBNAIL_BYTES


def test_thumbnail_carries_pixels_only():
    """No tEXt, tIME or other ancillary chunk that could hold a clock or a software name."""
    data = thumbnail(field())
    assert not any(chunk in data for chunk in (b"tEXt", b"iTXt", b"zTXt", b"tIME", b"eXIf"))


def test_row_zero_is_at_the_bottom_and_blank_pixels_are_black():
    image = field()
    mask = np.zeros(image.shape, np.int16)
    mask[:, 200:] = int(Mask.NO_DATA)
    picture = decode(thumbnail(image, mask))
    height, width, _ = picture.shape
    brightest = np.unravel_index(np.argmax(picture[..., 0]), (height, width))
    assert brightest[0] > 0.85 * height and brightest[1] < 0.15 * width
    assert (picture[:, int(0.7 * width) :] == 0).all()
    assert (picture[:, : int(0.6 * width)] > 0).mean() > 0.9
    same = decode(thumbnail(image, mask == int(Mask.NO_DATA)))
    assert (same == picture).all()


@pytest.mark.parametrize("value", [np.nan, 0.0, -7.0])
def test_images_without_contrast_make_a_picture(value):
    assert decode(thumbnail(np.full((50, 50), value, np.float32))).shape == (50, 50, 3)


def test_shrinking_averages_the_valid_pixels():
    image = np.arange(16.0).reshape(4, 4)
    valid = np.ones((4, 4), bool)
    valid[0, 0] = valid[2:, 2:] = False
    mean, filled = shrink_image(image, valid, 2)
    assert mean == pytest.approx(np.array([[(1 + 4 + 5) / 3, 4.5], [10.5, 0.0]]))
    assert filled.tolist() == [[True, True], [True, False]]


def test_stretch_keeps_faint_and_bright_apart():
    """A source of 5 sigma is a tenth of the range above the sky; one of 500 sigma is brighter than one of 50."""
    image = np.random.default_rng(3).normal(0, 1, (100, 100))
    image[0, :3] = 5, 50, 500
    image[50:58, 50:58] = 500
    shown = stretch_asinh(image, np.ones(image.shape, bool))
    sky = np.median(shown)
    assert shown[0, 0] > sky + 0.1
    assert sky + 0.1 < shown[0, 1] < shown[0, 2]


def test_colours_are_those_of_the_bands():
    """Three sources of equal total light, one in each band: red, green and blue in their places; sky grey and dark."""
    rng = np.random.default_rng(4)
    bands = [rng.normal(0, 1, (120, 120)) + 0.0 for _ in range(3)]
    for k, band in enumerate(bands):
        band[20:30, 20 + 30 * k : 30 + 30 * k] += 300.0
    picture = decode(colour_picture(*bands)).astype(int)
    row = 120 - 25
    for k, channel in enumerate((2, 1, 0)):  # the first band is blue
        pixel = picture[row, 25 + 30 * k]
        assert pixel.argmax() == channel
        assert pixel.max() > 200 and np.sort(pixel)[1] < 0.5 * pixel.max()
    assert np.median(picture) < 60


def test_colour_of_a_core_beyond_white_is_kept():
    yy, xx = np.mgrid[-40:41, -40:41]
    star = np.exp(-(xx**2 + yy**2) / 30.0)
    rng = np.random.default_rng(5)
    bands = [rng.normal(0, 1, star.shape) + flux * star for flux in (2e3, 6e3, 6e3)]
    for band in bands:
        band[:20, :20] += 3e3  # something white beside it
    core = decode(colour_picture(*bands)).astype(int)[40, 40]
    assert core.max() > 240
    assert core[2] < 0.75 * core[0]


def test_small_colour_pictures_fit_their_limit_and_blank_is_black():
    rng = np.random.default_rng(6)
    bands = [rng.normal(0, 1, (600, 500)) for _ in range(3)]
    for band in bands:
        band[:, :250] = 0.0
    data = colour_picture(*bands, size_px=160, max_bytes=10_000)
    assert len(data) <= 10_000
    assert data == colour_picture(*bands, size_px=160, max_bytes=10_000)
    picture = decode(data)
    assert (picture[:, : int(picture.shape[1] * 0.4)] == 0).all()
    assert decode(colour_picture(*(np.zeros((9, 9)),) * 3)).max() == 0


def test_large_images_are_sampled_and_look_the_same():
    """A smooth 3200 px image and every fourth pixel of it: grey levels differ by 3 % of the range at most."""
    y, x = np.mgrid[0:3200, 0:3200].astype(np.float32)
    image = np.sin(x / 300.0) * np.cos(y / 400.0) + 0.001 * x
    picture, sampled = (decode(thumbnail(one)).astype(int) for one in (image, image[1::4, 1::4]))
    assert picture.shape == sampled.shape
    assert np.abs(picture - sampled).max() <= 8
