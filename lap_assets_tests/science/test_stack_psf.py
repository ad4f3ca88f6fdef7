"""PSF of a stack from those of its inputs."""

import numpy as np
import pytest

from lap_assets.errors import NoWork
from lap_assets.science.moffat import MoffatPsf
from lap_assets.science.psf_grid import PsfGrid, lay_nodes
from lap_assets.science.stack_psf import average_psfs, reduce_psf

SHAPE = (400, 600)
WEIGHTS = np.array([0.5, 0.3, 0.2])


def make_grids():
    nodes = lay_nodes(SHAPE, 200.0)
    stamps = [MoffatPsf(fwhm).evaluate().astype(np.float32) for fwhm in (3.0, 4.0, 5.0)]
    return [PsfGrid(*nodes, np.tile(one, (len(nodes[1]), len(nodes[0]), 1, 1))) for one in stamps]


def mix(grids, weights):
    size = max(grid.stamp_px for grid in grids)
    padded = [np.pad(grid.mean, (size - grid.stamp_px) // 2) for grid in grids]
    return np.average(padded, axis=0, weights=weights)


def test_inputs_count_where_they_were_used():
    """LAP-29: the third input covers the right half: the PSF is that of two inputs left of it, of three on it."""
    grids, used = make_grids(), np.full((1, *SHAPE), 3, np.uint8)
    used[0, :, 300:] = 7
    psf = average_psfs(grids, used, WEIGHTS)
    right, left = mix(grids, WEIGHTS), mix(grids, [0.5, 0.3, 0])
    assert np.abs(psf.evaluate(590.0, 200.0) - right).max() < 1e-5
    assert np.abs(psf.evaluate(10.0, 200.0) - left).max() < 1e-5


def test_inputs_without_a_psf_do_not_count():
    grids, used = make_grids(), np.full((1, *SHAPE), 7, np.uint8)
    some = [grids[0], None, grids[2]]
    expected = mix([grids[0], grids[2]], [0.5, 0.2])
    assert np.abs(average_psfs(some, used, WEIGHTS).mean - expected).max() < 1e-5
    with pytest.raises(NoWork, match="no input has a PSF"):
        average_psfs([None] * 3, used, WEIGHTS)


def test_without_an_input_the_psf_is_that_of_the_others():
    """AP-06: also where that input covers half of a node's surroundings."""
    grids, used = make_grids(), np.full((1, *SHAPE), 7, np.uint8)
    used[0, :, :310] = 3
    left = reduce_psf(average_psfs(grids, used, WEIGHTS), [grids[2]], used, WEIGHTS, [2])
    wing = (grids[2].stamp_px - grids[1].stamp_px) // 2
    expected = np.pad(mix(grids[:2], WEIGHTS[:2]), wing)
    assert np.abs(left.stamps - expected).max() < 1e-6
    assert reduce_psf(left, [None], used, WEIGHTS, [2]) is None
