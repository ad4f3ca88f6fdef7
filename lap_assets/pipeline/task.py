"""The small things that travel between the planner, the workers and the store: `Task`, `Output`, `UnitReport`.

A stage module of `pipeline/` has two functions:

* `plan(survey, repo, settings, collection, partition) -> list[Task]` runs in the parent: which units there are, the
  inputs of each pinned by content hash, and the few facts from the survey a unit needs (`params`).
* `make(task, repo) -> Output` runs in a worker: reads the pinned inputs, calls pure functions, returns the members.

Everything else (skipping what is done, leases, failures, publishing, logs) is `pipeline/engine.py`, once for all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lap_assets.model.ids import DataId, Pin
from lap_assets.settings import Settings


@dataclass(frozen=True)
class Task:
    """One unit of work, small enough to be sent to a worker.

    Attributes
    ----------
    data_id : DataId
        The unit to make.
    inputs : tuple of Pin
        Units it is made from, pinned by content hash, sorted.
    settings : Settings
    params : mapping
        JSON-able facts from the survey (band, night, SHA-256 of raw files, …); part of the recipe.
    places : mapping
        Where things lie on this machine (paths of raw files); not part of the recipe.
    """

    data_id: DataId
    inputs: tuple[Pin, ...]
    settings: Settings
    params: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, Any] = field(default_factory=dict)

    def pins(self, product: str) -> tuple[Pin, ...]:
        """The pinned inputs of one product."""
        return tuple(pin for pin in self.inputs if pin.data_id.product == product)


@dataclass
class Output:
    """What `make` returns.

    Attributes
    ----------
    members : dict of file name to content
        `MaskedImage` or dict of planes (FITS), `pandas.DataFrame` (Parquet; units in `df.attrs["units"]`),
        dict (JSON), bytes (pictures).
    metrics : dict of str to number or str
        Numbers with units in their names, for the manifest and the UI.
    refers_to : Pin or None
        The unit whose members stand for this one's, with the same pixels; `members` are those it has besides.
    """

    members: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    refers_to: Pin | None = None


@dataclass(frozen=True)
class UnitReport:
    """What became of one unit.

    `worker` is the process that made it and its peak memory meanwhile, MiB (of a main process: so far); `compiled`
    how many kernels that process had to compile so far; `difference` says of a re-created unit in what it differs
    from what was cleaned, and why.
    """

    data_id: DataId
    state: str
    content: str = ""
    skipped: bool = False
    reason: str = ""
    seconds: float = 0.0
    bytes: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    worker: tuple[int, float] = (0, 0.0)
    compiled: int = 0
    recipe: str = ""
    difference: str = ""
