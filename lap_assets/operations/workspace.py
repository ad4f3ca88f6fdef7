"""A repository as its users see it: settings, store and ledger of one folder, opened together.

The command line, the Dagster definitions and the reports all begin with `Workspace.open`. What a folder holds:
`lap.yaml` (settings), `ledger.db` (unless the ledger is PostgreSQL), `store/` (files) and `dagster/` (the instance).
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import yaml

from lap_assets.errors import BadInput, LapError, NotFound
from lap_assets.ledger.ledger import Ledger
from lap_assets.model.camera import load_camera
from lap_assets.model.ids import check_name
from lap_assets.model.products import PRODUCTS
from lap_assets.model.survey import Survey
from lap_assets.pipeline.stages import STAGES
from lap_assets.settings import (
    SETTINGS_FILE,
    Settings,
    add_environment,
    find_repository,
    load_settings,
    parse_settings,
)
from lap_assets.store.refcat import describe_refcat
from lap_assets.store.repo import Repo

LEAST_FREE_BYTES = 1 << 20
INSTANCE_YAML = Path(__file__).parents[1] / "defs" / "dagster.yaml"


@contextmanager
def explain_full_disk(root: Path) -> Iterator[None]:
    """Whatever a full disk breaks first (Dagster's database, a log, the ledger), say what it is."""
    try:
        yield
    except Exception as error:
        if shutil.disk_usage(root).free < LEAST_FREE_BYTES:
            raise LapError(
                f"no space left on the disk of {root}: make room, then `lap run` goes on; nothing published is lost"
            ) from error
        raise


@dataclass(frozen=True)
class Workspace:
    """Settings, store and ledger of one repository folder."""

    root: Path
    settings: Settings

    @classmethod
    def open(cls, given: Path | str | None = None, overrides: dict | None = None) -> "Workspace":
        """Open the repository at `given`, in `LAP_REPO`, or around here; raises `BadInput` if there is none."""
        root = find_repository(given)
        return cls(root, load_settings(root, overrides))

    @classmethod
    def create(cls, root: Path, settings: dict | None = None) -> "Workspace":
        """Make a new, empty repository in `root`; an existing one is refused."""
        if (root / SETTINGS_FILE).exists():
            raise BadInput(
                f"{root} is a repository already (it has {SETTINGS_FILE}); choose another folder or use it as it is"
            )
        (root / "dagster").mkdir(parents=True, exist_ok=True)
        (root / "dagster" / "dagster.yaml").write_text(INSTANCE_YAML.read_text())
        space = cls(root, parse_settings(add_environment(settings or {}), "lap init"))
        Ledger.create(space.ledger_url, journal=space.repo.append_journal).close()
        # last: its presence says that the repository is whole
        text = "# settings of this repository; `lap show settings` lists all there are with their values\n"
        (root / SETTINGS_FILE).write_text(text + (yaml.safe_dump(settings) if settings else "{}\n"))
        return cls.open(root)

    @property
    def ledger_url(self) -> str:
        return self.settings.ledger_url or f"sqlite:///{self.root / 'ledger.db'}"

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger.open(self.ledger_url, journal=self.repo.append_journal)

    @cached_property
    def repo(self) -> Repo:
        return Repo(self.root, collections=self.settings.collections)

    def survey(self, collection: str | None = None) -> Survey:
        """The survey of one collection (default: the first open one)."""
        survey = self.ledger.survey(check_name(collection or self.settings.collections[0], "collection"))
        return replace(survey, outside=self._read_outside(survey))

    def _read_outside(self, survey: Survey) -> dict[str, str]:
        """Content hashes of the cameras and reference catalogues a survey uses; without those that are gone."""
        outside = {}
        cameras = {one.camera for one in survey.exposures.values()} | {c.camera for c in survey.calibrations.values()}
        for name in sorted(cameras):
            with suppress(BadInput):
                outside[f"camera/{name}"] = load_camera(name, self.repo.cameras).sha256
        for name in sorted(set(survey.reference_catalogs.values())):
            with suppress(NotFound):
                outside[f"refcat/{name}"] = describe_refcat(self.repo.layout, name)["version"]
        return outside

    def configs(self) -> dict[str, str]:
        """For each product the hash of the settings and code number now in force."""
        return {name: f"{STAGES[name].config_sha256(self.settings)[:24]}.{PRODUCTS[name].code}" for name in PRODUCTS}
