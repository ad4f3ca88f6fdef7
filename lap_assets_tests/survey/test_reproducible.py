"""Same inputs, same settings, same environment: the same pixels, whatever the worker count, folder or process."""

import pytest

from lap_assets.operations.compare import compare_repositories
from lap_assets.store.repo import Repo
from lap_assets_tests.survey.conftest import lap, process

pytestmark = [pytest.mark.survey, pytest.mark.slow, pytest.mark.xdist_group("survey")]


def test_one_worker_gives_the_bytes_of_two(tiny, tmp_path):
    """Another folder, other processes, serial instead of two workers: identical content of every unit."""
    root = process(tmp_path, tiny.sim, "-j", 1)
    result = compare_repositories(Repo(tiny.root), Repo(root))
    assert result.fingerprints[0] == result.fingerprints[1] and len(result.fingerprints[0]) == 1
    assert not result.different and not result.only_here and not result.only_there
    assert len(result.same) > 200
    assert "0 different" in lap("--repo", tiny.root, "compare", root).stdout


def test_other_cpu_dispatch_is_named_and_measured(tiny, tmp_path):
    """Older instructions: the fingerprint differs, and `lap compare` says which products differ and by how much."""
    old = {"OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": disabled_features(), "NUMBA_CPU_NAME": "haswell"}
    root = process(tmp_path, tiny.sim, "--to", "final_stacks", **old)
    result = compare_repositories(Repo(tiny.root), Repo(root))
    assert result.fingerprints[0] != result.fingerprints[1]
    assert not result.only_there
    told = lap("--repo", root, "compare", tiny.root, check=False).stdout
    assert all(f"{product}: largest difference" in told for product in result.largest)
    images = {d.split("/")[1] for d in result.beyond} & {"chips", "warps", "stacks", "final_stacks"}
    assert not images, f"beyond tolerance: {result.beyond[:5]} {result.largest}"


def disabled_features() -> str:
    """The CPU features of this machine that numpy dispatches on beyond AVX2, as its environment variable wants them."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return " ".join(
        name for name in __cpu_dispatch__ if name.startswith(("AVX512", "X86_V4")) and __cpu_features__.get(name)
    )
