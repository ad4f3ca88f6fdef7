"""A ledger on SQLite and one on a real PostgreSQL, and records to put into them."""

import itertools
import uuid
from dataclasses import dataclass, field

import pytest

from lap_assets.ledger.ledger import Ledger
from lap_assets.ledger.records import MemberRow
from lap_assets.model.decisions import ASSIGN, PRIVATE, RUN_STATE, SETTLE, Step
from lap_assets.model.ids import DataId
from lap_assets.model.survey import CalibrationSet, ChipFile, Exposure

LOCAL = {
    "kind": "local", "name": "demo", "ra_deg": 150.0, "dec_deg": 2.0, "pixel_scale_arcsec": 0.4, "skycell_px": 300,
    "grid": [2, 1], "overlap_px": 20,
}  # fmt: skip


@dataclass
class Report:
    """Stands for `pipeline.task.UnitReport`."""

    data_id: DataId
    state: str = "done"
    content: str = ""
    skipped: bool = False
    reason: str = ""
    seconds: float = 1.5
    bytes: int = 1000
    metrics: dict = field(default_factory=dict)


@dataclass
class Clock:
    """A clock that stands still until told."""

    time: float = 1e9

    def __call__(self) -> float:
        return self.time


@dataclass
class Place:
    """Where a test makes ledgers: a fresh URL each, one clock, one journal."""

    make_url: object
    clock: Clock = field(default_factory=Clock)
    entries: list = field(default_factory=list)

    def create(self) -> Ledger:
        return Ledger.create(self.make_url(), journal=self.entries.append, clock=self.clock)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, tmp_path):
    """Makes ledgers on each of the two databases."""
    numbers = itertools.count()
    if request.param == "sqlite":
        return Place(lambda: f"sqlite:///{tmp_path / f'ledger{next(numbers)}.db'}")
    server = request.getfixturevalue("postgres")

    def make_url() -> str:
        name = f"t{uuid.uuid4().hex}"
        server.psql(f"CREATE SCHEMA {name};")
        return f"{server.get_uri()}&options=-csearch_path%3D{name}"

    return Place(make_url)


@pytest.fixture
def ledger(place):
    made = place.create()
    yield made
    made.close()


def square(ra: float, dec: float, side: float = 0.02):
    """Footprint of a chip: a square of `side` degrees."""
    h = side / 2
    return ((ra - h, dec - h), (ra + h, dec - h), (ra + h, dec + h), (ra - h, dec + h))


def make_exposure(number: int, band: str = "r", ra: float = 150.0, dec: float = 2.0, **values) -> Exposure:
    """An exposure of two chips side by side at a position."""
    id_ = f"cam-{number:06d}"
    chips = tuple(
        ChipFile(f"c{i}", f"/data/{id_}.fits", f"c{i}", square(ra + 0.03 * i, dec), sha256=f"{number:064d}")
        for i in range(2)
    )
    facts = {"night": "2026-01-02", "mjd": 61042.1 + number, "exptime_s": 60.0, "chips": chips} | values
    return Exposure(id_, "cam", band, f"{band} filter", ra_deg=ra, dec_deg=dec, **facts)


def make_calibration(
    kind: str = "bias", band: str = "all", night: str = "2026-01-01", frames: int = 2
) -> CalibrationSet:
    """A set of frames of one chip each."""
    files = tuple(
        ChipFile("c0", f"/data/{kind}{band}{night}{i}.fits", "c0", square(0.0, 0.0), sha256=f"{i:064d}")
        for i in range(frames)
    )
    return CalibrationSet(f"cam|{kind}|{band}|{night}", "cam", kind, band, night, files)


def begin_runs(ledger: Ledger, *lap_ids: int) -> None:
    """What chip mode does where nothing is a pair: chips queued, members private, the runs under way."""
    for lap_id in lap_ids:
        (run,), members = ledger.runs(lap_ids=[lap_id]), ledger.members(lap_id)
        steps = [Step(lap_id, ASSIGN, one.exposure, f"{run.sequence}/{one.exposure}") for one in members]
        steps += [Step(lap_id, PRIVATE, one.exposure) for one in members if not one.pairwise]
        ledger.apply([*steps, Step(lap_id, RUN_STATE, value="run")])


def finish_runs(ledger: Ledger, *lap_ids: int, settle: bool = False) -> None:
    """Let runs end full, begun or not; with `settle` the products of their cells are made, too."""
    begin_runs(ledger, *lap_ids)
    for lap_id in lap_ids:
        ledger.apply([Step(lap_id, RUN_STATE, value="full")])
        ledger.apply([Step(lap_id, SETTLE)] if settle else [])


def roster(ledger: Ledger, lap_id: int = 1) -> dict[str, MemberRow]:
    """Members of a run by exposure."""
    return {one.exposure: one for one in ledger.members(lap_id)}
