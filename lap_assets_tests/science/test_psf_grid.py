"""PSFs at nodes: what lies between, what is not known, what a weighted mean of images has."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.errors import NoWork
from lap_assets.science.moffat import MoffatPsf
from lap_assets.science.psf import measure_shape
from lap_assets.science.psf_grid import PsfGrid, average_grids, lay_nodes

SHAPE, SIZE = (600, 900), 29


def cut(stamp, size=SIZE):
    """A stamp cut or padded to a size, sum 1."""
    wing = (len(stamp) - size) // 2
    stamp = stamp[wing : wing + size, wing : wing + size] if wing >= 0 else np.pad(stamp, -wing)
    return (stamp / stamp.sum()).astype(np.float32)


def make_grid(slope=0.5, fwhm=3.0, size=SIZE):
    """FWHM that grows by `slope` pixels from the left edge to the right one."""
    x, y = lay_nodes(SHAPE, 300.0)
    row = np.stack([cut(MoffatPsf(fwhm + slope * one / x[-1]).evaluate(), size) for one in x])
    return PsfGrid(x, y, np.repeat(row[None], len(y), axis=0))


def test_nodes_span_the_image_from_edge_to_edge():
    x, y = lay_nodes(SHAPE, 300.0)
    assert (x[0], x[-1], y[0], y[-1]) == (0, 899, 0, 599)
    assert np.diff(x) == pytest.approx(899 / 3) and np.diff(y) == pytest.approx(599 / 2)
    assert [len(nodes) for nodes in lay_nodes((40, 50))] == [2, 2]


def test_at_nodes_the_stamps_themselves_and_between_them_their_blend():
    grid = make_grid()
    assert grid.evaluate(grid.x[1], grid.y[1]) == pytest.approx(grid.stamps[1, 1] / grid.stamps[1, 1].sum())
    middle = grid.evaluate(0.5 * (grid.x[1] + grid.x[2]), 100.0)
    assert middle == pytest.approx(0.5 * (grid.stamps[0, 1] + grid.stamps[0, 2]), abs=1e-6)
    widths = [measure_shape(stamp).fwhm_px for stamp in grid.evaluate_many(np.linspace(0, 899, 7), np.full(7, 50.0))]
    assert np.all(np.diff(widths) > 0.02)
    assert grid.fwhm_px == pytest.approx(np.mean(widths), rel=0.01)


def test_beyond_the_nodes_the_border_goes_on():
    grid = make_grid()
    assert (grid.evaluate(-50.0, -1.0) == grid.evaluate(0.0, 0.0)).all()
    assert (grid.evaluate(2000.0, 700.0) == grid.evaluate(899.0, 599.0)).all()


def test_an_unknown_node_takes_the_nearest_known_one():
    grid = make_grid()
    stamps = grid.stamps.copy()
    stamps[:, 0] = 0
    holed = PsfGrid(grid.x, grid.y, stamps)
    assert holed.known.sum() == grid.known.sum() - len(grid.y)
    assert holed.evaluate(0.0, 300.0) == pytest.approx(grid.evaluate(grid.x[1], 300.0))
    # no jump where the known ones begin
    step = holed.evaluate(grid.x[1] - 1e-3, 100.0) - holed.evaluate(grid.x[1] + 1e-3, 100.0)
    assert np.abs(step).max() < 1e-6


def test_a_grid_that_knows_nothing_says_so():
    grid = make_grid()
    empty = PsfGrid(grid.x, grid.y, np.zeros_like(grid.stamps))
    assert not empty.known.any()
    for ask in (lambda: empty.evaluate(0, 0), lambda: empty.mean, lambda: empty.fwhm_px):
        with pytest.raises(NoWork, match="known at no node"):
            ask()


@settings(max_examples=40, deadline=None)
@given(x=st.floats(-100, 1000), y=st.floats(-100, 700), hole=st.integers(0, 11))
def test_anywhere_it_is_a_psf(x, y, hole):
    """Sum 1, not negative, not sharper or broader than all nodes."""
    grid = make_grid()
    stamps = grid.stamps.copy()
    stamps[hole // 4, hole % 4] = 0
    stamp = PsfGrid(grid.x, grid.y, stamps).evaluate(x, y)
    assert stamp.sum() == pytest.approx(1.0)
    assert stamp.min() >= 0
    peaks = grid.stamps.max(axis=(2, 3))
    assert peaks.min() * (1 - 1e-5) <= stamp.max() <= peaks.max() * (1 + 1e-5)


def test_mean_of_two_images():
    """The PSF of 3·a + 1·b is (3 Pa + Pb) / 4 at every place, whatever the sizes of the stamps."""
    one, other = make_grid(), make_grid(slope=0.0, fwhm=4.0, size=21)
    mean = average_grids([one, other], np.array([3.0, 1.0]))
    padded = np.pad(other.evaluate(200, 200), 4)
    assert mean.evaluate(200, 200) == pytest.approx(0.75 * one.evaluate(200, 200) + 0.25 * padded, abs=1e-6)


def test_weights_at_nodes_leave_out_what_is_not_there():
    """An input without weight at a node does not count there; where none has any, nothing is known."""
    one, other = make_grid(), make_grid(slope=0.0, fwhm=4.0)
    weights = np.ones((2, 3, 4))
    weights[0, 0] = 0
    weights[:, 2, 3] = 0
    mean = average_grids([one, other], weights)
    assert mean.stamps[0, 2] == pytest.approx(other.stamps[0, 2], abs=1e-7)
    assert mean.known.sum() == 11 and not mean.known[2, 3]
    with pytest.raises(NoWork):
        average_grids([], np.zeros(0))
