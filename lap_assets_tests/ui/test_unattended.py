"""The platform by itself: a queue file, the real daemon, nobody at the keyboard; three things are killed on the way.

One server run for all of it: the tests of this module look, in order, at what it did.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from astropy.io import fits

from lap_assets.defs.run import open_instance
from lap_assets.model.products import PRODUCTS
from lap_assets.model.states import RESULTS
from lap_assets.operations.ingest import ingest_frames, ingest_refcat
from lap_assets.operations.workspace import Workspace
from lap_assets.sim.design import make_design
from lap_assets.sim.survey import write_survey
from lap_assets_tests.ui.servers import Server, find_free_port, serve
from lap_assets_tests.ui.test_ui import open_page

pytestmark = [pytest.mark.ui, pytest.mark.slow, pytest.mark.xdist_group("ui"), pytest.mark.timeout(1800)]

LAP = [sys.executable, "-c", "from lap_assets.cli import main; main()"]
PATIENCE_SECONDS = 900.0
CELLS, BANDS = ("tiny.0", "tiny.1"), ("g", "r")
OFFSET_DEG = 0.02  # of the cells' centres: each covers more than half of the field


@dataclass
class Story:
    """What was seen while it ran."""

    root: Path
    server: Server
    cut: str
    flat: str
    most_active: int = 0
    full: list[int] = field(default_factory=list)
    killed: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def space(self) -> Workspace:
        return Workspace.open(self.root)

    def watch_until(self, done: Callable[["Story"], bool], what: str) -> None:
        """Look every second, and note what the runs do, until it is done."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            rows = self.space.ledger.runs("main")
            active = [row for row in rows if row.state != "full" and not row.fault]
            self.most_active = max(self.most_active, len(active))
            self.full += [row.lap_id for row in rows if row.state == "full" and row.lap_id not in self.full]
            if done(self):
                return
            assert self.server.process.poll() is None, self.server.log.read_text()[-5000:]
            assert time.monotonic() < end, f"never {what}: {rows}\n{self.server.log.read_text()[-5000:]}"
            time.sleep(1)

    def find_process(self, words: str) -> int:
        """A process of the server whose command line has these words; 0 if there is none."""
        for pid in self.server.members():
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # ended meanwhile
            if words in line and "dagster dev" not in line:
                return pid
        return 0

    def find_worker(self, product: str) -> int:
        """The process that makes a product now, by the lease it holds; 0 if nobody does."""
        owners = [one.owner for one in self.space.ledger.leases() if one.key.startswith(f"main/{product}/")]
        return int(owners[0].split(":")[1]) if owners else 0

    def kill(self, name: str, find: Callable[[], int]) -> None:
        """SIGKILL a process as soon as there is one."""
        self.watch_until(lambda story: bool(find()), f"a {name} to kill")
        pid = find()
        os.kill(pid, signal.SIGKILL)
        self.killed[name] = pid


def simulate(folder: Path) -> tuple[Path, dict]:
    """Two bands, three nights of pairs; one exposure whose pixels are all the same."""
    few = {"bias_frames": 3, "flat_frames": 3, "galaxy_density": 20.0}
    write_survey(folder, replace(make_design("tiny", 3), **few), workers=1)
    return folder, json.loads((folder / "field.json").read_text())


def find_raw(space: Workspace, band: str, number: int) -> tuple[str, Path]:
    """(exposure, file) number so-and-so of a band."""
    exposures = space.ledger.exposures()
    chosen = sorted(id_ for id_, one in exposures.items() if one.band == band)[number]
    return chosen, Path(exposures[chosen].chips[0].path)


