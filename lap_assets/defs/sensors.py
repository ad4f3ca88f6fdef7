"""The sensors, by which the platform runs itself: one per mode of the decision, ingest, and two that clear up.

Each asks `operations.drive.advance` and requests what it answers; nothing is decided here. They are on from the start
and look every few seconds (the daemon looks at its sensors every 5 s). A ledger that cannot be read or written fails
the tick with one line, without claims left behind, and the next tick tries again.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import dagster as dg
from dagster._core.definitions.target import ExecutableDefinition

from lap_assets.defs import status
from lap_assets.defs.cleanup import NAME as CLEANUP
from lap_assets.defs.cleanup import clean_job
from lap_assets.defs.jobs import Loaded
from lap_assets.defs.launch import COLLECTION_TAG, claim_launches, hold_partial, plan_launches, tag_launch
from lap_assets.defs.reaper import reap_runs, renew_waiting, settle_failed
from lap_assets.errors import LapError
from lap_assets.model.decisions import CHIP_MODE, CLEANUP_MODE, MONITOR_MODE, QUEUE_MODE
from lap_assets.operations.define import read_queue
from lap_assets.operations.drive import advance
from lap_assets.operations.incoming import Watch, check_camera, take_in
from lap_assets.operations.launches import CLAIM_SECONDS, name_owner
from lap_assets.operations.status import summarize_runs
from lap_assets.operations.webserver import find_webserver, reload_definitions
from lap_assets.operations.workspace import Workspace
from lap_assets.pipeline.compute import configure_process

MAX_WAITING = 10  # runs in Dagster's queue: enough for it never to run dry, few enough for priorities to count
SOON, LATER = 3, 9  # seconds between ticks; the daemon rounds up to its own 5 s
RELOAD_SECONDS = 20.0
BUSY_SECONDS = 5.0  # for a locked database: Dagster waits for no tick longer than a minute


class TickFailed(Exception):
    """Why a tick failed, in one line; the next one tries again."""


@dataclass
class Tick:
    """What one tick has claimed so far."""

    space: Workspace
    numbers: list[int] = field(default_factory=list)

    def give_back(self) -> None:
        """Release all claims; where the database is gone they expire."""
        with suppress(LapError):
            for number in self.numbers:
                self.space.ledger.release_owner(name_owner(number))

    def close(self) -> None:
        """Close the ledger's connections, if it was opened."""
        if "ledger" in vars(self.space):
            self.space.ledger.close()


