"""The demo: simulate a survey of a cluster, take it to the mass map inside Dagster, compare with the truth.

The truth folder is moved out of sight while the pipeline works, and comes back for the report.
"""

import json
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lap_assets.errors import BadInput
from lap_assets.operations.define import choose_tessellation
from lap_assets.operations.drive import AUTOMATIC, run_survey
from lap_assets.operations.ingest import ingest_frames, ingest_refcat
from lap_assets.operations.report import compare_with_truth, summarize_states
from lap_assets.operations.workspace import Workspace
from lap_assets.pipeline.compute import count_workers, get_executor
from lap_assets.pipeline.task import UnitReport
from lap_assets.settings import ComputeSettings
from lap_assets.sim.survey import simulate_survey

KEEP_HOURS = 24.0 * 365


def run_demo(
    directory: Path,
    seed: int = 1,
    size: str = "demo",
    workers: int = 0,
    tell: Callable[[UnitReport], None] = lambda report: None,
    begin: Callable[[str, int], None] = lambda product, partitions: None,
) -> dict[str, Any]:
    """Simulate into `directory/sim`, process in `directory/survey`, and return the end report.

    A demo begun before in the same folder goes on where it stopped; one of another seed or size is refused.
    """
    started = time.perf_counter()
    directory = directory.expanduser().resolve()
    sim, truth, hidden = directory / "sim", directory / "sim" / "truth", directory / "truth-set-aside"
    simulate_once(sim, hidden, seed, size, workers, begin)
    simulated = time.perf_counter()
    met = Workers()

    def note_and_tell(report: UnitReport) -> None:
        met.note(report)
        tell(report)

    if truth.exists():
        truth.rename(hidden)
    try:
        space = set_up(directory / "survey", sim, workers)
        summary = run_survey(space, None, [], None, None, note_and_tell, begin)
    finally:
        if hidden.exists():
            hidden.rename(truth)
    report = {
        "size": size,
        "repository": str(space.root),
        "seed": seed,
        "simulate_s": round(simulated - started, 1),
        "partitions": summary.partitions,
        "units_made": sum(summary.units.values()),
        "units_skipped": summary.skipped,
        "dagster_runs": summary.runs,
        "waiting": len(summary.waiting),
    }
    survey = space.survey()
    report |= summarize_states(space, survey) | compare_with_truth(space, survey, truth)
    report["pictures"] = write_pictures(space, survey, directory / "pictures")
    peak_mb = met.sum_peaks_mb(count_workers(space.settings.compute))
    report |= {"wall_s": round(time.perf_counter() - started, 1), "peak_rss_mb": peak_mb}
    write_json(report, directory / "report.json")
    return report


def simulate_once(
    sim: Path, hidden: Path, seed: int, size: str, workers: int, begin: Callable[[str, int], None]
) -> None:
    """Simulate unless the same survey lies there already; raises `BadInput` where another one does."""
    note = sim / "field.json"
    if note.exists():
        found = json.loads(note.read_text())
        if (found["seed"], found["size"]) != (seed, size):
            raise BadInput(f"{sim} holds the {found['size']} survey of seed {found['seed']}; choose another --dir")
        if hidden.exists():
            hidden.rename(sim / "truth")
        return
    begin("simulate", 1)
    compute = ComputeSettings(workers=workers)
    simulate_survey(sim, seed, size, workers=count_workers(compute), executor=get_executor(compute))


