"""Running the command lines in this process, far from any repository."""

import sys

import pytest

from lap_assets import cli
from lap_assets.cli import lap_science, laptool

MAINS = {"lap": cli.main, "laptool": laptool.main, "lap_science": lap_science.main}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test begins in an empty folder."""
    for name in ("LAP_REPO", "LAP_LEDGER_URL", "LAP_POSTGRES_URL"):
        monkeypatch.delenv(name, raising=False)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs an entry point: `call("laptool", "-listrun")` returns (status, stdout, stderr)."""

    def run(program, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            MAINS[program]()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def lap(call):
    """Runs `lap`: `lap("ls", "chips")` returns (status, stdout, stderr)."""
    return lambda *arguments: call("lap", *arguments)
