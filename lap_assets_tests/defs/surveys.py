"""Repositories with a made-up ledger and no pixels, for the tests of the Dagster definitions."""

from pathlib import Path

from lap_assets.model.survey import CalibrationSet, ChipFile, Exposure
from lap_assets.operations.workspace import Workspace

BANDS = ("g", "r")
# RINGS.V3 cells of this zone meet at RA 150: one exposure in the west cell, one in the east cell, one in both
PLACES = {"west": 148.0, "both": 150.0, "east": 152.0}


def square(ra_deg: float, dec_deg: float, side_deg: float = 0.2) -> tuple[tuple[float, float], ...]:
    """Corners of a chip."""
    h = side_deg / 2
    return ((ra_deg - h, dec_deg - h), (ra_deg + h, dec_deg - h), (ra_deg + h, dec_deg + h), (ra_deg - h, dec_deg + h))


def make_exposure(id_: str, band: str, ra_deg: float, night: str) -> Exposure:
    """An exposure of one chip; its file is never read."""
    chip = ChipFile("c0", f"/nowhere/{id_}.fits", "c0", square(ra_deg, 2.0), sha256="0" * 64)
    return Exposure(id_, "simtiny", band, band, night, 60380.0, 60.0, ra_deg, 2.0, chips=(chip,))


def make_calibrations() -> list[CalibrationSet]:
    """Biases and flats of two epochs, so that no exposure is calibrated with everything there is."""
    frames = tuple(ChipFile("c0", f"/nowhere/frame{i}.fits", "c0", square(0.0, 0.0), f"{i:064d}") for i in range(3))
    return [
        CalibrationSet(f"simtiny|{kind}|{band}|{night}", "simtiny", kind, band, night, frames)
        for night in ("2024-03-01", "2024-04-01")
        for kind, bands in (("bias", ("all",)), ("flat", BANDS))
        for band in bands
    ]


def create_survey(root: Path) -> Workspace:
    """Two nights in each of two bands at three places: 12 exposures, two cells, sparse overlaps."""
    Workspace.create(root, {"compute": {"executor": "serial"}})
    space = Workspace.open(root)
    space.ledger.add_tessellation({"kind": "rings", "name": "rings.v3"})
    space.ledger.add_calibrations(make_calibrations())
    space.ledger.add_exposures(
        make_exposure(f"simtiny-{place}-{band}-{number}", band, ra, night)
        for place, ra in PLACES.items()
        for band in BANDS
        for number, night in enumerate(("2024-03-08", "2024-04-10"))
    )
    space.ledger.define_runs("main", "rings.v3")
    return space
