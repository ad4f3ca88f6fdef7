"""Calibration sets and associations for people: lists, what uses what, coverage, and the verdict of a person.

The rule that judges masters by itself is `certification.py`'s; what a withdrawn master drags along `invalidate.py`'s.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from lap_assets.errors import BadInput, NotFound
from lap_assets.lap.judge import FILED
from lap_assets.model.associations import ALL_BANDS, BUILT, CERTIFIED, PER_BAND, REJECTED, VIRTUAL, Association
from lap_assets.model.products import CALIBRATION_COLLECTION, MASTERS
from lap_assets.model.quality import Verdict
from lap_assets.model.states import PartitionState
from lap_assets.model.survey import CalibrationSet, PartitionRef, Survey
from lap_assets.operations.workspace import Workspace
from lap_assets.store.expressions import matches, parse_expression, resolve_terms

SELECTION_KEYS = ("exposure", "camera", "band", "filter", "night", "object", "status")
# how the master of a night is drawn
SIGNS = {CERTIFIED: "#", VIRTUAL: "o", BUILT: "!", "": "-"}
_MANY = 20


@dataclass(frozen=True)
class CalibrationRow:
    """One calibration set as a list shows it.

    Attributes
    ----------
    master : str
        State of the partition of its master; empty: not made.
    frames, used_by : int
        Frames it is built from; exposures of the collection that it is chosen for.
    """

    key: str
    camera: str
    kind: str
    band: str
    state: str
    valid_from: str
    valid_to: str
    master: str
    frames: int
    temperature_c: float | None
    used_by: int
    reason: str


# ---- what there is


def list_calibrations(
    space: Workspace,
    collection: str,
    camera: str | None = None,
    kind: str | None = None,
    band: str | None = None,
    state: str | None = None,
) -> list[CalibrationRow]:
    """Calibration sets, rejected ones included, sorted by key; of a camera, kind, band or state where given."""
    wanted = {"camera": camera, "kind": kind, "band": band, "state": state}
    frames, states = space.ledger.count_frames(), space.ledger.partition_states(collection)
    used = count_users(space.complete(space.ledger.survey(collection, lean=True)))
    rows = []
    for key, one in space.ledger.calibrations().items():
        if all(value is None or getattr(one, name) == value for name, value in wanted.items()):
            ref = (MASTERS[one.kind], key)
            master = states[ref].state if ref in states else ""
            rows.append(
                CalibrationRow(
                    key, one.camera, one.kind, one.band, one.state, one.valid_from, one.valid_to, master,
                    frames.get(key, 0), one.temperature_c, used[ref], one.reason,
                )
            )  # fmt: skip
    return rows


def count_users(survey: Survey) -> Counter[PartitionRef]:
    """Number of exposures that each master is chosen for."""
    return Counter(ref for refs in survey.associations.values() for ref in refs)


def find_set(space: Workspace, key: str) -> CalibrationSet:
    """The calibration set of a key, with its frames; raises `NotFound`."""
    sets = space.ledger.calibrations([key])
    if key not in sets:
        raise NotFound(f"no calibration {key!r}; `lap calibration ls` shows what there is")
    return sets[key]


def describe_calibration(space: Workspace, collection: str, key: str) -> list[str]:
    """Lines about one calibration set: verdict, validity, frames, numbers of its comparison, and who uses it."""
    one = find_set(space, key)
    ref = (MASTERS[one.kind], key)
    state = space.ledger.partition_states(collection).get(ref)
    until = f"to {one.valid_to}" if one.valid_to else "until a later one begins"
    lines = [f"{key}: {one.state}{f': {one.reason}' if one.reason else ''}", f"  valid from {one.valid_from} {until}"]
    if one.temperature_c is not None:
        lines.append(f"  detector at {one.temperature_c:.1f} C")
    made = f"{state.state}{f': {state.reason}' if state.reason else ''}" if state else "not made"
    lines.append(f"  {CALIBRATION_COLLECTION}/{ref[0]}/{key}: {made}")
    paths = sorted({frame.path for frame in one.frames})
    lines += [f"  frame {path}" for path in paths[:_MANY]]
    lines += [f"  and {len(paths) - _MANY} more frames"] if len(paths) > _MANY else []
    for row in space.ledger.quality(collection, *ref):
        told = row.text or ("" if row.value is None else f"{row.value:.6g}")
        verdict = {None: "", True: " (passed)", False: " (failed)"}[row.passed]
        lines.append(f"  {row.unit + ' ' if row.unit else ''}{row.name} {told}{verdict}")
    survey = space.complete(space.ledger.survey(collection, lean=True))
    users = [name for name, refs in survey.associations.items() if ref in refs]
    names = f": {', '.join(users[:5])}{', …' if len(users) > 5 else ''}" if users else ""
    return [*lines, f"  chosen for {len(users)} exposures{names}"]


# ---- the verdict of a person


def certify(
    space: Workspace, collection: str, key: str, valid_from: str | None = None, valid_to: str | None = None
) -> None:
    """Say that a master may be used, and from which night to which; raises `BadInput`, `NotFound`."""
    one, state = check_certifiable(space, collection, key, valid_from, valid_to)
    space.ledger.set_calibration_state(key, CERTIFIED, valid_to, valid_from, judged=state.content_sha256)
    tell_verdict(space, collection, one, Verdict(CERTIFIED, "certified by a person"))


def check_certifiable(
    space: Workspace, collection: str, key: str, valid_from: str | None = None, valid_to: str | None = None
) -> tuple[CalibrationSet, PartitionState]:
    """A calibration set and the record of its master (PHX-02).

    Raises
    ------
    BadInput
        There is no master of it to certify, or a night is none.
    NotFound
        No such set.
    """
    one = find_set(space, key)
    for night in (valid_from, valid_to):
        check_night(night)
    state = space.ledger.partition_states(collection).get((MASTERS[one.kind], one.key))
    if state is None or state.state not in FILED:
        found = f"{state.state}: {state.reason}" if state else "not made yet"
        raise BadInput(f"{one.key} is {found}: only a master that is there can be certified; `lap run` makes it")
    return one, state


def reject(space: Workspace, collection: str, key: str, reason: str) -> None:
    """Say that a master is never to be used; raises `BadInput`, `NotFound`."""
    one = find_set(space, key)
    if not reason.strip():
        raise BadInput("--reason is missing: say why the master is not to be used")
    made = (MASTERS[one.kind], key) in space.ledger.partition_states(collection)
    space.ledger.set_calibration_state(key, REJECTED, reason=reason)
    if made:
        tell_verdict(space, collection, one, Verdict(REJECTED, reason))


def check_night(night: str | None) -> None:
    """Refuse what is no ISO date; an empty text takes a date back."""
    try:
        if night:
            date.fromisoformat(night)
    except ValueError:
        raise BadInput(f"{night!r} is no night: write it as 2026-01-31") from None


def tell_verdict(space: Workspace, collection: str, one: CalibrationSet, verdict: Verdict) -> None:
    """Let the check of a master in Dagster say what a person said."""
    from lap_assets.defs.instance import asset_key, tell
    from lap_assets.defs.reports import evaluate_verdict
    from lap_assets.defs.run import open_instance

    with open_instance(space.root) as instance:
        event = evaluate_verdict(asset_key(collection, MASTERS[one.kind]), one.key, verdict)
        tell(instance, [[event]], "lap_calibration")


# ---- associations (PHX-01)


def list_associations(
    space: Workspace, collection: str, night: str | None = None, select: Sequence[str] = ()
) -> list[Association]:
    """The association of each raw exposure of a collection, by night and name; of a night or selection where given."""
    survey = space.complete(space.ledger.survey(collection, lean=True))
    terms = resolve_terms(parse_expression(" ".join(select)), SELECTION_KEYS)
    found = []
    for name in sorted(survey.associations, key=lambda name: (survey.exposures[name].night, name)):
        one, association = survey.exposures[name], survey.association(name)
        facts = {"exposure": name, "camera": one.camera, "band": one.band, "filter": one.filter, "night": one.night}
        facts |= {"object": one.object, "status": association.status}
        if (night is None or one.night == night) and matches(terms, facts):
            found.append(association)
    return found


def count_nights(survey: Survey, associations: Sequence[Association]) -> dict[tuple[str, str], Counter[str]]:
    """Number of associations by status, for every (camera, night) (PHX-04): what can be scheduled."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for one in associations:
        exposure = survey.exposures[one.exposure]
        counts.setdefault((exposure.camera, exposure.night), Counter())[one.status] += 1
    return dict(sorted(counts.items()))


