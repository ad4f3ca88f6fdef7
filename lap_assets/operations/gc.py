"""Collecting garbage: replaced versions and rejected masters, and what Dagster stores of the past and nobody asks for.

Products in force, records, journal and the newest materialization of every partition stay; cleaning what nothing needs
any more is `clean.py`'s, taking partitions out of the sets `retire.py`'s.
"""

from dataclasses import dataclass, field

from lap_assets.defs.history import Pruned, prune_history
from lap_assets.defs.run import open_instance
from lap_assets.errors import BadInput
from lap_assets.operations.invalidate import clean_unused, find_unused
from lap_assets.operations.workspace import Workspace
from lap_assets.store.verify import find_replaced
from lap_assets.store.versions import measure_version, remove_version

DAYS = 7.0


@dataclass
class Collected:
    """What was, or would be, removed: versions of units and their bytes, masters, and what of Dagster's storage."""

    versions: int = 0
    version_bytes: int = 0
    masters: int = 0
    master_bytes: int = 0
    history: Pruned = field(default_factory=Pruned)

    @property
    def lines(self) -> list[str]:
        """The report as lines for a terminal."""
        found = self.history
        return [
            f"store: {self.versions} versions replaced more than an hour ago, {self.version_bytes / 1e6:.1f} MB; "
            f"{self.masters} rejected masters that nothing is made from, {self.master_bytes / 1e6:.1f} MB",
            f"dagster: all events of {found.superseded} runs whose partitions were all made again since, events of "
            f"debugging of {found.debug} others, {found.bytes / 1e6:.1f} MB; {found.ticks} ticks of sensors",
        ]


def collect_garbage(space: Workspace, days: float = DAYS, dry_run: bool = False) -> Collected:
    """Remove replaced versions (see `store.verify.sweep`), and Dagster's history from before `days` ago.

    Safe beside whatever runs: a version under a live lease stays, and only runs that ended are looked at.

    Raises
    ------
    BadInput
        If `days` is negative.
    """
    if not days >= 0.0:
        raise BadInput(f"--days {days:g} is no age: give 0 or more")
    unused = find_unused(space)
    outcome = Collected(masters=len(unused), master_bytes=sum(one.bytes for one in unused))
    if not dry_run:
        clean_unused(space, unused)
    held = {lease.key for lease in space.ledger.leases()}
    units = space.repo.all_units()
    leased = frozenset(d for d in units if f"{d.collection}/{d.product}/{d.partition}" in held)
    for entry, current in find_replaced(space.repo, leased=leased):
        freed = measure_version(entry) if dry_run else remove_version(entry, current)
        if freed is not None:
            outcome.versions += 1
            outcome.version_bytes += freed
    with open_instance(space.root) as instance:
        outcome.history = prune_history(instance, days, dry_run)
    return outcome
