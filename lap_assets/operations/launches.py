"""Launches: which partitions a Dagster run was asked to make, so that nobody else is asked for them meanwhile.

A launch has a number; its claims are leases in the ledger (key `launch/…`, owner `launch:NUMBER`), taken before the run
is requested, kept alive while it works and given back partition by partition as they are recorded. What is still
claimed when a run fails is what it left without a record. No dagster here; requesting runs is `defs/launch.py`'s.
"""

import logging
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

from lap_assets.errors import Conflict, LapError
from lap_assets.lap.judge import MAX_ATTEMPTS
from lap_assets.ledger.ledger import Ledger
from lap_assets.model.products import home_of
from lap_assets.model.states import FAILED, GONE
from lap_assets.model.survey import PartitionRef

CLAIM_SECONDS = 60.0
# why a partition failed whose run was lost; lost again it is made in a run of its own, so that none drags others along
LOST = "its run ended without a record"
LOST_AGAIN = f"{LOST} again"
log = logging.getLogger(__name__)


def name_owner(number: int | str) -> str:
    """Owner of the claims of a launch."""
    return f"launch:{number}"


def name_claims(collection: str, refs: Iterable[PartitionRef]) -> dict[str, PartitionRef]:
    """Partitions by the key of the claim on them."""
    return {f"launch/{home_of(collection, product)}/{product}/{key}": (product, key) for product, key in refs}


def take_claims(ledger: Ledger, collection: str, refs: Collection[PartitionRef]) -> int:
    """Claim all of some partitions; returns the number of the launch, or 0 where any of them is claimed already."""
    number = ledger.take_number("launch")
    keys = list(name_claims(collection, refs))
    if len(ledger.claim(keys, name_owner(number), CLAIM_SECONDS)) == len(keys):
        return number
    ledger.release_owner(name_owner(number))
    return 0


def read_claims(ledger: Ledger, owner: str) -> list[PartitionRef]:
    """Partitions that an owner has claimed and not given back, sorted."""
    found = [lease.key.split("/", 3) for lease in ledger.leases() if lease.owner == owner]
    return sorted((parts[2], parts[3]) for parts in found if parts[0] == "launch" and len(parts) == 4)


def renew_claims(ledger: Ledger, collection: str, owner: str, refs: Collection[PartitionRef]) -> bool:
    """Keep the claims of a launch that has not begun; whether all of these are still, or again, its own."""
    keys = name_claims(collection, refs)
    ledger.extend(owner, CLAIM_SECONDS)
    if set(read_claims(ledger, owner)) >= set(keys.values()):
        return True
    ledger.claim(keys, owner, CLAIM_SECONDS)
    return set(read_claims(ledger, owner)) >= set(keys.values())


def release_claims(ledger: Ledger, collection: str, owner: str, refs: Iterable[PartitionRef]) -> None:
    """Give back the claims of an owner on partitions that are recorded."""
    keys = name_claims(collection, refs)
    for lease in ledger.leases():
        if lease.owner == owner and lease.key in keys:
            try:
                ledger.release(lease)
            except Conflict:
                continue  # it expired meanwhile and somebody else has it


@contextmanager
def keep_alive(ledger: Ledger, owner: str, run_id: str) -> Iterator[None]:
    """Show that a Dagster run is alive, and keep its claims, until its end; what it then still has is given back."""
    stop = threading.Event()

    def beat() -> None:
        while True:
            try:
                if not ledger.extend(owner, CLAIM_SECONDS):
                    ledger.claim([f"run/{run_id}"], owner, CLAIM_SECONDS)
            except LapError as error:  # a busy database: the next beat comes long before the claims expire
                log.warning("no heartbeat of run %s: %s", run_id, error)
            if stop.wait(CLAIM_SECONDS / 6):
                return

    ledger.claim([f"run/{run_id}"], owner, CLAIM_SECONDS)
    thread = threading.Thread(target=beat, daemon=True, name="run-heartbeat")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        ledger.release_owner(owner)


def release_dead(ledger: Ledger, run_id: str) -> None:
    """Give back the leases under which a run worked whose process is known to be dead.

    Should one of its workers live on, its fencing number is older than that of whoever comes next.
    """
    for owner in {one.owner for one in ledger.leases() if one.owner.endswith(f":{run_id}")}:
        ledger.release_owner(owner)


def find_alive(ledger: Ledger) -> frozenset[str]:
    """Owners that hold any lease now, and `run/ID` of the Dagster runs that are at work."""
    held = ledger.leases()
    return frozenset({one.owner for one in held} | {one.key for one in held if one.key.startswith("run/")})


def record_lost(ledger: Ledger, collection: str, refs: Collection[PartitionRef], reason: str) -> None:
    """Record partitions as failed that a run left without a record.

    One that was alone in its run uses up an attempt. Of several nobody knows which was at fault, if it was any and not
    somebody who pulled the plug: none is given up for it.
    """
    states = ledger.partition_states(collection)
    alone = len({key for _, key in refs}) == 1
    for product, key in refs:
        before = states.get((product, key))
        if before and before.state in GONE:
            continue  # it was being re-created: it is asked for again
        tried = before.attempts if before else 0
        attempts = tried + 1 if alone else max(tried, min(tried + 1, MAX_ATTEMPTS - 1))
        again = before is not None and before.state == FAILED and before.reason.startswith(LOST)
        text = f"{LOST_AGAIN if again else LOST}: {' '.join(reason.split())}"
        ledger.record_partition(collection, product, key, FAILED, attempts=attempts, reason=text[:500])
