"""`lap calibration …` and `lap invalidate`: what they print, ask and refuse. The work: operations/."""

import pytest
from typer.testing import CliRunner

from lap_assets.cli.app import app
from lap_assets.model.associations import BUILT, CERTIFIED, REJECTED
from lap_assets.model.ids import DataId
from lap_assets.operations.workspace import Workspace
from lap_assets_tests.cli.outcomes import assert_refused
from lap_assets_tests.defs.surveys import create_survey
from lap_assets_tests.ledger.conftest import Report
from lap_assets_tests.store.samples import make_image

BIAS, FLAT = "simtiny|bias|all|2024-03-01", "simtiny|flat|g|2024-03-01"


@pytest.fixture
def space(tmp_path, elsewhere) -> Workspace:
    """Twelve exposures and the calibration sets of two epochs; one bias is made and held."""
    space = create_survey(tmp_path / "repository")
    data_id = DataId("calib", "master_biases", BIAS, "c0")
    facts = {"inputs": (), "recipe": "r", "config_sha256": "c", "code": 1, "metrics": {}}
    manifest = space.repo.publish(data_id, {"image.fits": make_image(1)}, **facts)
    report = Report(data_id, "done", manifest.content_sha256, bytes=manifest.bytes)
    space.ledger.record_partition("main", "master_biases", BIAS, "done", content_sha256="b", unit_reports=[report])
    space.ledger.set_calibration_state(BIAS, BUILT, reason="fraction beyond 6 sigma 3.00% > 1.00%", judged="b")
    return space


def find_state(space: Workspace, key: str) -> str:
    return space.ledger.calibrations()[key].state


def test_ls_lists_states_users_and_reasons(lap, space):
    """PHX-02: which are certified, and why others are not."""
    code, out, _ = lap("-C", space.root, "calibration", "ls")
    assert code == 0 and out.splitlines()[-1] == "6 calibration sets"
    row = next(line for line in out.splitlines() if BIAS in line)
    for text in ("built", "done", "2024-03-01", "fraction beyond 6 sigma 3.00% > 1.00%"):
        assert text in row
    code, out, _ = lap("-C", space.root, "calibration", "ls", "--kind", "flat", "--band", "r", "--state", "virtual")
    assert code == 0 and out.count("simtiny|flat|r") == 2 and "2 calibration sets" in out


def test_certify_shows_what_is_certified_and_does_it(lap, space):
    """PHX-02: by hand; with a last night where one is given."""
    code, out, _ = lap("-C", space.root, "calibration", "certify", BIAS, "--valid-to", "2024-12-31", "--yes")
    assert code == 0 and "frame /nowhere/frame0.fits" in out and f"{BIAS} is certified" in out
    assert find_state(space, BIAS) == CERTIFIED
    code, out, _ = lap("-C", space.root, "calibration", "show", BIAS)
    assert code == 0 and "valid from 2024-03-01 to 2024-12-31" in out and "calib/master_biases" in out


def test_certify_asks_first(space):
    """Who does not say yes has changed nothing."""
    result = CliRunner().invoke(app, ["-C", str(space.root), "calibration", "certify", BIAS], input="n\n")
    assert result.exit_code == 1 and f"Certify {BIAS}?" in result.output
    assert find_state(space, BIAS) == BUILT


def test_associations_say_what_is_executable_and_what_waits_for_what(lap, space):
    """PHX-01, PHX-04: by exposure, and how many of each night."""
    code, out, _ = lap("-C", space.root, "calibration", "associations", "--select", "band=g")
    assert code == 0 and out.splitlines()[-1] == "6 associations"
    # the held bias of March is passed over for that of April, which is not built yet
    row = next(line for line in out.splitlines() if "simtiny-west-g-0" in line)
    assert "waits" in row and "simtiny|bias|all|2024-04-01" in row and "to be built" in row
    assert "simtiny 2024-03-08: 3 waits" in out and "simtiny 2024-04-10: 3 waits" in out
    code, out, _ = lap("-C", space.root, "calibration", "associations", "--night", "2024-04-10")
    assert code == 0 and out.splitlines()[-1] == "6 associations"


def test_coverage_in_the_terminal_and_as_a_picture(lap, space, tmp_path):
    """LV-10: validity against the nights with exposures."""
    path = tmp_path / "coverage.png"
    code, out, _ = lap("-C", space.root, "calibration", "coverage", "--picture", path)
    assert code == 0 and "2 nights with exposures, 2024-03-08 to 2024-04-10" in out
    assert {line.split("|")[0].split()[1] for line in out.splitlines() if "|" in line} == {"bias", "flat"}
    assert path.read_bytes().startswith(b"\x89PNG")
    assert_refused(
        lap("-C", space.root, "calibration", "coverage", "--picture", tmp_path / "no" / "x.png"), "cannot write"
    )


def test_reject_and_invalidate_tell_what_was_made(lap, space):
    """PHX-02: what is lost is said before; --show touches nothing."""
    code, out, _ = lap("-C", space.root, "invalidate", "calibration", BIAS, "--show")
    assert code == 0 and f"{BIAS}: 0 partitions were made from it" in out and find_state(space, BIAS) == BUILT
    code, out, _ = lap("-C", space.root, "invalidate", BIAS, "--reason", "lamp on", "--yes")
    assert code == 0 and "is withdrawn; 0 partitions are made again" in out and find_state(space, BIAS) == REJECTED
    code, out, _ = lap("-C", space.root, "calibration", "reject", FLAT, "--reason", "dust")
    assert code == 0 and find_state(space, FLAT) == REJECTED
    code, out, _ = lap("-C", space.root, "why", f"calib/master_biases/{BIAS}")
    assert code == 0 and "rejected: lamp on" in out


@pytest.mark.parametrize(
    ("arguments", "text", "status"),
    [
        (["calibration", "certify", FLAT, "--yes"], "is not made yet: only a master that is there", 2),
        (["calibration", "certify", BIAS, "--valid-to", "soon", "--yes"], "'soon' is no night", 2),
        (["calibration", "show", "nothing"], "no calibration 'nothing'", 1),
        (["calibration", "reject", BIAS, "--reason", ""], "--reason is missing", 2),
        (["invalidate", BIAS], "--reason is missing", 2),
        (["invalidate", BIAS, FLAT], "one thing at a time", 2),
        (["invalidate", "main/chips/nobody", "--show"], "nothing of it is in the store", 1),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(lap, space, arguments, text, status):
    assert_refused(lap("-C", space.root, *arguments), text, status=status)