def prepare(root: Path, sim: Path, note: dict) -> tuple[str, str]:
    """A repository with everything ingested and four runs in the queue; the exposure cut, and the one all equal."""
    Workspace.create(root, {"compute": {"executor": "serial"}, "lap": {"max_active": 1}, "stacks": {"min_inputs": 3}})
    space = Workspace.open(root)
    sky = dict(note["tessellation"])
    ra, dec = sky.pop("ra_deg"), sky.pop("dec_deg")
    centres = [[ra - OFFSET_DEG, dec], [ra + OFFSET_DEG, dec], [ra, dec]]
    space.ledger.add_tessellation(sky | {"centres": centres, "grid": [1, 1], "skycell_px": 560, "overlap_px": 20})
    for kind in ("calibration", "raw"):
        assert not ingest_frames(space, [sim / kind], note["camera"], kind).rejected
    ingest_refcat(space, [sim / "refcat" / "gaia.parquet"], note["refcat"], ["*"])
    space.ledger.define_sequence("main")
    words = "-definerun -seq_id main -tess_id tiny"
    lines = [f"{words} -projection_cell {cell} -filter {band}" for cell in CELLS for band in BANDS]
    (root / "queue.txt").write_text("\n".join(["# two cells, two bands", *lines]) + "\n")
    cut, path = find_raw(space, "g", 5)
    path.write_bytes(path.read_bytes()[: 3 * 2880])
    flat, path = find_raw(space, "r", 5)
    with fits.open(path, mode="update") as frames:
        for frame in frames[1:]:
            frame.data = np.full_like(frame.data, 1000)
    return cut, flat


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Iterator[Story]:
    """Four runs of a queue file from new to cleaned, no command given; worker, code server and daemon killed."""
    folder = tmp_path_factory.mktemp("unattended")
    sim, note = simulate(folder / "sim")
    root, port, began = folder / "repository", find_free_port(), time.monotonic()
    cut, flat = prepare(root, sim, note)
    command = [*LAP, "--repo", str(root), "ui", "--port", str(port)]
    with serve(command, folder, port, folder / "dagster.log") as server:
        story = Story(root, server, cut, flat)
        story.kill("worker", lambda: story.find_worker("warps"))
        story.watch_until(lambda now: 1 in now.full, "run 1 full")
        story.kill("code server", lambda: story.find_process("api grpc"))
        story.watch_until(lambda now: 2 in now.full, "run 2 full")
        story.kill("daemon", lambda: story.find_process("dagster._daemon"))
        story.watch_until(is_cleaned, "four runs cleaned")
        story.seconds = time.monotonic() - began
        yield story
    assert server.members() == []


def is_cleaned(story: Story) -> bool:
    rows = story.space.ledger.runs("main")
    return len(rows) == 4 and all(row.settled and row.cleaned for row in rows)


def test_all_runs_reach_full_in_order_and_never_more_than_one_is_active(story):
    """LAP-22, LAP-32, LAP-34: by the queue file alone, whatever was killed."""
    assert set(story.killed) == {"worker", "code server", "daemon"}
    assert story.full == [1, 2, 3, 4]
    assert story.most_active == 1
    rows = story.space.ledger.runs("main")
    assert [(row.cell, row.band) for row in rows] == [(cell, band) for cell in CELLS for band in BANDS]
    assert [row.fault for row in rows] == [0, 0, 0, 0] and all(row.final_sass_id for row in rows)


def test_exposures_that_cannot_be_used_are_dropped_and_named(story):
    """LAP-24, LAP-28: one cut, one all equal; its companion is left to a neighbour's run, the others are complete."""
    for row in story.space.ledger.runs("main"):
        members = {one.exposure: one for one in story.space.ledger.members(row.lap_id)}
        bad = story.cut if row.band == "g" else story.flat
        assert {name for name, one in members.items() if one.data_state == "drop"} == {bad}
        assert members[bad].reason and not any(one.active for one in members.values())
        (companion,) = (name for name, one in members.items() if one.private)
        assert members[companion].data_state == "to_diff"
        postponed = story.space.ledger.partition_states("main")["diffs", f"{companion}|{row.cell}"]
        assert postponed.state == "dropped" and postponed.reason.startswith("postponed")
        others = [one for name, one in members.items() if name not in (bad, companion)]
        assert len(others) == 4 and {(one.data_state, one.pairwise) for one in others} == {("full", True)}


def test_nothing_is_processed_twice_and_nothing_is_lost(story):
    """LAP-12: every partition ended once; what a killed run had made was not made again, and Dagster knows it all."""
    space = story.space
    survey, states = space.survey("main"), space.ledger.partition_states("main")
    with open_instance(story.root) as instance:
        for product in PRODUCTS:
            home = {"master_biases": "calib", "master_flats": "calib"}.get(product, "main")
            told = Counter()
            for record in instance.fetch_materializations(dg.AssetKey([home, product]), limit=1000).records:
                if record.asset_materialization.metadata["state"].value != "recreated":
                    told[record.partition_key] += 1
            assert set(told) == {key for name, key in states if name == product}, product
            assert set(told.values()) <= {1}, (product, told)
    used = {ref for run in survey.runs for name in run.members for ref in [("warps", f"{name}|{run.cell}")]}
    assert used <= set(states) and all(states[ref].state == "cleaned" for ref in used)
    assert space.ledger.leases() == []


