"""Masters built from frames, judged and used: the rule, a person, and what both leave in the ledger.

On simulated biases; that of a later night is spoiled, so that the comparison finds something.
"""

from dataclasses import replace
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from astropy.io import fits

from lap_assets.defs.reports import COMPARISON, evaluate_checks
from lap_assets.errors import BadInput, NotFound
from lap_assets.lap.decide import decide
from lap_assets.model.associations import BUILT, CERTIFIED, REJECTED, VIRTUAL
from lap_assets.model.ids import DataId
from lap_assets.model.states import BLOCKED, DONE
from lap_assets.operations.calibrations import (
    certify,
    describe_calibration,
    draw_coverage,
    list_associations,
    list_calibrations,
    measure_coverage,
    reject,
)
from lap_assets.operations.drive import advance, take_snapshot
from lap_assets.operations.ingest import ingest_frames
from lap_assets.operations.status import summarize_runs
from lap_assets.operations.why import explain
from lap_assets.operations.work import work_partitions
from lap_assets.operations.workspace import Workspace
from lap_assets_tests.defs.surveys import ingest_small, simulate_small

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("operations")]
SPOILED_ADU = 40


BIAS, SPOILED, FLAT = "simtiny|bias|all|2024-03-08", "simtiny|bias|all|2024-03-09", "simtiny|flat|r|2024-03-08"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    """A simulated survey, and biases of the second night in which every seventh column of a third of a chip is off."""
    sim = simulate_small(tmp_path_factory.mktemp("certification") / "sim")
    (sim / "spoiled").mkdir()
    for number in (1, 2, 3):
        with fits.open(sim / "calibration" / f"simtiny-00000{number}.fits") as hdus:
            hdus[0].header["NIGHT"] = "2024-03-09"
            hdus[0].header["EXPNUM"] += 900
            image = hdus[1].data.astype(int)
            image[:, : image.shape[1] // 3 : 7] += SPOILED_ADU
            hdus[1].data = image.astype(np.uint16)
            hdus.writeto(sim / "spoiled" / f"simtiny-00090{number}.fits")
    return sim


@pytest.fixture
def space(simulated, tmp_path) -> Workspace:
    """Nothing is made yet, and the spoiled frames are not known."""
    return ingest_small(tmp_path / "repository", simulated, "serial")


def make(space: Workspace, product: str, *keys: str) -> list:
    survey = space.survey()
    return list(work_partitions(space, survey, product, keys or survey.partitions(product)))


def ingest_spoiled(space: Workspace, simulated: Path) -> None:
    outcome = ingest_frames(space, [simulated / "spoiled"], "simtiny", "calibration")
    assert not outcome.rejected
    assert {one.key: one.frames for one in list_calibrations(space, "main", kind="bias")} == {BIAS: 3, SPOILED: 3}


def find(space: Workspace, key: str):
    return space.ledger.calibrations()[key]


def test_the_first_master_is_certified_by_the_rule_and_a_spoiled_one_is_held(space, simulated):
    """PHX-02: compared with the certified one before it; the verdict is in ledger, Dagster's check and QC1 table."""
    ingest_spoiled(space, simulated)
    reports = {report.partition: report for report in make(space, "master_biases")}
    assert {report.state for report in reports.values()} == {DONE}
    good, bad = find(space, BIAS), find(space, SPOILED)
    assert (good.state, good.reason) == (CERTIFIED, "")
    assert bad.state == BUILT and bad.reason.startswith("chip c0: new defects 4.")
    for key, one in ((BIAS, good), (SPOILED, bad)):
        assert one.judged == space.ledger.partition_states()["master_biases", key].content_sha256
    rows = {(row.unit, row.name): row for row in space.ledger.quality("main", "master_biases", SPOILED)}
    assert rows["", "previous_master"].text == BIAS
    defects = {unit: (row.value, row.passed) for (unit, name), row in rows.items() if name == "new_defects"}
    assert {defects[chip] for chip in ("c1", "c2", "c3")} == {(0.0, True)}
    image = space.repo.read_image(DataId("calib", "master_biases", SPOILED, "c0"))
    assert defects["c0"] == (pytest.approx(image.sci.size / 21, rel=0.1), False)  # every seventh column of a third
    told = {one.check_name: one for one in evaluate_checks(dg.AssetKey("x"), space.repo, reports[SPOILED])}
    assert (told[COMPARISON].passed, told[COMPARISON].blocking) == (False, True)
    assert told[COMPARISON].description == bad.reason
    assert next(iter(evaluate_checks(dg.AssetKey("x"), space.repo, reports[BIAS]))).passed


def test_exposures_are_calibrated_with_the_certified_master_before_a_held_one(space, simulated):
    """PHX-01, PHX-02: until a person certifies it; then with the closer one."""
    ingest_spoiled(space, simulated)
    late = max(space.survey().exposures.values(), key=lambda one: one.night)
    assert space.survey().associations[late.id][0] == ("master_biases", SPOILED)
    make(space, "master_biases")
    assert space.survey().associations[late.id][0] == ("master_biases", BIAS)
    assert space.survey().upstream("master_flats", FLAT) == (("master_biases", BIAS),)
    certify(space, "main", SPOILED, valid_to="2024-12-31")
    assert space.survey().associations[late.id][0] == ("master_biases", SPOILED)
    assert find(space, SPOILED).valid_to == "2024-12-31"
    # made once more, byte for byte as it was: what the person said stands
    make(space, "master_biases", SPOILED)
    assert find(space, SPOILED).state == CERTIFIED


def test_where_a_person_certifies_everything_waits_for_that(space):
    """PHX-02: flats for the bias, chips for both; in decisions, lists, and for who launches by hand."""
    by_hand = Workspace.open(space.root, {"calibrations.certify": "hand"})
    make(by_hand, "master_biases")
    assert find(by_hand, BIAS).reason.startswith("a person has to certify it (calibrations.certify)")
    text = f"waits for certification of bias {BIAS}: a person has to certify it"
    snapshot = replace(take_snapshot(by_hand, "main", "all"), revisit=True)
    assert decide(snapshot).waiting["master_flats", FLAT].startswith(text)
    (report,) = make(by_hand, "master_flats")
    assert report.state == BLOCKED and report.reason.startswith(text)
    assert {one.status for one in list_associations(by_hand, "main")} == {"waits"}
    advance(by_hand, "main", ["chip"])
    (status,) = summarize_runs(by_hand, "main")
    assert status.waits.startswith(f"master_flats {FLAT} {text}") and status.exposures == {"new": 3}
    assert any(text in line for line in explain(by_hand, f"calib/master_flats/{FLAT}"))
    certify(by_hand, "main", BIAS)
    assert [report.state for report in make(by_hand, "master_flats")] == [DONE]
    certify(by_hand, "main", FLAT)
    found = list_associations(by_hand, "main", select=["status=executable", "band=r"])
    assert len(found) == 3 and all(0.7 < one.score <= 1.0 for one in found)
    # the first of the switch: masters that are certified stay so, and are not made again
    assert by_hand.configs() == space.configs()


def test_a_master_with_too_few_frames_is_held_with_the_reason(space):
    """PHX-02: nothing came of it; what needs it ends with that reason and the rest goes on."""
    few = Workspace.open(space.root, {"calibrations.min_frames": 9})
    (report,) = make(few, "master_biases")
    assert report.state != DONE
    one = find(few, BIAS)
    assert one.state == BUILT and "nothing could be made of it" in one.reason and "at least 9 are needed" in one.reason


def test_a_verdict_that_was_lost_is_found_again(space):
    """PHX-02: the master is judged, not made, again."""
    make(space, "master_biases")
    before = space.ledger.units("main", "master_biases", BIAS)
    space.ledger.set_calibration_state(BIAS, VIRTUAL, judged="")
    (report,) = make(space, "master_biases")
    assert report.skipped == len(report.units) and find(space, BIAS).state == CERTIFIED
    assert space.ledger.units("main", "master_biases", BIAS) == before


def test_lists_show_states_users_and_coverage(space, simulated):
    """LV-10: which nights with exposures have masters, and of which state."""
    ingest_spoiled(space, simulated)
    make(space, "master_biases")
    rows = {one.key: one for one in list_calibrations(space, "main")}
    assert (rows[BIAS].used_by, rows[SPOILED].used_by, rows[FLAT].used_by) == (3, 0, 3)
    assert (rows[BIAS].master, rows[FLAT].master, rows[FLAT].state) == (DONE, "", VIRTUAL)
    assert [one.key for one in list_calibrations(space, "main", state=BUILT)] == [SPOILED]
    text = "\n".join(describe_calibration(space, "main", SPOILED))
    assert "c0 new_defects" in text and "(failed)" in text and "chosen for 0 exposures" in text
    drawn = draw_coverage(measure_coverage(space.survey()))
    assert drawn[0].startswith("3 nights with exposures")
    assert [line.split("|")[1] for line in drawn[1:-1]] == ["###", "ooo"]


def test_persons_are_told_what_cannot_be(space):
    """PHX-02: only what is there can be certified, and who rejects says why."""
    with pytest.raises(BadInput, match=r"is not made yet: only a master that is there"):
        certify(space, "main", BIAS)
    with pytest.raises(NotFound, match=r"no calibration 'x'; `lap calibration ls`"):
        certify(space, "main", "x")
    with pytest.raises(BadInput, match="'tomorrow' is no night"):
        certify(space, "main", BIAS, valid_to="tomorrow")
    with pytest.raises(BadInput, match="--reason is missing"):
        reject(space, "main", BIAS, " ")
    reject(space, "main", BIAS, "taken with the lamp on")
    assert find(space, BIAS).state == REJECTED
    assert {one.status for one in list_associations(space, "main")} == {"lacks"}
