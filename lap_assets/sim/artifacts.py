"""What spoils a frame on its way to the amplifiers: cosmic rays, the satellite trail, the bleeding of full wells.

All in electrons on the trimmed chip. Bias, gain and overscan are the detector's (`detector.py`).
"""

from dataclasses import dataclass

import numpy as np

_E_PER_PIXEL = 1200.0  # a minimum-ionising particle along 15 um of silicon
_STEP_PX = 0.1


def draw_cosmic_rays(shape: tuple[int, int], count: int, rng: np.random.Generator) -> np.ndarray:
    """(ny, nx) float32 electrons of `count` tracks: mostly straight, some wandering electrons ("worms"), some short."""
    ny, nx = shape
    deposits = np.zeros(shape, np.float32)
    for _ in range(count):
        length = min(rng.exponential(7.0) + 0.5, 60.0)
        steps = max(int(length / _STEP_PX), 5)
        turn = 0.0 if rng.random() < 0.7 else 0.12
        angle = rng.uniform(0.0, 2.0 * np.pi) + np.cumsum(rng.normal(0.0, turn, steps))
        x = rng.uniform(-0.5, nx - 0.5) + np.cumsum(np.cos(angle)) * _STEP_PX
        y = rng.uniform(-0.5, ny - 0.5) + np.cumsum(np.sin(angle)) * _STEP_PX
        charge = _E_PER_PIXEL * np.exp(rng.normal(0.2, 0.5)) * _STEP_PX * np.exp(rng.normal(0.0, 0.3, steps))
        column, row = np.rint(x).astype(int), np.rint(y).astype(int)
        inside = (column >= 0) & (column < nx) & (row >= 0) & (row < ny)
        np.add.at(deposits, (row[inside], column[inside]), charge[inside].astype(np.float32))
    return deposits


@dataclass(frozen=True)
class Trail:
    """A straight satellite trail in the focal plane: a point on it [px from the axis], its direction, its brightness.

    `peak_e` is in electrons per pixel on the trail's ridge for a Moffat cross-section.
    """

    x: float
    y: float
    angle: float
    peak_e: float

    def cross(self, origin: tuple[float, float], shape: tuple[int, int]) -> tuple[float, float, float, float] | None:
        """(x0, y0, x1, y1) where the trail enters and leaves a chip, in its pixels; None if it misses the chip."""
        ny, nx = shape
        px, py = self.x + origin[0], self.y + origin[1]
        dx, dy = np.cos(self.angle), np.sin(self.angle)
        near, far = -np.inf, np.inf
        for start, slope, size in ((px, dx, nx), (py, dy, ny)):
            if abs(slope) < 1e-9:
                if not -0.5 <= start <= size - 0.5:
                    return None
                continue
            ends = sorted(((-0.5 - start) / slope, (size - 0.5 - start) / slope))
            near, far = max(near, ends[0]), min(far, ends[1])
        if far - near < 1.0:
            return None
        return (px + near * dx, py + near * dy, px + far * dx, py + far * dy)

    def draw(self, origin: tuple[float, float], shape: tuple[int, int], fwhm_px: float, beta: float) -> np.ndarray:
        """(ny, nx) electrons of the trail on a chip: a Moffat profile integrated along the line."""
        x = np.arange(shape[1])[None, :] - (self.x + origin[0])
        y = np.arange(shape[0])[:, None] - (self.y + origin[1])
        distance = y * np.cos(self.angle) - x * np.sin(self.angle)
        scale = fwhm_px / (2.0 * np.sqrt(2.0 ** (1.0 / beta) - 1.0))
        return self.peak_e * (1.0 + (distance / scale) ** 2) ** (0.5 - beta)


def spread_bleed(electrons: np.ndarray, full_well_e: float) -> np.ndarray:
    """Let charge beyond the full well run along the columns, half to each side; conserved but for the chip's ends."""
    result = electrons.copy()
    for column in np.flatnonzero((electrons > full_well_e).any(axis=0)):
        result[:, column] = _bleed_column(electrons[:, column].astype(float), full_well_e)
    return result


def _bleed_column(column: np.ndarray, full_well_e: float) -> np.ndarray:
    kept = np.minimum(column, full_well_e)
    excess = 0.5 * (column - kept)
    for order in (range(len(column)), range(len(column) - 1, -1, -1)):
        carried = 0.0
        for i in order:
            if carried > 0.0:
                filled = min(full_well_e - kept[i], carried)
                kept[i] += filled
                carried -= filled
            carried += excess[i]
    return kept
