"""The repository that the benchmarks of the pixel engine start from: six exposures, calibrated and solved.

Made once in BENCHDATA/engine by the pipeline's own stages from raw files (chips, solutions, joint solutions), by the
default settings; the engine remakes what a changed setting or code number asks for. Collection `main` is as the
pipeline leaves it; `hits` has the same, but cosmic rays and trails stay in the chips, as in what SWarp is given.
The sky is cut twice, on one pixel grid, that of SWarp's output: one skycell of 6000 × 6000, and 3 × 3 of 2000 × 2000.
What is measured with it is the other modules'.
"""

import atexit
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from lap_assets.ledger.records import read_exposure, write_exposures
from lap_assets.model.camera import load_camera
from lap_assets.model.ids import DataId, join_key
from lap_assets.model.image import Mask
from lap_assets.model.states import DONE
from lap_assets.model.survey import Exposure, Run, Survey
from lap_assets.model.tessellation import LocalTessellation, ProjectionCell
from lap_assets.pipeline.engine import Session, make_partitions, make_unit
from lap_assets.pipeline.ingest import inspect_raw
from lap_assets.pipeline.task import Task
from lap_assets.settings import ComputeSettings, Settings
from lap_assets.store.manifest import FORMAT
from lap_assets.store.repo import Repo
from lap_assets_tests.benchmarks.engine_peers import Seconds, time_work
from lap_assets_tests.benchmarks.exposure_process import describe_survey, prepare_repository
from lap_assets_tests.benchmarks.exposures import find_data

