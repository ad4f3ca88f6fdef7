"""PSF models and grids as members: what is read back is what was published."""

import numpy as np
import pandas as pd
import pytest

from lap_assets.model.ids import DataId
from lap_assets.model.image import MaskedImage
from lap_assets.pipeline.psf_members import planes_of_grid, planes_of_models, read_psf_grid, read_psf_models
from lap_assets.science.psf import PsfModel
from lap_assets.store.repo import Repo
from lap_assets_tests.science.test_psf_grid import make_grid
from lap_assets_tests.store.samples import publish

WARP, SOLUTION = DataId("main", "warps", "a-1|c.0", "00"), DataId("main", "solutions", "a-1")


def publish_warp(repo, **members):
    plane = np.zeros((8, 8), np.float32)
    publish(repo, WARP, {"image.fits": MaskedImage(plane, np.zeros((8, 8), np.int16), plane)} | members)
    return repo.pin(WARP)


def test_grids_survive_publishing(tmp_path):
    repo, grid = Repo(tmp_path), make_grid()
    back = read_psf_grid(repo, publish_warp(repo, **{"psf.fits": planes_of_grid(grid)}))
    assert back.x == pytest.approx(grid.x) and back.y == pytest.approx(grid.y)
    assert np.array_equal(back.stamps, grid.stamps)
    assert back.evaluate(123.4, 321.0) == pytest.approx(grid.evaluate(123.4, 321.0), abs=1e-9)


def test_no_member_and_an_empty_grid_are_no_psf(tmp_path):
    repo, grid = Repo(tmp_path), make_grid()
    assert read_psf_grid(repo, publish_warp(repo)) is None
    grid.stamps[:] = 0
    assert read_psf_grid(repo, publish_warp(repo, **{"psf.fits": planes_of_grid(grid)})) is None


def test_models_survive_publishing(tmp_path):
    """One model per chip, of different degrees."""
    repo, rng = Repo(tmp_path), np.random.default_rng(1)
    models = {
        f"c{degree}": PsfModel(
            rng.uniform(0.1, 1, (n, 9, 9)).astype(np.float32), degree, (511.5, 100.0, 512.0, 100.5), 40 + degree, 0.0123
        )
        for degree, n in enumerate((1, 3, 6))
    }
    table = {"solution.json": {}, "backgrounds.fits": {"C0": np.zeros((2, 2), np.float32)}}
    sources = pd.DataFrame({n: [0.0] for n in ("x", "y", "ra", "dec", "flux", "flux_err")})
    members = table | {"sources.parquet": sources.assign(chip="c0")}
    publish(repo, SOLUTION, members)
    assert read_psf_models(repo, repo.pin(SOLUTION)) == {}
    publish(repo, SOLUTION, members | {"psfs.fits": planes_of_models(models)})
    back = read_psf_models(repo, repo.pin(SOLUTION))
    assert sorted(back) == ["C0", "C1", "C2"]
    for name, model in models.items():
        one = back[name.upper()]
        assert np.array_equal(one.evaluate(100.3, 20.7), model.evaluate(100.3, 20.7))
        assert (one.degree, one.n_stars, one.frame, one.residual) == (
            model.degree, model.n_stars, model.frame, pytest.approx(model.residual)
        )  # fmt: skip
