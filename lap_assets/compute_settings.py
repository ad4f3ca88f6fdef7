"""The section of the settings that says on which machines work is done: processes here, or a cluster.

No bytes depend on it, so it is part of no recipe. `settings.py` has the other sections and reads them all.
"""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lap_assets.model.products import PRODUCTS

ADDRESS = re.compile(r"(tcp|tls)://([A-Za-z0-9][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:]+\]):\d{1,5}")  # of a Dask scheduler


class Frozen(BaseModel):
    """Immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class UnitNeeds(Frozen):
    """What one unit of a stage takes; memory None: as the table of stages declares it."""

    memory_gib: float | None = Field(None, gt=0)
    cores: int = Field(1, ge=1)


class TlsSettings(Frozen):
    """PEM files by which scheduler, workers and this process know each other."""

    ca_file: str
    cert_file: str
    key_file: str


class ClusterSettings(Frozen):
    """Jobs of a batch system, each with some worker processes, by dask-jobqueue."""

    kind: Literal["slurm", "htcondor", "pbs"]
    cores: int = Field(1, ge=1)  # of a job
    memory_gib: float = Field(4.0, gt=0)  # of a job, shared evenly by its workers
    processes: int = Field(0, ge=0)  # workers in a job; 0: one per core
    jobs: int = Field(1, ge=1)  # at most so many at once
    idle_s: float = Field(120.0, ge=5)  # after which jobs without work are given back
    walltime: str = "02:00:00"
    disk_gib: float = Field(1.0, gt=0)  # HTCondor asks for it
    queue: str = ""  # partition (SLURM) or queue (PBS)
    account: str = ""
    directives: tuple[str, ...] = ()  # further ones: "--constraint=haswell"; with HTCondor "name = value"
    prologue: tuple[str, ...] = ()  # commands of the job before its workers start: "module load python"
    interface: str = ""  # network interface of scheduler and workers, e.g. ib0
    local_folder: str = ""  # scratch folder on the nodes
    encrypted: bool = True  # TLS with certificates made for this one cluster
    shared_folder: str = "~/.lap_assets"  # where those are put, readable by nobody else; seen by all nodes

    @field_validator("walltime", mode="before")
    @classmethod
    def _check_walltime(cls, value: object) -> object:
        # YAML takes 04:00:00 without quotes for a number
        if not (isinstance(value, str) and re.fullmatch(r"(\d+-)?\d{1,3}:\d{2}:\d{2}", value)):
            raise ValueError('a walltime is "HH:MM:SS" or "D-HH:MM:SS", in quotes')
        return value


class ComputeSettings(Frozen):
    """How work is spread."""

    executor: Literal["processes", "serial", "dask"] = "processes"
    workers: int = Field(0, ge=0)  # of `processes`; 0: as many as there are cores
    memory_gib: float = Field(0.0, ge=0)  # that the units made at once may take together; 0: what this machine has
    resources: dict[str, UnitNeeds] = {}  # by product, where a unit takes other than is declared
    # of `dask`: an address or a cluster
    scheduler_address: str = ""
    cluster: ClusterSettings | None = None
    tls: TlsSettings | None = None
    trusted_network: bool = False  # nobody who reaches the scheduler's port would harm: whoever does can run any code
    worker_wait_s: float = Field(3600.0, gt=0)  # for the first worker to join

    @field_validator("resources")
    @classmethod
    def _name_products(cls, value: dict[str, UnitNeeds]) -> dict[str, UnitNeeds]:
        for name in value:
            if name not in PRODUCTS:
                raise ValueError(f"{name!r} is no product; `lap show products` lists them")
        return value

    @field_validator("scheduler_address")
    @classmethod
    def _check_address(cls, value: str) -> str:
        if value and not ADDRESS.fullmatch(value):
            raise ValueError("a scheduler's address is tcp://HOST:PORT or tls://HOST:PORT")
        return value

    @model_validator(mode="after")
    def _check_dask(self) -> "ComputeSettings":
        given = bool(self.scheduler_address) + (self.cluster is not None)
        if self.executor == "dask" and given != 1:
            raise ValueError("executor dask needs either scheduler_address or cluster")
        if self.scheduler_address.startswith("tls://") and self.tls is None:
            raise ValueError("a tls:// address needs the files of compute.tls")
        return self
