"""The recipe of a unit: one hash over all that decides its bytes. Nothing else belongs here."""

import hashlib
import json
from typing import Any

from lap_assets.model.products import get_product
from lap_assets.pipeline.stages import Stage
from lap_assets.pipeline.task import Task


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON-able value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def compute_recipe(stage: Stage, task: Task) -> str:
    """Hash of all that decides the bytes of a unit: code number, inputs, settings, facts from the survey."""
    product = get_product(stage.product)
    inputs = sorted([str(pin.data_id), pin.content] for pin in task.inputs)
    return hash_json(
        {
            "product": product.name,
            "code": product.code,
            "partition": task.data_id.partition,
            "unit": task.data_id.unit,
            "inputs": inputs,
            "config": stage.config_sha256(task.settings),
            "params": dict(task.params),
        }
    )
