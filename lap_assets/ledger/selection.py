"""Choosing exposures for runs: by band, mode and region, and which cells each of them overlaps.

What may lie near is found by SQL, with an index; only of that the footprints are read. Members are chosen here once
and are rows ever after. Each function works inside a transaction it is given.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lap_assets.ledger.tables import chip_file, exposure
from lap_assets.model.regions import Region
from lap_assets.model.sphere import positions, separation_deg, unit_vectors
from lap_assets.model.tessellation import Tessellation

Overlaps = Mapping[str, list[str]]  # cells by exposure
Cap = tuple[np.ndarray, float]  # centre (unit vector) and radius in degrees
_MANY = 500  # exposures whose footprints are in memory at a time
_SLACK_DEG = 1e-6


def select_members(
    connection: Connection, sky: Tessellation, bands: Collection[str] | None, cells: Collection[str] | None,
    obs_mode: str | None, region: Region | None,
) -> dict[tuple[str, str], dict[str, list[str]]]:  # fmt: skip
    """For each (cell, band) the chosen exposures with all cells that each overlaps, sorted.

    Parameters
    ----------
    bands, cells, obs_mode, region
        Take only these; None: all. Of a region: exposures whose pointing or any chip corner lies in it (LAP-10).
    """
    wanted = None if cells is None else frozenset(cells)
    caps = [region.cap] if region is not None else []
    if wanted is not None:
        named = [sky.cell(name) for name in sorted(wanted)]  # refuses a name that is none
        if len(named) == 1:
            caps.append((unit_vectors(named[0].ra_deg, named[0].dec_deg), named[0].radius_deg))
    members: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(dict)
    candidates = find_candidates(connection, bands, obs_mode, caps)
    for id_, polygons in read_footprints(connection, sorted(candidates)):
        band, ra, dec = candidates[id_]
        if region is not None and not _touches(region, ra, dec, polygons):
            continue
        overlapped = sky.cells_overlapping_any(polygons)
        for cell in overlapped:
            if wanted is None or cell in wanted:
                members[cell, band][id_] = overlapped
    return {key: members[key] for key in sorted(members)}


def find_candidates(
    connection: Connection, bands: Collection[str] | None, obs_mode: str | None, caps: Collection[Cap]
) -> dict[str, tuple[str, float, float]]:
    """(band, ra_deg, dec_deg) of each exposure of which some chip may reach into all the caps."""
    columns = (exposure.c.id, exposure.c.band, exposure.c.ra_deg, exposure.c.dec_deg, exposure.c.reach_deg)
    query = sa.select(*columns)
    if bands is not None:
        query = query.where(exposure.c.band.in_(sorted(bands)))
    if obs_mode is not None:
        query = query.where(exposure.c.obs_mode == obs_mode)
    if caps:
        farthest = connection.execute(sa.select(sa.func.max(exposure.c.reach_deg))).scalar_one() or 0.0
        for centre, radius in caps:
            query = query.where(*_near(centre, radius + farthest + _SLACK_DEG))
    rows = connection.execute(query).all()
    if not rows:
        return {}
    ids, names, ra, dec, reach = zip(*rows, strict=True)
    near = np.ones(len(rows), bool)
    vectors = unit_vectors(ra, dec)
    for centre, radius in caps:
        near &= separation_deg(vectors, centre) <= radius + np.array(reach) + _SLACK_DEG
    return {ids[i]: (names[i], ra[i], dec[i]) for i in np.flatnonzero(near)}


def _near(centre: np.ndarray, radius_deg: float) -> list[sa.ColumnElement[bool]]:
    """Conditions that hold for every pointing within a cap: a range of Dec, and of RA where no pole is near."""
    ra, dec = (float(value) for value in positions(centre))
    south, north = dec - radius_deg, dec + radius_deg
    conditions: list[sa.ColumnElement[bool]] = [exposure.c.dec_deg.between(south, north)]
    if south > -89.9 and north < 89.9:
        half = float(np.degrees(np.arcsin(min(1.0, np.sin(np.radians(radius_deg)) / np.cos(np.radians(dec))))))
        low, high = ra - half - _SLACK_DEG, ra + half + _SLACK_DEG
        parts = [exposure.c.ra_deg.between(low + turn, high + turn) for turn in (-360.0, 0.0, 360.0)]
        conditions.append(sa.or_(*parts))
    return conditions


def read_footprints(connection: Connection, ids: list[str]) -> Iterator[tuple[str, list[list[tuple[float, float]]]]]:
    """(exposure, its chips' corners) of each exposure, in the order given."""
    for start in range(0, len(ids), _MANY):
        batch = ids[start : start + _MANY]
        query = sa.select(chip_file.c.exposure, sa.cast(chip_file.c.footprint, sa.Text)).order_by(
            chip_file.c.exposure, chip_file.c.chip
        )
        polygons: dict[str, list[list[tuple[float, float]]]] = defaultdict(list)
        for id_, text in connection.execute(query.where(chip_file.c.exposure.in_(batch))):
            polygons[id_].append(json.loads(text))
        yield from ((id_, polygons[id_]) for id_ in batch)


def _touches(region: Region, ra: float, dec: float, polygons: list[list[tuple[float, float]]]) -> bool:
    corners = [(ra, dec), *(corner for polygon in polygons for corner in polygon)]
    return bool(region.contains(*np.array(corners, float).T).any())
