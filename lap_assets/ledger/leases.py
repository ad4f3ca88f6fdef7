"""Leases: who may write a product now. An owner, an expiry that heartbeats push on, and a fencing number.

The fencing number only ever grows, whoever takes the lease; publishing compares it, so that a writer that slept
through its expiry cannot overwrite its successor's product.
"""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lap_assets.errors import BadInput, Conflict
from lap_assets.ledger.tables import counter, lease

FENCE = "fence"


@dataclass(frozen=True)
class Lease:
    """The right to write what `key` names, until `expires` (seconds since 1970)."""

    key: str
    owner: str
    fence: int
    expires: float


def take_number(connection: Connection, name: str) -> int:
    """The next number of a counter, from 1; concurrent writers wait for one another."""
    changed = connection.execute(sa.update(counter).where(counter.c.name == name).values(value=counter.c.value + 1))
    if not changed.rowcount:
        connection.execute(sa.insert(counter).values(name=name, value=1))
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


def _own(statement: sa.Update | sa.Delete, held: Lease) -> sa.Update | sa.Delete:
    return statement.where(lease.c.key == held.key, lease.c.fence == held.fence, lease.c.owner == held.owner)


def _lost(connection: Connection, held: Lease) -> Conflict:
    holder = connection.execute(sa.select(lease.c.owner).where(lease.c.key == held.key)).scalar_one_or_none()
    taken = f"{holder} has it now" if holder else "nobody has it now"
    return Conflict(
        f"the lease of {held.owner} on {held.key} was lost ({taken}); what it was making must not be published"
    )
