"""The instance of a repository: where its databases are, what it believes of a partition, and who is at work."""

from pathlib import Path

import dagster as dg
import pytest
import yaml

import lap_assets
from lap_assets.defs.instance import describe_gone, read_marks, read_materialized, tell
from lap_assets.defs.reports import BLOCKING
from lap_assets.defs.run import open_instance
from lap_assets.errors import BadInput
from lap_assets.operations.read import show_settings
from lap_assets.operations.workspace import INSTANCE_YAML, POSTGRES_YAML, Workspace
from lap_assets.settings import Settings, load_settings

URL = "postgresql+psycopg2://lap:secret@127.0.0.1:1/survey"
CHIPS = dg.AssetKey(["main", "chips"])


@pytest.fixture
def environment(monkeypatch):
    """No database named from outside; DAGSTER_HOME as before at the end."""
    for name in ("LAP_POSTGRES_URL", "LAP_LEDGER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DAGSTER_HOME", "")
    return monkeypatch


@pytest.fixture
def space(tmp_path, environment) -> Workspace:
    return Workspace.create(tmp_path / "repository")


def test_the_two_instance_files_differ_in_storage_alone():
    """`dagster.postgres.yaml` is the other one with its storage in PostgreSQL, named by the environment."""
    embedded, outside = (yaml.safe_load(path.read_text()) for path in (INSTANCE_YAML, POSTGRES_YAML))
    assert outside.pop("storage") == {"postgres": {"postgres_url": {"env": "LAP_POSTGRES_URL"}}}
    assert outside == embedded
    top = Path(lap_assets.__file__).parents[1] / POSTGRES_YAML.name
    assert top.read_text() == POSTGRES_YAML.read_text()


def test_the_ledger_goes_beside_dagster_unless_it_has_a_place_of_its_own(space, environment):
    """In a schema of its own: both keep a table `alembic_version`."""
    assert load_settings(space.root).ledger_url == ""
    environment.setenv("LAP_POSTGRES_URL", URL)
    assert load_settings(space.root).ledger_url == f"{URL}?options=-csearch_path%3Dlap"
    environment.setenv("LAP_POSTGRES_URL", f"{URL}?host=/run/pg")
    assert load_settings(space.root).ledger_url == f"{URL}?host=/run/pg&options=-csearch_path%3Dlap"
    environment.setenv("LAP_LEDGER_URL", "sqlite:////data/ledger.db")
    assert load_settings(space.root).ledger_url == "sqlite:////data/ledger.db"


@pytest.mark.parametrize("url", ["postgresql://lap:secret@h/d", "mysql://lap:secret@h/d", "nonsense secret"])
def test_another_dialect_is_refused_without_telling_the_password(space, environment, url):
    """One line that says what to write; a bare `postgresql://` would look for a driver that is not installed."""
    environment.setenv("LAP_POSTGRES_URL", url)
    with pytest.raises(BadInput, match=r"write postgresql\+psycopg2://USER:PASSWORD@HOST/DATABASE") as refused:
        Workspace.open(space.root)
    assert "secret" not in str(refused.value).replace("nonsense secret", "")


def test_options_of_its_own_need_a_place_for_the_ledger(space, environment):
    environment.setenv("LAP_POSTGRES_URL", f"{URL}?options=-csearch_path%3Dmine")
    with pytest.raises(BadInput, match="say with LAP_LEDGER_URL where the ledger is"):
        load_settings(space.root)


def test_a_database_that_is_not_there_is_one_line_and_no_half_repository(tmp_path, environment):
    """Nothing that looks like a repository is left behind, and the password is not told."""
    environment.setenv("LAP_POSTGRES_URL", URL)
    with pytest.raises(BadInput, match="cannot be used") as refused:
        Workspace.create(tmp_path / "repository")
    assert "secret" not in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "repository" / "lap.yaml").exists()


def test_a_database_is_one_repository_s(tmp_path, environment, postgres_url):
    """Two would mix their exposures and runs; the second is refused, the first goes on."""
    environment.setenv("LAP_POSTGRES_URL", postgres_url)
    first = Workspace.create(tmp_path / "first")
    first.ledger.define_sequence("season1")
    with pytest.raises(BadInput, match="is another repository's already"):
        Workspace.create(tmp_path / "second")
    assert [row.name for row in Workspace.open(tmp_path / "first").ledger.sequences()] == ["season1"]
    assert not (tmp_path / "second" / "lap.yaml").exists()


def test_passwords_are_not_shown():
    text = show_settings(Settings(ledger_url=f"{URL}?options=-csearch_path%3Dlap"))
    assert "secret" not in text and "lap:***@127.0.0.1:1/survey" in text


def test_marks_can_be_told_any_number_of_times(space):
    """Dagster refuses a second runless evaluation of a check and partition; these are told in runs of their own."""
    passed = dg.AssetCheckEvaluation(asset_key=CHIPS, check_name=BLOCKING, passed=True, partition="cam-1")
    with open_instance(space.root) as instance:
        tell(instance, [[dg.AssetMaterialization(CHIPS, partition="cam-1"), passed]], "test")
        for _ in range(2):
            tell(instance, [describe_gone("main", "chips", "cam-1", "cleaned", "nothing needs it")], "test")
            assert read_marks(instance, "main", ["chips"]) == {("chips", "cam-1"): False}
            tell(instance, [[passed]], "test")
            assert read_marks(instance, "main", ["chips"]) == {("chips", "cam-1"): True}
        assert read_materialized(instance, "main", "chips") == {"cam-1"}
        assert all(run.status == dg.DagsterRunStatus.SUCCESS for run in instance.get_runs())
        observed = instance.fetch_observations(CHIPS, limit=10).records
        assert [one.asset_observation.metadata["state"].value for one in observed] == ["cleaned"] * 2