class Sensors:
    """Makes the sensors of the collections that the code location has loaded.

    Parameters
    ----------
    loaded : sequence of Loaded
    open_space : callable
        Opens the repository; called in every tick, so that its settings may change.
    """

    def __init__(self, loaded: Sequence[Loaded], open_space: Callable[[], Workspace]) -> None:
        self.loaded: Mapping[str, Loaded] = {one.collection: one for one in loaded}
        self.open_space = open_space
        self._asked = 0.0  # when a reload was asked for; 0: never

    def build(self, jobs: Sequence[ExecutableDefinition]) -> list[dg.SensorDefinition]:
        """All of them; `jobs` are those that make partitions."""
        return [
            make_sensor("chip_sensor", self.follow(CHIP_MODE), SOON, jobs),
            make_sensor("monitor_sensor", self.follow(MONITOR_MODE), SOON, jobs),
            make_sensor("cleanup_sensor", self.clean, LATER, [clean_job]),
            make_sensor("queue_sensor", self.launch_queue, SOON),
            make_sensor("ingest_sensor", self.take_in, SOON),
            make_sensor("status_sensor", self.report_status, LATER),
            make_sensor("reaper_sensor", self.reap, LATER),
            self._make_failure_sensor(),
        ]

    @contextmanager
    def tick(self) -> Iterator[Tick]:
        """A tick that leaves nothing half done: if it fails, its claims are given back, and one line says why."""
        tick = None
        try:
            tick = Tick(replace(self.open_space(), busy_seconds=BUSY_SECONDS))
            yield tick
        except LapError as error:
            if tick is not None:
                tick.give_back()
            raise TickFailed(" ".join(str(error).split())) from None
        finally:
            if tick is not None:
                tick.close()

    # ---- chip mode and monitor mode

    def follow(self, mode: str) -> Callable[[dg.SensorEvaluationContext], dg.SensorResult]:
        """The tick of a mode whose actions are partitions to make."""

        def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult:
            """What the decision asks for in this mode is requested."""
            with self.tick() as tick:
                ledger, settings = tick.space.ledger, tick.space.settings.lap
                waiting, at_work = renew_waiting(context.instance, ledger, self.loaded)
                room, per_run = MAX_WAITING - waiting, settings.partitions_per_run
                requests: list[dg.RunRequest] = []
                new = self._find_new_collections(tick.space)
                for collection, loaded in self.loaded.items():
                    decision = advance(tick.space, collection, [mode])
                    launches, unknown = plan_launches(decision, loaded, per_run, self._is_stuck())
                    launches = hold_partial(launches, decision, at_work, per_run)
                    new += [f"{collection}/{product}/{key}" for product, key in unknown]
                    requests += claim_launches(ledger, loaded, launches, room - len(requests), tick.numbers)
                told = self._reload(tick.space, new)
            return dg.SensorResult(requests, None if requests else told or "nothing to do now")

        return evaluate

    def _find_new_collections(self, space: Workspace) -> list[str]:
        return [name for name in space.collections() if name not in self.loaded]

    def _is_stuck(self) -> bool:
        """Whether a reload was asked for in vain: what is known must do."""
        return bool(self._asked) and time.monotonic() - self._asked > RELOAD_SECONDS

    def _reload(self, space: Workspace, new: Sequence[str]) -> str:
        """Have the definitions loaded again where they lack something; one line that says so."""
        if not new:
            return ""
        text = f"{len(new)} partitions are newer than the definitions, first {new[0]}"
        if self._asked and not self._is_stuck():
            return f"{text}: a reload was asked for"
        self._asked = time.monotonic()
        if not find_webserver(space.root):
            return f"{text}: reload the code location (`lap ui` does it by itself)"
        # in a thread: the answer comes when the new definitions are there, and this process ends soon after
        threading.Thread(target=reload_definitions, args=(space.root,), daemon=True, name="reload").start()
        return f"{text}: they are loaded again"

    def report_status(self, context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """The rows of `lap_status` of each collection, where they changed since they were last told."""
        try:
            told = dict(json.loads(context.cursor or "{}"))
        except (ValueError, TypeError):
            told = {}
        events, fresh = [], {}
        with self.tick() as tick:
            for collection in self.loaded:
                rows = summarize_runs(tick.space, collection, cleaning=False)
                fresh[collection] = status.hash_rows(rows)
                if rows and told.get(collection) != fresh[collection]:
                    events.append(status.report_rows(collection, rows))
        skip = None if events else "no run stands otherwise than before"
        return dg.SensorResult([], skip, cursor=json.dumps(fresh), asset_events=events)

    # ---- cleanup, queue, ingest

    def clean(self, context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """What nothing needs any more is cleaned, one run per collection at a time."""
        with self.tick() as tick:
            requests = []
            for collection in self.loaded:
                decision = advance(tick.space, collection, [CLEANUP_MODE])
                if not decision.actions:
                    continue
                number = tick.space.ledger.take_number("launch")
                if tick.space.ledger.claim([f"clean/{collection}"], name_owner(number), CLAIM_SECONDS):
                    tick.numbers.append(number)
                    tags = tag_launch(number, collection)
                    requests.append(dg.RunRequest(run_key=f"launch-{number}", job_name=CLEANUP, tags=tags))
        return dg.SensorResult(requests, None if requests else "nothing to clean")

    def launch_queue(self, context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """The first entries of the queue file that were never launched are, so that N runs are active (LAP-34)."""
        problems: list[str] = []
        with self.tick() as tick:
            before = len(tick.space.ledger.runs())
            advance(tick.space, next(iter(self.loaded)), [QUEUE_MODE], complain=problems.append)
            problems += read_queue(tick.space)[1]
            defined = len(tick.space.ledger.runs()) - before
            if defined:
                self._reload(tick.space, [f"{defined} runs"])
        for line in problems:
            context.log.warning(line)
        return dg.SensorResult([], f"{defined} runs defined" + (f"; {problems[0]}" if problems else ""))

    def take_in(self, context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """New files of the drop folder are registered."""
        watch = Watch.read(context.cursor)
        with self.tick() as tick:
            if not tick.space.settings.lap.drop_camera:
                check_camera(tick.space)
                return dg.SensorResult([], "no camera is set for the drop folder (lap.drop_camera)")
            configure_process()
            arrival = take_in(tick.space, watch)
        for file, reason in arrival.rejected.items():
            context.log.warning(f"set aside {file}: {reason}")
        return dg.SensorResult([], arrival.describe(), cursor=watch.write())

    # ---- clearing up

    def reap(self, context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """Dead runs are settled; those that wait keep their claims."""
        with self.tick() as tick:
            waiting, _ = renew_waiting(context.instance, tick.space.ledger, self.loaded)
            dead = list(reap_runs(context.instance, tick.space.ledger))
        for line in dead:
            context.log.warning(line)
        return dg.SensorResult([], "; ".join(dead) or f"{waiting} runs wait, none is dead")

    def _make_failure_sensor(self) -> dg.SensorDefinition:
        @dg.run_failure_sensor(
            name="failure_sensor", minimum_interval_seconds=SOON, default_status=dg.DefaultSensorStatus.RUNNING
        )
        def failure_sensor(context: dg.RunFailureSensorContext) -> None:
            """What a failed run left without a record is recorded as failed, so that it is not tried for ever."""
            run = context.dagster_run
            with self.tick() as tick:
                reason = context.failure_event.message or "failed"
                loaded = self.loaded.get(run.tags.get(COLLECTION_TAG, ""))
                left = settle_failed(context.instance, tick.space, run, reason, loaded)
            context.log.info(f"run {run.run_id[:8]}: {len(left)} partitions without a record")

        return failure_sensor


def make_sensor(
    name: str,
    evaluate: Callable[[dg.SensorEvaluationContext], dg.SensorResult],
    seconds: int,
    jobs: Sequence[ExecutableDefinition] = (),
) -> dg.SensorDefinition:
    """A sensor that is on from the start."""
    return dg.sensor(
        name=name,
        minimum_interval_seconds=seconds,
        description=evaluate.__doc__,
        jobs=list(jobs) or None,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )(evaluate)
