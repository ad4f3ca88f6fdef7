"""Asset jobs, one per partition set of a collection: what sensors request runs of. Nothing here decides or launches.

A run of Dagster makes partitions of one set, so that a job over several sets cannot be requested for any of them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from lap_assets.model.decisions import Action
from lap_assets.model.products import PRODUCTS, home_of
from lap_assets.model.survey import Survey


@dataclass(frozen=True)
class Loaded:
    """What the code location knows of one collection since it was loaded: Dagster accepts no other partition keys.

    Attributes
    ----------
    collection : str
    places : mapping of product to mapping of partition key to its place in the partition set
    jobs : mapping of product to the name of the job that makes it
    lap_ids : frozenset of int
        The LAP runs there were.
    """

    collection: str
    places: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    jobs: Mapping[str, str] = field(default_factory=dict)
    lap_ids: frozenset[int] = frozenset()

    def knows(self, action: Action) -> bool:
        """Whether a partition was there when the code location was loaded."""
        return action.partition in self.places.get(action.product, {})

    def knows_run(self, action: Action) -> bool:
        """Whether the run was there: its partitions stand together only in sets that were made since."""
        return not action.lap_id or action.lap_id in self.lap_ids


def sanitize_name(text: str) -> str:
    """A name that Dagster takes for a job, an op or a group; different texts give different names."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in text)
    return plain if plain == text else f"{plain}_{sha256(text.encode()).hexdigest()[:4]}"


def load_collection(survey: Survey) -> Loaded:
    """The partition sets of a survey, and the name of the job of each product."""
    places: dict[tuple[str, ...], dict[str, int]] = {}
    found: dict[str, Mapping[str, int]] = {}
    for product in PRODUCTS:
        keys = survey.partitions(product)
        if keys not in places:
            places[keys] = {key: place for place, key in enumerate(keys)}
        found[product] = places[keys]
    jobs = {product: name_job(survey.collection, product) for product in PRODUCTS}
    return Loaded(survey.collection, found, jobs, frozenset(run.lap_id for run in survey.runs))


def name_job(collection: str, product: str) -> str:
    """Name of the job that makes a product; products with the same partition set share one."""
    kind = PRODUCTS[product].partitions
    if home_of(collection, product) != collection:
        return f"make_{sanitize_name(product)}"
    return f"make_{sanitize_name(collection)}_{kind}"


def build(loaded: Collection[Loaded]) -> list[UnresolvedAssetJobDefinition]:
    """The jobs of all collections; masters have theirs once."""
    keys: dict[str, dict[dg.AssetKey, None]] = {}
    for one in loaded:
        for product, name in one.jobs.items():
            keys.setdefault(name, {})[dg.AssetKey([home_of(one.collection, product), product])] = None
    return [
        dg.define_asset_job(name, selection=dg.AssetSelection.assets(*chosen), executor_def=dg.in_process_executor)
        for name, chosen in keys.items()
    ]
