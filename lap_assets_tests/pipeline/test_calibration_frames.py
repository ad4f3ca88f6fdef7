"""One calibration frame (LV-11): its rows in stretches are what the science steps make of the whole frame at once."""

from itertools import pairwise

import numpy as np
import pytest
from astropy.io import fits
from pydantic import ValidationError

from lap_assets.errors import UnprocessableData
from lap_assets.model.camera import Camera
from lap_assets.pipeline.calibration_frames import FrameMasters, choose_steps, open_frame, sample_rows
from lap_assets.science import flat, linearity, overscan
from lap_assets.settings import CalibrationSettings

NY, NX = 80, 60
STAGES = ["saturation", "overscan", "bias", "linearity", "gain", "dark", "flat", "sky", "fringe", "defects"]


def make_camera(**more):
    """Four amplifiers in quadrants, overscans in the middle columns, sections and gains from the header."""
    amplifiers = [
        {"name": name, "data_key": f"DATA{name}", "overscan_key": f"BIAS{name}", "target_key": f"CCD{name}",
         "gain_key": f"GAIN{name}", "read_noise_e": 5.0, "saturation_adu": 60000.0, "linearity": [1e-6]}
        for name in "ABCD"
    ]  # fmt: skip
    scale = 1e-4
    chip = {"nx": NX, "ny": NY, "crpix": [1.0, 1.0], "cd_deg": [[-scale, 0], [0, scale]], "amplifiers": amplifiers}
    values = {"name": "quad", "pixel_scale_arcsec": 0.36, "filters": {"r": "r"}, "chips": {"c0": chip}}
    return Camera(**values | {"stages": STAGES} | more)


def make_header():
    half, cards = NX // 2, {"EXPTIME": 30.0}
    for k, name in enumerate("ABCD"):
        right, upper = k % 2, k // 2
        rows = f"{1 + upper * NY // 2}:{(1 + upper) * NY // 2}"
        x0 = 1 + right * (half + 20)
        cards[f"DATA{name}"] = f"[{x0}:{x0 + half - 1},{rows}]"
        over = half + 1 + right * 10
        cards[f"BIAS{name}"] = f"[{over}:{over + 9},{rows}]"
        cards[f"CCD{name}"] = f"[{1 + right * half}:{(1 + right) * half},{rows}]"
        cards[f"GAIN{name}"] = 1.0 + 0.5 * k
    return fits.Header(cards)


def write_frame(path, header, seed=1):
    rng = np.random.default_rng(seed)
    raw = rng.normal(1000, 5, (NY, NX + 20)) + np.arange(NY)[:, None] * 2.0
    raw[:, : NX // 2] += 20000.0
    raw[:, -NX // 2 :] += 20000.0
    raw[33, 7] = 65000.0
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(np.rint(raw).astype(np.uint16), header, name="c0")]
    fits.HDUList(hdus).writeto(path)
    return str(path)


@pytest.mark.parametrize("mode", ["row", "median", "spline"])
def test_rows_in_stretches_are_those_of_the_whole_frame(tmp_path, mode):
    camera, header = make_camera(), make_header()
    path = write_frame(tmp_path / "a.fits", header)
    frame = open_frame(path, "c0", camera.chip("c0"), camera, CalibrationSettings(overscan_mode=mode))
    bias = np.random.default_rng(2).normal(0, 3, (NY, NX)).astype(np.float32)
    masters = FrameMasters(bias=bias, dark=np.full((NY, NX), 0.5, np.float32))
    steps = choose_steps(camera, "flat")
    whole = frame.read(0, NY, steps, masters)
    for y0, y1 in ((0, 1), (17, 52), (39, 41), (79, 80)):
        assert np.array_equal(frame.read(y0, y1, steps, masters), whole[y0:y1], equal_nan=True)
    raw, chip = fits.getdata(path, "c0"), frame.chip
    image = overscan.subtract_overscan(overscan.assemble_chip(raw, chip), raw, chip.amplifiers, 15, mode)
    image = flat.apply_gain(linearity.linearize(image - bias, chip.amplifiers)[0], chip.amplifiers) - 30.0 * 0.5
    assert np.isnan(whole[33, 7])
    whole[33, 7] = image[33, 7]
    assert np.allclose(whole, image, rtol=1e-6, atol=1e-2)
    assert frame.exptime_s == 30.0 and [amp.gain for amp in chip.amplifiers] == [1.0, 1.5, 2.0, 2.5]


def test_sample_is_the_middle_of_the_frame_and_overscans_of_some_rows_serve_it(tmp_path):
    camera = make_camera()
    path = write_frame(tmp_path / "a.fits", make_header())
    chosen = CalibrationSettings()
    whole = open_frame(path, "c0", camera.chip("c0"), camera, chosen)
    quick = open_frame(path, "c0", camera.chip("c0"), camera, chosen, whole=False)
    steps = choose_steps(camera, "flat")
    one, other = (frame.sample(steps, FrameMasters()) for frame in (whole, quick))
    assert one.shape[1] == NX // 2 and abs(np.nanmedian(one) / np.nanmedian(other) - 1.0) < 2e-3
    for ny in (16, 80, 1000, 4096):
        rows = sample_rows(ny)
        assert all(ny // 4 <= y0 < y1 <= ny - ny // 4 for y0, y1 in rows) and rows == sorted(rows)
        assert all(a[1] <= b[0] for a, b in pairwise(rows))


def test_steps_of_a_kind_are_the_camera_s_before_its_own():
    camera = make_camera()
    assert choose_steps(camera, "bias") == ()
    assert choose_steps(camera, "dark") == ("bias", "linearity", "gain")
    assert choose_steps(camera, "fringe") == ("bias", "linearity", "gain", "dark", "flat", "sky")
    turned = make_camera(stages=["overscan", "linearity", "bias", "gain", "flat"])
    assert choose_steps(turned, "sky") == ("linearity", "bias", "gain", "flat")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("DATAB", None, "DATAB"),
        ("BIASC", "[900:910,1:40]", "BIASC .*outside"),
        ("GAIND", 0.0, "GAIND"),
    ],
)
def test_promises_of_the_camera_file_that_a_header_does_not_keep_are_named(tmp_path, key, value, reason):
    header = make_header()
    if value is None:
        del header[key]
    else:
        header[key] = value
    path = write_frame(tmp_path / "a.fits", header)
    camera = make_camera()
    with pytest.raises(UnprocessableData, match=f"chip c0.*{reason}"):
        open_frame(path, "c0", camera.chip("c0"), camera, CalibrationSettings())


def test_settings_that_cannot_be_meant_are_refused():
    for wrong in ({"min_frames": 1}, {"clip_sigma": 0.0}, {"overscan_mode": "columns"}, {"fringe_mesh_px": 0}):
        with pytest.raises(ValidationError):
            CalibrationSettings(**wrong)