CENTRE, SCALE_ARCSEC, SIDE_PX, BAND = (150.0, 2.2), 0.26, 6000, "r"
CELLS: dict[str, ProjectionCell] = {
    tessellation.only.name: tessellation.only
    for tessellation in (
        LocalTessellation("one", [CENTRE], SCALE_ARCSEC, SIDE_PX, (1, 1), 0),
        LocalTessellation("tiles", [CENTRE], SCALE_ARCSEC, SIDE_PX // 3, (3, 3), 0),
    )
}
ONE, TILES = CELLS
STEPS = ("chips", "solutions", "joint_solutions")
KEPT = {"inputs": (), "recipe": "bench", "config_sha256": "bench", "code": 1, "metrics": {}}


@cache
def find_repository() -> Path:
    """The folder of the repository, with camera, masters and reference catalogue."""
    root = find_data() / "engine"
    ready = root / f"ready-{FORMAT}"
    if not ready.exists():
        shutil.rmtree(root, ignore_errors=True)
        prepare_repository(find_data(), root)
        ready.touch()
    return root


@cache
def read_exposures() -> tuple[Exposure, ...]:
    """The six exposures, on nights of their own: a template is made of other nights than the science exposure's.

    Inspected once and kept: it takes seconds, and a survey has them in its ledger.
    """
    kept = find_repository() / "exposures.json"
    if kept.exists():
        return tuple(read_exposure(values) for values in json.loads(kept.read_text()))
    raw, camera = find_data() / "raw", load_camera("bench", Repo(find_repository()).cameras)
    found, _ = inspect_raw(sorted(raw.glob("e?_c?.fits.fz")), camera, given="object")
    exposures = tuple(replace(one, night=f"2023-02-{20 + number}") for number, one in enumerate(found))
    kept.write_text(json.dumps(write_exposures(exposures)))
    return exposures


def describe_run(
    exposures: Sequence[Exposure], collection: str = "main", cells: Mapping[str, ProjectionCell] = CELLS
) -> Survey:
    """A survey of these exposures, one run on each of the cells."""
    members = tuple(one.id for one in exposures)
    runs = tuple(Run(number, cell, BAND, members) for number, cell in enumerate(cells))
    return replace(describe_survey(list(exposures)), collection=collection, cells=cells, runs=runs)


def choose_settings(workers: int = 0, **changes: object) -> Settings:
    """The default settings, on so many processes (0: in this one)."""
    compute = ComputeSettings(executor="processes", workers=workers) if workers else ComputeSettings(executor="serial")
    return Settings(compute=compute, **changes)


def open_session(root: Path, collection: str = "main", workers: int = 0, **changes: object) -> Session:
    """A session on a repository with the six exposures; `changes` are sections of the settings."""
    survey = describe_run(read_exposures(), collection)
    return Session(survey, Repo(root), choose_settings(workers, **changes))


def make(session: Session, product: str, partitions: Sequence[str]) -> list:
    """Make what is missing of partitions; raises if one is not done."""
    reports = list(make_partitions(session, product, partitions))
    for report in reports:
        if report.state != DONE:
            raise RuntimeError(f"{product} {report.partition}: {report.state} {report.reason}")
    return reports


@cache
def prepare() -> Session:
    """Chips, solutions and joint solutions, made where they are missing; a session on a working copy, serial.

    The copy shares its files by hard links (nothing in a repository is ever changed in place), and goes with the
    process: warps and what follows are always made by the present code.
    """
    session = open_session(find_repository(), workers=2)
    for product in STEPS:
        for partition in session.survey.partitions(product):
            make(session, product, [partition])
    return open_session(copy_repository("work"))


@cache
def copy_repository(name: str) -> Path:
    """A copy of the repository as prepared, removed when the process ends."""
    for left in find_data().glob("engine-*-*"):  # by a process that was killed
        if not Path("/proc", left.name.rpartition("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    copy = find_data() / f"engine-{name}-{os.getpid()}"
    shutil.copytree(find_repository(), copy, copy_function=os.link)
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    return copy


@cache
def prepare_warps(cell: str = ONE, collection: str = "main") -> Session:
    """The warps of a collection on a cell, in the working copy; a session there, serial."""
    root = prepare().repo.root
    session, two = (open_session(root, collection, workers) for workers in (0, 2))
    if collection == "main":
        make(two, "warps", list_warps(cell))
        return session
    for product in STEPS[1:]:
        for partition in session.survey.partitions(product):
            lend(session, product, partition)
    for exposure in session.survey.exposures:
        uncover_hits(session, exposure)
        make(two, "warps", [join_key(exposure, cell)])
        for data_id in session.repo.units(collection, "chips", exposure):
            forget(session, data_id)  # 0.7 GB
    return session


def list_warps(cell: str) -> list[str]:
    """Partitions of the warps of all exposures on a cell."""
    return [join_key(one.id, cell) for one in read_exposures()]


def uncover_hits(session: Session, exposure: str) -> None:
    """Chips without the flags of cosmic rays and trails: what the chips stage leaves if it skips these steps."""
    flags = np.int16(Mask.COSMIC_RAY | Mask.STREAK)
    for source in session.repo.units("main", "chips", exposure):
        image = session.repo.read_image(source)
        image.mask &= ~flags
        mine = replace(source, collection=session.survey.collection)
        session.repo.publish(mine, {"image.fits": image}, **KEPT)


def lend(session: Session, product: str, partition: str, lender: str = "") -> None:
    """Let a partition of the session's collection refer to the same one of `main`, or to another one there."""
    for source in session.repo.units("main", product, lender or partition):
        mine = DataId(session.survey.collection, product, partition, source.unit)
        session.repo.publish(mine, {}, refers_to=session.repo.pin(source), **KEPT)


def forget(session: Session, data_id: DataId) -> None:
    """Remove a unit of a copy as if it had never been made."""
    shutil.rmtree(session.repo.layout.unit_dir(data_id), ignore_errors=True)


def time_unit(session: Session, product: str, task: Task, repeat: int = 3) -> Seconds:
    """Seconds of making and publishing a unit that is not there, in this process."""

    def work() -> None:
        report = make_unit(product, task, session.repo.root, 0, "bench")
        if report.state != "done":
            raise RuntimeError(f"{task.data_id}: {report.state} {report.reason}")

    return time_work(work, lambda: forget(session, task.data_id), repeat)


@cache
def read_truth() -> np.ndarray:
    """True sources: ra, dec, mag, re, kind (0: star, 1: galaxy, 2: transient of the last exposure)."""
    return np.asarray(fits.getdata(find_data() / "truth" / "truth.fits"))


def find_true_wcs(exposure: int, chip: int) -> WCS:
    """The true WCS of a chip."""
    text = (find_data() / "truth" / f"e{exposure}_c{chip}.sip.hdr").read_text()
    return WCS(fits.Header.fromstring(text, sep="\n"))
