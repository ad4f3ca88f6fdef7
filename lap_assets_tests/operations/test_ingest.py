"""The preflight estimate of an ingest, and what becomes of a camera file."""

import shutil
from types import SimpleNamespace

import pytest

from lap_assets.errors import BadInput
from lap_assets.model.camera import CAMERAS_DIR, load_camera
from lap_assets.model.survey import ChipFile, Exposure
from lap_assets.operations import ingest
from lap_assets.operations.workspace import Workspace


def expose(camera, dec):
    files = tuple(ChipFile(chip, "x", chip, camera.footprint(chip, 0.0, dec)) for chip in camera.chips)
    return Exposure("simcam-1", "simcam", "r", "sim-r", "2026-01-01", 6e4, 30.0, 0.0, dec, chips=files)


@pytest.mark.parametrize("dec", [0.0, -60.0])
def test_estimate_follows_the_pixels_also_across_ra_zero(tmp_path, monkeypatch, dec):
    """4 chips of 1024² at 32 bytes and 3 µs a pixel: 0.13 GB and 0.2 minutes; and a disk that is too small is told."""
    camera = load_camera("simcam")
    space = SimpleNamespace(root=tmp_path)
    assert "0.13 GB of disk, 0.2 minutes" in ingest.estimate(space, camera, [expose(camera, dec)])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1e8))
    assert ingest.estimate(space, camera, [expose(camera, dec)]).endswith("NOT ENOUGH DISK")


def test_a_camera_file_is_kept_by_the_repository(tmp_path):
    """LV-27, AP-10: a camera of one's own needs no code, and is found again when its file is gone."""
    space = Workspace.create(tmp_path / "repo")
    own = tmp_path / "mine.yaml"
    own.write_text((CAMERAS_DIR / "simcam.yaml").read_text())
    with pytest.raises(BadInput, match="comes with the package"):
        ingest.keep_camera(space, str(own))
    own.write_text(own.read_text().replace("name: simcam", "name: mycam"))
    sha256 = ingest.keep_camera(space, str(own)).sha256
    own.unlink()
    assert load_camera("mycam", space.repo.cameras).sha256 == sha256
