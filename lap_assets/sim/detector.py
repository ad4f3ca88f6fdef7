"""The true detector: throughput, amplifiers, bias, defects, and the reading out of electrons to raw counts.

Every amplifier departs a little from the camera file's nominal gain and noise. What falls on the detector is made in
`scene.py`; only what it does to light and charge is here.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.special import expit

from lap_assets.sim.design import (
    CHIPS,
    NOMINAL_GAIN,
    NOMINAL_READ_NOISE_E,
    OVERSCAN_COLUMNS,
    SurveyDesign,
    make_rng,
)
from lap_assets.sim.optics import place_chips

ADC_MAX = 65535.0


@dataclass(frozen=True)
class Detector:
    """One chip.

    Attributes
    ----------
    gain, read_noise_e, pedestal_adu : tuple of float
        Of amplifiers A (left half) and B.
    bias_adu : (ny, nx) float32
        Fixed two-dimensional structure on top of the pedestal; not seen in the overscan.
    response : (ny, nx) float32
        Pixel-to-pixel response times the chip's efficiency; zero or small in dead columns and pixels.
    hot_e : (ny, nx) float32
        Electrons that come in every read-out, lit or not (hot columns and pixels).
    defects : (ny, nx) bool
        Dead or hot.
    """

    chip: str
    gain: tuple[float, float]
    read_noise_e: tuple[float, float]
    pedestal_adu: tuple[float, float]
    bias_adu: np.ndarray
    response: np.ndarray
    hot_e: np.ndarray
    defects: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx) of the trimmed frame."""
        return self.response.shape

    def gain_map(self) -> np.ndarray:
        """(1, nx) true gain of each column."""
        half = self.shape[1] // 2
        return np.repeat(np.array(self.gain, np.float32), half)[None, :]

    def read_out(self, electrons: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Raw frame (ny, nx + 2 * overscan) uint16 of collected electrons (ny, nx)."""
        ny, nx = self.shape
        half, strip = nx // 2, OVERSCAN_COLUMNS
        raw = np.empty((ny, nx + 2 * strip), np.float32)
        for amp, (first, last) in enumerate(((0, half + strip), (half + strip, nx + 2 * strip))):
            noise = rng.standard_normal((ny, half + strip), dtype=np.float32)
            raw[:, first:last] = noise * np.float32(self.read_noise_e[amp] / self.gain[amp])
            raw[:, first:last] += (self.pedestal_adu[amp] + _draw_drift(ny, rng)[:, None]).astype(np.float32)
        raw[:, strip:-strip] += electrons / self.gain_map() + self.bias_adu
        return np.floor(np.clip(raw, 0.0, ADC_MAX) + 0.5).astype(np.uint16)


def _draw_drift(ny: int, rng: np.random.Generator) -> np.ndarray:
    """(ny,) ADU by which an amplifier's pedestal wanders from row to row in one read-out."""
    wander = gaussian_filter1d(rng.standard_normal(ny), 0.06 * ny, mode="reflect")
    wander *= 2.0 / max(float(np.std(wander)), 1e-9)
    ramp = rng.normal(0.0, 4.0) * np.arange(ny) / ny
    return rng.normal(0.0, 3.0) + ramp + wander


@lru_cache(maxsize=4)
def make_detectors(design: SurveyDesign) -> dict[str, Detector]:
    """The chips of this seed's camera."""
    return {chip: _make_detector(design, chip) for chip in CHIPS}


def _make_detector(design: SurveyDesign, chip: str) -> Detector:
    rng = make_rng(design.seed, "detector", chip)
    size = design.chip_px
    gain = tuple(float(g) for g in NOMINAL_GAIN * (1.0 + rng.normal(0.0, 0.01, 2)))
    noise = tuple(float(n) for n in NOMINAL_READ_NOISE_E * (1.0 + rng.normal(0.0, 0.04, 2)))
    pedestal = tuple(float(p) for p in rng.uniform(1200.0, 1800.0, 2))
    response = (1.0 + 0.005 * rng.standard_normal((size, size))) * (1.0 + rng.normal(0.0, 0.02))
    hot = np.zeros((size, size), np.float32)
    defects = np.zeros((size, size), bool)
    for column in rng.choice(np.arange(8, size - 8), 3, replace=False):  # dead columns, from some row on
        start = int(rng.integers(0, size // 2))
        response[start:, column] *= rng.uniform(0.0, 0.3)
        defects[start:, column] = True
    column, start = int(rng.integers(8, size - 8)), int(rng.integers(0, size // 2))
    hot[start:, column] = rng.uniform(800.0, 4000.0)
    rows, columns = rng.integers(0, size, (2, size // 16))
    hot[rows[::2], columns[::2]] = rng.uniform(300.0, 8000.0, len(rows[::2]))
    response[rows[1::2], columns[1::2]] *= 0.2
    defects |= hot > 0
    defects[rows[1::2], columns[1::2]] = True
    return Detector(chip, gain, noise, pedestal, _make_bias(size, rng), response.astype(np.float32), hot, defects)


def _make_bias(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size) float32 ADU: a column pattern, and a glow that falls off from the first rows and outer columns."""
    columns = gaussian_filter1d(rng.normal(0.0, 4.0, size), 1.0)
    rows = np.arange(size)[:, None]
    from_edge = np.minimum(np.arange(size), np.arange(size)[::-1])[None, :]
    glow = rng.uniform(10.0, 25.0) * np.exp(-rows / (0.08 * size)) + rng.uniform(5.0, 15.0) * np.exp(-from_edge / 12.0)
    return (columns[None, :] + glow).astype(np.float32)


@lru_cache(maxsize=8)
def make_throughput(design: SurveyDesign, band: str) -> dict[str, np.ndarray]:
    """Throughput (ny, nx) float32 of each chip: response, vignetting, dust.

    Scaled so that throughput * pixel area * nominal gain / true gain, which is what a flat shows, has mean 1 over the
    mosaic (defects left out): the zero point then is that of flat-fielded electrons.
    """
    detectors, places = make_detectors(design), place_chips(design)
    falloff = make_rng(design.seed, "vignetting", band).uniform(0.08, 0.12)
    maps, total, count = {}, 0.0, 0
    for chip in CHIPS:
        detector, (x0, y0) = detectors[chip], places[chip].origin
        x = (np.arange(design.chip_px)[None, :] - x0) / design.corner_px
        y = (np.arange(design.chip_px)[:, None] - y0) / design.corner_px
        light = detector.response * (1.0 - falloff * (x * x + y * y) ** 1.3) * _draw_dust(design, chip, band)
        maps[chip] = light.astype(np.float32)
        area = places[chip].pixel_area(detector.shape)
        shown = (maps[chip] * area * NOMINAL_GAIN / detector.gain_map())[~detector.defects]
        total, count = total + float(shown.sum(dtype=np.float64)), count + shown.size
    return {chip: (one * np.float32(count / total)) for chip, one in maps.items()}


def _draw_dust(design: SurveyDesign, chip: str, band: str) -> np.ndarray:
    """(ny, nx) transmission of grains: out-of-focus rings of a few per cent on the filter, small ones on the window."""
    size = design.chip_px
    light = np.ones((size, size))
    for label, count, outer, depth in (("window", 12, (3.0, 9.0), 0.06), (f"filter {band}", 5, (18.0, 40.0), 0.03)):
        rng = make_rng(design.seed, "dust", chip, label)
        for _ in range(count):
            x0, y0 = rng.uniform(0.0, size, 2)
            radius = rng.uniform(*outer)
            first_x, first_y = max(int(x0 - 2 * radius), 0), max(int(y0 - 2 * radius), 0)
            window = light[first_y : int(y0 + 2 * radius) + 1, first_x : int(x0 + 2 * radius) + 1]
            x, y = np.arange(window.shape[1]) + first_x - x0, np.arange(window.shape[0]) + first_y - y0
            distance = np.hypot(x[None, :], y[:, None]) / radius
            ring = expit(8.0 * (1.0 - distance)) - 0.7 * expit(12.0 * (0.4 - distance))
            window *= 1.0 - depth * rng.uniform(0.4, 1.0) * ring
    return light
