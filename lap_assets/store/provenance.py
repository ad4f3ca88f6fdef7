"""Where bytes come from: the fingerprint of the environment, the cards a file carries, hashes of recipes.

Same inputs, settings and product code in one fingerprint give the same content; across fingerprints products are
compared within tolerances. Scheduling, clocks and hosts have no place here.
"""

import hashlib
import os
import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite.binding import get_host_cpu_name
from threadpoolctl import threadpool_info

from lap_assets.model.ids import DataId, Pin
from lap_assets.store.table_format import encode_json

LIBRARIES = ("numpy", "scipy", "astropy", "sep", "numba", "galsim", "pandas", "pyarrow", "astroscrappy")


@lru_cache(maxsize=1)
def _fingerprint() -> tuple[tuple[str, Any], ...]:
    facts: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine()}
    facts |= {name: _version(name) for name in LIBRARIES}
    facts["cpu_features"] = list_cpu_features()
    facts["blas"] = describe_blas()
    facts["numba_cpu"] = os.environ.get("NUMBA_CPU_NAME") or get_host_cpu_name()
    facts["numba_cpu_features"] = os.environ.get("NUMBA_CPU_FEATURES", "")
    facts["id"] = hash_recipe(facts)[:12]
    return tuple(facts.items())


def take_fingerprint() -> dict[str, Any]:
    """The environment's facts that can change bits: versions, processor dispatch, BLAS kernels; `id` is their hash."""
    return dict(_fingerprint())


def list_cpu_features() -> list[str]:
    """Processor features numpy dispatches on here, sorted (`NPY_DISABLE_CPU_FEATURES` is respected)."""
    features = np._core._multiarray_umath.__cpu_features__
    return sorted(name for name, enabled in features.items() if enabled)


def describe_blas() -> list[str]:
    """Library, version and kernel (`OPENBLAS_CORETYPE`) of numpy's BLAS.

    Others (scipy brings its own) count only by version: they are loaded late, and the fingerprint must not depend on
    what was imported before.
    """
    folder = Path(np.__file__).parents[1]
    pools = [pool for pool in threadpool_info() if pool.get("user_api") == "blas"]
    own = [pool for pool in pools if Path(pool["filepath"]).is_relative_to(folder / "numpy.libs")] or pools[:1]
    return sorted({f"{pool['internal_api']} {pool.get('version')} {pool.get('architecture')}" for pool in own})


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


def hash_recipe(recipe: Mapping[str, Any]) -> str:
    """SHA-256 of a recipe (anything JSON can hold), independent of the order of its keys."""
    return hashlib.sha256(encode_json(recipe)).hexdigest()


def make_cards(data_id: DataId) -> dict[str, str]:
    """Provenance cards of a FITS file: its data id. What it was made from is in its manifest."""
    cards = {"LAPCOLL": data_id.collection, "LAPPROD": data_id.product, "LAPPART": data_id.partition}
    return cards | ({"LAPUNIT": data_id.unit} if data_id.unit else {})


def sort_pins(pins: tuple[Pin, ...] | list[Pin]) -> tuple[Pin, ...]:
    """Pins in the order manifests keep them."""
    return tuple(sorted(pins))
