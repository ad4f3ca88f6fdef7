import json
import os
import subprocess
import sys

import pytest

from lap_assets.store.provenance import hash_recipe, list_cpu_features, take_fingerprint

PRINT = "import json; from lap_assets.store.provenance import take_fingerprint; print(json.dumps(take_fingerprint()))"


def fingerprint_in(environment: dict[str, str], before: str = "") -> dict:
    plain = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES")}
    done = subprocess.run(
        [sys.executable, "-c", before + PRINT], env=plain | environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_fingerprint_does_not_depend_on_what_was_imported_before():
    assert fingerprint_in({}) == fingerprint_in({}, "import scipy.linalg, numba, galsim;")


def test_fingerprint_sees_the_blas_kernel():
    plain = fingerprint_in({})
    other = fingerprint_in({"OPENBLAS_CORETYPE": "Nehalem"})
    if not any("openblas" in one for one in plain["blas"]):
        pytest.skip(f"numpy uses no OpenBLAS here: {plain['blas']}")
    assert any("Nehalem" in one for one in other["blas"])
    assert plain["id"] != other["id"]


def test_fingerprint_sees_switched_off_instructions():
    features = [name for name in ("AVX512_SKX", "X86_V4", "AVX2", "X86_V3") if name in list_cpu_features()]
    if not features:
        pytest.skip("numpy finds no processor feature here that could be switched off")
    outcomes = {fingerprint_in({"NPY_DISABLE_CPU_FEATURES": one})["id"] for one in features[:2]}
    assert outcomes - {fingerprint_in({})["id"]}


def test_fingerprint_names_neither_host_nor_clock():
    text = json.dumps(take_fingerprint())
    assert os.uname().nodename not in text
    assert take_fingerprint() == take_fingerprint()


def test_recipes_hash_by_content_not_order():
    assert hash_recipe({"a": 1, "b": [2.5]}) == hash_recipe({"b": [2.5], "a": 1})
    assert hash_recipe({"a": 1}) != hash_recipe({"a": 2})
