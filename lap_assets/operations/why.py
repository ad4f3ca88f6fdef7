"""Why a single product is as it is: made from what, by what, waiting for what, cleaned or dropped for what reason.

Put together from the manifest, the ledger and the decision; nothing is judged here.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from lap_assets.errors import BadInput, NotFound
from lap_assets.lap.decide import decide
from lap_assets.lap.select import describe_partition
from lap_assets.model.decisions import FAULTS, Snapshot
from lap_assets.model.ids import JOIN, DataId
from lap_assets.model.products import CALIBRATION_COLLECTION, CALIBRATIONS, KEY_PARTS, get_product, home_of
from lap_assets.model.states import CLEANED, DONE, GONE
from lap_assets.model.survey import PartitionRef, Run
from lap_assets.operations.drive import take_snapshot
from lap_assets.operations.workspace import Workspace
from lap_assets.store.expressions import matches, parse_expression, resolve_terms
from lap_assets.store.manifest import Manifest

_MANY = 20  # lines of one kind
_DIGITS = 12  # of a hash


def explain(space: Workspace, data_id_text: str) -> list[str]:
    """Lines about a unit (`main/warps/E|C/03`) or a partition (`main/warps/E|C`); raises `BadInput`, `NotFound`."""
    data_id = DataId.parse(data_id_text)
    product = get_product(data_id.product)
    if data_id.unit and not product.unit:
        raise BadInput(f"{data_id}: {data_id.product} have no units; leave {data_id.unit!r} off")
    collection = data_id.collection
    if product.partitions == CALIBRATIONS:
        collection = space.settings.collections[0]
        data_id = DataId(CALIBRATION_COLLECTION, data_id.product, data_id.partition, data_id.unit)
    ref = (data_id.product, data_id.partition)
    snapshot = take_snapshot(space, collection, "all", find_runs(space, collection, ref))
    if ref not in snapshot.states and data_id.partition not in snapshot.survey.partitions(data_id.product):
        raise NotFound(f"{data_id}: there is no such partition; `lap ls {data_id.product}` shows what is made")
    lines = list(explain_unit(space, data_id)) if data_id.unit or not product.unit else []
    if not lines or product.unit:
        lines += explain_partition(space, data_id, snapshot)
    lines += explain_runs(snapshot, ref)
    return [*lines, *explain_need(snapshot, ref)]


def find_runs(space: Workspace, collection: str, ref: PartitionRef) -> list[int] | None:
    """Numbers of the runs that a partition may be made for; None: of all."""
    parts = read_parts(ref)
    if "exposure" not in parts and "cell" not in parts:
        return None
    rows = space.ledger.runs(collection, exposure=parts.get("exposure"))
    return [row.lap_id for row in rows if parts.get("cell", row.cell) == row.cell]


def find_partitions(space: Workspace, collection: str, product: str, keys: Sequence[str]) -> list[str]:
    """Data ids that `warps exposure=… cell=…` may mean, as text; raises `BadInput` where it is none or too many."""
    row = get_product(product)
    survey = space.survey(collection)
    known = tuple(dict.fromkeys((*row.keys, "band", "night", "camera", "object")))
    terms = resolve_terms(parse_expression(" ".join(keys)), known)
    units = [term.value for term in terms if term.key == row.unit]
    rest = [term for term in terms if term.key != row.unit]
    found = [key for key in survey.partitions(product) if matches(rest, describe_partition(survey, product, key))]
    if not found or len(found) > _MANY:
        raise BadInput(f"{len(found)} {product} match {' '.join(keys) or 'no key'}: name {', '.join(row.keys)}")
    home = home_of(collection, product)
    return [str(DataId(home, product, key, units[0] if units else "")) for key in found]


# ---- what there is


def explain_unit(space: Workspace, data_id: DataId) -> Iterator[str]:
    """Lines about one unit, from its manifest and its record."""
    manifest = space.repo.manifest(data_id)
    rows = space.ledger.units(data_id.collection, data_id.product, data_id.partition)
    row = next((one for one in rows if one.data_id == data_id), None)
    if manifest is None:
        yield f"{data_id}: {f'{row.state}: {row.reason}' if row else 'not made'}"
        return
    yield f"{data_id}: {manifest.state}{f': {manifest.reason}' if manifest.reason else ''}"
    if row is not None and row.updated:
        verb = "cleaned" if manifest.state == CLEANED else "made"
        yield f"  {verb} on {describe_time(row.updated)}"
    yield from explain_manifest(manifest)


def explain_manifest(manifest: Manifest) -> Iterator[str]:
    """Lines about what a unit was made from and by what."""
    for pin in manifest.inputs[:_MANY]:
        yield f"  from {pin.data_id} {pin.content[:_DIGITS]}"
    if len(manifest.inputs) > _MANY:
        yield f"  from {len(manifest.inputs) - _MANY} more"
    if manifest.refers_to is not None:
        yield f"  its files are those of {manifest.refers_to.data_id} {manifest.refers_to.content[:_DIGITS]}"
    if manifest.content_sha256:
        size = f"{manifest.bytes} bytes" if manifest.state == DONE else "no files"
        yield f"  content {manifest.content_sha256[:_DIGITS]}, {size}"
    yield (
        f"  by Dagster run {manifest.run_id or '-'}, settings {manifest.config_sha256[:_DIGITS]}, "
        f"code {manifest.code}, environment {manifest.fingerprint.get('id', '-')}, {manifest.seconds:.2f} s"
    )


def explain_partition(space: Workspace, data_id: DataId, snapshot: Snapshot) -> Iterator[str]:
    """Lines about a whole partition: its record, its units, and the partitions it is made from."""
    ref = (data_id.product, data_id.partition)
    whole = DataId(data_id.collection, data_id.product, data_id.partition)
    state = snapshot.states.get(ref)
    units = space.ledger.units(data_id.collection, *ref)
    masters = {**snapshot.survey.calibrations, **snapshot.survey.withdrawn}
    if state is None:
        yield f"{whole}: not made"
    else:
        yield f"{whole}: {state.state}{f': {state.reason}' if state.reason else ''}"
        if state.attempts:
            yield f"  {state.attempts} failed attempts"
    if data_id.partition in masters:
        one = masters[data_id.partition]
        yield f"  {one.state}{f': {one.reason}' if one.reason else ''}"
    if units:
        when = describe_time(max(unit.updated for unit in units))
        counts = ", ".join(f"{n} {name}" for name, n in sorted(Counter(unit.state for unit in units).items()))
        verb = "cleaned" if state is not None and state.state == CLEANED else "last changed"
        yield f"  {len(units)} units: {counts}; {verb} on {when}"
    odd = [unit for unit in units if unit.reason and unit.state not in GONE]
    yield from (f"  {unit.data_id}: {unit.state}: {unit.reason}" for unit in odd[:_MANY])
    if len(odd) > _MANY:
        yield f"  {len(odd) - _MANY} more like these"
    if data_id.partition in snapshot.survey.partitions(data_id.product) and not data_id.unit:
        for up in snapshot.survey.upstream(*ref):
            before = snapshot.states.get(up)
            how = f"{before.state} {before.content_sha256[:_DIGITS]}" if before else "not made"
            how += f", {masters[up[1]].state}" if up[1] in masters else ""
            yield f"  from {up[0]} {up[1]} {how}"


def describe_time(seconds: float) -> str:
    """A time in seconds since 1970 for people."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# ---- what is to be done


