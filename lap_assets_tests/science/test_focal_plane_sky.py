"""Sky over the focal plane (LV-17): a halo of a chip's size survives, which the mesh of that chip takes away."""

import numpy as np
import pytest

from lap_assets.science.background import evaluate_background, measure_background
from lap_assets.science.focal_plane_sky import SkyCells, fit_focal_plane_sky

SIZE, CELL, NOISE = 512, 64, 15.0


def make_chips(rng, halo_e=0.0, columns=4, rows=3):
    """12 chips under a sloping, slightly curved sky, a halo of 200 px sigma on the middle of one; in electrons."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    chips = {}
    for k in range(columns * rows):
        x0, y0 = (k % columns) * (SIZE + 20), (k // columns) * (SIZE + 40)
        sky = 400.0 + 0.01 * (x + x0) - 0.006 * (y + y0) + 2e-6 * (x + x0 - 1000) ** 2
        halo = halo_e * np.exp(-0.5 * ((x - 256) ** 2 + (y - 256) ** 2) / 200.0**2) * (k == 5)
        chips[f"c{k:02d}"] = (x0, y0, sky, halo, sky + halo + rng.normal(0, NOISE, sky.shape).astype(np.float32))
    return chips


def measure(chips):
    cells = {}
    for name, (x0, y0, *_, image) in chips.items():
        mesh = measure_background(image, np.ones(image.shape, bool), CELL).mesh
        v, u = np.mgrid[: mesh.shape[0], : mesh.shape[1]] * CELL + 0.5 * CELL
        cells[name] = SkyCells(mesh, u + x0, v + y0)
    return cells


def test_a_chip_sized_halo_survives_the_focal_plane_sky_and_not_the_mesh():
    chips = make_chips(np.random.default_rng(1), halo_e=20.0)
    cells = measure(chips)
    found = fit_focal_plane_sky(cells, order=3)
    *_, halo, image = chips["c05"]
    kept = float((image - evaluate_background(found.meshes["c05"], image.shape)).sum() / halo.sum())
    lost = float((image - evaluate_background(cells["c05"].level, image.shape)).sum() / halo.sum())
    assert kept == pytest.approx(1.0, abs=0.05)
    assert abs(lost) < 0.05  # the negative: the mesh of the chip takes all of it
    for name, (_, _, truth, _, image) in chips.items():
        error = evaluate_background(found.meshes[name], image.shape) - truth
        # one cell knows its sky to 15/64 electrons; the surface is better than that everywhere
        assert np.abs(error).max() < 0.8, name
        assert abs(error.mean()) < 0.25, name


def test_without_haloes_surface_and_meshes_agree_to_the_noise_of_a_cell():
    cells = measure(make_chips(np.random.default_rng(2)))
    found = fit_focal_plane_sky(cells, order=3)
    assert found.order == 3 and found.rms < 1.5 * NOISE / CELL
    for name, one in cells.items():
        assert np.std(one.level - found.meshes[name]) < 2.0 * NOISE / CELL


def test_the_order_is_lowered_where_there_are_few_cells_and_one_cell_is_a_constant():
    one = {"c0": SkyCells(np.array([[400.0]]), np.array([[3.0]]), np.array([[4.0]]))}
    found = fit_focal_plane_sky(one, order=3)
    assert found.order == 0 and found.meshes["c0"] == pytest.approx(400.0)
    v, u = np.mgrid[:4, :4]
    some = {"c0": SkyCells(400.0 + 2.0 * u - v, u, v)}
    found = fit_focal_plane_sky(some, order=5)
    assert found.order == 1 and found.meshes["c0"] == pytest.approx(400.0 + 2.0 * u - v, abs=1e-3)
