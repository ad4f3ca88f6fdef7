"""Why a product is as it is; what is cleaned and made for real is in cli/test_lap_science.py."""

import pytest

from lap_assets.errors import BadInput, NotFound
from lap_assets.model.ids import DataId
from lap_assets.operations.drive import advance
from lap_assets.operations.why import explain, find_partitions
from lap_assets.pipeline.task import UnitReport
from lap_assets_tests.defs.surveys import create_survey

WEST, EAST = "rings.v3.1359", "rings.v3.1360"
EXPOSURE = "simtiny-both-g-0"


@pytest.fixture
def space(tmp_path):
    """Four runs that have begun, and nothing made."""
    made = create_survey(tmp_path / "repository")
    advance(made, "main", ["chip"])
    return made


def test_what_is_not_made_says_what_it_waits_for(space):
    lines = explain(space, f"main/warps/{EXPOSURE}|{WEST}")
    assert lines[0] == f"main/warps/{EXPOSURE}|{WEST}: not made"
    assert f"  from chips {EXPOSURE} not made" in lines
    assert f"  for run 1 ({WEST} g: run)" in lines and not any("run 3" in line for line in lines)
    assert lines[-1].startswith(f"  waits for chips {EXPOSURE}")


def test_what_can_be_made_now_says_so(space):
    lines = explain(space, "calib/master_biases/simtiny|bias|all|2024-03-01")
    assert lines[-1] == "  to make now: missing"
    assert sum(line.startswith("  for run") for line in lines) == 4


def test_units_without_data_give_their_reasons(space):
    place = DataId("main", "stacks", f"{WEST}|g")
    units = [
        UnitReport(DataId("main", "stacks", f"{WEST}|g", "00"), "no_work", reason="3 inputs, 6 needed"),
        UnitReport(DataId("main", "stacks", f"{WEST}|g", "01"), "failed", reason="disk on fire"),
    ]
    space.ledger.record_partition("main", "stacks", f"{WEST}|g", "failed", unit_reports=units, attempts=1)
    text = "\n".join(explain(space, str(place)))
    for expected in ("1 failed attempts", "00: no_work: 3 inputs, 6 needed", "01: failed: disk on fire",
                     "2 units: 1 failed, 1 no_work"):  # fmt: skip
        assert expected in text
    assert f"  for run 1 ({WEST} g: run)" in text and "run 2" not in text
    assert explain(space, f"main/stacks/{WEST}|g/01")[0] == f"main/stacks/{WEST}|g/01: failed: disk on fire"


def test_dropped_and_postponed(space):
    """LAP-24: which run dropped the exposure, and why; LAP-28: which run takes a difference up."""
    space.ledger.drop_member(1, EXPOSURE, "chips: unprocessable: no star")
    lines = explain(space, f"main/chips/{EXPOSURE}")
    assert f"  dropped from run 1 ({WEST} g: run): chips: unprocessable: no star" in lines
    assert f"  for run 3 ({EAST} g: run)" in lines
    later = f"postponed to run 3 (cell {EAST})"
    space.ledger.record_partition("main", "diffs", f"simtiny-west-g-0|{WEST}", "dropped", reason=later)
    assert explain(space, f"main/diffs/simtiny-west-g-0|{WEST}")[0].endswith(f": dropped: {later}")


def test_what_is_being_made_says_by_whom(space):
    space.ledger.claim([f"main/chips/{EXPOSURE}"], "host:1:abc", 60.0)
    assert "  is being made by host:1:abc" in explain(space, f"main/chips/{EXPOSURE}")


def test_products_by_their_keys(space):
    found = find_partitions(space, "main", "warps", [f"exposure={EXPOSURE}", "skycell=03"])
    assert found == [f"main/warps/{EXPOSURE}|{cell}/03" for cell in (WEST, EAST)]
    assert find_partitions(space, "main", "warps", ["visit=0", "cell=*1359", "filter=g"]) == [
        f"main/warps/simtiny-{place}-g-0|{WEST}" for place in ("both", "west")
    ]
    assert find_partitions(space, "main", "master_flats", ["band=r", "valid_from=2024-03-*"]) == [
        "calib/master_flats/simtiny|flat|r|2024-03-01"
    ]


@pytest.mark.parametrize(
    ("product", "keys"), [("bananas", []), ("stacks", ["exposure=1"]), ("stacks", ["band=z"]), ("stacks", ["band"])]
)
def test_keys_that_name_nothing(space, product, keys):
    with pytest.raises(BadInput):
        find_partitions(space, "main", product, keys)


@pytest.mark.parametrize("text", ["main/chips", "main/bananas/x", "main/chips/../x", "main/solutions/x/unit"])
def test_no_data_id(space, text):
    with pytest.raises(BadInput):
        explain(space, text)


def test_no_such_partition(space):
    with pytest.raises(NotFound, match="no such partition"):
        explain(space, "main/chips/nobody")
