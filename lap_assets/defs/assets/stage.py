"""The decorator all assets share: key, partitions, dependencies, checks and pool from the product table.

Holds no asset itself.
"""

import warnings
from collections.abc import Callable

import dagster as dg

from lap_assets.defs.jobs import sanitize_name
from lap_assets.defs.partitions import Partitions
from lap_assets.defs.reports import STOPPING, list_checks
from lap_assets.model.products import get_product, home_of
from lap_assets.model.survey import Survey
from lap_assets.pipeline.stages import STAGES

PARTITIONS_PER_RUN = 50


class Stages:
    """Makes the assets of one collection.

    Parameters
    ----------
    survey : Survey
    settings_hashes : dict of product to str
        Shown as the assets' code versions.
    """

    def __init__(self, survey: Survey, settings_hashes: dict[str, str]) -> None:
        self.survey = survey
        self.partitions = Partitions(survey)
        self.settings_hashes = settings_hashes
        self.group = sanitize_name(survey.collection)

    def asset(self, body: Callable) -> dg.AssetsDefinition:
        """Decorator: the function's name is the product, its docstring the description shown in the UI."""
        product = get_product(body.__name__)
        collection = home_of(self.survey.collection, product.name)
        key = dg.AssetKey([collection, product.name])
        partitions = self.partitions.definition(product.name)
        spec = dg.AssetSpec(
            key,
            deps=[
                self.partitions.dep(product.name, name, home_of(self.survey.collection, name))
                for name in product.inputs
            ],
            description=body.__doc__,
            # masters stand with the first collection: the UI opens a single group and folds several
            group_name=self.group,
            code_version=self.settings_hashes.get(product.name),
            kinds={"fits" if any(m.planes for m in product.members) else "parquet"},
            metadata={
                "collection": self.survey.collection,
                "title": product.title,
                "unit": product.unit or "partition",
                "members": [member.name for member in product.members],
                "kept": "intermediate" if product.intermediate else "long-lived",
            },
        )
        with warnings.catch_warnings():
            # partitioned checks are a preview feature in the Dagster version we pin
            warnings.simplefilter("ignore", dg.PreviewWarning)
            checks = [
                dg.AssetCheckSpec(
                    name, asset=key, description=text, blocking=name in STOPPING, partitions_def=partitions
                )
                for name, text in list_checks(product.name).items()
            ]
        return dg.multi_asset(
            name=f"{sanitize_name(collection)}__{product.name}",
            specs=[spec],
            check_specs=checks,
            partitions_def=partitions,
            can_subset=True,  # makes the check outputs optional: they are logged per partition, also in a run over many
            backfill_policy=dg.BackfillPolicy.multi_run(PARTITIONS_PER_RUN),
            required_resource_keys={"lap"},
            op_tags={"memory_gib": str(STAGES[product.name].memory_gib)},
        )(body)
