"""The words between ledger, decision and whoever carries it out: `Snapshot` in, `Decision` (steps and actions) out.

A `Step` changes only the ledger (a run or a member of one) and is applied at once; an `Action` is work on a partition,
done in a Dagster run. What is decided when is `lap/`'s; nothing here decides, reads or writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lap_assets.model.states import PartitionState
from lap_assets.model.survey import PartitionRef, Survey

# kinds of actions
MAKE, RECREATE, DROP, CLEAN = "make", "recreate", "drop", "clean"
# kinds of steps: what of a run or of a member changes
ASSIGN, PAIR, PRIVATE, DROP_MEMBER, DATA_STATE = "assign", "pair", "private", "drop_member", "data_state"
RUN_STATE, SETTLE, CLEANED_RUN, FAULT, DEFINE = "run_state", "settle", "cleaned_run", "fault", "define"
# modes: who carries an action or a step out (LAP-35); each is a sensor and a command
CHIP_MODE, MONITOR_MODE, CLEANUP_MODE, QUEUE_MODE = "chip", "monitor", "cleanup", "queue"
MODES = (CHIP_MODE, MONITOR_MODE, CLEANUP_MODE, QUEUE_MODE)

# `lap_run.fault`: why a run ended without being full
FAULTS = {0: "none", 1: "cancelled", 2: "no exposure left"}


@dataclass(frozen=True)
class QueueEntry:
    """One `-definerun` command of the queue file (LAP-34); `line` is its number there, from 1.

    `tessellation` and `sequence` are names; the region is a cone, or None for the whole cell.
    """

    line: int
    sequence: str
    tessellation: str
    cell: str
    band: str
    region: tuple[float, float, float] | None = None  # (ra_deg, dec_deg, radius_deg)
    label: str = ""
    dist_group: str = ""
    obs_mode: str | None = "3PI"
    priority: int = 0


@dataclass(frozen=True)
class Snapshot:
    """All that a decision depends on.

    Attributes
    ----------
    survey : Survey
        Of one collection, with the runs to decide about and what they need.
    states : mapping of (product, partition) to PartitionState
    configs : mapping of product to hash of its settings and code number now in force
    targets : set of (product, partition), or None for everything there is
    busy : mapping of (product, partition) to owner
        Being made, or launched, by somebody: left alone.
    in_use : frozenset of str
        Exposures with an active member in any run of the collection, in the snapshot or not.
    queue : tuple of QueueEntry
        Entries never launched, in the order of the file.
    n_active : int
        Runs in state new or run, without fault and not paused, of all collections.
    max_active : int
        So many runs are kept active by the queue.
    draining : bool
        No new run is taken from the queue, none that is `new` begins.
    unavailable : frozenset of str
        Exposures whose raw files could not be had again: nothing made from them is cleaned.
    revisit : bool
        Look at settled runs as well (`lap run`: settings or what lies outside may have changed since).
    kept : frozenset of int
        Runs whose intermediates are to be kept for now (grace period, and the disk budget is not exceeded).
    """

    survey: Survey
    states: Mapping[PartitionRef, PartitionState] = field(default_factory=dict)
    configs: Mapping[str, str] = field(default_factory=dict)
    targets: frozenset[PartitionRef] | None = None
    busy: Mapping[PartitionRef, str] = field(default_factory=dict)
    in_use: frozenset[str] = frozenset()
    queue: tuple[QueueEntry, ...] = ()
    n_active: int = 0
    max_active: int = 0
    draining: bool = False
    unavailable: frozenset[str] = frozenset()
    kept: frozenset[int] = frozenset()
    revisit: bool = False


@dataclass(frozen=True, order=True)
class Action:
    """Do `kind` (make, recreate, drop, clean) to one partition, because of `reason`, for run `lap_id` (0: for none)."""

    product: str
    partition: str
    kind: str = MAKE
    reason: str = ""
    lap_id: int = 0
    mode: str = MONITOR_MODE
    priority: int = 0


@dataclass(frozen=True, order=True)
class Step:
    """Change one thing of a run, or of its member `exposure`, in the ledger.

    ========== ============================= ==========================================================
    kind       value                         meaning
    ========== ============================= ==========================================================
    assign     chip_id                       the chip-processing of the exposure is queued (LAP-17)
    pair       exposure of the companion     `pair_id` both ways, both pairwise, neither private (LAP-20)
    private                                  no pair (LAP-21)
    drop_member                              never used again in this run (LAP-24)
    data_state new, full, exists, to_diff, … informative (LAP-25)
    run_state  run, full                     LAP-22; LAP-32: full also gives it its `final_sass_id`
    settle                                   what is made from the run's stacks is made, too
    cleaned_run                              nothing of the run is left to be cleaned
    fault      number in FAULTS              the run ends here, not full
    define     line of the queue file        the entry is launched (LAP-34)
    ========== ============================= ==========================================================
    """

    lap_id: int
    kind: str
    exposure: str = ""
    value: str = ""
    reason: str = ""
    mode: str = MONITOR_MODE


@dataclass(frozen=True)
class Decision:
    """What to do now: changes of the ledger first, then work in the order of the chain; and what waits for what.

    Attributes
    ----------
    steps : tuple of Step
    actions : tuple of Action
    waiting : mapping of (product, partition) to what it waits for, one line
    settled : frozenset of (product, partition)
        Those that need nothing.
    """

    steps: tuple[Step, ...] = ()
    actions: tuple[Action, ...] = ()
    waiting: Mapping[PartitionRef, str] = field(default_factory=dict)
    settled: frozenset[PartitionRef] = frozenset()
