"""Where the chips of a camera lie in its focal plane by the nominal geometry: corners, gaps, overlaps, orientation.

Plane geometry of the camera file alone, without sky or distortion; measuring where chips really are is
`science/astrometry.py`'s, drawing them `qa/focal_plane.py`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lap_assets.model.camera import Camera, Chip
from lap_assets.model.chip import Box

_SCALE_TOLERANCE = 0.02  # of the pixel scale by which a chip's matrix may depart from the camera's
_TOUCH_PX = 0.5  # chips that overlap by less only touch


@dataclass(frozen=True)
class Gaps:
    """Pixels between a chip and the nearest other one along its rows (x) and columns (y); None: nothing beside it."""

    x: float | None
    y: float | None


def locate_corners(chip: Chip, box: Box | None = None) -> np.ndarray:
    """(4, 2) corners of a chip, or of a box of its trimmed pixels, in the tangent plane: xi (east), eta (north), deg.

    Counter-clockwise in pixels from the first one.
    """
    x0, x1, y0, y1 = box or (0, chip.nx, 0, chip.ny)
    # the outer edge of the first pixel lies at 0.5 in FITS
    pixels = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float) + 0.5
    return (pixels - np.array(chip.crpix)) @ np.array(chip.cd_deg).T


def measure_gaps(camera: Camera) -> dict[str, Gaps]:
    """The gaps around each chip, in its own pixels; broken chips count as neighbours, too."""
    gaps = {}
    for name, chip in camera.chips.items():
        nearest: dict[str, float] = {}
        for other in (one for key, one in camera.chips.items() if key != name):
            low, high = _extent_in(chip, other)
            apart = np.maximum(low - [chip.nx, chip.ny], -high)
            for axis, across in (("x", 1), ("y", 0)):
                if apart[across] < 0:
                    nearest[axis] = min(nearest.get(axis, np.inf), float(apart["xy".index(axis)]))
        gaps[name] = Gaps(nearest.get("x"), nearest.get("y"))
    return gaps


def find_geometry_problems(camera: Camera) -> list[str]:
    """What cannot be in the nominal geometry, one line each with the path of the key."""
    problems = []
    parities = {}
    for name, chip in camera.chips.items():
        scale = np.sqrt(abs(np.linalg.det(np.array(chip.cd_deg)))) * 3600.0
        if abs(scale / camera.pixel_scale_arcsec - 1.0) > _SCALE_TOLERANCE:
            problems.append(
                f"chips.{name}.cd_deg: has pixels of {scale:.4f} arcsec, pixel_scale_arcsec is "
                f"{camera.pixel_scale_arcsec:g}"
            )
        parities.setdefault(bool(np.linalg.det(np.array(chip.cd_deg)) > 0), []).append(name)
    if len(parities) == 2:
        few = min(parities.values(), key=len)
        problems.append(f"chips.{few[0]}.cd_deg: is mirrored, other chips are not ({', '.join(few)})")
    for first, second in find_overlaps(camera):
        problems.append(f"chips.{second}.crpix: overlaps chip {first} in the focal plane")
    return problems


def find_overlaps(camera: Camera) -> list[tuple[str, str]]:
    """Pairs of chips that cover the same piece of the focal plane."""
    names = list(camera.chips)
    corners = {name: locate_corners(camera.chips[name]) for name in names}
    least = _TOUCH_PX * camera.pixel_scale_arcsec / 3600.0
    return [
        (first, second)
        for k, second in enumerate(names)
        for first in names[:k]
        if _share_area(corners[first], corners[second], least)
    ]


def describe_orientation(chip: Chip) -> str:
    """Where the rows and columns of a chip run, to the nearest direction: `x to the west, y to the north`."""
    directions = []
    for axis, (east, north) in zip("xy", np.array(chip.cd_deg).T, strict=True):
        if abs(east) > abs(north):
            directions.append(f"{axis} to the {'east' if east > 0 else 'west'}")
        else:
            directions.append(f"{axis} to the {'north' if north > 0 else 'south'}")
    return ", ".join(directions)


def _extent_in(chip: Chip, other: Chip) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest (x, y) of another chip in the pixels of this one, outer edges, from 0."""
    inverse = np.linalg.inv(np.array(chip.cd_deg))
    pixels = locate_corners(other) @ inverse.T + np.array(chip.crpix) - 0.5
    return pixels.min(axis=0), pixels.max(axis=0)


def _share_area(one: Sequence, two: Sequence, least: float) -> bool:
    """Whether two convex quadrilaterals overlap by more than `least` along every one of their sides' normals."""
    for shape in (np.asarray(one), np.asarray(two)):
        for side in np.roll(shape, -1, axis=0) - shape:
            normal = np.array([-side[1], side[0]]) / np.hypot(*side)
            first, second = np.asarray(one) @ normal, np.asarray(two) @ normal
            if min(first.max(), second.max()) - max(first.min(), second.min()) <= least:
                return False
    return True
