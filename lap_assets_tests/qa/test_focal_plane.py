"""The drawing of a camera: a picture of bounded size in which broken chips and corners of reading can be seen."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lap_assets.model.camera import load_camera
from lap_assets.qa.focal_plane import plot_camera

ORANGE, RED, BLUE = (224, 138, 30), (176, 58, 46), (220, 233, 245)


def pixels(picture):
    return np.array(Image.open(BytesIO(picture)).convert("RGB")).astype(int)


def count(image, colour):
    """Pixels of exactly this colour."""
    return int(np.all(image == colour, axis=2).sum())


def places(image, colour):
    """(x, y) of the pixels of this colour, from the top left."""
    y, x = np.nonzero(np.all(image == colour, axis=2))
    return x, y


def test_broken_chips_are_hatched_where_they_are():
    """N30 at the bottom and S30 at the top of DECam, both in the middle; a camera without broken ones has no red."""
    picture = plot_camera(load_camera("decam"))
    assert picture[:4] == b"\x89PNG" and len(picture) < 300_000
    image = pixels(picture)
    x, y = places(image, RED)
    ny, nx = image.shape[:2]
    assert len(x) > 500 and 0.4 * nx < x.min() and x.max() < 0.65 * nx
    assert y.min() < 0.25 * ny and y.max() > 0.75 * ny and not np.any((y > 0.3 * ny) & (y < 0.7 * ny))
    assert count(pixels(plot_camera(load_camera("simcam"))), RED) == 0


@pytest.mark.parametrize(("readout", "side"), [(("left", "bottom"), 1), (("right", "top"), -1)])
def test_the_corner_read_first_is_marked(readout, side):
    """x runs to the west (to the right of the picture), y to the north (up): left is left."""
    camera = load_camera("simcam")
    chip = camera.chip("c0")
    amp = chip.amplifiers[0].model_copy(update={"readout": readout, "data": (0, 1024, 0, 1024),
                                                "target": (0, 1024, 0, 1024)})  # fmt: skip
    one = camera.model_copy(update={"chips": {"c0": chip.model_copy(update={"amplifiers": (amp,)})}})
    image = pixels(plot_camera(one))
    x, y = places(image, ORANGE)
    frame_x, frame_y = places(image, BLUE)
    assert np.sign((frame_x.min() + frame_x.max()) / 2 - x.mean()) == side
    assert np.sign(y.mean() - (frame_y.min() + frame_y.max()) / 2) == side


def test_the_same_camera_gives_the_same_bytes():
    assert plot_camera(load_camera("simtiny")) == plot_camera(load_camera("simtiny"))
