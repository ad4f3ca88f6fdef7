"""A survey that meets trouble: bad exposures, damaged products, a lost ledger, a killed run, a full disk."""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from astropy.io import fits

from lap_assets.lap.decide import decide
from lap_assets.model.ids import DataId
from lap_assets.operations.drive import DRIVEN, take_snapshot
from lap_assets.operations.workspace import Workspace
from lap_assets.store.repo import Repo
from lap_assets_tests.survey.conftest import LAP, Processed, lap, process

pytestmark = [pytest.mark.survey, pytest.mark.slow, pytest.mark.xdist_group("survey")]


@pytest.fixture
def copy(tiny, tmp_path) -> Processed:
    """A copy of the finished repository that a test may damage."""
    root = tmp_path / "copy"
    shutil.copytree(tiny.root, root, ignore=shutil.ignore_patterns("logs"))
    return Processed(root, tiny.sim)


def contents(root: Path) -> dict[DataId, str]:
    repo = Repo(root)
    return {data_id: repo.manifest(data_id).content_sha256 for data_id in repo.all_units()}


def test_damaged_products_are_named_quarantined_and_made_again_alone(copy):
    """A flipped bit, a lost file and a cut file: fsck names them, run makes just them again, byte for byte."""
    before = contents(copy.root)
    repo = Repo(copy.root)
    hurt = [
        DataId("main", "warps", "simtiny-000101|tiny.0", "00"),
        DataId("main", "chips", "simtiny-000102", "c1"),
        DataId("main", "object_catalogs", "tiny.0", "02"),
    ]
    paths = [repo.path(hurt[0], "image.fits"), repo.path(hurt[1], "image.fits"), repo.path(hurt[2], "objects.parquet")]
    flipped = bytearray(paths[0].read_bytes())
    flipped[len(flipped) // 2] ^= 0x10
    paths[0].write_bytes(flipped)
    paths[1].unlink()
    paths[2].write_bytes(paths[2].read_bytes()[:5000])
    checked = lap("--repo", copy.root, "fsck", "--full", check=False)
    assert checked.returncode == 1
    assert all(str(data_id) in checked.stdout for data_id in hurt) and "3 broken" in checked.stdout
    done = lap("--repo", copy.root, "run")
    assert "units: 3 done" in done.stdout, done.stdout
    assert contents(copy.root) == before
    assert lap("--repo", copy.root, "fsck", "--full").returncode == 0


def test_lost_manifest_is_noticed_and_its_bytes_are_never_swept(copy):
    """A manifest or a whole unit that is gone: the ledger knows, fsck names it, keeps the bytes, run makes it again."""
    repo = Repo(copy.root)
    before = contents(copy.root)
    one, other = (
        DataId("main", "final_stacks", "tiny.0|r", "03"),
        DataId("main", "warps", "simtiny-000102|tiny.0", "01"),
    )
    path = repo.path(one, "image.fits")
    os.utime(path.parent, (1e9, 1e9))
    repo.layout.manifest(one).unlink()
    shutil.rmtree(repo.layout.unit_dir(other))
    checked = lap("--repo", copy.root, "fsck", check=False)
    assert checked.returncode == 1 and str(one) in checked.stdout and str(other) in checked.stdout
    assert path.is_file()
    lap("--repo", copy.root, "run")
    assert contents(copy.root) == before


def test_changed_reference_catalog_remakes_the_solutions(copy, tmp_path):
    """What lies outside the products counts too: a catalogue with fewer stars, replaced on purpose only."""
    half = tmp_path / "half.parquet"
    table = pd.read_parquet(copy.sim / "refcat" / "gaia.parquet")
    table.iloc[::2].to_parquet(half)
    again = ("--repo", copy.root, "ingest", half, "--kind", "refcat", "--name", "gaia")
    assert "--replace" in lap(*again, check=False).stderr
    lap(*again, "--replace")
    space = Workspace.open(copy.root)
    actions = decide(replace(take_snapshot(space, "main", "all"), revisit=True), DRIVEN).actions
    assert {(a.product, a.reason) for a in actions} == {("solutions", "inputs changed")} and len(actions) == 12


def test_damaged_journal_never_costs_the_ledger(copy):
    """A rebuild that fails leaves the ledger that is there as it was."""
    journal = copy.root / "store" / "journal.jsonl"
    journal.write_text('{"kind": "run", "run": "nonsense"}\n' + journal.read_text())
    assert lap("--repo", copy.root, "ledger", "rebuild", check=False).returncode == 2
    assert "none made" in lap("--repo", copy.root, "run").stdout


def test_lost_ledger_is_rebuilt_with_the_same_decisions(copy):
    """The files are the truth: journal and manifests bring back survey, states and decisions."""
    space = Workspace.open(copy.root)
    before, states = space.survey(), space.ledger.partition_states()
    decision = decide(replace(take_snapshot(space, "main", "all"), revisit=True))
    space.ledger.close()
    for file in copy.root.glob("ledger.db*"):
        file.unlink()
    assert "rebuilt" in lap("--repo", copy.root, "ledger", "rebuild").stdout
    fresh = Workspace.open(copy.root)
    assert fresh.survey() == before
    assert fresh.ledger.partition_states() == states
    assert decide(replace(take_snapshot(fresh, "main", "all"), revisit=True)) == decision
    assert "none made" in lap("--repo", copy.root, "run").stdout


def test_changed_setting_remakes_only_what_depends_on_it(copy):
    before = contents(copy.root)
    (copy.root / "lap.yaml").write_text("mass_maps: {step_arcmin: 0.15}\n")
    done = lap("--repo", copy.root, "run")
    after = contents(copy.root)
    changed = {data_id.product for data_id in after if after[data_id] != before[data_id]}
    assert changed <= {"mass_maps", "mass_fits"} and "mass_maps" in changed
    assert "mass_maps: 1 partitions" in done.stderr and "shear_catalogs" not in done.stderr


def small_survey(tiny, folder: Path, exposures: int = 6) -> Path:
    """A simulated survey of fewer exposures, all of one band, whose files may be damaged."""
    sim = folder / "sim"
    for part in ("calibration", "refcat"):
        shutil.copytree(tiny.sim / part, sim / part)
    shutil.copy(tiny.sim / "field.json", sim)
    (sim / "raw").mkdir()
    files = [f for f in sorted((tiny.sim / "raw").glob("*.fits")) if fits.getheader(f)["FILTER"] == "sim-r"][:exposures]
    for file in files:
        shutil.copy(file, sim / "raw")
    return sim


def test_exposure_without_data_never_keeps_its_cell_waiting(tiny, tmp_path):
    """PHX-13, LV-06: one exposure is constant, one goes missing after ingest; the cell is stacked from the others."""
    sim = small_survey(tiny, tmp_path)
    blank, gone = sorted((sim / "raw").glob("*.fits"))[:2]
    with fits.open(blank, mode="update") as hdus:
        for hdu in hdus[1:]:
            hdu.data[:] = 1000
    root = process(tmp_path, sim, "--to", "chips", "--select", f"exposure={int(blank.stem.split('-')[1])}")
    gone.unlink()
    done = lap("--repo", root, "run", check=False)
    assert done.returncode == 1 and gone.name in done.stderr + done.stdout
    repo = Repo(root)
    stacks = repo.query("final_stacks", "state=done")
    assert len(stacks) == 4
    states = Workspace.open(root).ledger.partition_states()
    assert states[("chips", blank.stem)].state == "unprocessable"
    assert states[("chips", gone.stem)].state == "dropped"
    inputs = repo.read_table(DataId("main", "final_stacks", "tiny.0|r", "00"), "inputs.parquet")
    assert len(inputs) == 4 and not {blank.stem, gone.stem} & set(inputs["exposure"])
    assert "none made" in lap("--repo", root, "run").stdout


def test_killed_run_goes_on_where_it_stopped(tiny, tmp_path):
    """SIGKILL of the whole process group amid the chips, twice: the rest is made, nothing is lost or made twice."""
    sim = small_survey(tiny, tmp_path)
    root = process(tmp_path, sim, "--to", "master_flats")
    for after in (2, 9):
        run = subprocess.Popen(
            [*LAP, "--repo", str(root), "run", "--to", "chips"], start_new_session=True, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while len(Repo(root).all_units("main", "chips")) < after and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert run.poll() is None, "it ended before it could be killed"
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        if after == 2:
            expire_leases(root)
    made = contents(root)
    # while the dead run's leases last nobody else may write: the next one says who holds them, and waits
    last = subprocess.Popen([*LAP, "--repo", str(root), "run", "--to", "chips"], stderr=subprocess.PIPE, text=True)
    assert any("is being made by" in line for line in last.stderr)
    expire_leases(root)
    last.communicate(timeout=300)
    assert last.returncode == 0
    after = contents(root)
    assert len(Repo(root).query("chips", "state=done")) == 24
    assert all(after[data_id] == content for data_id, content in made.items())
    assert lap("--repo", root, "fsck", "--full").returncode == 0


def expire_leases(root: Path) -> None:
    """Let the leases of a killed process run out now instead of in a minute."""
    import sqlite3

    with sqlite3.connect(root / "ledger.db") as connection:
        connection.execute("UPDATE lease SET expires = 0")


def test_full_disk_loses_nothing(tiny, tmp_path):
    """Ledger and store on a tmpfs that fills up: the run says so, what is published verifies, then it goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here; lap_assets_tests/faults covers the store with RLIMIT_FSIZE")
    try:
        sim = small_survey(tiny, tmp_path, 3)
        root = process(disk, sim, "--to", "master_flats")
        full = lap("--repo", root, "run", "--to", "warps", check=False)
        assert full.returncode != 0 and "space" in (full.stderr + full.stdout).lower()
        assert "Traceback" not in full.stderr
        assert subprocess.run(["mount", "-o", "remount,size=200m", disk]).returncode == 0
        expire_leases(root)
        assert lap("--repo", root, "fsck", "--full").returncode == 0
        lap("--repo", root, "run", "--to", "warps", "--retry")
        assert len(Repo(root).query("warps", "state=done")) == 12
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
