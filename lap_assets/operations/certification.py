"""Whether a master that was made may be used: the rule, or a person, says so (PHX-02).

Called where the result of a master is recorded, so that the verdict stands in the same transaction. What is measured
for it is `pipeline/calibrations.py`'s; commands of persons are `calibrations.py`'s.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite

from lap_assets.errors import LapError
from lap_assets.model.associations import BUILT, CERTIFIED, find_previous
from lap_assets.model.products import MASTERS
from lap_assets.model.quality import QualityRow, Verdict
from lap_assets.model.states import DONE, ENDED
from lap_assets.model.survey import CalibrationSet
from lap_assets.operations.workspace import Workspace
from lap_assets.pipeline.engine import PartitionReport

BY_HAND = "hand"
MANY = 3  # reasons in a line
PREVIOUS = "previous_master"
NUMBERS = ("fraction_beyond_6sigma", "level_change", "new_defects")


def examine_masters(space: Workspace, product: str, reports: Iterable[PartitionReport]) -> Iterator[PartitionReport]:
    """Reports of masters with the verdict on each, in the order of their validity; those of others as they come.

    So that it does not depend on which worker was first what a master is compared with.
    """
    if product not in MASTERS.values():
        yield from reports
        return
    known = None
    for report in sorted(reports, key=lambda one: one.partition):
        known = space.ledger.calibrations() if known is None else known
        verdict = judge_master(space, report, known)
        yield replace(report, verdict=verdict)
        if verdict is not None:
            before = known[report.partition]
            known[report.partition] = replace(before, state=verdict.state, reason=verdict.reason, judged=verdict.judged)


def judge_master(space: Workspace, report: PartitionReport, known: Mapping[str, CalibrationSet]) -> Verdict | None:
    """The verdict on a master that was made; None where there is nothing to say yet.

    By the rule a master is certified that is the first of its kind, or like the certified one before it. One that is,
    byte for byte, what was certified before stays so.

    Parameters
    ----------
    known : mapping of key to CalibrationSet
        As the ledger has them now.
    """
    one = known.get(report.partition)
    if one is None or report.state not in ENDED:
        return None
    if report.state != DONE:
        return Verdict(BUILT, f"nothing could be made of it: {report.reason or report.state}", report.content)
    if one.state == CERTIFIED and one.judged == report.content:
        return Verdict(CERTIFIED, one.reason, report.content)
    reasons, rows = compare_master(space, report, find_previous(known.values(), one))
    if space.settings.calibrations.certify == BY_HAND:
        found = join_reasons(reasons) or "the comparison found nothing against it"
        return Verdict(BUILT, f"a person has to certify it (calibrations.certify); {found}", report.content, rows)
    return Verdict(BUILT if reasons else CERTIFIED, join_reasons(reasons), report.content, rows)


def join_reasons(reasons: Sequence[str]) -> str:
    """The first of many reasons, in one line."""
    more = f"; and {len(reasons) - MANY} more" if len(reasons) > MANY else ""
    return "; ".join(reasons[:MANY]) + more


def compare_master(
    space: Workspace, report: PartitionReport, previous: str | None
) -> tuple[tuple[str, ...], tuple[QualityRow, ...]]:
    """(what speaks against a master, one line each; the numbers) compared with the certified one before it, if any."""
    from lap_assets.pipeline.calibrations import check_master  # its arithmetic is slow to import, and rarely needed

    against = QualityRow(PREVIOUS, text=previous or "none: it is the first")
    try:
        found = check_master(space.repo, report.product, report.partition, previous, space.settings.calibrations)
    except LapError as error:
        return (f"it cannot be compared with {previous}: {error}",), (replace(against, passed=False),)
    rows = [replace(against, passed=found.ok)]
    for chip, one in sorted(found.chips.items()):
        numbers = {name: getattr(one, name) for name in NUMBERS}
        rows += [QualityRow(name, float(value), "", one.ok, chip) for name, value in numbers.items() if isfinite(value)]
    return found.reasons, tuple(rows)
