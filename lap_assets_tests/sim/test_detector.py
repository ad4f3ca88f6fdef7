"""The detector: levels, bias, gain, noise, defects and what a flat shows."""

from dataclasses import replace

import numpy as np
import pytest

from lap_assets.model.camera import load_camera
from lap_assets.sim.design import CHIPS, NOMINAL_GAIN, OVERSCAN_COLUMNS, make_design
from lap_assets.sim.detector import make_detectors, make_throughput
from lap_assets.sim.optics import place_chips
from lap_assets.sim.scene import make_chip_frame
from lap_assets.sim.schedule import plan_frames
from lap_assets.sim.sky import draw_sky

DESIGN = make_design("tiny", 4)
HALF = DESIGN.chip_px // 2


def take_bias(chip="c1", seed=0):
    detector = make_detectors(DESIGN)[chip]
    return detector, detector.read_out(np.zeros(detector.shape, np.float32), np.random.default_rng(seed)).astype(float)


def split(raw):
    """Overscan and data of amplifiers A and B as the camera file says."""
    camera = load_camera(DESIGN.camera)
    for amp in camera.chips["c1"].amplifiers:
        (x0, x1, y0, y1), (o0, o1, p0, p1) = amp.data, amp.overscan
        yield raw[p0:p1, o0:o1], raw[y0:y1, x0:x1], amp


def test_overscan_shows_pedestal_and_drift_but_not_the_bias_structure():
    detector, raw = take_bias()
    for number, (overscan, data, amp) in enumerate(split(raw)):
        assert overscan.shape == (DESIGN.chip_px, OVERSCAN_COLUMNS) and data.shape == (DESIGN.chip_px, HALF)
        assert abs(overscan.mean() - detector.pedestal_adu[number]) < 20.0
        x0, x1 = amp.target[:2]
        left = data - overscan.mean(axis=1)[:, None] - detector.bias_adu[:, x0:x1]
        quiet = detector.hot_e[:, x0:x1] == 0
        noise_adu = detector.read_noise_e[number] / detector.gain[number]
        assert abs(left[quiet].mean()) < 0.05
        expected = noise_adu * np.sqrt(1 + 1 / OVERSCAN_COLUMNS)
        assert left[quiet].std() == pytest.approx(np.hypot(expected, 1 / np.sqrt(12)), rel=0.02)
        # without the overscan the rows wander by more than their noise allows
        rows = overscan.mean(axis=1)
        assert rows.std() > 3 * noise_adu / np.sqrt(OVERSCAN_COLUMNS)


def test_bias_has_structure_a_master_bias_must_remove():
    detector, _ = take_bias()
    assert detector.bias_adu.std() > 2.0


def test_gain_departs_from_nominal_by_about_a_per_cent():
    gains = np.array([d.gain for d in make_detectors(DESIGN).values()]).ravel()
    assert len(set(gains)) == 8
    assert 0.003 < np.std(gains / NOMINAL_GAIN) < 0.03


def test_light_is_read_out_through_the_gain():
    detector = make_detectors(DESIGN)["c0"]
    dark = detector.read_out(np.zeros(detector.shape, np.float32), np.random.default_rng(7)).astype(float)
    lit = detector.read_out(np.full(detector.shape, 30_000.0, np.float32), np.random.default_rng(7)).astype(float)
    strip = OVERSCAN_COLUMNS
    step = (lit - dark)[:, strip:-strip]
    assert step[:, :HALF].mean() == pytest.approx(30_000 / detector.gain[0], rel=1e-4)
    assert step[:, HALF:].mean() == pytest.approx(30_000 / detector.gain[1], rel=1e-4)
    assert np.abs((lit - dark)[:, :strip]).max() == 0


def test_a_flat_has_mean_one_over_the_mosaic_with_steps_dust_and_vignetting():
    flats, good = [], []
    for chip in CHIPS:
        detector = make_detectors(DESIGN)[chip]
        area = place_chips(DESIGN)[chip].pixel_area(detector.shape)
        flats.append(make_throughput(DESIGN, "r")[chip] * area * NOMINAL_GAIN / detector.gain_map())
        good.append(~detector.defects)
    values = np.concatenate([flat[ok] for flat, ok in zip(flats, good, strict=True)])
    assert values.mean(dtype=float) == pytest.approx(1.0, abs=1e-4)
    assert 0.02 < values.std() < 0.08
    detector = make_detectors(DESIGN)["c0"]
    step = np.median(flats[0][:, HALF - 4 : HALF]) / np.median(flats[0][:, HALF : HALF + 4])
    assert step == pytest.approx(detector.gain[1] / detector.gain[0], abs=1.5e-3)  # vignetting: 1e-3 over 4 columns
    assert np.median(flats[3][-40:, -40:]) < 0.97 * np.median(flats[3][:40, :40])  # the corner is vignetted


def test_saturated_pixels_lie_above_the_nominal_saturation_level():
    camera = load_camera("simcam")
    level = min(amp.saturation_adu for chip in camera.chips.values() for amp in chip.amplifiers)
    for seed in range(6):
        for detector in make_detectors(replace(DESIGN, seed=seed)).values():
            for gain, pedestal in zip(detector.gain, detector.pedestal_adu, strict=True):
                assert level + 50 < pedestal + 86_000 / gain < 65_535


def test_defects_are_few_and_hot_ones_show_in_a_bias_frame():
    frame = next(frame for frame in plan_frames(DESIGN) if frame.kind == "bias")
    raw = make_chip_frame(DESIGN, frame, "c1", draw_sky(DESIGN), None).raw.astype(float)
    detector = make_detectors(DESIGN)["c1"]
    assert 0 < detector.defects.mean() < 0.02
    found = []
    for number, (overscan, data, amp) in enumerate(split(raw)):
        x0, x1 = amp.target[:2]
        electrons = (data - overscan.mean(axis=1)[:, None] - detector.bias_adu[:, x0:x1]) * detector.gain[number]
        hot = detector.hot_e[:, x0:x1] > 200
        found.append((electrons / np.maximum(detector.hot_e[:, x0:x1], 1.0))[hot])
    assert np.concatenate(found).mean() == pytest.approx(1.0, abs=0.01)
    assert detector.defects[detector.hot_e > 0].all()
