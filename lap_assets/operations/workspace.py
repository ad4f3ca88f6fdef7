"""A repository as its users see it: settings, store and ledger of one folder, opened together.

The command line, the Dagster definitions and the reports all begin with `Workspace.open`. What a folder holds:
`lap.yaml` (settings), `ledger.db` (unless the ledger is PostgreSQL), `store/` (files) and `dagster/` (the instance).
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import yaml

from lap_assets.errors import BadInput, LapError, NotFound
from lap_assets.ledger.database import BUSY_SECONDS
from lap_assets.ledger.ledger import Ledger
from lap_assets.model.camera import load_camera
from lap_assets.model.ids import JOIN, check_name
from lap_assets.model.products import MASTERS, PRODUCTS
from lap_assets.model.survey import PartitionRef, Survey
from lap_assets.pipeline.stages import STAGES
from lap_assets.settings import (
    POSTGRES_VARIABLE,
    SETTINGS_FILE,
    Settings,
    add_environment,
    find_repository,
    load_settings,
    parse_settings,
    read_postgres_url,
)
from lap_assets.store.refcat import describe_refcat
from lap_assets.store.repo import Repo

LEAST_FREE_BYTES = 1 << 20
INSTANCE_YAML = Path(__file__).parents[1] / "defs" / "dagster.yaml"
POSTGRES_YAML = INSTANCE_YAML.with_name("dagster.postgres.yaml")


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


def check_instance(root: Path) -> None:
    """Raise `BadInput` where the databases of a repository are embedded and the environment names others, or reverse.

    Otherwise half of a survey's records would go to one place and half to the other.
    """
    path = root / "dagster" / "dagster.yaml"
    outside = path.is_file() and f"env: {POSTGRES_VARIABLE}" in path.read_text()
    if outside and not read_postgres_url():
        raise BadInput(f"{root} has its databases on PostgreSQL ({path} says so): set {POSTGRES_VARIABLE}")
    if not outside and read_postgres_url():
        raise BadInput(
            f"{POSTGRES_VARIABLE} is set, but {root} has its databases embedded: unset it, or move them as "
            f"{POSTGRES_YAML} describes"
        )


def check_spread(space: "Workspace") -> None:
    """Raise `BadInput` where work is spread over machines, and the ledger is a file that one machine alone may use."""
    if space.settings.compute.executor == "dask" and space.ledger_url.startswith("sqlite"):
        raise BadInput(
            f"compute.executor dask needs a ledger on PostgreSQL, and that of {space.root} is on SQLite: "
            f"set {POSTGRES_VARIABLE} before `lap init` (or ledger_url), or use compute.executor=processes"
        )


@dataclass(frozen=True)
class Workspace:
    """Settings, store and ledger of one repository folder; it waits `busy_seconds` for a locked database."""

    root: Path
    settings: Settings
    busy_seconds: float = BUSY_SECONDS

    @classmethod
    def open(cls, given: Path | str | None = None, overrides: dict | None = None) -> "Workspace":
        """Open the repository at `given`, in `LAP_REPO`, or around here; raises `BadInput` if there is none."""
        root = find_repository(given)
        check_instance(root)
        space = cls(root, load_settings(root, overrides))
        check_spread(space)
        return space

    @classmethod
    def create(cls, root: Path, settings: dict | None = None) -> "Workspace":
        """Make a new, empty repository in `root`; an existing one is refused."""
        if (root / SETTINGS_FILE).exists():
            raise BadInput(
                f"{root} is a repository already (it has {SETTINGS_FILE}); choose another folder or use it as it is"
            )
        space = cls(root, parse_settings(add_environment(settings or {}), "lap init"))
        check_spread(space)
        instance = POSTGRES_YAML if read_postgres_url() else INSTANCE_YAML
        (root / "dagster").mkdir(parents=True, exist_ok=True)
        (root / "dagster" / "dagster.yaml").write_text(instance.read_text())
        ledger = Ledger.create(space.ledger_url, journal=space.repo.append_journal)
        taken = ledger.tessellations() or ledger.sequences() or ledger.exposures()
        ledger.close()
        if taken:
            raise BadInput(f"the ledger for {root} is another repository's already: give each a database of its own")
        # last: its presence says that the repository is whole
        text = "# settings of this repository; `lap show settings` lists all there are with their values\n"
        (root / SETTINGS_FILE).write_text(text + (yaml.safe_dump(settings) if settings else "{}\n"))
        return cls.open(root)

    @property
    def ledger_url(self) -> str:
        return self.settings.ledger_url or f"sqlite:///{self.root / 'ledger.db'}"

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger.open(self.ledger_url, journal=self.repo.append_journal, busy_seconds=self.busy_seconds)

    @cached_property
    def repo(self) -> Repo:
        return Repo(self.root, collections=self.settings.collections)

    def survey(self, collection: str | None = None) -> Survey:
        """The survey of one collection (default: the first open one)."""
        return self.complete(self.ledger.survey(check_name(collection or self.settings.collections[0], "collection")))

    def survey_around(self, collection: str, partitions: Iterable[str]) -> Survey:
        """The survey of one collection, with the files of those exposures only that some partitions have to do with.

        Whoever makes a few partitions of a large survey has no use for a million footprints.
        """
        survey = self.ledger.survey(check_name(collection, "collection"), lean=True)
        wanted: set[str] = set()
        for partition in partitions:
            first, *rest = partition.split(JOIN)
            cell = rest[-1] if first in survey.exposures and rest else first
            wanted |= {first} & survey.exposures.keys()
            wanted.update(name for run in survey.runs if run.cell == cell for name in run.everyone)
        files = self.ledger.exposures(sorted(wanted)) if wanted else {}
        return self.complete(replace(survey, exposures=dict(survey.exposures) | files))

    def complete(self, survey: Survey) -> Survey:
        """A survey of the ledger with what only the repository knows: contents from outside, and the settings' say."""
        outside, kinds = self._read_outside(survey), self._read_kinds(survey)
        facts = {"outside": outside, "kinds": kinds, "associations": keep_asked(survey, kinds)}
        return replace(survey, diff_against=self.settings.diffs.against, **facts)

    def collections(self) -> tuple[str, ...]:
        """Open collections: those of the settings, then every other sequence there is."""
        named = self.settings.collections
        return (*named, *(row.name for row in self.ledger.sequences() if row.name not in named))

    def _read_outside(self, survey: Survey) -> dict[str, str]:
        """Content hashes of the cameras and reference catalogues a survey uses; without those that are gone."""
        outside = {}
        for name in list_cameras(survey):
            with suppress(BadInput):
                outside[f"camera/{name}"] = load_camera(name, self.repo.cameras).sha256
        for name in sorted(set(survey.reference_catalogs.values())):
            with suppress(NotFound):
                outside[f"refcat/{name}"] = describe_refcat(self.repo.layout, name)["version"]
        return outside

    def _read_kinds(self, survey: Survey) -> dict[str, tuple[str, ...]]:
        """Kinds of masters that the steps of each camera ask for; without cameras that are gone."""
        kinds = {}
        for name in list_cameras(survey):
            with suppress(BadInput):
                stages = load_camera(name, self.repo.cameras).stages
                kinds[name] = tuple(kind for kind in MASTERS if kind in stages)
        return kinds

    def configs(self) -> dict[str, str]:
        """For each product the mark of the settings, and the code number, now in force."""
        return {name: f"{STAGES[name].mark_settings(self.settings)}.{PRODUCTS[name].code}" for name in PRODUCTS}


def list_cameras(survey: Survey) -> list[str]:
    """Names of the cameras of the exposures and calibration sets of a survey, sorted."""
    return sorted({one.camera for one in (*survey.exposures.values(), *survey.calibrations.values())})


def keep_asked(survey: Survey, kinds: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[PartitionRef, ...]]:
    """The associations of a survey, without masters that the steps of an exposure's camera do not ask for."""
    unasked = {
        camera: frozenset(product for kind, product in MASTERS.items() if kind not in asked)
        for camera, asked in kinds.items()
        if any(one.camera == camera and one.kind not in asked for one in survey.calibrations.values())
    }
    if not unasked:
        return survey.associations
    none: frozenset[str] = frozenset()
    left_out = {name: unasked.get(survey.exposures[name].camera, none) for name in survey.associations}
    return {
        name: tuple(ref for ref in refs if ref[0] not in left_out[name]) for name, refs in survey.associations.items()
    }
