"""The drop folder: files are taken once they stopped growing, bad ones set aside, known ones not read again."""

import os
import shutil
from pathlib import Path

import pytest

from lap_assets.errors import BadInput
from lap_assets.operations import incoming
from lap_assets.operations.incoming import Watch, check_camera, take_in
from lap_assets.operations.workspace import Workspace
from lap_assets_tests.defs.surveys import simulate_small


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> list[Path]:
    """Raw exposures of the simulated camera."""
    return sorted((simulate_small(tmp_path_factory.mktemp("frames") / "sim") / "raw").glob("*.fits*"))


@pytest.fixture
def space(tmp_path) -> Workspace:
    space = Workspace.create(tmp_path / "repository", {"lap": {"drop_camera": "simtiny"}})
    (space.root / "incoming" / "night1").mkdir(parents=True)
    return space


def look(space: Workspace, cursor: str | None) -> tuple[incoming.Arrival, str]:
    """One tick: the cursor goes through text, as Dagster keeps it."""
    watch = Watch.read(cursor)
    return take_in(space, watch), watch.write()


def test_a_file_is_taken_once_it_has_not_changed_between_two_looks(space, frames):
    """While it grows it waits; registered where it lies, it is not read again."""
    place = space.root / "incoming" / "night1" / frames[0].name
    whole = frames[0].read_bytes()
    place.write_bytes(whole[:5000])
    arrival, cursor = look(space, None)
    assert (arrival.ingested, arrival.growing) == ([], 1)
    place.write_bytes(whole)
    arrival, cursor = look(space, cursor)
    assert (arrival.ingested, arrival.growing) == ([], 1)
    arrival, cursor = look(space, cursor)
    assert arrival.ingested == [f"night1/{frames[0].name}"]
    (exposure,) = space.ledger.exposures().values()
    assert {chip.path for chip in exposure.chips} == {str(place)}
    assert look(space, cursor)[0] == look(space, None)[0] == incoming.Arrival()


def test_bad_files_are_set_aside_with_their_reason_and_keep_nobody_out(space, frames):
    """Cut short, no FITS at all, a copy: the good ones are registered; replaced, a bad one is tried again."""
    folder = space.root / "incoming"
    shutil.copy(frames[0], folder / "a.fits")
    (folder / "b.fits").write_bytes(frames[1].read_bytes()[:9000])
    (folder / "c.fits").write_text("no FITS file")
    shutil.copy(frames[2], folder / "d.fits")
    shutil.copy(frames[2], folder / "notes.txt")
    shutil.copy(frames[2], folder / ".d.fits.part.fits")
    _, cursor = look(space, None)
    arrival, cursor = look(space, cursor)
    assert arrival.ingested == ["a.fits", "d.fits"]
    assert set(arrival.rejected) == {"b.fits", "c.fits"} and all(arrival.rejected.values())
    journal = [entry for entry in space.repo.read_journal() if entry["kind"] == "rejected"]
    assert {Path(entry["path"]).name for entry in journal} == {"b.fits", "c.fits"}
    shutil.copy(frames[1], folder / "b.fits")
    for _ in range(2):
        arrival, cursor = look(space, cursor)
    assert arrival.ingested == ["b.fits"]
    assert len(space.ledger.exposures()) == 3


def test_a_tick_without_a_ledger_loses_no_file(space, frames):
    """The database is away: the tick fails, and the next one takes the file."""
    shutil.copy(frames[0], space.root / "incoming")
    _, cursor = look(space, None)
    space.ledger.close()
    ledger = space.root / "ledger.db"
    away = ledger.rename(space.root / "away.db")
    with pytest.raises(BadInput, match="cannot be used"):
        look(space, cursor)
    away.rename(ledger)
    assert look(space, cursor)[0].ingested == [frames[0].name]


def test_folders_that_did_not_change_are_not_listed(space, frames, monkeypatch):
    """Ten thousand known files cost nothing."""
    folder = space.root / "incoming" / "night1"
    shutil.copy(frames[0], folder)
    cursor = None
    for _ in range(3):
        _, cursor = look(space, cursor)
    listed: list[Path] = []
    real = incoming.list_frames
    monkeypatch.setattr(incoming, "list_frames", lambda place: listed.append(place) or real(place))
    look(space, cursor)
    assert listed == []
    shutil.copy(frames[1], folder)
    os.utime(folder, ns=(1, 1))  # whatever the clock of the file system says
    look(space, cursor)
    assert listed == [folder]


@pytest.mark.parametrize("cursor", ["", "{", "[]", '{"growing": 3}', '{"folders": {"a": "x"}}'])
def test_a_broken_cursor_begins_anew(cursor):
    """It is text that others may have written."""
    assert Watch.read(cursor) == Watch()


def test_files_without_a_camera_are_asked_about(tmp_path, frames):
    """Nobody said of which camera they are; an empty folder is no question."""
    space = Workspace.create(tmp_path / "repository", {})
    check_camera(space)
    (space.root / "incoming").mkdir()
    shutil.copy(frames[0], space.root / "incoming")
    with pytest.raises(BadInput, match=r"lap\.drop_camera"):
        check_camera(space)
