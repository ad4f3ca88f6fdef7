"""`make mutants`: takes each rule of the decisions out, one at a time, and demands that a test that cites it fails.

A mutant is a copy of the package with one piece of text replaced; the tests named run against the copy in a process of
their own. `test_mutants.py` sees to it that the table still fits the code.
"""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import lap_assets

PACKAGE = Path(lap_assets.__file__).parent
TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Mutant:
    """One rule taken out: `before` becomes `after` in `file`, and a test of `tests` that cites `rule` must fail."""

    rule: str
    file: str
    before: str
    after: str
    tests: str


CHIP, MONITOR, CLEANUP, QUEUE = (f"lap/test_{name}_mode.py" for name in ("chip", "monitor", "cleanup", "queue"))
DECIDE, PAIRS = "lap/test_decide.py", "lap/test_pairs.py"
ASSOCIATIONS, CERTIFICATION = "model/test_associations.py", "lap/test_certification.py"
MUTANTS = (
    Mutant("LAP-13", "lap/monitor_mode.py", 'run.fault or run.state == "new" or', "run.fault or", CHIP),
    Mutant("LAP-17", "lap/chip_mode.py", "if not one.chip_id:", "if True:", CHIP),
    Mutant("LAP-18", "lap/chip_mode.py", "state.state in ENDED", 'state.state == "done"', CHIP),
    Mutant("LAP-18", "lap/judge.py", "state is not None and state.state in GONE", "False", CLEANUP),
    Mutant(
        "LAP-19", "lap/pairs.py", "one.object.strip(), one.filter, one.night", "one.object.strip(), one.night", PAIRS
    ),
    Mutant("LAP-19", "lap/pairs.py", "one.object.strip(), one.filter, one.night", "one.filter, one.night", PAIRS),
    Mutant(
        "LAP-19", "lap/pairs.py", "one.object.strip(), one.filter, one.night", "one.object.strip(), one.filter", PAIRS
    ),
    Mutant("LAP-20", "lap/chip_mode.py", "steps.append(Step(run.lap_id, PAIR,", "(Step(run.lap_id, PAIR,", CHIP),
    Mutant("LAP-21", "lap/chip_mode.py", "for name in sorted(fresh - paired)]", "for name in ()]", CHIP),
    Mutant("LAP-22", "lap/chip_mode.py", 'if run.state == "new":', "if False:", CHIP),
    Mutant(
        "LAP-24",
        "lap/monitor_mode.py",
        "steps.append(Step(run.lap_id, DROP_MEMBER",
        "(Step(run.lap_id, DROP_MEMBER",
        MONITOR,
    ),
    Mutant(
        "LAP-24", "lap/monitor_mode.py", "steps.append(Step(run.lap_id, PRIVATE", "(Step(run.lap_id, PRIVATE", MONITOR
    ),
    Mutant("LAP-24", "lap/judge.py", "now.attempts >= MAX_ATTEMPTS", "False", MONITOR),
    Mutant("LAP-25", "lap/monitor_mode.py", "if value != one.data_state:", "if False:", MONITOR),
    Mutant(
        "LAP-26",
        "lap/monitor_mode.py",
        'judge.ended(("stacks", f"{cell}{JOIN}{band}"))',
        'judge.states[("stacks", f"{cell}{JOIN}{band}")].state == "done"',
        MONITOR,
    ),
    Mutant("LAP-27", "lap/monitor_mode.py", "if all(warped) and len", "if len", MONITOR),
    Mutant("LAP-28", "lap/monitor_mode.py", "if one is not None and one.private else []", "if False else []", MONITOR),
    Mutant(
        "LAP-28", "lap/monitor_mode.py", "elif postponed and not lacking and not run.settled:", "elif False:", MONITOR
    ),
    Mutant("LAP-28", "lap/monitor_mode.py", "bool(run and run.fault) or", "False or", MONITOR),
    Mutant("LAP-28", "model/survey.py", "one.pairwise and one.pair in run.members", "False", MONITOR),
    Mutant("LAP-30", "lap/monitor_mode.py", 'judge.visit(("streak_masks", pair), run)', "pass", MONITOR),
    Mutant(
        "LAP-32",
        "lap/monitor_mode.py",
        'steps.append(Step(run.lap_id, RUN_STATE, value="full"',
        '(Step(run.lap_id, RUN_STATE, value="full"',
        MONITOR,
    ),
    Mutant("LAP-33", "lap/cleanup_mode.py", "if name in snapshot.in_use or name", "if name", CLEANUP),
    Mutant("LAP-33", "lap/cleanup_mode.py", 'run.state == "full" and run.settled', 'run.state == "full"', CLEANUP),
    Mutant(
        "LAP-33",
        "lap/cleanup_mode.py",
        "name in snapshot.unavailable:\n            continue",
        "False:\n            continue",
        CLEANUP,
    ),
    Mutant("LAP-33", "lap/cleanup_mode.py", "return bool(run.fault) or", "return", CLEANUP),
    Mutant("LAP-33", "lap/cleanup_mode.py", " or is_needed(snapshot, run):", ":", CLEANUP),
    Mutant("LAP-33", "lap/cleanup_mode.py", "is_worked_on(snapshot, run) or any", "any", CLEANUP),
    Mutant("LAP-24", "lap/monitor_mode.py", "if ref in judge.lost:", "if False:", CLEANUP),
    Mutant("LAP-24", "lap/judge.py", "if hopeless:", "if False:", CLEANUP),
    Mutant("LAP-27", "lap/monitor_mode.py", "bool(one.chip_id and (one.private or one.pairwise))", "True", MONITOR),
    Mutant(
        "LAP-28",
        "lap/monitor_mode.py",
        "if lacking and not judge.is_current(diff):",
        "if lacking and not judge.ended(diff):",
        MONITOR,
    ),
    Mutant("LAP-28", "lap/monitor_mode.py", "run.everyone and is_looked_at", "is_looked_at", MONITOR),
    Mutant("LAP-34", "lap/queue_mode.py", "snapshot.queue[:free]", "snapshot.queue", QUEUE),
    Mutant("LAP-34", "lap/queue_mode.py", "0 if snapshot.draining else", "", QUEUE),
    Mutant("LAP-35", "lap/judge.py", "if ref in self.snapshot.busy:", "if False:", MONITOR),
    Mutant("LAP-35", "lap/decide.py", "if action.mode in modes]", "]", DECIDE),
    Mutant("PHX-01", "model/associations.py", "(one.valid_to and one.valid_to < night)", "False", ASSOCIATIONS),
    Mutant("PHX-01", "model/associations.py", "LACKS if self.lacks else WAITS", "WAITS", ASSOCIATIONS),
    Mutant("PHX-02", "model/associations.py", "(one.state == BUILT) != held or", "", ASSOCIATIONS),
    Mutant("PHX-02", "model/associations.py", "or one.state == REJECTED or", "or", ASSOCIATIONS),
    Mutant(
        "PHX-02",
        "model/associations.py",
        "(measure_distance(one, night, temperature_c), one.state != CERTIFIED)",
        "(measure_distance(one, night, temperature_c), False)",
        ASSOCIATIONS,
    ),
    Mutant("PHX-08", "model/associations.py", "* 2.0 ** -measure_distance", "* 0.0 * measure_distance", ASSOCIATIONS),
    Mutant("PHX-02", "lap/judge.py", "one is not None and one.state == BUILT and", "False and", CERTIFICATION),
    Mutant(
        "PHX-02",
        "lap/judge.py",
        "one.state == BUILT and state is not None and state.state in FILED",
        "one.state == BUILT",
        CERTIFICATION,
    ),
    Mutant("PHX-02", "lap/judge.py", "self.survey.calibrations[ref[1]].state == VIRTUAL", "False", CERTIFICATION),
    Mutant("PHX-02", "lap/judge.py", "if now.reason.startswith(INVALIDATED):", "if False:", CERTIFICATION),
    Mutant("PHX-02", "lap/judge.py", "if lacks and survey.find_withdrawn(one, kind):", "if False:", CERTIFICATION),
    Mutant("PHX-02", "lap/judge.py", "find_held(self.survey, self.states, ref) if kind else", "", CERTIFICATION),
)


