"""What `lap run` does: define runs where there are none, turn a selection into targets, and drive to the end.

Joins the rooms for the command line; the decisions are `lap/`'s and the launching `defs/run.py`'s.
"""

from collections.abc import Callable, Sequence

from lap_assets.defs.run import RunSummary, run_missing
from lap_assets.errors import BadInput
from lap_assets.lap.select import select_targets
from lap_assets.model.products import get_product
from lap_assets.model.survey import PartitionRef, Survey
from lap_assets.operations.workspace import Workspace, explain_full_disk
from lap_assets.pipeline.task import UnitReport
from lap_assets.store.expressions import matches, parse_expression, resolve_terms

SELECTION_KEYS = ("product", "exposure", "cell", "band", "night", "camera", "object", "kind", "valid_from")


def run_survey(
    space: Workspace,
    collection: str | None,
    select: Sequence[str],
    to: str | None,
    tessellation: str | None,
    tell: Callable[[UnitReport], None],
    begin: Callable[[str, int], None],
    retry: bool = False,
) -> RunSummary:
    """Make what is missing of one collection; without runs, define one per cell and band covering what was ingested."""
    if to:
        get_product(to)
    with explain_full_disk(space.root):
        survey = space.survey(collection)
        if not survey.exposures:
            raise BadInput(f"nothing is ingested in {space.root}; begin with: lap ingest FILES --camera NAME")
        for name in name_tessellations(space, survey.collection, tessellation):
            space.ledger.define_runs(survey.collection, name)
        survey = space.survey(collection)
        targets = None
        if select or to:
            targets = resolve(survey, select, to)
            if not targets:
                raise BadInput(f"nothing matches {' '.join(select)!r}; `lap ls` shows what there is")
        return run_missing(space, survey, targets, tell, begin, retry)


def name_tessellations(space: Workspace, collection: str, given: str | None) -> list[str]:
    """Where runs are to cover what was ingested: as given, or where the collection has runs, or where it may begin."""
    used = sorted({run.tessellation for run in space.ledger.runs(collection)})
    return used if used and given is None else [choose_tessellation(space, given)]


def choose_tessellation(space: Workspace, name: str | None) -> str:
    """The tessellation named, or the only one defined, or the whole sky's RINGS.V3."""
    defined = space.ledger.tessellations()
    if name is None:
        name = defined[0] if len(defined) == 1 else "rings.v3"
        if len(defined) > 1:
            raise BadInput(f"several tessellations are defined ({', '.join(defined)}): choose with --tessellation")
    if name == "rings.v3" and name not in defined:
        space.ledger.add_tessellation({"kind": "rings", "name": "rings.v3"})
    elif name not in defined:
        raise BadInput(
            f"unknown tessellation {name!r}; defined are: {', '.join(defined) or 'none'}; see `lap tessellation --help`"
        )
    return name


def resolve(survey: Survey, select: Sequence[str], to: str | None) -> set[PartitionRef]:
    """Targets of a selection."""
    terms = resolve_terms(parse_expression(" ".join(select)), SELECTION_KEYS)
    names = frozenset(term.key for term in terms)
    return select_targets(survey, (lambda values: matches(terms, values)) if terms else None, names, to)


def describe(summary: RunSummary) -> str:
    """One line: what was made, skipped and left."""
    made = ", ".join(f"{count} {state}" for state, count in sorted(summary.units.items())) or "none made"
    text = f"units: {made}, {summary.skipped} skipped; {summary.partitions} partitions in {summary.runs} Dagster runs"
    return f"{text}; {len(summary.waiting)} waiting" if summary.waiting else text
