"""Invariants of the sky for any position and any footprint, checked by dense sampling rather than the same geometry."""

import numpy as np
import pytest
from astropy.wcs import WCS
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lap_assets.model.sphere import unit_vectors
from lap_assets.model.tessellation import load_tessellation

RINGS = load_tessellation({"kind": "rings", "name": "rings.v3"})

ras = st.floats(-360.0, 720.0)
decs = st.floats(-90.0, 90.0)
fields = st.builds(
    lambda ra, dec, scale, grid, px, overlap: load_tessellation(
        {
            "kind": "local", "name": "f", "ra_deg": ra, "dec_deg": dec, "pixel_scale_arcsec": scale, "grid": list(grid),
            "skycell_px": px + 2 * overlap, "overlap_px": overlap,
        }
    ),
    st.floats(0.0, 360.0), decs, st.floats(0.1, 20.0), st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.integers(20, 400), st.integers(0, 40),
)  # fmt: skip


@given(ras, decs)
@example(0.0, 90.0)
@example(360.0, -90.0)
@example(180.0, 0.0)
@example(357.9999999, 3.998086931795508)
@settings(max_examples=300, deadline=None)
def test_every_point_of_the_sky_has_an_owner_that_holds_its_pixel(ra, dec):
    name, skycell = RINGS.owner(ra, dec)
    cell = RINGS.cell(name)
    sky = cell.skycells[skycell]
    x, y = WCS(sky.header()).all_world2pix(ra, dec, 0)
    assert -0.5 <= x < sky.nx - 0.5 and -0.5 <= y < sky.ny - 0.5
    # and the part of it that is its own: pixel ranges, so up to a pixel (and the rounding of positions)
    x0, x1, y0, y1 = sky.inner
    assert x0 - 1.0 < x + 1e-6 and x - 1e-6 < x1 and y0 - 1.0 < y + 1e-6 and y - 1e-6 < y1


def test_300_000_points_are_owned_inside_their_cells():
    """Uniform over the sphere, so that every zone edge and corner is met."""
    rng = np.random.default_rng(5)
    ra, dec = rng.uniform(0, 360, 300_000), np.degrees(np.arcsin(rng.uniform(-1, 1, 300_000)))
    names, skycells = RINGS.owners(ra, dec)
    assert (skycells != "").all()
    order = np.argsort(names, kind="stable")
    groups = np.split(order, np.flatnonzero(names[order][1:] != names[order][:-1]) + 1)
    assert len(groups) == 2644
    for here in groups:
        cell = RINGS.cell(names[here[0]])
        x, y = cell.sky_to_pixel(ra[here], dec[here])
        assert x.min() > -0.5 and x.max() < cell.nx - 0.5
        assert y.min() > -0.5 and y.max() < cell.ny - 0.5


