"""Reference catalogues: tables sharded by HEALPix pixel, read by cone.

A catalogue is written once as a whole (a new one of the same name replaces it atomically) and read by position.
Matching, proper motions and photometry are `science/`'s.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import pandas as pd
from astropy import units as u
from astropy_healpix import HEALPix

from lap_assets.errors import BadInput, IntegrityError, NotFound
from lap_assets.store import publish
from lap_assets.store.files import hash_file, open_member
from lap_assets.store.fits_format import MalformedFile
from lap_assets.store.layout import DIGITS, Layout
from lap_assets.store.table_format import decode_json, decode_table, encode_json, encode_table

NSIDE = 32  # pixels of 1.8 degrees: about the field of a mosaic camera
PIXEL_RADIUS_DEG = 2.0  # no point of a pixel is farther from its centre (1.90 degrees by geometry)
DESCRIPTION = "refcat.json"
REQUIRED = ("source_id", "ra", "dec", "pmra", "pmdec", "ra_err_mas", "dec_err_mas", "ref_epoch_yr")
_GRID = HEALPix(nside=NSIDE, order="nested")


def write_refcat(layout: Layout, name: str, table: pd.DataFrame) -> str:
    """Shard a catalogue and make it the one called `name`; returns its content hash.

    Raises `BadInput` for missing columns, positions that are not finite or out of range.
    """
    missing = [column for column in REQUIRED if column not in table.columns]
    if missing:
        raise BadInput(f"reference catalogue {name}: column {', '.join(missing)} is missing")
    ra, dec = table["ra"].to_numpy(float), table["dec"].to_numpy(float)
    if not (np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90) & (ra >= 0) & (ra <= 360)).all():
        raise BadInput(f"reference catalogue {name}: positions must be degrees, 0 ≤ ra ≤ 360, −90 ≤ dec ≤ 90")
    if len(table) == 0:
        raise BadInput(f"reference catalogue {name}: has no rows")
    pixel = _GRID.lonlat_to_healpix(ra * u.deg, dec * u.deg)
    shards = {}
    for one in np.unique(pixel):
        rows = table[pixel == one].sort_values("source_id", kind="stable").reset_index(drop=True)
        shards[int(one)] = encode_table(rows)
    digest = hashlib.sha256("".join(f"{one} {content}\n" for one, (_, content) in shards.items()).encode())
    version = digest.hexdigest()[:DIGITS]
    folder = layout.refcat_dir(name)
    publish.create_folders(layout.root, folder)
    sizes = {str(one): [len(data), hashlib.sha256(data).hexdigest()] for one, (data, _) in shards.items()}
    publish.write_folder(folder, version, {f"{one}.parquet": data for one, (data, _) in shards.items()})
    document = {
        "format": 1,
        "name": name,
        "nside": NSIDE,
        "version": version,
        "rows": len(table),
        "shards": sizes,
        "columns": list(table.columns),
        "units": dict(table.attrs.get("units", {})),
    }
    publish.replace_file(folder / DESCRIPTION, encode_json(document))
    return digest.hexdigest()


def describe_refcat(layout: Layout, name: str) -> dict:
    """What is known of a catalogue: rows, columns, version; raises `NotFound`."""
    path = layout.refcat_dir(name) / DESCRIPTION
    try:
        publish.check_inside(path.parent)
        with open_member(path) as stream:
            return decode_json(stream.read())
    except FileNotFoundError:
        raise NotFound(
            f"reference catalogue {name!r} is missing: run `lap ingest FILE --kind refcat --name {name}`"
        ) from None
    except (MalformedFile, OSError) as error:
        raise IntegrityError(f"reference catalogue {name}: {path}: {error}; ingest it again") from None


def check_refcat(layout: Layout, name: str) -> int:
    """Read every shard of a catalogue; returns the number of rows, raises `IntegrityError` if one is damaged."""
    document = describe_refcat(layout, name)
    return sum(len(table) for table in _read_shards(layout, name, document, [int(one) for one in document["shards"]]))


def read_refcat(layout: Layout, name: str, ra_deg: float, dec_deg: float, radius_deg: float) -> pd.DataFrame:
    """Rows within `radius_deg` of a position, sorted by source_id.

    Raises `NotFound` if there is no such catalogue, `IntegrityError` if a shard is damaged.
    """
    document = describe_refcat(layout, name)
    frames = list(_read_shards(layout, name, document, find_pixels(ra_deg, dec_deg, radius_deg)))
    if not frames:
        return pd.DataFrame({column: pd.Series(dtype=float) for column in document["columns"]})
    table = pd.concat(frames, ignore_index=True)
    inside = separation_deg(table["ra"].to_numpy(float), table["dec"].to_numpy(float), ra_deg, dec_deg) <= radius_deg
    table = table[inside].sort_values("source_id", kind="stable").reset_index(drop=True)
    table.attrs["units"] = document["units"]
    return table


def find_pixels(ra_deg: float, dec_deg: float, radius_deg: float) -> list[int]:
    """All pixels that may hold a point of the cone, sorted.

    By the distance of their centres: astropy-healpix's own cone search misses pixels the cone only just reaches.
    """
    ra, dec = _GRID.healpix_to_lonlat(np.arange(_GRID.npix))
    distance = separation_deg(ra.to_value(u.deg), dec.to_value(u.deg), ra_deg, dec_deg)
    return [int(one) for one in np.flatnonzero(distance <= radius_deg + PIXEL_RADIUS_DEG)]


def _read_shards(layout: Layout, name: str, document: dict, pixels: list[int]) -> Iterator[pd.DataFrame]:
    for pixel in pixels:
        if str(pixel) not in document["shards"]:
            continue
        path = layout.refcat_shard(name, document["version"], pixel)
        try:
            publish.check_inside(path.parent)
            with open_member(path) as stream:
                if hash_file(stream) != document["shards"][str(pixel)][1]:
                    raise MalformedFile("the bytes differ from the recorded sha256")
                stream.seek(0)
                yield decode_table(stream.read())[0]
        except (OSError, MalformedFile) as error:
            raise IntegrityError(f"reference catalogue {name}: {path}: {error}; ingest it again") from None


def separation_deg(ra: np.ndarray, dec: np.ndarray, ra0: float, dec0: float) -> np.ndarray:
    """Great-circle distances in degrees (haversine formula: exact for small ones too)."""
    a, d, a0, d0 = (np.radians(x) for x in (ra, dec, ra0, dec0))
    half = np.sin((d - d0) / 2) ** 2 + np.cos(d) * np.cos(d0) * np.sin((a - a0) / 2) ** 2
    return np.degrees(2 * np.arcsin(np.sqrt(np.clip(half, 0, 1))))