def explain_runs(snapshot: Snapshot, ref: PartitionRef) -> Iterator[str]:
    """Lines about the runs a partition is made for, and those that dropped its exposure."""
    exposure = read_parts(ref).get("exposure", "")
    runs = [run for run in snapshot.survey.runs if concerns(snapshot, ref, run)]
    for run in runs[:_MANY]:
        one = run.member.get(exposure)
        dropped = one is not None and one.data_state == "drop"
        yield f"  dropped from {describe_run(run)}: {one.reason}" if dropped else f"  for {describe_run(run)}"
    if len(runs) > _MANY:
        yield f"  for {len(runs) - _MANY} more runs"


def concerns(snapshot: Snapshot, ref: PartitionRef, run: Run) -> bool:
    """Whether a partition is made for a run, or was until the run dropped its exposure."""
    parts = read_parts(ref)
    if "exposure" not in parts and "cell" not in parts:
        return any(ref in snapshot.survey.associations.get(name, ()) for name in run.everyone)
    mine = {"cell": run.cell, "band": run.band}
    if "exposure" in parts and parts["exposure"] not in run.everyone:
        return False
    return all(parts.get(key, value) == value for key, value in mine.items())


def read_parts(ref: PartitionRef) -> dict[str, str]:
    """The names in a partition key by their kind; raises `BadInput` for a key of other parts."""
    kinds, names = KEY_PARTS[get_product(ref[0]).partitions], ref[1].split(JOIN)
    if len(kinds) != len(names):
        raise BadInput(f"{ref[1]!r} is no partition of {ref[0]}: expected {JOIN.join(kinds)}")
    return dict(zip(kinds, names, strict=True))


def describe_run(run: Run) -> str:
    """A run in a few words."""
    state = FAULTS[run.fault] if run.fault else f"{run.state}, paused" if run.paused else run.state
    return f"run {run.lap_id} ({run.cell} {run.band}: {state})"


def explain_need(snapshot: Snapshot, ref: PartitionRef) -> Iterator[str]:
    """A line about what is to be done with a partition now, or what it waits for."""
    if ref in snapshot.busy:
        yield f"  is being made by {snapshot.busy[ref]}"
    decision = decide(snapshot)
    for action in decision.actions:
        if (action.product, action.partition) == ref:
            yield f"  to {action.kind} now: {action.reason}"
    if ref in decision.waiting:
        yield f"  {decision.waiting[ref]}"