@given(fields, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
@settings(max_examples=150, deadline=None)
def test_a_local_cell_owns_what_lies_in_it(sky, u, v):
    cell = sky.only
    ra, dec = (float(one) for one in cell.pixel_to_sky(u * (cell.nx - 1), v * (cell.ny - 1)))
    name, skycell = sky.owner(ra, dec)
    assert name == cell.name
    one = cell.skycells[skycell]
    x, y = WCS(one.header()).all_world2pix(ra, dec, 0)
    x0, x1, y0, y1 = one.inner
    assert x0 - 1.0 < x + 1e-6 and x - 1e-6 < x1 and y0 - 1.0 < y + 1e-6 and y - 1e-6 < y1


def sample_convex(corners: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Vectors (n, 3) inside a convex spherical polygon: positive mixtures of its corners."""
    vectors = rng.dirichlet(np.full(len(corners), 0.6), n) @ corners
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_convex(ra: float, dec: float, radius_deg: float, angles: list[float]) -> tuple[list, np.ndarray]:
    """A convex polygon with its corners on a circle about a position, as (ra, dec) and as vectors."""
    centre = unit_vectors(ra, dec)
    side = np.cross(centre, [0.0, 0.0, 1.0] if abs(centre[2]) < 0.9 else [1.0, 0.0, 0.0])
    side /= np.linalg.norm(side)
    up = np.cross(centre, side)
    turn = np.sort(np.array(angles))[:, None]
    r = np.radians(radius_deg)
    vectors = np.cos(r) * centre + np.sin(r) * (np.cos(turn) * side + np.sin(turn) * up)
    lon, lat = (
        np.degrees(np.arctan2(vectors[:, 1], vectors[:, 0])),
        np.degrees(np.arcsin(np.clip(vectors[:, 2], -1, 1))),
    )
    return list(zip(lon, lat, strict=True)), vectors


angles = st.lists(st.integers(0, 359), min_size=3, max_size=6, unique=True).map(
    lambda v: [float(np.radians(a)) for a in v]
)


@given(ras, decs, st.floats(0.05, 5.0), angles, st.integers(0, 2**32 - 1))
@example(0.0, 90.0, 3.0, [0.0, 2.0, 4.0], 1)
@example(0.0, 0.0, 3.0, [0.0, 2.0, 4.0], 2)
@settings(max_examples=60, deadline=None)
def test_no_cell_under_a_footprint_is_missed(ra, dec, radius, turns, seed):
    """Every sampled point's owner, and every cell that holds the point, is among the overlapping ones."""
    polygon, vectors = make_convex(ra, dec, radius, turns)
    found = set(RINGS.cells_overlapping(polygon))
    points = sample_convex(vectors, 300, np.random.default_rng(seed))
    lon, lat = np.degrees(np.arctan2(points[:, 1], points[:, 0])), np.degrees(np.arcsin(np.clip(points[:, 2], -1, 1)))
    names, skycells = RINGS.owners(lon, lat)
    assert set(names) <= found
    for name in found:
        cell = RINGS.cell(name)
        listed = set(cell.skycells_overlapping(polygon))
        assert listed, f"{name} overlaps but none of its skycells does"
        assert set(skycells[names == name]) <= listed


@given(fields, st.floats(-0.8, 0.8), st.floats(-0.8, 0.8), st.floats(0.02, 2.0), angles, st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_skycells_under_a_footprint_by_sampling_both(sky, u, v, size, turns, seed):
    """None missed: each skycell that holds a sampled point of the footprint is listed. None invented: a listed skycell
    and the footprint share points, or so few that 800 samples of either may miss them."""
    cell = sky.only
    rng = np.random.default_rng(seed)
    centre = cell.pixel_to_sky((0.5 + u) * cell.nx, (0.5 + v) * cell.ny)
    polygon, corners = make_convex(float(centre[0]), float(centre[1]), size * cell.radius_deg, turns)
    assume(share(cell, None, polygon) > 1e-3)  # thinner ones count as touching nothing
    listed = set(cell.skycells_overlapping(polygon))
    points = sample_convex(corners, 800, rng)
    x, y = WCS(cell.header()).all_world2pix(
        np.degrees(np.arctan2(points[:, 1], points[:, 0])), np.degrees(np.arcsin(np.clip(points[:, 2], -1, 1))), 0
    )
    normals = np.cross(corners, np.roll(corners, -1, axis=0))
    normals *= np.sign(np.sum(normals @ corners.mean(axis=0)))
    for one in cell.skycells.values():
        margin = 1e-6
        inside = (x > one.x0 - 0.5 + margin) & (x < one.x0 + one.nx - 0.5 - margin)
        inside &= (y > one.y0 - 0.5 + margin) & (y < one.y0 + one.ny - 0.5 - margin)
        gx, gy = rng.uniform(0, one.nx, 800) + one.x0 - 0.5, rng.uniform(0, one.ny, 800) + one.y0 - 0.5
        covered = (unit_vectors(*cell.pixel_to_sky(gx, gy)) @ normals.T > 1e-15).all(axis=1)
        if inside.any() or covered.any():
            assert one.name in listed
        elif one.name in listed:
            # nothing sampled: what they share must be a sliver of both
            assert share(cell, one, polygon) < 0.02 * min(one.nx * one.ny, share(cell, None, polygon) or np.inf)


def share(cell, skycell, polygon) -> float:
    """Area in pixels that a convex polygon covers of a skycell (None: of the plane), by clipping in the plane."""
    x, y = cell.sky_to_pixel(*np.array(polygon).T)
    outline = list(zip(x, y, strict=True))
    if skycell is not None:
        sides = [(0, 1, skycell.x0 - 0.5), (0, -1, skycell.x0 + skycell.nx - 0.5)]
        sides += [(1, 1, skycell.y0 - 0.5), (1, -1, skycell.y0 + skycell.ny - 0.5)]
        for axis, sign, edge in sides:
            kept = []
            for a, b in zip(outline, outline[1:] + outline[:1], strict=True):
                ha, hb = sign * (a[axis] - edge), sign * (b[axis] - edge)
                if ha >= 0:
                    kept.append(a)
                if (ha >= 0) != (hb >= 0):
                    kept.append(tuple(p + (q - p) * ha / (ha - hb) for p, q in zip(a, b, strict=True)))
            outline = kept
            if not outline:
                return 0.0
    px, py = np.array(outline).T
    return 0.5 * abs(float(np.sum(px * np.roll(py, -1) - py * np.roll(px, -1))))


@pytest.mark.parametrize("turned", [0.0, 90.0, 200.0])
def test_overlaps_do_not_depend_on_where_right_ascension_begins(turned):
    """Turning field and footprint about the poles together changes nothing."""
    local = {
        "kind": "local",
        "name": "f",
        "dec_deg": 60.0,
        "pixel_scale_arcsec": 1.0,
        "skycell_px": 200,
        "grid": [4, 4],
        "overlap_px": 10,
    }
    cell = load_tessellation(local | {"ra_deg": turned}).only
    polygon = [(turned + a, d) for a, d in ((-0.1, 59.9), (0.06, 59.95), (0.02, 60.08), (-0.1, 60.0))]
    plain = load_tessellation(local | {"ra_deg": 45.0}).only
    shifted = [(45.0 + ra - turned, dec) for ra, dec in polygon]
    assert cell.skycells_overlapping(polygon) == plain.skycells_overlapping(shifted) != []