def test_intermediates_are_gone_and_what_matters_is_whole(story):
    """LAP-33: four fifths of the bytes at least; final stacks and catalogues as they were published."""
    space = story.space
    size = Counter()
    for unit in space.ledger.units("main"):
        size[unit.state == "cleaned"] += unit.bytes
        row = PRODUCTS[unit.data_id.product]
        assert unit.state in (("cleaned", *RESULTS - {"done"}) if row.intermediate else RESULTS)
        if unit.state == "done":
            assert space.repo.has_files(unit.data_id)
    assert size[True] >= 0.8 * (size[True] + size[False])
    on_disk = sum(path.stat().st_size for path in (story.root / "store").rglob("*") if path.is_file())
    assert on_disk <= 0.25 * (size[True] + size[False])
    for cell in CELLS:
        for band in BANDS:
            (unit,) = space.repo.units("main", "final_stacks", f"{cell}|{band}")
            assert np.isfinite(space.repo.read_image(unit).sci).mean() > 0.5
        (unit,) = space.repo.units("main", "object_catalogs", cell)
        assert len(space.repo.read_table(unit, "objects.parquet")) > 50


def test_the_ui_marks_what_is_cleaned_and_shows_the_runs(story, browser, pictures):
    """One sees that a partition was made and has no files, and how every run stands."""
    (key, *_) = sorted(key for name, key in story.space.ledger.partition_states("main") if name == "warps")
    url = f"{story.server.url}/assets/main/warps"
    open_page(browser, f"{url}?view=partitions&partition={key}", "cleaned", key)
    browser.save_screenshot(str(pictures / "cleaned_partition.png"))
    open_page(browser, f"{url}?view=checks", "files_on_disk")
    browser.save_screenshot(str(pictures / "cleaned_checks.png"))
    text = open_page(browser, f"{story.server.url}/assets/main/lap_status", "full, cleaned", *CELLS)
    browser.save_screenshot(str(pictures / "lap_status.png"))
    assert "n_runs" in text


def test_an_overlapping_run_re_creates_what_it_needs_and_no_more(story):
    """LAP-18: a third cell, defined by one command: its chips come back as they were, nothing else does."""
    before = story.space.ledger.partition_states("main")
    contents = {unit.data_id: unit.content for unit in story.space.ledger.units("main", "chips")}
    command = [*LAP, "--repo", str(story.root), "run", "define", "--cell", "tiny.2", "--band", "r"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)

    def is_over(now: Story) -> bool:
        rows = now.space.ledger.runs("main")
        return len(rows) == 5 and rows[4].settled and rows[4].cleaned

    story.watch_until(is_over, "run 5 cleaned")
    space = story.space
    run = next(run for run in space.survey("main").runs if run.lap_id == 5)
    with open_instance(story.root) as instance:
        again = {
            product: {
                record.partition_key
                for record in instance.fetch_materializations(dg.AssetKey(["main", product]), limit=1000).records
                if record.asset_materialization.metadata["state"].value == "recreated"
                and record.run_id in find_runs(instance, 5)
            }
            for product in PRODUCTS
        }
    assert {product: keys for product, keys in again.items() if keys} == {"chips": set(run.members)}
    after = space.ledger.partition_states("main")
    for key in run.members:
        assert after["chips", key].content_sha256 == before["chips", key].content_sha256
    assert {unit.data_id: unit.content for unit in space.ledger.units("main", "chips")} == contents
    assert {ref: one for ref, one in after.items() if ref in before} == before


def find_runs(instance: dg.DagsterInstance, lap_id: int) -> set[str]:
    """Dagster runs that were requested for a LAP run."""
    return {run.run_id for run in instance.get_runs(dg.RunsFilter(tags={"lap/lap_id": str(lap_id)}))}
