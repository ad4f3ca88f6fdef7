"""Geometry on the unit sphere: vectors, tangent planes, polygons bounded by great circles and their overlaps.

Here belongs what needs no notion of cells or cameras. Polygons are sequences of (ra_deg, dec_deg) corners joined by
great circles, simple, smaller than a hemisphere. Working with vectors makes RA 0/360 and the poles ordinary places.
"""

from collections.abc import Sequence

import numpy as np

from lap_assets.errors import BadInput

Polygon = Sequence[tuple[float, float]]


def unit_vectors(ra_deg: np.ndarray | float, dec_deg: np.ndarray | float) -> np.ndarray:
    """Unit vectors (..., 3) of positions in degrees; RA may lie outside 0–360."""
    ra, dec = np.radians(np.asarray(ra_deg, float)), np.radians(np.asarray(dec_deg, float))
    cos_dec = np.cos(dec)
    return np.stack([cos_dec * np.cos(ra), cos_dec * np.sin(ra), np.sin(dec)], axis=-1)


def positions(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ra_deg in [0, 360), dec_deg) of vectors (..., 3) of any length > 0."""
    x, y, z = np.moveaxis(np.asarray(vectors, float), -1, 0)
    ra = np.degrees(np.arctan2(y, x)) % 360.0
    return np.where(ra >= 360.0, 0.0, ra), np.degrees(np.arctan2(z, np.hypot(x, y)))


def separation_deg(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Angle in degrees between unit vectors (..., 3), exact at all angles (Kahan's half-chord form)."""
    chord, sum_ = np.linalg.norm(first - second, axis=-1), np.linalg.norm(first + second, axis=-1)
    return np.degrees(2.0 * np.arctan2(chord, sum_))


def tangent_basis(ra_deg: float, dec_deg: float) -> np.ndarray:
    """Rows east, north, centre (3, 3) of the tangent plane at a position; at Dec +90 "north" points along RA + 180°."""
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    east = [-np.sin(ra), np.cos(ra), 0.0]
    north = [-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)]
    return np.array([east, north, unit_vectors(ra_deg, dec_deg)])


def project_tan(vectors: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gnomonic projection to (xi, eta), radians to the east and north; NaN on the far hemisphere.

    Source: Calabretta & Greisen 2002, A&A 395, 1077, section 5.1.3.
    """
    east, north, depth = np.moveaxis(np.asarray(vectors, float) @ basis.T, -1, 0)
    near = np.where(depth > 1e-12, depth, np.nan)
    return east / near, north / near


def deproject_tan(xi: np.ndarray | float, eta: np.ndarray | float, basis: np.ndarray) -> np.ndarray:
    """Unit vectors (..., 3) of tangent-plane positions; the inverse of `project_tan`."""
    xi, eta = np.broadcast_arrays(np.asarray(xi, float), np.asarray(eta, float))
    vectors = np.stack([xi, eta, np.ones_like(xi)], axis=-1) @ basis
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def bounding_cap(polygon: Polygon) -> tuple[np.ndarray, float]:
    """Centre (unit vector) and radius in degrees of a cap that holds the polygon.

    Raises
    ------
    BadInput
        Fewer than three corners, a corner that is not a finite position, or a polygon not smaller than a hemisphere.
    """
    corners = np.asarray(polygon, float)
    if corners.ndim != 2 or corners.shape[0] < 3 or corners.shape[1] != 2:
        raise BadInput(
            f"a polygon needs at least three (ra, dec) corners, got {len(polygon)}: give its corners in order"
        )
    if not np.isfinite(corners).all() or np.abs(corners[:, 1]).max() > 90.0:
        raise BadInput("a corner of the polygon is no position: RA and Dec must be finite degrees, |Dec| at most 90")
    vectors = unit_vectors(corners[:, 0], corners[:, 1])
    total = vectors.sum(axis=0)
    length = float(np.linalg.norm(total))
    radius = 180.0 if length < 1e-9 else float(separation_deg(vectors, total / length).max())
    if radius >= 89.9:
        raise BadInput("the polygon is not smaller than a hemisphere: split it")
    return total / length, radius


def grow_polygons(corners: np.ndarray, margin_deg: float) -> np.ndarray:
    """Polygons (..., n, 2) of (ra_deg, dec_deg) with their corners moved away from their centres.

    So far that the sides of a square move by the margin. On the tangent plane at each centre, so that it is right at
    RA 0 and near the poles.
    """
    vectors = unit_vectors(*np.moveaxis(np.asarray(corners, float), -1, 0))
    centre = vectors.mean(axis=-2, keepdims=True)
    centre /= np.linalg.norm(centre, axis=-1, keepdims=True)
    plane = vectors / (vectors * centre).sum(axis=-1, keepdims=True) - centre
    radius = np.linalg.norm(plane, axis=-1, keepdims=True)
    # √2: the corner of a square moves by that when its sides move by one
    grown = centre + plane * (1.0 + np.sqrt(2.0) * np.radians(margin_deg) / np.maximum(radius, 1e-12))
    return np.stack(positions(grown), axis=-1)


def clip_half_space(vectors: list[np.ndarray], normal: np.ndarray) -> list[np.ndarray]:
    """The part of a spherical polygon where vector · normal >= 0.

    Sutherland & Hodgman 1974 with planes through the origin, so that new corners lie on the great circles. A concave
    polygon that falls apart keeps bridges of no area along the clipping circle.
    """
    clipped: list[np.ndarray] = []
    heights = [float(vector @ normal) for vector in vectors]
    for i, (vector, height) in enumerate(zip(vectors, heights, strict=True)):
        before, before_height = vectors[i - 1], heights[i - 1]
        if (height >= 0.0) != (before_height >= 0.0):
            clipped.append(before + (vector - before) * (before_height / (before_height - height)))
        if height >= 0.0:
            clipped.append(vector)
    return clipped


def clip_polygon(vectors: list[np.ndarray], normals: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The part of a spherical polygon inside a convex region given by the inward normals of its sides; [] if none."""
    for normal in normals:
        vectors = clip_half_space(vectors, normal)
        if not vectors:
            return []
    return vectors


def planar_area(x: np.ndarray, y: np.ndarray) -> float:
    """Area of a plane polygon, always >= 0 (shoelace formula about its first corner)."""
    x, y = x - x[0], y - y[0]
    return 0.5 * abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))))
