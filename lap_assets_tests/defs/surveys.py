"""Small repositories for the tests of Dagster: one with a made-up ledger and no pixels, one simulated in seconds."""

import json
from dataclasses import replace
from pathlib import Path

from lap_assets.model.camera import CAMERAS_DIR
from lap_assets.model.survey import CalibrationSet, ChipFile, Exposure
from lap_assets.operations.ingest import ingest_frames, ingest_refcat
from lap_assets.operations.workspace import Workspace
from lap_assets.sim.design import make_design
from lap_assets.sim.survey import write_survey

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


def ask_for_all_masters(space: Workspace) -> None:
    """Let the camera of a made-up survey need masters of all kinds, and give it frames of each."""
    space.repo.cameras.mkdir(exist_ok=True)
    text = (CAMERAS_DIR / "simtiny.yaml").read_text()
    assert ", flat, defects" in text
    (space.repo.cameras / "simtiny.yaml").write_text(
        text.replace(", flat, defects", ", dark, flat, sky, fringe, defects")
    )
    known = {one.kind: one for one in make_calibrations()}
    others = (("dark", "bias", ("all",)), ("sky", "flat", BANDS), ("fringe", "flat", BANDS))
    space.ledger.add_calibrations(
        replace(known[like], key=f"simtiny|{kind}|{band}|2024-03-01", kind=kind, band=band, valid_from="2024-03-01")
        for kind, like, bands in others
        for band in bands
    )


def simulate_small(folder: Path, seed: int = 3) -> Path:
    """The smallest survey that goes through the whole chain: one band, one exposure in each of three nights."""
    few = {"bands": ("r",), "visits": (1, 1, 1), "bias_frames": 3, "flat_frames": 3, "galaxy_density": 20.0}
    write_survey(folder, replace(make_design("tiny", seed), streak=False, **few), workers=1)
    return folder


def ingest_small(root: Path, sim: Path, executor: str = "serial") -> Workspace:
    """A new repository with a simulated survey ingested, its runs defined, and nothing made."""
    note = json.loads((sim / "field.json").read_text())
    Workspace.create(root, {"compute": {"executor": executor, "workers": 2}})
    space = Workspace.open(root)
    space.ledger.add_tessellation(note["tessellation"])
    for kind, name in (("calibration", "calibration"), ("raw", "raw")):
        outcome = ingest_frames(space, [sim / name], note["camera"], kind)
        assert not outcome.rejected, outcome.rejected
    ingest_refcat(space, [sim / "refcat" / "gaia.parquet"], note["refcat"], ["*"])
    space.ledger.define_runs("main", note["tessellation"]["name"])
    return space
