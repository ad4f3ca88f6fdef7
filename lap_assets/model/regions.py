"""Regions of the sky that an operator names: a cone, a box in RA and Dec, a polygon.

Here belongs what lies inside one; which exposures and cells are chosen by it is the ledger's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

import numpy as np

from lap_assets.errors import BadInput
from lap_assets.model.sphere import bounding_cap, positions, separation_deg, unit_vectors

_WHOLE_SKY = (np.array([0.0, 0.0, 1.0]), 180.0)


@dataclass(frozen=True)
class Cone:
    """All within `radius_deg` of a position."""

    ra_deg: float
    dec_deg: float
    radius_deg: float

    def __post_init__(self) -> None:
        _check_position("cone", self.ra_deg, self.dec_deg)
        if not isfinite(self.radius_deg) or self.radius_deg <= 0.0:
            raise BadInput(f"a cone of radius {self.radius_deg} deg holds nothing: give a radius > 0")

    @property
    def cap(self) -> tuple[np.ndarray, float]:
        """Centre (unit vector) and radius in degrees of a cap that holds the region."""
        return unit_vectors(self.ra_deg, self.dec_deg), min(self.radius_deg, 180.0)

    def contains(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
        """Whether positions (n,) in degrees lie inside."""
        return separation_deg(unit_vectors(ra_deg, dec_deg), self.cap[0]) <= self.radius_deg


@dataclass(frozen=True)
class Box:
    """From `ra0_deg` eastward to `ra1_deg` (across RA 0 where `ra0_deg` > `ra1_deg`), and a range of Dec.

    `ra1_deg` = `ra0_deg` + 360 is the whole circle.
    """

    ra0_deg: float
    ra1_deg: float
    dec0_deg: float
    dec1_deg: float

    def __post_init__(self) -> None:
        _check_position("box", self.ra0_deg, self.dec0_deg)
        _check_position("box", self.ra1_deg, self.dec1_deg)
        if self.dec0_deg >= self.dec1_deg:
            raise BadInput(
                f"box from Dec {self.dec0_deg} to {self.dec1_deg} is upside down: give the southern edge first"
            )
        if self.ra0_deg == self.ra1_deg or abs(self.ra1_deg - self.ra0_deg) > 360.0:
            raise BadInput(f"box from RA {self.ra0_deg} to {self.ra1_deg}: give two different edges within one turn")

    @property
    def width_deg(self) -> float:
        """Extent in RA, degrees, in (0, 360]."""
        return (self.ra1_deg - self.ra0_deg) % 360.0 or 360.0

    @property
    def cap(self) -> tuple[np.ndarray, float]:
        """Centre (unit vector) and radius in degrees of a cap that holds the region."""
        if self.width_deg > 90.0:
            # about the pole that is nearer to it
            if self.dec0_deg + self.dec1_deg >= 0.0:
                return _WHOLE_SKY[0], 90.0 - self.dec0_deg
            return -_WHOLE_SKY[0], 90.0 + self.dec1_deg
        middle = self.ra0_deg + self.width_deg / 2
        centre = unit_vectors(middle, (self.dec0_deg + self.dec1_deg) / 2)
        corners = unit_vectors([self.ra0_deg, self.ra0_deg], [self.dec0_deg, self.dec1_deg])
        return centre, float(separation_deg(corners, centre).max())

    def contains(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
        """Whether positions (n,) in degrees lie inside, edges included."""
        ra, dec = np.asarray(ra_deg, float), np.asarray(dec_deg, float)
        return ((ra - self.ra0_deg) % 360.0 <= self.width_deg) & (dec >= self.dec0_deg) & (dec <= self.dec1_deg)


@dataclass(frozen=True)
class Polygon:
    """Inside corners (ra_deg, dec_deg) in order, joined by great circles; simple, smaller than a hemisphere."""

    corners: Sequence[tuple[float, float]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "corners", tuple((float(ra), float(dec)) for ra, dec in self.corners))
        for ra, dec in self.corners:
            _check_position("polygon", ra, dec)
        bounding_cap(self.corners)

    @cached_property
    def cap(self) -> tuple[np.ndarray, float]:
        """Centre (unit vector) and radius in degrees of a cap that holds the region."""
        return bounding_cap(self.corners)

    def contains(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
        """Whether positions (n,) in degrees lie inside, by the turns its sides make around them."""
        points = np.atleast_2d(unit_vectors(ra_deg, dec_deg))
        centre, radius = self.cap
        near = separation_deg(points, centre) <= radius
        angles = self._angles(points[near])
        turns = np.diff(angles, axis=0, append=angles[:1])
        total = ((turns + np.pi) % (2 * np.pi) - np.pi).sum(axis=0)
        inside = np.zeros(len(points), bool)
        inside[near] = np.abs(total) > np.pi
        return inside

    def _angles(self, points: np.ndarray) -> np.ndarray:
        """Position angles (corners, n) of the corners as seen from each point."""
        ra, dec = (np.radians(value) for value in positions(points))
        east = np.stack([-np.sin(ra), np.cos(ra), np.zeros_like(ra)], axis=-1)
        north = np.stack([-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)], axis=-1)
        corners = unit_vectors(*np.array(self.corners, float).T)
        return np.arctan2(corners @ east.T, corners @ north.T)


Region = Cone | Box | Polygon


def _check_position(what: str, ra_deg: float, dec_deg: float) -> None:
    if not isfinite(ra_deg) or not isfinite(dec_deg):
        raise BadInput(f"{what}: RA {ra_deg} Dec {dec_deg} is no position: give finite degrees")
    if abs(dec_deg) > 90.0:
        raise BadInput(f"{what}: Dec {dec_deg} lies outside -90 to 90")
