"""One small survey made to the end, for all tests of this folder that begin there."""

import json
from pathlib import Path

import pytest

from lap_assets.model.products import PRODUCTS
from lap_assets.model.states import DONE
from lap_assets.operations.work import work_partitions
from lap_assets.operations.workspace import Workspace
from lap_assets_tests.defs.surveys import ingest_small, simulate_small

# three exposures make a first-pass stack, and the highest of any peaks is fitted: no noise decides what is made
FEW = {"stacks.min_inputs": 2, "mass_maps.peak_snr": 1.0}


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A repository of three exposures of one band, from raw frames to transients; its run is still `new`."""
    folder = tmp_path_factory.mktemp("made")
    ingest_small(folder / "repository", simulate_small(folder / "sim"))
    space = Workspace.open(folder / "repository", FEW)
    for product in PRODUCTS:
        survey = space.survey()
        for report in work_partitions(space, survey, product, survey.partitions(product)):
            assert report.state == DONE, (product, report.partition, report.reason)
    return space.root


def define_other(space: Workspace) -> int:
    """A second run of the same exposures, on a cell of another tessellation; returns its number."""
    raw = Path(space.survey().exposures["simtiny-000101"].chips[0].path)
    definition = json.loads((raw.parents[1] / "field.json").read_text())["tessellation"]
    space.ledger.add_tessellation(definition | {"name": "other"})
    return space.ledger.define_run("main", "other", "other.0", "r", obs_mode=None).lap_id
