"""Withdrawing what turned out to be bad: everything made from it is listed and, on demand, made again.

What is made from what is read from the manifests, unit by unit: they tell what really was used, whatever masters would
be chosen today. Nothing is deleted: replaced versions, and masters that nothing is left of, go with `lap gc`, a
withdrawn unit itself into quarantine.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from lap_assets.errors import BadInput, NotFound
from lap_assets.model.associations import REJECTED
from lap_assets.model.ids import JOIN, DataId
from lap_assets.model.products import CALIBRATION_COLLECTION, MASTERS, PRODUCTS, get_product
from lap_assets.model.states import CLEANED, GOTO_CLEANED
from lap_assets.model.survey import PartitionRef
from lap_assets.operations.calibrations import find_set, reject
from lap_assets.operations.work import hold_leases
from lap_assets.operations.workspace import Workspace
from lap_assets.store.verify import quarantine_unit


@dataclass(frozen=True)
class Affected:
    """One partition that something bad went into."""

    collection: str
    product: str
    partition: str
    units: int
    bytes: int

    @property
    def ref(self) -> PartitionRef:
        return self.product, self.partition


@dataclass(frozen=True)
class Withdrawal:
    """What withdrawing something means.

    Attributes
    ----------
    target : str
        Data id, or key of a calibration set.
    sources : tuple of DataId
        Units that are withdrawn.
    affected : tuple of Affected
        Everything made from them, in the order of the chain.
    runs : mapping of collection to tuple of int
        Runs that ended and have to go on.
    stranded : mapping of collection to tuple of str
        Exposures that no master is left for: they wait for other frames.
    """

    target: str
    sources: tuple[DataId, ...]
    affected: tuple[Affected, ...] = ()
    runs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    stranded: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def units(self) -> int:
        return sum(one.units for one in self.affected)

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.affected)


def plan_withdrawal(space: Workspace, target: str) -> Withdrawal:
    """What would be made again were a product, or the master of a calibration set, withdrawn.

    Parameters
    ----------
    target : str
        `COLLECTION/PRODUCT/PARTITION[/UNIT]`, or the key of a calibration set, `CAMERA|KIND|BAND|NIGHT`.

    Raises
    ------
    BadInput, NotFound
        It is neither, or there is no such thing.
    """
    sources = find_sources(space, target)
    affected = find_affected(space, sources)
    touched = [*affected, *(Affected(*_place(one), 1, 0) for one in sources)]
    runs = {name: find_ended_runs(space, name, touched) for name in space.collections()}
    stranded = {name: find_stranded(space, name, target) for name in space.collections()} if is_set(target) else {}
    return Withdrawal(
        target,
        sources,
        tuple(affected),
        {name: found for name, found in runs.items() if found},
        {name: found for name, found in stranded.items() if found},
    )


def is_set(target: str) -> bool:
    """Whether a target is meant as the key of a calibration set."""
    return "/" not in target


def find_sources(space: Workspace, target: str) -> tuple[DataId, ...]:
    """The units that are withdrawn."""
    if is_set(target):
        one = find_set(space, target)
        return tuple(space.repo.units(CALIBRATION_COLLECTION, MASTERS[one.kind], target))
    data_id = DataId.parse(target)
    product = get_product(data_id.product)
    if product.name in MASTERS.values():
        raise BadInput(f"{target}: name the calibration set, lap invalidate '{data_id.partition}': it is rejected then")
    units = space.repo.units(data_id.collection, data_id.product, data_id.partition)
    found = tuple(one for one in units if not data_id.unit or one == data_id)
    if not found:
        raise NotFound(f"{target}: nothing of it is in the store; `lap ls {data_id.product}` shows what is made")
    return found


def find_affected(space: Workspace, sources: Collection[DataId]) -> list[Affected]:
    """Everything made from some units, directly or not, as the manifests tell; by product and partition."""
    made_from: dict[DataId, list[DataId]] = defaultdict(list)
    sizes: dict[DataId, int] = {}
    for unit in space.repo.all_units():
        manifest = space.repo.manifest(unit)
        if manifest is not None:
            sizes[unit] = manifest.bytes
            refers = [manifest.refers_to] if manifest.refers_to else []
            for pin in (*manifest.inputs, *refers):
                made_from[pin.data_id].append(unit)
    reached, open_ = set(sources), list(sources)
    while open_:
        new = [unit for unit in made_from[open_.pop()] if unit not in reached]
        reached.update(new)
        open_ += new
    found: dict[tuple[str, str, str], list[DataId]] = defaultdict(list)
    for unit in reached - set(sources):
        found[_place(unit)].append(unit)
    order = {name: number for number, name in enumerate(PRODUCTS)}
    return [
        Affected(*place, len(units), sum(sizes.get(unit, 0) for unit in units))
        for place, units in sorted(found.items(), key=lambda one: (order[one[0][1]], one[0]))
    ]


def _place(unit: DataId) -> tuple[str, str, str]:
    return unit.collection, unit.product, unit.partition


def find_ended_runs(space: Workspace, collection: str, touched: Iterable[Affected]) -> tuple[int, ...]:
    """Runs of a collection that are full and whose exposures or cells are among what is touched."""
    names = {part for one in touched if one.collection == collection for part in one.partition.split(JOIN)}
    full = [row for row in space.ledger.runs(collection, "full") if not row.fault]
    return tuple(
        row.lap_id
        for row in full
        if row.cell in names or any(one.exposure in names for one in space.ledger.members(row.lap_id))
    )


def find_stranded(space: Workspace, collection: str, key: str) -> tuple[str, ...]:
    """Exposures of a collection that have no other master of this kind."""
    survey = space.complete(space.ledger.survey(collection, lean=True))
    if key not in survey.calibrations:
        return ()
    one = survey.calibrations[key]
    rest = [each for each in space.ledger.calibrations().values() if each.key != key and each.state != REJECTED]
    same = [each for each in rest if (each.camera, each.kind, each.band) == (one.camera, one.kind, one.band)]
    ref = (MASTERS[one.kind], key)
    users = [name for name, refs in survey.associations.items() if ref in refs]
    return tuple(
        name
        for name in users
        if not any(not each.valid_to or each.valid_to >= survey.exposures[name].night for each in same)
    )


def withdraw(space: Workspace, plan: Withdrawal, reason: str) -> int:
    """Carry a withdrawal out; returns the number of partitions that are made again.

    A calibration set is rejected; other units go into quarantine. Everything made from them, frozen joint solutions
    included, is marked, and runs that ended go on; the next `lap run` or sensor does the work.

    Raises
    ------
    Conflict
        Somebody is at the partition that is withdrawn.
    """
    because = f"{plan.target} was withdrawn: {reason}"
    first = space.settings.collections[0]
    if is_set(plan.target):
        reject(space, first, plan.target, reason)
    else:
        take_away(space, plan.sources, because)
    count = 0
    by_collection: dict[str, list[PartitionRef]] = defaultdict(list)
    for one in plan.affected:
        by_collection[first if one.collection == CALIBRATION_COLLECTION else one.collection].append(one.ref)
    for collection, refs in sorted(by_collection.items()):
        count += space.ledger.invalidate(collection, refs, because)
    for lap_ids in plan.runs.values():
        for lap_id in lap_ids:
            space.ledger.reopen(lap_id, because)
    return count


def take_away(space: Workspace, units: Collection[DataId], reason: str) -> None:
    """Quarantine units and take them off the index, so that they are made again."""
    collection, product, partition = _place(next(iter(units)))
    with hold_leases(space, collection, product, [partition]):
        for unit in units:
            manifest = space.repo.manifest(unit)
            if manifest is not None and manifest.state != CLEANED:
                quarantine_unit(space.repo.layout, unit, manifest, reason)
                space.ledger.forget_unit(unit, reason)
            else:
                space.ledger.invalidate(collection, [(product, partition)], reason)


# ---- what is left of a withdrawn master


def find_unused(space: Workspace) -> list[Affected]:
    """Masters of rejected calibration sets that have files and that nothing in the store was made from."""
    unused = []
    for key, one in space.ledger.calibrations().items():
        units = space.repo.units(CALIBRATION_COLLECTION, MASTERS[one.kind], key) if one.state == REJECTED else []
        filed = [unit for unit in units if space.repo.has_files(unit)]
        sizes = [manifest.bytes for unit in filed if (manifest := space.repo.manifest(unit)) is not None]
        if sum(sizes) and not find_affected(space, units):
            unused.append(Affected(CALIBRATION_COLLECTION, MASTERS[one.kind], key, len(filed), sum(sizes)))
    return unused


def clean_unused(space: Workspace, masters: Iterable[Affected]) -> None:
    """Remove the files of masters; what is known of them stays, and a person who certifies one has it made again."""
    collection, because = space.settings.collections[0], "its calibration set was rejected, and nothing is made from it"
    for one in masters:
        with hold_leases(space, collection, one.product, [one.partition]) as fences:
            space.ledger.mark(collection, [one.ref], GOTO_CLEANED, because)
            for unit in space.repo.units(one.collection, one.product, one.partition):
                space.repo.clean(unit, because, fences[one.partition])
            space.ledger.mark(collection, [one.ref], CLEANED, because)
