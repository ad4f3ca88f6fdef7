"""One writer per product: leases with an expiry and a fencing number that only grows."""

import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lap_assets.errors import BadInput, Conflict
from lap_assets.ledger.ledger import Ledger

KEY = "main/stacks/demo.0|r"


def test_a_held_lease_names_its_holder(ledger):
    held = ledger.acquire(KEY, "alice:1", 60.0)
    with pytest.raises(Conflict, match=r"main/stacks/demo.0\|r is being made by alice:1 \(lease for another 60 s\)"):
        ledger.acquire(KEY, "bob:2", 60.0)
    assert ledger.leases() == [held]
    ledger.release(held)
    assert ledger.leases() == []
    assert ledger.acquire(KEY, "bob:2", 60.0).fence > held.fence


def test_an_expired_lease_is_taken_over_with_a_higher_fence(ledger, place):
    old = ledger.acquire(KEY, "alice:1", 60.0)
    place.clock.time += 61.0
    new = ledger.acquire(KEY, "bob:2", 60.0)
    assert new.fence > old.fence
    for late in (lambda: ledger.heartbeat(old, 60.0), lambda: ledger.release(old)):
        with pytest.raises(Conflict, match=r"was lost \(bob:2 has it now"):
            late()
    assert [one.owner for one in ledger.leases()] == ["bob:2"]


def test_heartbeats_keep_a_lease(ledger, place):
    held = ledger.acquire(KEY, "alice:1", 60.0)
    for _ in range(5):
        place.clock.time += 50.0
        held = ledger.heartbeat(held, 60.0)
    with pytest.raises(Conflict, match="alice:1"):
        ledger.acquire(KEY, "bob:2", 60.0)
    assert held.expires == place.clock.time + 60.0


def test_late_heartbeat_revives_a_lease_that_nobody_took(ledger, place):
    held = ledger.acquire(KEY, "alice:1", 60.0)
    place.clock.time += 600.0
    assert ledger.heartbeat(held, 60.0).fence == held.fence
    assert ledger.leases()[0].owner == "alice:1"


def test_released_twice_is_told(ledger):
    held = ledger.acquire(KEY, "alice:1", 60.0)
    ledger.release(held)
    with pytest.raises(Conflict, match="nobody has it now"):
        ledger.release(held)
    with pytest.raises(BadInput, match="positive time"):
        ledger.acquire(KEY, "alice:1", 0.0)


def test_of_many_takers_exactly_one_wins(place):
    """The race itself: separate ledgers (connections) on one database."""
    ledger = place.create()
    barrier = threading.Barrier(6)
    won, lost = [], []

    def take(number: int) -> None:
        other = Ledger(ledger._database)
        barrier.wait()
        try:
            won.append(other.acquire(KEY, f"taker:{number}", 60.0))
        except Conflict:
            lost.append(number)

    threads = [threading.Thread(target=take, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(lost) == 5
    ledger.close()


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["acquire", "release", "heartbeat", "wait"]), st.integers(0, 2), st.integers(0, 1)),
        max_size=20,
    )
)
def test_at_most_one_owner_and_fences_only_grow(ledger, place, steps):
    """Whatever owners do, in any order: a lease alive has one owner, and a later taker has a higher fence."""
    for one in ledger.leases():
        ledger.release(one)
    held: dict[tuple[int, int], object] = {}
    highest = 0
    for what, owner, key in steps:
        name = f"key{key}"
        alive = {one.key: one for one in ledger.leases()}
        if what == "wait":
            place.clock.time += 40.0
        elif what == "acquire":
            if name in alive:
                with pytest.raises(Conflict):
                    ledger.acquire(name, f"o{owner}", 60.0)
            else:
                held[owner, key] = lease = ledger.acquire(name, f"o{owner}", 60.0)
                assert lease.fence > highest
                highest = lease.fence
        elif (owner, key) in held:
            mine = held[owner, key]
            newer = any(k == key and one.fence > mine.fence for (_, k), one in held.items())
            if newer:
                with pytest.raises(Conflict):
                    (ledger.release if what == "release" else lambda one: ledger.heartbeat(one, 60.0))(mine)
            elif what == "heartbeat":
                held[owner, key] = ledger.heartbeat(mine, 60.0)
            else:
                ledger.release(mine)
                del held[owner, key]


def test_claims_take_what_is_free_and_leave_the_rest(ledger, place):
    """Several at once, in one transaction; a repeated tick, or a second daemon, gets nothing."""
    keys = [f"launch/main/chips/cam-{n}" for n in range(4)]
    ledger.acquire(keys[1], "launch:1", 60.0)
    assert ledger.claim([*keys, keys[0]], "launch:2", 30.0) == [keys[0], keys[2], keys[3]]
    assert ledger.claim(keys, "launch:3", 30.0) == []
    assert {one.key: one.owner for one in ledger.leases()} == {
        keys[0]: "launch:2", keys[1]: "launch:1", keys[2]: "launch:2", keys[3]: "launch:2",
    }  # fmt: skip
    assert len({one.fence for one in ledger.leases()}) == 4
    assert max(one.fence for one in ledger.leases()) < ledger.acquire("other", "o", 60.0).fence
    place.clock.time += 31.0
    assert ledger.claim(keys, "launch:4", 30.0) == [keys[0], keys[2], keys[3]]
    assert ledger.claim([], "launch:5", 30.0) == []
    with pytest.raises(BadInput, match="positive time"):
        ledger.claim(keys, "launch:5", 0.0)


def test_claims_are_extended_and_released_by_their_owner(ledger, place):
    keys = ["a", "b", "c"]
    ledger.claim(keys, "launch:1", 30.0)
    ledger.claim(["d"], "launch:2", 30.0)
    place.clock.time += 20.0
    assert ledger.extend("launch:1", 30.0) == 3
    place.clock.time += 20.0
    assert [one.key for one in ledger.leases()] == keys
    assert ledger.extend("launch:2", 30.0) == 0  # expired: somebody else may have it
    assert ledger.release_owner("launch:1") == 3 and ledger.release_owner("launch:1") == 0
    assert ledger.leases() == []


def test_many_claims_at_once(ledger):
    """More than one query can name."""
    keys = [f"launch/main/warps/cam-{n:05d}|demo.0" for n in range(1700)]
    assert ledger.claim(keys, "launch:1", 30.0) == keys
    assert ledger.claim([*keys, "one more"], "launch:2", 30.0) == ["one more"]
    assert ledger.release_owner("launch:1") == 1700


def test_of_many_claimers_each_key_goes_to_one(place):
    """The race of two daemons, on separate connections."""
    ledger = place.create()
    barrier = threading.Barrier(4)
    got: list[list[str]] = []

    def claim(number: int) -> None:
        other = Ledger(ledger._database)
        keys = [f"k{(n + number) % 20}" for n in range(20)]
        barrier.wait()
        got.append(other.claim(keys, f"launch:{number}", 60.0))

    threads = [threading.Thread(target=claim, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key for keys in got for key in keys) == sorted(f"k{n}" for n in range(20))
    ledger.close()


def test_numbers_are_handed_out_once(ledger):
    assert [ledger.take_number("launch") for _ in range(3)] == [1, 2, 3]
    assert ledger.take_number("other") == 1
    with pytest.raises(BadInput, match="counter"):
        ledger.take_number("x'; --")
