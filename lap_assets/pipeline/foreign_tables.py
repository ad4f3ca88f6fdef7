"""Tables from outside: reference catalogues (Parquet, FITS, CSV) and given zero points, in our columns and units.

Verified and translated here; keeping them is `store/refcat.py`'s, using them `science/`'s.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from astropy.table import Table
from astropy.utils.exceptions import AstropyWarning

from lap_assets.errors import BadInput
from lap_assets.pipeline.foreign_frames import refusing_damage

# our name: names it goes by elsewhere (lower case); Gaia archive units are ours already (deg, mas, mas/yr, yr)
_ALIASES = {
    "source_id": ("source_id", "sourceid", "objid", "id"),
    "ra": ("ra", "ra_deg", "ra_icrs", "raj2000"),
    "dec": ("dec", "dec_deg", "de_icrs", "dej2000"),
    "pmra": ("pmra", "pm_ra"),
    "pmdec": ("pmdec", "pm_dec", "pmde"),
    "ra_err_mas": ("ra_err_mas", "ra_error", "e_ra_icrs"),
    "dec_err_mas": ("dec_err_mas", "dec_error", "e_de_icrs"),
    "ref_epoch_yr": ("ref_epoch_yr", "ref_epoch", "epoch"),
}
_EXTRA = ("phot_g_mean_mag", "phot_bp_mean_mag", "phot_rp_mean_mag", "parallax")
_UNITS = {
    "ra": "deg", "dec": "deg", "pmra": "mas/yr", "pmdec": "mas/yr", "ra_err_mas": "mas", "dec_err_mas": "mas",
    "ref_epoch_yr": "yr", "parallax": "mas",
}  # fmt: skip
_UNKNOWN_ERROR_MAS = 100.0  # where a catalogue gives no errors: of the order of the worst in use
_FITS = (".fits", ".fit", ".fts", ".fits.gz", ".fits.fz")


def read_foreign_table(path: Path) -> pd.DataFrame:
    """A table by the ending of its name: .parquet, .csv, or FITS; columns of more than one value per row are left out.

    Raises
    ------
    BadInput
        It is not there, of another kind, or damaged.
    """
    name = path.name.lower()
    if name.endswith(".parquet"):
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise BadInput(f"{path} is no whole Parquet file ({_one_line(error)}); fetch it again") from None
    if name.endswith(".csv"):
        try:
            return pd.read_csv(path, comment="#")
        except (OSError, ValueError) as error:
            raise BadInput(f"{path} cannot be read as CSV ({_one_line(error)})") from None
    if not name.endswith(_FITS):
        raise BadInput(f"{path} is no table we know: use .parquet, .csv or .fits")
    try:
        with refusing_damage(), warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            table = Table.read(path, format="fits")
    except BadInput as error:
        raise BadInput(f"{path} {error}") from None
    return table[[column for column in table.colnames if table[column].ndim == 1]].to_pandas()


def inspect_refcat(path: Path) -> tuple[pd.DataFrame, int]:
    """One file of a reference catalogue in our columns, and the number of rows left out for want of a position.

    Columns: source_id, ra, dec [deg, ICRS at ref_epoch_yr], pmra (cos dec included), pmdec [mas/yr] (0 where unknown),
    ra_err_mas, dec_err_mas, ref_epoch_yr, and those of mag_<band> [AB], Gaia magnitudes and parallax that are there.

    Raises
    ------
    BadInput
        The file cannot be read, lacks positions, or gives proper motions without an epoch.
    """
    given = read_foreign_table(Path(path))
    columns = {str(name).lower(): name for name in given.columns}
    found = {
        ours: columns[alias] for ours, aliases in _ALIASES.items() for alias in reversed(aliases) if alias in columns
    }
    for needed in ("ra", "dec"):
        if needed not in found:
            raise BadInput(
                f"{path} has no column {needed} (degrees); rename its column, it has: {', '.join(list(columns)[:12])}"
            )
    if "ref_epoch_yr" not in found and ("pmra" in found or "pmdec" in found):
        raise BadInput(f"{path} gives proper motions without an epoch; add a column ref_epoch_yr (years)")
    numbers = {ours: _to_numbers(given[name], path) for ours, name in found.items() if ours != "source_id"}
    ra, dec = numbers["ra"], numbers["dec"]
    good = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90.0)
    if not good.any():
        raise BadInput(f"{path} has no row with a position; RA and Dec must be in degrees")
    # magnitudes of no band or source are not zero but unknown; positions and motions need a number
    fill = {"pmra": 0.0, "pmdec": 0.0, "ra_err_mas": _UNKNOWN_ERROR_MAS, "dec_err_mas": _UNKNOWN_ERROR_MAS}
    table = pd.DataFrame({"ra": ra[good] % 360.0, "dec": dec[good]})
    for ours, value in fill.items():
        values = numbers[ours][good] if ours in numbers else np.full(len(table), np.nan)
        known = np.isfinite(values) & ((values > 0.0) | ours.startswith("pm"))
        table[ours] = np.where(known, values, value)
    table["ref_epoch_yr"] = _check_epochs(numbers.get("ref_epoch_yr", np.full(len(good), 2016.0))[good], path)
    source_id = _read_ids(given[found["source_id"]], path)[good] if "source_id" in found else _make_ids(table)
    table.insert(0, "source_id", source_id)
    for lower, name in columns.items():
        if lower in _EXTRA or lower.startswith("mag_"):
            table[lower if lower in _EXTRA else str(name)] = _to_numbers(given[name], path)[good]
    table.attrs["units"] = {name: _UNITS.get(name, "mag") for name in table.columns if name != "source_id"}
    return table, int((~good).sum())


def read_zero_points(path: Path, camera: str) -> Mapping[tuple[str, str], float]:
    """Given zero points by (exposure number, chip): AB magnitude of 1 ADU per second (`ccdzpt` of legacypipe's tables).

    Rows of other cameras and rows without a finite value are left out. Raises `BadInput`.
    """
    table = read_foreign_table(Path(path))
    table.columns = [str(name).lower() for name in table.columns]
    missing = [name for name in ("expnum", "ccdname", "ccdzpt") if name not in table]
    if missing:
        raise BadInput(f"zero points {path}: no column {', '.join(missing)}; it needs expnum, ccdname, ccdzpt")
    if "camera" in table:
        table = table[_to_text(table["camera"]) == camera]
    values = _to_numbers(table["ccdzpt"], path)
    names = zip(_to_text(table["expnum"]), _to_text(table["ccdname"]), values, strict=True)
    return {(number, chip): float(value) for number, chip, value in names if np.isfinite(value)}


def _to_numbers(column: pd.Series, path: Path) -> np.ndarray:
    try:
        return pd.to_numeric(column).to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError):
        raise BadInput(f"{path}: column {column.name} holds what is no number; correct it") from None


def _to_text(column: pd.Series) -> list[str] | np.ndarray:
    return np.array([(v.decode() if isinstance(v, bytes) else str(v)).strip() for v in column], dtype=object)


def _check_epochs(epochs: np.ndarray, path: Path) -> np.ndarray:
    if not np.isfinite(epochs).all() or epochs.min() < 1800.0 or epochs.max() > 2200.0:
        raise BadInput(f"{path}: reference epochs must be years, as 2016.0; correct the column")
    return epochs


def _read_ids(column: pd.Series, path: Path) -> np.ndarray:
    if not pd.api.types.is_integer_dtype(column) or column.isna().any():
        raise BadInput(
            f"{path}: source ids must be whole numbers (column {column.name}); correct or leave out the column"
        )
    return column.to_numpy(dtype=np.int64)


def _make_ids(table: pd.DataFrame) -> np.ndarray:
    """Ids from the position (units of 0.4 mas), so that the same source has the same id in any file."""
    ra = np.round(table["ra"].to_numpy() * 9e6).astype(np.int64)
    dec = np.round((table["dec"].to_numpy() + 90.0) * 9e6).astype(np.int64)
    return (ra << 31) | dec


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
