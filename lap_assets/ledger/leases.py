"""Leases: who may write a product now. An owner, an expiry that heartbeats push on, and a fencing number.

The fencing number only ever grows, whoever takes the lease; publishing compares it, so that a writer that slept
through its expiry cannot overwrite its successor's product.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lap_assets.errors import BadInput, Conflict
from lap_assets.ledger.tables import counter, lease

FENCE = "fence"
_MANY = 500  # keys per IN list


@dataclass(frozen=True)
class Lease:
    """The right to write what `key` names, until `expires` (seconds since 1970)."""

    key: str
    owner: str
    fence: int
    expires: float


def take_number(connection: Connection, name: str) -> int:
    """The next number of a counter, from 1; concurrent writers wait for one another."""
    return add_numbers(connection, name, 1)


def add_numbers(connection: Connection, name: str, count: int) -> int:
    """The last of the next `count` numbers of a counter; concurrent writers wait for one another."""
    more = sa.update(counter).where(counter.c.name == name).values(value=counter.c.value + count)
    if not connection.execute(more).rowcount:
        # two first takers: the second one waits here for the first, and goes on from its number
        first = "INSERT INTO counter (name, value) VALUES (:name, 0) ON CONFLICT (name) DO NOTHING"
        connection.execute(sa.text(first), {"name": name})
        connection.execute(more)
    return connection.execute(sa.select(counter.c.value).where(counter.c.name == name)).scalar_one()


def raise_number(connection: Connection, name: str, at_least: int) -> None:
    """Let a counter go on after `at_least`, if it stands lower."""
    now = connection.execute(sa.select(counter.c.value).where(counter.c.name == name)).scalar_one_or_none()
    if now is None:
        connection.execute(sa.insert(counter).values(name=name, value=at_least))
    elif now < at_least:
        connection.execute(sa.update(counter).where(counter.c.name == name).values(value=at_least))


def acquire_lease(connection: Connection, now: float, key: str, owner: str, seconds: float) -> Lease:
    """Take a lease that is free or expired; raises `Conflict` naming the holder otherwise."""
    if seconds <= 0.0:
        raise BadInput(f"a lease of {seconds} s on {key} is none: give a positive time")
    fence = take_number(connection, FENCE)  # also makes concurrent takers wait for one another
    held = connection.execute(sa.select(lease).where(lease.c.key == key)).one_or_none()
    if held is not None and held.expires > now:
        left = held.expires - now
        raise Conflict(f"{key} is being made by {held.owner} (lease for another {left:.0f} s); wait, or try again then")
    connection.execute(sa.delete(lease).where(lease.c.key == key))
    values = {"key": key, "owner": owner, "fence": fence, "heartbeat": now, "expires": now + seconds}
    connection.execute(sa.insert(lease).values(values))
    return Lease(key, owner, fence, now + seconds)


def renew_lease(connection: Connection, now: float, held: Lease, seconds: float) -> Lease:
    """Push the expiry to `seconds` from now; raises `Conflict` if the lease was taken over or released."""
    changed = connection.execute(_own(sa.update(lease), held).values(heartbeat=now, expires=now + seconds))
    if not changed.rowcount:
        raise _lost(connection, held)
    return Lease(held.key, held.owner, held.fence, now + seconds)


def release_lease(connection: Connection, held: Lease) -> None:
    """Give a lease back; raises `Conflict` if it was taken over meanwhile."""
    if not connection.execute(_own(sa.delete(lease), held)).rowcount:
        raise _lost(connection, held)


def claim_leases(connection: Connection, now: float, keys: Sequence[str], owner: str, seconds: float) -> list[str]:
    """Take those leases that are free or expired, whoever had them; returns their keys in the order given."""
    if seconds <= 0.0:
        raise BadInput(f"a claim for {seconds} s is none: give a positive time")
    wanted = list(dict.fromkeys(keys))
    if not wanted:
        return []
    take_number(connection, FENCE)  # makes concurrent takers wait for one another
    held: set[str] = set()
    for start in range(0, len(wanted), _MANY):
        batch = wanted[start : start + _MANY]
        alive = sa.select(lease.c.key).where(lease.c.key.in_(batch), lease.c.expires > now)
        held |= set(connection.execute(alive).scalars())
        connection.execute(sa.delete(lease).where(lease.c.key.in_(batch), lease.c.expires <= now))
    free = [key for key in wanted if key not in held]
    if free:
        last = add_numbers(connection, FENCE, len(free))
        rows = [
            {"key": key, "owner": owner, "fence": last - i, "heartbeat": now, "expires": now + seconds}
            for i, key in enumerate(reversed(free))
        ]
        connection.execute(sa.insert(lease), rows)
    return free


def extend_leases(connection: Connection, now: float, owner: str, seconds: float) -> int:
    """Push the expiry of all leases of an owner that are alive; how many."""
    mine = (lease.c.owner == owner, lease.c.expires > now)
    return connection.execute(sa.update(lease).where(*mine).values(heartbeat=now, expires=now + seconds)).rowcount


def release_owner(connection: Connection, owner: str) -> int:
    """Give back all leases of an owner; how many."""
    return connection.execute(sa.delete(lease).where(lease.c.owner == owner)).rowcount


def _own(statement: sa.Update | sa.Delete, held: Lease) -> sa.Update | sa.Delete:
    return statement.where(lease.c.key == held.key, lease.c.fence == held.fence, lease.c.owner == held.owner)


def _lost(connection: Connection, held: Lease) -> Conflict:
    holder = connection.execute(sa.select(lease.c.owner).where(lease.c.key == held.key)).scalar_one_or_none()
    taken = f"{holder} has it now" if holder else "nobody has it now"
    return Conflict(
        f"the lease of {held.owner} on {held.key} was lost ({taken}); what it was making must not be published"
    )
