"""What must hold of a ledger whatever happened to it (issue 3, proof 2), told from its rows, not from decisions.

Each function asserts one promise; the machine of `scheduling.py` asks them after each step.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from lap_assets.lap.inputs import hash_inputs
from lap_assets.lap.judge import FROZEN
from lap_assets.ledger.database import parse_url
from lap_assets.model.decisions import FAULTS
from lap_assets.model.ids import JOIN
from lap_assets.model.products import PRODUCTS
from lap_assets.model.states import DONE, ENDED, GOTO_CLEANED, PartitionState
from lap_assets.model.survey import PartitionRef, Survey
from lap_assets_tests.properties.stand_in import SEQUENCES, StandIn, TimedSpace

Row = Mapping[str, Any]
ONCE = frozenset({"chips", "solutions", "joint_solutions", "warps"})
QUERIES = {
    "runs": "SELECT lap_run.*, lap_sequence.name AS sequence FROM lap_run JOIN lap_sequence USING (seq_id)"
    " ORDER BY lap_id",
    "members": "SELECT * FROM lap_exp ORDER BY lap_id, exp_id",
    "states": 'SELECT collection, product, "partition", state, content_sha256 FROM "partition"'
    ' ORDER BY collection, product, "partition"',
}


@dataclass(frozen=True)
class Rows:
    """What stands in the tables: runs, their members by lap_id and exposure, partitions by collection and reference."""

    runs: list[Row]
    members: Mapping[int, Mapping[str, Row]]
    states: Mapping[tuple[str, PartitionRef], Row]

    def of(self, sequence: str) -> tuple:
        """All of one sequence."""
        runs = [run for run in self.runs if run["sequence"] == sequence]
        return (
            runs,
            [self.members[run["lap_id"]] for run in runs],
            [row for (home, _), row in self.states.items() if home == sequence],
        )


class Reader:
    """Reads the tables past the ledger, by a connection of its own."""

    def __init__(self, url: str) -> None:
        self.engine = sa.create_engine(parse_url(url), isolation_level="AUTOCOMMIT")
        self.connection = self.engine.connect()

    def read(self) -> Rows:
        found = {name: self.connection.execute(sa.text(query)).mappings().all() for name, query in QUERIES.items()}
        members: dict[int, dict[str, Row]] = defaultdict(dict)
        for row in found["members"]:
            members[row["lap_id"]][row["exp_id"]] = row
        states = {(row["collection"], (row["product"], row["partition"])): row for row in found["states"]}
        return Rows(found["runs"], members, states)

    def close(self) -> None:
        self.connection.close()
        self.engine.dispose()


def read_list(value: str | list[str]) -> list[str]:
    """A column of kind JSON, which PostgreSQL gives as a list and SQLite as text."""
    return json.loads(value) if isinstance(value, str) else value


def is_over(run: Row) -> bool:
    return bool(run["fault"] or run["settled"])


def check_runs(rows: Rows) -> None:
    """LAP-04, LAP-05, LAP-32: full runs have a final set and no active member; what ended otherwise says why."""
    sets = [run["final_sass_id"] for run in rows.runs if run["final_sass_id"] is not None]
    assert len(sets) == len(set(sets))
    for run in rows.runs:
        full = run["state"] == "full"
        assert run["quick_sass_id"] is None
        assert full == (run["final_sass_id"] is not None), run
        assert (run["fault"] == 0) == (run["fault_reason"] == "") and run["fault"] in FAULTS, run
        assert not (run["fault"] and full) and (full or not run["settled"]), run
        assert is_over(run) or not run["cleaned"], run
        for one in rows.members[run["lap_id"]].values():
            assert one["active"] == (not full and not run["fault"] and one["data_state"] != "drop"), (run, one)


def check_pairs(rows: Rows) -> None:
    """LAP-12, LAP-20, LAP-21: a pair both ways, of this sequence; private ones have none; one chip-processing each."""
    for run in rows.runs:
        roster = rows.members[run["lap_id"]]
        for one in roster.values():
            own = f"{run['sequence']}/{one['exp_id']}"
            assert one["chip_id"] in (None, own), (run, one)
            assert one["pairwise"] == (one["pair_id"] is not None) and not (one["private"] and one["pairwise"]), one
            if one["pairwise"]:
                other = roster[one["pair_id"].removeprefix(f"{run['sequence']}/")]
                assert other["pair_id"] == own, (run, one, other)
                assert "drop" not in (one["data_state"], other["data_state"]), (run, one, other)


def check_records(rows: Rows, stand_in: StandIn) -> None:
    """What the ledger says is done has its files in the store, of this content."""
    for (home, ref), row in rows.states.items():
        if row["state"] == DONE:
            there = stand_in.store.get((home, ref))
            assert there is not None and there.files and there.content == row["content_sha256"], row


def check_made(stand_in: StandIn) -> None:
    """LAP-12: no exposure is processed twice in a sequence; what was cleaned came back as it was."""
    twice = {key: count for key, count in stand_in.made.items() if count > 1 and key[1][0] in ONCE}
    assert not twice, twice


def list_needed(space: TimedSpace, sequence: str, rows: Rows) -> dict[PartitionRef, str]:
    """Partitions that a run which is not over needs, and what for."""
    survey, states = space.ledger.survey(sequence), space.ledger.partition_states(sequence)
    needed: dict[PartitionRef, str] = {}
    for run in rows.runs:
        if is_over(run) or run["sequence"] != sequence:
            continue
        roster = rows.members[run["lap_id"]]
        for ref in list_products(run, roster):
            if not is_current(survey, states, ref):
                needed |= {up: f"{ref[0]} {ref[1]} of run {run['lap_id']}" for up in survey.reads(*ref)}
        active = [name for name, one in roster.items() if one["active"]]
        for ref in states:
            if ref[1].partition(JOIN)[0] in active:
                needed[ref] = f"an exposure that is active in run {run['lap_id']}"
    return needed


def list_products(run: Row, roster: Mapping[str, Row]) -> list[PartitionRef]:
    """All that is still made for a run."""
    alive = [name for name, one in roster.items() if one["data_state"] != "drop"]
    cell = run["projection_cell"]
    keys = {
        "exposures": alive,
        "exposure_cells": [f"{name}{JOIN}{cell}" for name in alive],
        "cell_bands": [f"{cell}{JOIN}{run['filter']}"],
        "cells": [cell],
    }
    return [(name, key) for name, product in PRODUCTS.items() for key in keys.get(product.partitions, [])]


def is_current(survey: Survey, states: Mapping[PartitionRef, PartitionState], ref: PartitionRef) -> bool:
    """Whether a partition ended, and is what it would be now."""
    now = states.get(ref)
    if now is None or now.state not in ENDED:
        return False
    return ref[0] in FROZEN or now.inputs_sha256 == hash_inputs(survey, states, ref)


def check_clean(rows: Rows, stand_in: StandIn, lost: set[str]) -> None:
    """LAP-33: at rest nothing is left of what nothing needs; only what could not be had again."""
    assert all(run["cleaned"] for run in rows.runs), [dict(run) for run in rows.runs if not run["cleaned"]]
    for sequence in SEQUENCES:
        everyone: dict[tuple[str, str], set[str]] = {}
        bands = {}
        for run in rows.runs:
            if run["sequence"] == sequence:
                names = set(rows.members[run["lap_id"]])
                everyone[run["projection_cell"], run["filter"]] = names
                bands |= {(name, run["projection_cell"]): run["filter"] for name in names}
        for (home, ref), row in rows.states.items():
            if home != sequence or not PRODUCTS[ref[0]].intermediate or row["state"] not in (DONE, GOTO_CLEANED):
                continue
            first, _, second = ref[1].partition(JOIN)
            users = everyone[first, second] if ref[0] == "stacks" else {first}
            if ref[0] in ("diffs", "streak_masks"):
                users = everyone[second, bands[first, second]]
            assert users & lost, row
    for (home, ref), made in stand_in.store.items():
        if made.files and PRODUCTS[ref[0]].intermediate:
            assert (home, ref) in rows.states and rows.states[home, ref]["state"] != "cleaned", (home, ref)
