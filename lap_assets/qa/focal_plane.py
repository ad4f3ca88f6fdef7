"""The drawing of a camera's focal plane: chips and amplifiers at their nominal places, and how they are read out.

A camera in, PNG bytes out. What was measured of an exposure, chip by chip, is drawn by `plots.plot_focal_plane`.
"""

from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from lap_assets.model.camera import Amplifier, Camera, Chip
from lap_assets.model.focal_plane import locate_corners

_INCHES, _DOTS = 9.0, 120
_FILL, _EDGE, _BROKEN = "#dce9f5", "#24506e", "#b03a2e"
_READ = "#e08a1e"  # corner that is read first
_ARROW = 0.08  # of the width of the drawing


def plot_camera(camera: Camera) -> bytes:
    """Chips with their names, amplifiers with their first pixel read, broken chips hatched; east to the left."""
    corners = {name: locate_corners(chip) * 60.0 for name, chip in camera.chips.items()}
    every = np.concatenate(list(corners.values()))
    low, high = every.min(axis=0), every.max(axis=0)
    span = float((high - low).max())
    figure = Figure(figsize=(_INCHES, _INCHES * 0.97), dpi=_DOTS)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.09, 0.08, 0.88, 0.86))
    for name, chip in camera.chips.items():
        _draw_chip(axes, chip, corners[name], _INCHES * 72 * 0.8 / (1.3 * span))
    middle, half = (low + high) / 2.0, 0.62 * span
    axes.set(xlim=(middle[0] + half, middle[0] - half), ylim=(middle[1] - half, middle[1] + half), aspect="equal")
    axes.plot(0.0, 0.0, "+", color="black", ms=9)
    _draw_compass(axes, middle - half * np.array([0.86, 0.9]), 2 * half * _ARROW)
    axes.set_xlabel("east [arcmin]")
    axes.set_ylabel("north [arcmin]")
    axes.set_title(
        f"{camera.name}: {len(camera.good_chips)} of {len(camera.chips)} chips working, "
        f"{camera.pixel_scale_arcsec:g} arcsec per pixel; orange: read first",
        fontsize=10,
    )
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _draw_chip(axes: Axes, chip: Chip, corners: np.ndarray, points_per_arcmin: float) -> None:
    style = {"facecolor": "#f3dcd9", "edgecolor": _BROKEN, "hatch": "xx"} if chip.broken else {"facecolor": _FILL}
    axes.add_patch(Polygon(corners, closed=True, **({"edgecolor": _EDGE, "lw": 1.0} | style)))
    for amp in chip.amplifiers:
        _draw_amplifier(axes, chip, amp)
    middle, sides = corners.mean(axis=0), np.hypot(*np.ptp(corners, axis=0)) * points_per_arcmin
    size = float(np.clip(sides / 9.0, 4.0, 14.0))
    plate = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
    axes.text(*middle, chip.name, ha="center", va="center", fontsize=size, color="black", bbox=plate)


def _draw_amplifier(axes: Axes, chip: Chip, amp: Amplifier) -> None:
    """Its outline, and a triangle in the corner that is read first; halves of the chip where sections are unknown."""
    box = amp.target or _guess_target(chip, amp)
    outline = locate_corners(chip, box) * 60.0
    axes.add_patch(Polygon(outline, closed=True, fill=False, edgecolor=_EDGE, lw=0.4, ls=":"))
    x0, x1, y0, y1 = box
    side = 0.22 * min(x1 - x0, y1 - y0)
    x, along = (x0, side) if amp.readout[0] == "left" else (x1, -side)
    y, up = (y0, side) if amp.readout[1] == "bottom" else (y1, -side)
    pixels = np.array([(x, y), (x + along, y), (x, y + up)]) + 0.5
    mark = (pixels - np.array(chip.crpix)) @ np.array(chip.cd_deg).T * 60.0
    axes.add_patch(Polygon(mark, closed=True, facecolor=_READ, edgecolor="none"))
    inner = locate_corners(chip, box).mean(axis=0) * 60.0 * 0.5 + mark.mean(axis=0) * 0.5
    axes.text(*inner, amp.name, ha="center", va="center", fontsize=4.5, color=_EDGE)


def _guess_target(chip: Chip, amp: Amplifier) -> tuple[int, int, int, int]:
    """The part of the chip about the corner an amplifier reads, where only the header knows its section."""
    columns = len({one.readout[0] for one in chip.amplifiers})
    rows = len({one.readout[1] for one in chip.amplifiers})
    nx, ny = chip.nx // columns, chip.ny // rows
    x0 = 0 if amp.readout[0] == "left" else chip.nx - nx
    y0 = 0 if amp.readout[1] == "bottom" else chip.ny - ny
    return x0, x0 + nx, y0, y0 + ny


def _draw_compass(axes: Axes, place: np.ndarray, length: float) -> None:
    """Arrows to north and east; the x axis runs to the left."""
    for name, step in (("N", (0.0, length)), ("E", (length, 0.0))):
        end = place + np.array(step)
        axes.annotate("", xy=end, xytext=place, arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 1.2})
        axes.text(*(place + 1.25 * np.array(step)), name, ha="center", va="center", fontsize=10)
