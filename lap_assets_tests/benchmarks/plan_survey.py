"""A survey to plan: one field seen by a camera of 62 chips, with gaps in it, in a repository without any pixels.

As many units as the plan of LSST that requirement LV-04 quotes: 133 solutions, 5,824 chips, 469 skycells of first-pass
stacks and as many of final ones; raw files are there but empty.
"""

import math
from functools import cache
from pathlib import Path

import pandas as pd

from lap_assets.model.camera import Camera, load_camera
from lap_assets.model.survey import CalibrationSet, ChipFile, Exposure
from lap_assets.operations.drive import AUTOMATIC
from lap_assets.operations.workspace import Workspace

RA, DEC = 150.0, 2.0
EXPOSURES, CHIPS, SKYCELLS = 133, 5_824, 469
SKY = {
    "kind": "local", "name": "field", "ra_deg": RA, "dec_deg": DEC, "pixel_scale_arcsec": 0.25, "skycell_px": 1502,
    "grid": [26, 26], "overlap_px": 100,
}  # fmt: skip
CORNERS = ((0.0, 0.0), (0.3, 0.0), (0.3, 0.3), (0.0, 0.3))
LOST = 8  # exposures whose raw files are gone
OTHER_BAND = 20  # exposures of a band there are no flats of


def create_planned(root: Path) -> Workspace:
    """The repository, with one run per band and nothing made."""
    Workspace.create(root, {})
    space = Workspace.open(root)
    camera = load_camera("decam")
    space.ledger.add_tessellation(SKY)
    space.ledger.add_calibrations([make_frames(root, camera, "bias", "all"), make_frames(root, camera, "flat", "r")])
    add_refcat(space)
    each, extra = divmod(CHIPS, EXPOSURES)
    exposures = [make_exposure(root, camera, number, each + (number < extra)) for number in range(EXPOSURES)]
    space.ledger.add_exposures(exposures)
    space.ledger.define_runs("main", SKY["name"], label=AUTOMATIC)
    for one in exposures[:: EXPOSURES // LOST][:LOST]:
        for file in one.chips:
            Path(file.path).unlink()
    return space


def add_refcat(space: Workspace) -> None:
    """A reference catalogue of one star, for one band."""
    star = {"source_id": [1], "ra": [150.0], "dec": [2.0], "pmra": [0.0], "pmdec": [0.0]}
    errors = {"ra_err_mas": [0.1], "dec_err_mas": [0.1], "ref_epoch_yr": [2016.0]}
    content = space.repo.write_refcat("gaia", pd.DataFrame(star | errors))
    space.ledger.add_reference_catalog("gaia", ["r"], content, 1)


def make_frames(root: Path, camera: Camera, kind: str, band: str) -> CalibrationSet:
    """Frames of a calibration set, empty files."""
    files = []
    for number in range(3):
        path = write_empty(root / "raw" / f"{kind}{band}{number}.fits")
        files += [ChipFile(chip, path, chip, CORNERS, f"{number:064d}") for chip in camera.good_chips]
    return CalibrationSet(f"decam|{kind}|{band}|2026-01-01", "decam", kind, band, "2026-01-01", tuple(files))


def make_exposure(root: Path, camera: Camera, number: int, n_chips: int) -> Exposure:
    """An exposure, dithered, of the first chips of the camera, each in a file of its own."""
    angle, away = 2.399963 * number, 0.12 * math.sqrt(number / EXPOSURES)
    east, north = away * math.cos(angle), away * math.sin(angle)
    band = "i" if number >= EXPOSURES - OTHER_BAND else "r"
    id_, night = f"decam-{number:04d}", f"2026-01-{2 + number // 20:02d}"
    chips = tuple(
        ChipFile(
            chip, write_empty(root / "raw" / id_ / f"{chip}.fits"), "1",
            tuple((ra + east, dec + north) for ra, dec in find_footprint(camera.name, chip)), "0" * 64,
        )
        for chip in camera.good_chips[:n_chips]
    )  # fmt: skip
    return Exposure(
        id_, "decam", band, f"{band} DECam", night, 61042.0 + number, 60.0, RA + east, DEC + north, chips=chips
    )


@cache
def find_footprint(camera: str, chip: str) -> tuple[tuple[float, float], ...]:
    """Corners of a chip of an exposure of the middle of the field."""
    return load_camera(camera).footprint(chip, RA, DEC)


def write_empty(path: Path) -> str:
    """An empty file; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return str(path)
