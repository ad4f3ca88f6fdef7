"""Where work may be spread: not over machines with a ledger that one machine alone may use."""

import pytest

from lap_assets.errors import BadInput
from lap_assets.operations.read import show_compute
from lap_assets.operations.workspace import Workspace
from lap_assets.pipeline.stages import STAGES
from lap_assets.settings import parse_settings

ON_DASK = {"executor": "dask", "scheduler_address": "tcp://127.0.0.1:8786"}


def test_work_over_machines_is_refused_with_a_ledger_on_sqlite(tmp_path, monkeypatch):
    """LV-05: one line that says what to do, at `lap init` and for one time; nothing is left behind."""
    monkeypatch.delenv("LAP_POSTGRES_URL", raising=False)
    monkeypatch.delenv("LAP_LEDGER_URL", raising=False)
    with pytest.raises(BadInput, match=r"needs a ledger on PostgreSQL, .* compute.executor=processes$"):
        Workspace.create(tmp_path / "survey", {"compute": ON_DASK})
    assert not (tmp_path / "survey").exists()
    Workspace.create(tmp_path / "survey", {})
    with pytest.raises(BadInput, match="needs a ledger on PostgreSQL"):
        Workspace.open(tmp_path / "survey", {f"compute.{name}": value for name, value in ON_DASK.items()})
    Workspace.open(tmp_path / "survey", {"compute.executor": "serial"})


def test_work_over_machines_is_taken_with_a_ledger_on_postgresql(tmp_path, monkeypatch):
    monkeypatch.setenv("LAP_LEDGER_URL", "postgresql+psycopg2://lap@127.0.0.1/lap")
    (tmp_path / "lap.yaml").write_text("compute: {executor: dask, scheduler_address: tcp://127.0.0.1:8786}\n")
    assert Workspace.open(tmp_path).settings.compute.executor == "dask"


@pytest.mark.parametrize(
    ("values", "first", "at_once"),
    [
        ({"executor": "serial", "memory_gib": 8}, "serial, 1 at once, 8.0 GiB together", "1"),
        ({"workers": 6, "memory_gib": 8}, "processes, 6 at once, 8.0 GiB together", "3"),
        (ON_DASK, "dask on tcp://127.0.0.1:8786", "as the cluster has room"),
        (
            {"executor": "dask", "cluster": {"kind": "slurm", "jobs": 10, "cores": 16, "memory_gib": 64}},
            "dask on up to 10 jobs of slurm, 16 cores and 64 GiB each",
            "as the cluster has room",
        ),
    ],
)
def test_how_work_would_be_spread_is_shown(values, first, at_once):
    """LV-05: resources per stage; 8 GiB hold three units of 2.5 GiB."""
    needs = {"resources": {"stacks": {"memory_gib": 2.5, "cores": 1}}}
    lines = show_compute(parse_settings({"compute": values | needs}, "lap.yaml").compute).splitlines()
    assert lines[0] == first and [line.split()[0] for line in lines[2:]] == list(STAGES)
    (row,) = [line for line in lines if line.startswith("stacks ")]
    assert row.split(maxsplit=3) == ["stacks", "2.5", "1", at_once]