def set_up(root: Path, sim: Path, workers: int) -> Workspace:
    """The demo's repository with everything ingested: exposures, calibration frames, reference catalogue, one cell."""
    field = json.loads((sim / "field.json").read_text())
    overrides = {"compute.workers": workers} if workers else {}
    if not (root / "lap.yaml").exists():
        # whoever looks at the demo wants to see everything, although nothing needs it any more
        Workspace.create(root, {"lap": {"keep_hours": KEEP_HOURS}})
    space = Workspace.open(root, overrides)
    # each step is idempotent: a demo that was killed amid them goes on here
    space.ledger.add_tessellation(field["tessellation"])
    for kind, folder in (("calibration", "calibration"), ("raw", "raw")):
        outcome = ingest_frames(space, [sim / folder], field["camera"], kind)
        if outcome.rejected:
            raise BadInput(f"demo: {outcome.rejected[0].path}: {outcome.rejected[0].reason}")
    ingest_refcat(space, sorted((sim / "refcat").glob("*.parquet")), field["refcat"], ["*"])
    space.ledger.define_runs(space.settings.collections[0], choose_tessellation(space, None), label=AUTOMATIC)
    return space


@dataclass
class Workers:
    """The worker processes met so far, and the peak memory of each, MB."""

    peaks_mb: dict[int, float] = field(default_factory=dict)

    def note(self, report: UnitReport) -> None:
        """Remember who made a unit."""
        pid, peak_mb = report.worker
        self.peaks_mb[pid] = max(peak_mb, self.peaks_mb.get(pid, 0.0))

    def sum_peaks_mb(self, at_once: int) -> float:
        """Peak of this process plus the largest of its workers: an upper bound of what all held at one moment.

        Parameters
        ----------
        at_once : int
            How many workers there are at a time; those that compiled kernels are replaced.
        """
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        others = sorted(peak for pid, peak in self.peaks_mb.items() if pid != os.getpid())
        return round(own + sum(others[-at_once:]), 1)


def write_pictures(space: Workspace, survey, folder: Path) -> list[str]:
    """The demo's pictures, drawn from the products; returns their paths."""
    from lap_assets.operations.pictures import draw_survey

    folder.mkdir(parents=True, exist_ok=True)
    return [str(path) for path in draw_survey(space, survey, folder)]


def write_json(report: dict[str, Any], path: Path) -> None:
    """Write a report as JSON."""
    path.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")


# what the report shows: title, key, unit, target
ROWS = (
    ("astrometry, rms per axis", "astrometry_rms_mas", "mas", "<= 10"),
    ("photometry, isolated bright stars", "photometry_rms_mmag", "mmag", "<= 15"),
    ("stack depth / ideal", "stack_depth_ratio", "", ">= 0.9"),
    ("transients injected", "transients_injected", "", ""),
    ("transients found", "transients_found", "", ">= 8 of 10"),
    ("transients false", "transients_false", "", "<= 5"),
    ("mass map peak", "massmap_peak_snr", "sigma", ">= 5"),
    ("mass map peak expected", "massmap_expected_snr", "sigma", ""),
    ("mass map B-mode, rms", "massmap_b_rms", "sigma", "about 1"),
    ("mass map peak from truth", "massmap_offset_arcmin", "arcmin", "<= 1.5"),
    ("mass / truth", "mass_ratio", "", ""),
    ("mass - truth", "mass_deviation_sigma", "sigma", "within 2"),
    ("partitions", "partitions", "", ""),
    ("peak memory", "peak_rss_mb", "MB", "<= 3072"),
    ("wall time, simulation included", "wall_s", "s", "<= 300"),
)


def describe(report: dict[str, Any]) -> str:
    """The end report as text: truth against measured, where the pictures are, what to do next."""
    lines = [f"{'':34}{'measured':>12}        goal"]
    for title, key, unit, goal in ROWS:
        target = goal if report["size"] == "demo" else ""  # the goals are those of the demo survey
        value = report.get(key)
        shown = "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        lines.append(f"{title:34}{shown:>12} {unit:7}{target}")
    lines.append(
        f"units: {report['units_done']} done, {report['units_other']} without data, {report['units_failed']} failed"
    )
    lines.append("pictures: " + ", ".join(report["pictures"]))
    lines.append(f"next: lap --repo {report['repository']} ui   (make ui for the folder make demo uses)")
    return "\n".join(lines)
