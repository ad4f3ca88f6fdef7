"""Driving a collection: a snapshot of what is, the steps of its decision applied, and the work handed to Dagster.

Joins the rooms for the command line and the sensors alike; the decisions are `lap/`'s and the launching `defs/`'.
Dagster is imported by the functions that launch, so that a decision costs nothing but itself.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lap_assets.errors import BadInput, Conflict, LapError
from lap_assets.lap.decide import decide
from lap_assets.lap.select import select_targets
from lap_assets.ledger.survey import without_collector
from lap_assets.model.decisions import (
    CHIP_MODE,
    CLEANUP_MODE,
    DATA_STATE,
    DEFINE,
    MODES,
    MONITOR_MODE,
    Decision,
    Snapshot,
    Step,
)
from lap_assets.model.products import PRODUCTS, get_product
from lap_assets.model.survey import PartitionRef, Survey
from lap_assets.operations.clean import choose_kept, find_unavailable
from lap_assets.operations.define import choose_tessellation, launch_entry, read_queue
from lap_assets.operations.workspace import Workspace, explain_full_disk
from lap_assets.pipeline.task import UnitReport
from lap_assets.store.expressions import matches, parse_expression, resolve_terms

if TYPE_CHECKING:
    from lap_assets.defs.run import RunSummary

SELECTION_KEYS = ("product", "exposure", "cell", "band", "night", "camera", "object", "kind", "valid_from")
DRIVEN = (CHIP_MODE, MONITOR_MODE)  # what `lap run` carries out; cleaning is asked for apart
AUTOMATIC = "lap run"  # label of the runs it defines by itself
MAX_ROUNDS = 50
Tell = Callable[[UnitReport], None]
Begin = Callable[[str, int], None]


# ---- deciding


def take_snapshot(
    space: Workspace,
    collection: str,
    scope: str = "open",
    lap_ids: Collection[int] | None = None,
    targets: Collection[PartitionRef] | None = None,
) -> Snapshot:
    """What the ledger knows of the runs of a scope, with what only settings, files and the queue can tell.

    Parameters
    ----------
    scope : "open", "uncleaned" or "all"
        Runs under way with their cells; complete ones with something to clean; all there are.
    lap_ids : collection of int, optional
        Only these runs.
    """
    snapshot = space.ledger.snapshot(collection, scope, lap_ids)
    facts = {
        "survey": space.complete(snapshot.survey),
        "configs": space.configs(),
        "targets": None if targets is None else frozenset(targets),
        "max_active": space.settings.lap.max_active,
    }
    if scope == "uncleaned":
        unused = [name for name in snapshot.survey.exposures if name not in snapshot.in_use]
        facts["unavailable"] = find_unavailable(space, snapshot.survey, unused)
        facts["kept"] = choose_kept(space, collection)
    else:
        facts["queue"] = read_queue(space)[0]
    return replace(snapshot, **facts)


@without_collector()
def advance(
    space: Workspace,
    collection: str,
    modes: Collection[str] = MODES,
    lap_ids: Collection[int] | None = None,
    targets: Collection[PartitionRef] | None = None,
    revisit: bool = False,
    complain: Callable[[str], None] = lambda problem: None,
) -> Decision:
    """Apply the steps of these modes until only work is left; returns the decision with that work.

    Parameters
    ----------
    lap_ids : collection of int, optional
        Only these runs are followed.
    targets : collection of (product, partition), optional
        Only these and what they are made from.
    revisit : bool
        Look at settled runs, too.
    complain : callable
        Told of entries of the queue that cannot be launched, one line each.
    """
    cleaning, others = CLEANUP_MODE in modes, [mode for mode in modes if mode != CLEANUP_MODE]
    refused: set[str] = set()
    for _ in range(MAX_ROUNDS):
        decision = Decision()
        if others:
            snapshot = take_snapshot(space, collection, "all" if revisit else "open", lap_ids, targets)
            queue = tuple(entry for entry in snapshot.queue if str(entry.line) not in refused)
            decision = decide(replace(snapshot, revisit=revisit, queue=queue), others)
        if cleaning and is_at_rest(decision):
            unneeded = decide(take_snapshot(space, collection, "uncleaned", lap_ids), [CLEANUP_MODE])
            steps, actions = decision.steps + unneeded.steps, decision.actions + unneeded.actions
            decision = replace(decision, steps=steps, actions=actions)
        refused |= apply_steps(space, decision.steps, complain)
        if is_at_rest(decision):
            return replace(decision, steps=())
    raise LapError(f"collection {collection}: the ledger never comes to rest: {decision.steps[0]}")


def is_at_rest(decision: Decision) -> bool:
    """Whether another decision would ask for the same work: a `data_state` informs people and nothing depends on it."""
    return all(step.kind == DATA_STATE for step in decision.steps)


def apply_steps(space: Workspace, steps: Sequence[Step], complain: Callable[[str], None]) -> set[str]:
    """Write steps into the ledger; returns the lines of the queue that could not be launched."""
    refused = set()
    space.ledger.apply([step for step in steps if step.kind != DEFINE])
    entries = {str(entry.line): entry for entry in read_queue(space)[0]} if any(s.kind == DEFINE for s in steps) else {}
    for step in steps:
        if step.kind == DEFINE and step.value in entries:
            try:
                launch_entry(space, entries[step.value])
            except Conflict:
                continue  # another tick was first
            except LapError as error:
                complain(f"{space.settings.lap.queue_file} line {step.value}: {error}")
                refused.add(step.value)
    return refused


# ---- the terminal's ways


def run_survey(
    space: Workspace,
    collection: str | None,
    select: Sequence[str],
    to: str | None,
    tessellation: str | None,
    tell: Tell,
    begin: Begin,
    retry: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> "RunSummary":
    """Make what is missing of one collection; without runs, define one per cell and band covering what was ingested."""
    from lap_assets.defs.run import run_missing

    if to:
        get_product(to)
    with explain_full_disk(space.root):
        survey = space.survey(collection)
        if not survey.exposures:
            raise BadInput(f"nothing is ingested in {space.root}; begin with: lap ingest FILES --camera NAME")
        check_places(space, survey.collection, to)
        for name in name_tessellations(space, survey.collection, tessellation):
            space.ledger.define_runs(survey.collection, name, label=AUTOMATIC)
        targets = None
        if select or to:
            targets = resolve(space.survey(collection), select, to)
            if not targets:
                raise BadInput(f"nothing matches {' '.join(select)!r}; `lap ls` shows what there is")
        space.ledger.forget_attempts(survey.collection, dropped=retry)
        if retry:
            space.ledger.readmit(survey.collection)
        return run_missing(space, survey.collection, DRIVEN, None, targets, True, tell, begin, note)


def run_laps(
    space: Workspace,
    collection: str,
    lap_ids: Collection[int] | None,
    modes: Collection[str],
    tell: Tell,
    begin: Begin,
    note: Callable[[str], None] = lambda text: None,
) -> "RunSummary":
    """Carry the decisions of some modes out in this process, for some runs or all that are open."""
    from lap_assets.defs.run import run_missing

    known = {run.lap_id for run in space.ledger.runs(collection)}
    for lap_id in lap_ids or ():
        if lap_id not in known:
            raise BadInput(f"no run {lap_id} in sequence {collection}; `lap run list` shows them")
    if MONITOR_MODE in modes:
        check_places(space, collection)
    with explain_full_disk(space.root):
        return run_missing(space, collection, modes, lap_ids, None, False, tell, begin, note)


def check_places(space: Workspace, collection: str, to: str | None = None) -> None:
    """Raise `BadInput` where differences are to be made with templates from a place that there is not.

    Planning would say so of each partition, and each would be given up.
    """
    chosen, order = space.settings.diffs, list(PRODUCTS)
    elsewhere = chosen.template_repository or chosen.template_collection not in ("", collection)
    if elsewhere and (to is None or order.index(to) >= order.index("diffs")):
        from lap_assets.pipeline.elsewhere import open_elsewhere

        open_elsewhere(space.repo, chosen, collection, chosen.template_exposure, "")


def name_tessellations(
    space: Workspace,
    collection: str,
    given: str | None,
    choose: Callable[[Workspace, str | None], str] = choose_tessellation,
) -> list[str]:
    """Where runs are to cover what was ingested: as given, or as before, or where a collection without runs may begin.

    Nowhere, where somebody defined runs by hand: they say what is to be done.
    """
    runs = space.ledger.runs(collection)
    if given is None and any(run.label != AUTOMATIC for run in runs):
        return []
    return sorted({run.tessellation for run in runs}) if runs and given is None else [choose(space, given)]


def resolve(survey: Survey, select: Sequence[str], to: str | None) -> set[PartitionRef]:
    """Targets of a selection."""
    terms = resolve_terms(parse_expression(" ".join(select)), SELECTION_KEYS)
    names = frozenset(term.key for term in terms)
    return select_targets(survey, (lambda values: matches(terms, values)) if terms else None, names, to)


def describe(summary: "RunSummary") -> str:
    """One line: what was made, skipped and left."""
    made = ", ".join(f"{count} {state}" for state, count in sorted(summary.units.items())) or "none made"
    text = f"units: {made}, {summary.skipped} skipped; {summary.partitions} partitions in {summary.runs} Dagster runs"
    return f"{text}; {len(summary.waiting)} waiting" if summary.waiting else text