# ---- coverage (LV-10)


@dataclass(frozen=True)
class Coverage:
    """Which nights with exposures have a master of one use.

    Attributes
    ----------
    nights : mapping of ISO date to state
        State of the set that is chosen for the exposures of a night; empty where there is none.
    """

    camera: str
    kind: str
    band: str
    nights: Mapping[str, str]


def measure_coverage(survey: Survey) -> list[Coverage]:
    """For every kind of master that cameras ask for and that is needed or there, by band: which nights have one."""
    states: dict[tuple[str, str, str], dict[str, str]] = {}
    for name in survey.associations:
        one = survey.exposures[name]
        chosen = {choice.kind: choice.state for choice in survey.association(name).choices}
        for kind in survey.kinds.get(one.camera, tuple(MASTERS)):
            band = one.band if kind in PER_BAND else ALL_BANDS
            states.setdefault((one.camera, kind, band), {})[one.night] = chosen.get(kind, "")
    there = {use[:2] for use in survey.sets_of}
    return [
        Coverage(*use, dict(sorted(nights.items())))
        for use, nights in sorted(states.items())
        if use[:2] in there or use[1] in ("bias", "flat")
    ]


def draw_coverage(rows: Sequence[Coverage], width: int = 100) -> list[str]:
    """Coverage as lines for a terminal: a sign for each night with exposures, oldest first; the worst of several.

    `#` certified, `o` to be built, `!` made and not certified, `-` none.
    """
    nights = sorted({night for row in rows for night in row.nights})
    if not nights:
        return ["no raw exposures: nothing needs masters"]
    per_sign = -(-len(nights) // width)
    groups = [nights[start : start + per_sign] for start in range(0, len(nights), per_sign)]
    order = "-!o#"
    lines = [f"{len(nights)} nights with exposures, {nights[0]} to {nights[-1]}, {per_sign} in each sign"]
    for row in rows:
        signs = []
        for group in groups:
            found = [SIGNS[row.nights[night]] for night in group if night in row.nights]
            signs.append(min(found, key=order.index) if found else " ")
        lines.append(f"{row.camera:<12} {row.kind:<7} {row.band:<6} |{''.join(signs)}|")
    return [*lines, "# certified   o to be built   ! made, not certified   - none"]


def write_coverage(rows: Sequence[Coverage], path: Path) -> None:
    """Draw coverage into a PNG file; raises `BadInput` where it cannot be written."""
    from lap_assets.qa.coverage import plot_coverage

    picture = plot_coverage([(f"{row.camera} {row.kind} {row.band}", row.nights) for row in rows])
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}") from error
