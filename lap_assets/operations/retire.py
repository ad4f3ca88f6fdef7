"""Retiring runs: taking what is over and cleaned out of the partition sets, so that these stay bounded.

Products, records and history stay; only Dagster's user interface no longer offers the partitions. A key that is removed
while a backfill targets it fails the backfill, so nothing is retired under anybody's hands.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lap_assets.defs.instance import find_work
from lap_assets.defs.run import open_instance
from lap_assets.errors import BadInput, Conflict, NotFound
from lap_assets.ledger.records import RunRow
from lap_assets.model.ids import join_key
from lap_assets.model.products import EXPOSURE_CELLS, EXPOSURES, PRODUCTS, home_of
from lap_assets.model.survey import PartitionRef
from lap_assets.operations.webserver import reload_definitions
from lap_assets.operations.workspace import Workspace


@dataclass(frozen=True)
class Retirement:
    """What retiring some runs takes out of the partition sets.

    Attributes
    ----------
    runs : tuple of RunRow
        Oldest first.
    exposures : frozenset of str
        Those that no other run of the collection uses.
    pairs : frozenset of str
        Keys `exposure|cell`.
    """

    runs: tuple[RunRow, ...] = ()
    exposures: frozenset[str] = frozenset()
    pairs: frozenset[str] = frozenset()

    @property
    def partitions(self) -> frozenset[PartitionRef]:
        """All that is taken out, of every product."""
        keys = {EXPOSURES: self.exposures, EXPOSURE_CELLS: self.pairs}
        return frozenset((name, key) for name, one in PRODUCTS.items() for key in keys.get(one.partitions, ()))


def plan_retirement(space: Workspace, collection: str, keep: int = 0) -> Retirement:
    """The cleaned runs of a collection but for the newest `keep`, and what goes with them.

    Raises
    ------
    NotFound
        If there is no such collection.
    BadInput
        If `keep` is negative.
    """
    if keep < 0:
        raise BadInput(f"--keep {keep} is negative: say how many of the newest cleaned runs stay")
    if collection not in (row.name for row in space.ledger.sequences()):
        raise NotFound(f"no sequence {collection!r} in the ledger; `lap sequence list` shows them")
    alive = [row for row in space.ledger.runs(collection) if not row.retired]
    cleaned = [row for row in alive if row.cleaned]
    chosen = cleaned[: max(len(cleaned) - keep, 0)]
    numbers = {row.lap_id for row in chosen}
    members = {row.lap_id: [one.exposure for one in space.ledger.members(row.lap_id)] for row in alive}
    used = {exposure for row in alive if row.lap_id not in numbers for exposure in members[row.lap_id]}
    going = {exposure for number in numbers for exposure in members[number]}
    pairs = {join_key(exposure, row.cell) for row in chosen for exposure in members[row.lap_id]}
    return Retirement(tuple(chosen), frozenset(going - used), frozenset(pairs))


def find_users(space: Workspace, collection: str, plan: Retirement) -> Mapping[PartitionRef, str]:
    """Who works on what is to be retired, or is about to: by lease in the ledger, and by Dagster's own lists."""
    held = {lease.key.removeprefix("launch/"): lease.owner for lease in space.ledger.leases()}
    places = {f"{home_of(collection, ref[0])}/{'/'.join(ref)}": ref for ref in plan.partitions}
    users = {places[key]: owner for key, owner in held.items() if key in places}
    with open_instance(space.root) as instance:
        work = find_work(instance, space.survey(collection))
    return users | {ref: work[ref] for ref in plan.partitions & work.keys()}


def retire_runs(space: Workspace, collection: str, keep: int = 0, dry_run: bool = False) -> Retirement:
    """Retire the cleaned runs of a collection, oldest first, but for the newest `keep`; returns what that took out.

    Raises
    ------
    Conflict
        If a backfill, an unfinished run of Dagster or a writer is at any of it; nothing is retired then.
    """
    plan = plan_retirement(space, collection, keep)
    if dry_run or not plan.runs:
        return plan
    if users := find_users(space, collection, plan):
        (product, partition), who = min(users.items())
        more = f" and {len(users) - 1} more" if len(users) > 1 else ""
        raise Conflict(f"nothing is retired: {who} is at {product} {partition}{more}; wait, or end it, and try again")
    space.ledger.retire(collection, [row.lap_id for row in plan.runs])
    reload_definitions(space.root)
    return plan
