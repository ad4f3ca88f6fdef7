"""Issue 3, proof 2: whatever befalls a survey, what is promised of it holds at each step, and it comes to an end.

The machine is `scheduling.py`'s. By hand, with LAP_SCHEDULING_EXAMPLES=1000, as many examples as one has time for.
"""

import os
import shutil
import tempfile
import uuid
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from lap_assets.model import decisions as words
from lap_assets_tests.properties.scheduling import Scheduling
from lap_assets_tests.properties.stand_in import create_repository

EXAMPLES = int(os.environ.get("LAP_SCHEDULING_EXAMPLES", "0"))  # by hand: so many, at random
ACTIONS = {words.MAKE, words.RECREATE, words.DROP, words.CLEAN}
STEPS = {
    words.ASSIGN, words.PAIR, words.PRIVATE, words.DROP_MEMBER, words.DATA_STATE, words.RUN_STATE, words.SETTLE,
    words.CLEANED_RUN, words.FAULT, words.DEFINE,
}  # fmt: skip


def choose_settings(examples: int, steps: int) -> settings:
    """Always the same examples; by hand so many others, as they come and not made smaller."""
    chosen = {"max_examples": examples, "derandomize": True}
    if EXAMPLES:
        chosen = {"max_examples": EXAMPLES, "phases": [Phase.generate], "print_blob": True}
    return settings(
        stateful_step_count=steps, deadline=None, database=None, suppress_health_check=list(HealthCheck), **chosen
    )


@pytest.fixture
def folder():
    """Of many small repositories, in memory where that can be."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="lap-proof-", dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


@pytest.mark.slow
def test_whatever_happens_every_run_ends_and_nothing_needed_is_lost(folder):
    """LAP-12, LAP-24, LAP-33: on SQLite."""
    create_repository(folder / "template")

    def place() -> Path:
        return Path(shutil.copytree(folder / "template", folder / uuid.uuid4().hex))

    reached: Counter = Counter()
    run_state_machine_as_test(lambda: Scheduling(place, reached), settings=choose_settings(15, 40))
    assert reached.keys() == ACTIONS | STEPS, "the examples are too tame"


@pytest.mark.slow
def test_whatever_happens_on_postgresql(folder, postgres):
    """LAP-12, LAP-24, LAP-33: the same, shorter."""

    def place() -> Path:
        root = folder / uuid.uuid4().hex
        name = f"t{uuid.uuid4().hex}"
        postgres.psql(f"CREATE SCHEMA {name};")
        create_repository(root, f"{postgres.get_uri()}&options=-csearch_path%3D{name}")
        return root

    reached: Counter = Counter()
    run_state_machine_as_test(lambda: Scheduling(place, reached), settings=choose_settings(4, 25))
    assert reached.keys() >= {words.MAKE, words.CLEAN, words.SETTLE, words.CLEANED_RUN}
