"""Files of the simulated survey: raw FITS frames, the reference catalogue, the tables of truth. No clock, no host name.

Layout of the folder is said here and nowhere else in `sim/`; what the numbers mean is their makers'.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.time import Time

from lap_assets.sim.design import BANDS, SurveyDesign
from lap_assets.sim.schedule import Frame, frame_id

_UNITS = {
    "ra": "deg", "dec": "deg", "pmra": "mas/yr", "pmdec": "mas/yr", "ra_err_mas": "mas", "dec_err_mas": "mas",
    "ref_epoch_yr": "yr", "re_arcsec": "arcsec", "fwhm_arcsec": "arcsec", "sky_e": "e-/pixel", "mag": "mag(AB)",
    "zero_point_mag": "mag(AB)", "phot_g_mean_mag": "mag",
} | {f"mag_{band}": "mag(AB)" for band in BANDS}  # fmt: skip


def write_frame(folder: Path, design: SurveyDesign, frame: Frame, chips: dict[str, np.ndarray]) -> Path:
    """Write the raw file of a frame: primary header and one extension per chip (ny, nx) uint16."""
    place = folder / ("raw" if frame.kind == "object" else "calibration")
    path = place / f"{frame_id(design, frame)}.fits"
    primary = fits.PrimaryHDU()
    for key, value, comment in _frame_cards(design, frame):
        primary.header[key] = (value, comment)
    units = [primary]
    for name, pixels in chips.items():
        unit = fits.ImageHDU(pixels, name=name)
        unit.header["BUNIT"] = "adu"
        units.append(unit)
    fits.HDUList(units).writeto(path)
    return path


def _frame_cards(design: SurveyDesign, frame: Frame) -> list[tuple[str, Any, str]]:
    return [
        ("INSTRUME", design.camera, "camera"),
        ("EXPNUM", frame.number, "exposure number"),
        ("OBSTYPE", frame.kind, "object, bias or flat"),
        ("FILTER", f"sim-{frame.band}" if frame.band else "", "filter"),
        ("EXPTIME", frame.exptime_s, "[s]"),
        ("MJD-OBS", round(frame.mjd, 8), "[d] UTC at the start"),
        ("DATE-OBS", Time(round(frame.mjd, 8), format="mjd").isot, "UTC at the start"),
        ("NIGHT", frame.night, "local date at the start of the night"),
        ("RA", round(frame.ra_deg, 6), "[deg] where the telescope believes it points"),
        ("DEC", round(frame.dec_deg, 6), "[deg]"),
        ("AIRMASS", round(frame.airmass, 3), ""),
        ("OBJECT", frame.object, ""),
        ("OBSCOMM", frame.comment, "comment of the observer"),
        ("OBSMODE", "3PI", ""),
    ]


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet, with the units of its columns in its attributes."""
    table.attrs["units"] = {name: _UNITS[name] for name in table.columns if name in _UNITS}
    table.to_parquet(path, index=False)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_cards(path: Path, header: fits.Header) -> None:
    """Write header cards as text, one per line."""
    path.write_text(header.tostring(sep="\n", endcard=False, padding=False) + "\n", encoding="ascii")


def write_bits(path: Path, mask: np.ndarray) -> None:
    """Write a mask (ny, nx) as packed bits: arrays `bits` (uint8) and `shape`."""
    np.savez(path, bits=np.packbits(mask), shape=np.array(mask.shape))


def read_bits(path: Path) -> np.ndarray:
    """Read back what `write_bits` wrote, (ny, nx) bool."""
    with np.load(path, allow_pickle=False) as content:
        shape = tuple(int(n) for n in content["shape"])
        return np.unpackbits(content["bits"], count=shape[0] * shape[1]).reshape(shape).astype(bool)
