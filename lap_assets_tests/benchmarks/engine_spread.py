"""Benchmarks of the pixel engine as a whole: cost against exposures and cells, two processes, Dagster and the store.

All through the stages on skycells of 2000 × 2000 px. One stage against its peers is the other modules'.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

from lap_assets.model.survey import CalibrationSet, ChipFile, Exposure
from lap_assets.model.tessellation import LocalTessellation, ProjectionCell
from lap_assets.pipeline.engine import Session
from lap_assets.settings import StackSettings
from lap_assets.store.repo import Repo
from lap_assets.store.rows import RowReader
from lap_assets_tests.benchmarks import engine_data
from lap_assets_tests.benchmarks.engine_peers import Seconds
from lap_assets_tests.benchmarks.engine_process import run_process
from lap_assets_tests.benchmarks.exposure_process import MASTERS
from lap_assets_tests.benchmarks.results import Row

COMMAND = "make bench ONLY=engine.spread"
PIXEL_STAGES = ("warps", "stacks", "diffs", "streak_masks", "final_stacks")
N_EXPOSURES, N_CELLS = (3, 6, 12, 24), (1, 2, 4)
MIDDLE = LocalTessellation("middle", [engine_data.CENTRE], engine_data.SCALE_ARCSEC, 2000, (1, 1), 0).only
STORE = ((Repo, "_read"), (Repo, "publish"), (Repo, "manifest"), (RowReader, "read"))


# ---- linear


def bench_exposures() -> list[Row]:
    """CPU seconds of warps to final stacks of one skycell with 3, 6, 12 and 24 exposures."""
    root = engine_data.prepare().repo.root
    least = {"stacks": StackSettings(min_inputs=min(N_EXPOSURES))}
    make_all(make_session(root, "exposures-0", (MIDDLE,), N_EXPOSURES[0], **least))  # compiles and loads
    taken = {n: make_all(make_session(root, f"exposures-{n}", (MIDDLE,), n, **least)) for n in N_EXPOSURES}
    return tell_growth("exposures", taken, "exposure")


def bench_cells() -> list[Row]:
    """CPU seconds of warps to final stacks of six exposures on 1, 2 and 4 projection cells of one skycell each."""
    root = engine_data.prepare().repo.root
    cells = [replace(MIDDLE, name=f"cell{number}.0") for number in range(max(N_CELLS))]
    make_all(make_session(root, "cells-0", cells[:1], 6))
    taken = {n: make_all(make_session(root, f"cells-{n}", cells[:n], 6)) for n in N_CELLS}
    return tell_growth("cells", taken, "cell")


def tell_growth(name: str, taken: dict[int, Seconds], unit: str) -> list[Row]:
    """The power by which cost grows, and the seconds it is fitted to."""
    part, command = f"engine.spread.{name}", f"make bench ONLY=engine.spread.{name}"
    counts, cpu = np.array(list(taken)), np.array([one.cpu for one in taken.values()])
    power = float(np.polyfit(np.log(counts), np.log(cpu), 1)[0])
    told = ", ".join(f"{n}: {seconds:.2f}" for n, seconds in zip(counts, cpu, strict=True))
    last = float((cpu[-1] - cpu[-2]) / (counts[-1] - counts[-2]))
    return [
        Row(f"{part}_power", power, "", "<= 1.1", f"1: linear; CPU seconds of {told}", command),
        Row(f"{part}_marginal_cpu", last, "s", "", f"one {unit} more; mean of all {cpu[-1] / counts[-1]:.2f}", command),
    ]


def make_session(
    root: Path, collection: str, cells: Sequence[ProjectionCell], n_exposures: int, workers: int = 0, **changes: object
) -> Session:
    """A session of so many exposures on some cells, chips and solutions lent by the six there are, in turn."""
    exposures = [repeat_exposure(number) for number in range(n_exposures)]
    named = {cell.name: cell for cell in cells}
    survey = engine_data.describe_run(exposures, collection, named)
    session = Session(survey, engine_data.open_session(root).repo, engine_data.choose_settings(workers, **changes))
    for number, exposure in enumerate(exposures):
        for product in ("chips", "solutions"):
            engine_data.lend(session, product, exposure.id, engine_data.read_exposures()[number % 6].id)
    engine_data.make(session, "joint_solutions", survey.partitions("joint_solutions"))
    return session


def repeat_exposure(number: int) -> Exposure:
    """The six exposures in turn, under other names and on other nights."""
    one = engine_data.read_exposures()[number % 6]
    return one if number < 6 else replace(one, id=f"{one.id}-{number // 6}", night=f"2023-03-{number:02d}")


def make_all(session: Session, products: Iterable[str] = PIXEL_STAGES) -> Seconds:
    """Seconds of making all partitions of the pixel stages; what was made is removed."""
    cpu, wall = time.process_time(), time.perf_counter()
    for product in products:
        engine_data.make(session, product, session.survey.partitions(product))
    taken = Seconds(time.process_time() - cpu, time.perf_counter() - wall)
    for product in products:
        shutil.rmtree(session.repo.layout.store / session.survey.collection / product, ignore_errors=True)
    return taken


# ---- two processes


def bench_processes() -> list[Row]:
    """Wall seconds of warps to final stacks of nine skycells on one process and on two."""
    root = engine_data.prepare().repo.root
    cell, walls = engine_data.CELLS[engine_data.TILES], {}
    for workers in (1, 2):
        # the pool starts and loads what it needs before it is timed
        make_all(make_session(root, f"warm-{workers}", (MIDDLE,), 6, workers))
        walls[workers] = make_all(make_session(root, f"processes-{workers}", (cell,), 6, workers)).wall
    part, command = "engine.spread.processes", "make bench ONLY=engine.spread.processes"
    told = ", ".join(f"{n}: {wall:.1f} s" for n, wall in walls.items())
    return [Row(f"{part}_speed", walls[1] / walls[2], "x", ">= 1.7", f"wall; {told}", command)]


# ---- Dagster and the store


def bench_overhead() -> list[Row]:
    """Share of Dagster, ledger and store in the wall of `lap run` over the pixel stages of nine skycells, serial."""
    part, command = "engine.spread.overhead", "make bench ONLY=engine.spread.overhead"
    root = make_survey()
    job = run_process("survey", root)
    cell = engine_data.CELLS[engine_data.TILES]
    made, store = time_store(make_session(engine_data.prepare().repo.root, "plain", (cell,), 6))
    told = f"{job['wall']:.1f} s by lap run, {made:.1f} s by the engine alone, of these {store:.1f} s in the store"
    dagster = 1.0 - made / job["wall"]
    return [
        Row(f"{part}_share", max(dagster, 0.0) + store / job["wall"], "", "<= 0.2", f"wall, serial; {told}", command),
        Row(f"{part}_dagster", dagster, "", "", "Dagster, ledger, planning of `lap run`", command),
        Row(f"{part}_store", store / job["wall"], "", "", "reading, hashing, writing, fsync", command),
    ]


def time_store(session: Session) -> tuple[float, float]:
    """Wall seconds of making all, and of these how long the main thread was in the store."""
    inside, spent = 0, 0.0

    def watch(function: Callable) -> Callable:
        def timed(*arguments, **named):
            nonlocal inside, spent
            if inside or threading.current_thread() is not threading.main_thread():
                return function(*arguments, **named)
            inside, start = 1, time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                inside, spent = 0, spent + time.perf_counter() - start

        return timed

    with ExitStack() as patches:
        for owner, name in STORE:
            patches.enter_context(patch.object(owner, name, watch(getattr(owner, name))))
        made = make_all(session).wall
    return made, spent


def make_survey() -> Path:
    """A survey with a ledger over a copy of the repository: exposures calibrated and solved, the rest to be made."""
    from lap_assets.operations.work import recreate_partitions
    from lap_assets.operations.workspace import Workspace

    root = engine_data.copy_repository("survey")
    space = Workspace.create(root, {"compute": {"executor": "serial"}})
    tessellation = LocalTessellation("tiles", [engine_data.CENTRE], engine_data.SCALE_ARCSEC, 2000, (3, 3), 0)
    space.ledger.add_tessellation(tessellation.definition())
    space.ledger.add_exposures(engine_data.read_exposures())
    space.ledger.add_calibrations(list_calibrations())
    for key in MASTERS.values():
        space.ledger.set_calibration_state(key, "certified")
    space.ledger.add_reference_catalog("truth")
    space.ledger.define_runs("main", "tiles")
    survey = space.survey("main")
    for product in (*MASTERS, *engine_data.STEPS):  # they are there: this only tells the ledger so
        partitions = survey.partitions(product)
        states = {one.state for one in recreate_partitions(space, survey, product, partitions)}
        if states != {"done"}:
            raise RuntimeError(f"{product}: {states}")
    space.ledger.close()
    return root


def list_calibrations() -> list[CalibrationSet]:
    """The sets whose masters lie in the repository, each of one frame that is not there."""
    sets = []
    for product, key in MASTERS.items():
        camera, kind, band, valid_from = key.split("|")
        frames = tuple(
            ChipFile(f"c{chip}", f"/nowhere/{product}_{chip}.fits", "0", (), f"{chip}" * 64) for chip in range(8)
        )
        sets.append(CalibrationSet(key, camera, kind, band, valid_from, frames))
    return sets


BENCHMARKS = {
    "engine.spread.exposures": bench_exposures,
    "engine.spread.cells": bench_cells,
    "engine.spread.processes": bench_processes,
    "engine.spread.overhead": bench_overhead,
}
