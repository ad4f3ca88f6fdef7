"""One tiny survey per session, simulated and processed by the real command line in processes of its own.

All tests that use it are in one xdist group, so that it is made once.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

LAP = [sys.executable, "-c", "from lap_assets.cli import main; main()"]


@dataclass(frozen=True)
class Processed:
    """A simulated survey and the repository it was processed in."""

    root: Path
    sim: Path
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def truth(self) -> Path:
        return self.sim / "truth"


def lap(*arguments: object, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """Run `lap` in a process of its own."""
    command = [*LAP, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=850)
    if check:
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


def process(folder: Path, sim: Path, *options: object, **environment: str) -> Path:
    """Ingest a simulated survey into a new repository and run it to the end."""
    note = json.loads((sim / "field.json").read_text())
    tess = note["tessellation"]
    root = folder / "repo"
    at = ("--repo", root)
    size = (tess["skycell_px"] - 2 * tess["overlap_px"]) * tess["grid"][0]
    lap("init", root, **environment)
    lap(
        *at, "tessellation", tess["name"], "--ra", tess["ra_deg"], "--dec", tess["dec_deg"],
        "--size", size * tess["pixel_scale_arcsec"] / 60, "--pixel-scale", tess["pixel_scale_arcsec"],
        "--grid", tess["grid"][0], "--overlap", tess["overlap_px"], **environment,
    )  # fmt: skip
    lap(*at, "ingest", sim / "calibration", "--camera", note["camera"], "--kind", "calibration", **environment)
    lap(*at, "ingest", sim / "raw", "--camera", note["camera"], **environment)
    lap(*at, "ingest", sim / "refcat", "--kind", "refcat", "--name", note["refcat"], **environment)
    lap(*at, "run", *options, **environment)
    return root


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Processed:
    """The tiny survey of seed 1, processed by `lap demo` on two workers."""
    folder = tmp_path_factory.mktemp("tiny")
    lap("demo", "--dir", folder / "demo", "--size", "tiny", "--json", folder / "report.json", "-j", 2)
    report = json.loads((folder / "report.json").read_text())
    return Processed(folder / "demo" / "survey", folder / "demo" / "sim", report)