def make_mutant(mutant: Mutant, folder: Path) -> None:
    """A copy of package and tests in `folder` with the mutant's text replaced."""
    for part in (PACKAGE, TESTS):
        shutil.copytree(part, folder / part.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PACKAGE.parent / "pyproject.toml", folder)
    file = folder / PACKAGE.name / mutant.file
    file.write_text(file.read_text().replace(mutant.before, mutant.after))


def is_killed(mutant: Mutant) -> bool:
    """Whether a test notices."""
    with tempfile.TemporaryDirectory() as name:
        make_mutant(mutant, Path(name))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"{TESTS.name}/{mutant.tests}"]
        ended = subprocess.run(command, cwd=name, capture_output=True, text=True, timeout=300)
        if ended.returncode not in (0, 1):
            raise SystemExit(f"{mutant.rule}: the tests did not run:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
        cited = mutant.rule in (TESTS / mutant.tests).read_text()
        return ended.returncode == 1 and cited


def main() -> None:
    """Try all; exit status 1 where one is not noticed."""
    alive = []
    for mutant in MUTANTS:
        killed = is_killed(mutant)
        print(f"{mutant.rule} {mutant.file}: {mutant.before.strip()[:60]!r}: {'killed' if killed else 'ALIVE'}")
        alive += [] if killed else [mutant]
    print(f"{len(MUTANTS)} mutants, {len(alive)} alive")
    raise SystemExit(bool(alive))


if __name__ == "__main__":
    main()
