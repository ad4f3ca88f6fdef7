"""Backgrounds of inputs matched: planes recovered, what stays where it is, partial coverage, objects, bad blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.science.stack_levels import fit_levels

BLOCK, SHAPE, BLOCKS = 64, (960, 1280), (15, 20)


def make_levels(planes, noise=0.2, seed=1):
    """Medians of blocks: a common sky with structure, each input's plane, and noise."""
    rng = np.random.default_rng(seed)
    v, u = (BLOCK * one + 31.5 for one in np.indices(BLOCKS))
    x, y = (u - 0.5 * (SHAPE[1] - 1)) / (0.5 * SHAPE[1]), (v - 0.5 * (SHAPE[0] - 1)) / (0.5 * SHAPE[0])
    common = 3.0 * np.sin(4 * x) * np.cos(3 * y)
    levels = [common + c0 + c1 * x + c2 * y + rng.normal(0, noise, BLOCKS) for c0, c1, c2 in planes]
    return np.array(levels), np.full((len(planes), *BLOCKS), 256.0)


def centre(planes, weights):
    return planes - np.average(planes, axis=0, weights=weights)


@given(n=st.integers(2, 12), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_planes_are_recovered_and_the_mean_stays(n, seed):
    """LAP-29: to 5 standard errors of 300 blocks of 0.2 nJy; the weighted mean of the planes is zero, so that the level
    of the stack does not move.
    """
    rng = np.random.default_rng(seed)
    planes, weights = rng.normal(0, 10, (n, 3)), rng.uniform(0.2, 1, n)
    weights /= weights.sum()
    found = fit_levels(*make_levels(planes, seed=seed), weights, BLOCK, SHAPE)
    assert np.abs(weights @ found).max() < 1e-6
    assert np.abs(found - centre(planes, weights)).max() < 5 * 0.2 / np.sqrt(300) * np.sqrt(3) * 1.5


def test_partial_coverage():
    """Inputs that cover a third each, overlapping: steps between them are found through the overlaps."""
    planes = np.array([[0.0, 0, 0], [20.0, 0, 0], [-10.0, 0, 0]])
    levels, counts = make_levels(planes)
    for k, columns in enumerate((np.s_[:, 9:], [np.s_[:, :6], np.s_[:, 15:]], np.s_[:, :12])):
        for one in columns if isinstance(columns, list) else [columns]:
            counts[k][one], levels[k][one] = 0, 0
    found = fit_levels(levels, counts, np.full(3, 1 / 3), BLOCK, SHAPE, order=0)
    assert not found[:, 1:].any()
    assert found[:, 0] == pytest.approx(centre(planes, None)[:, 0], abs=0.3)


def test_objects_and_trails_do_not_count():
    """A tenth of the blocks of one input 50 nJy too high, others not finite: the plane moves by less than 0.3 nJy."""
    planes = np.array([[0.0, 0, 0], [5.0, -3, 2], [-4.0, 1, 1], [1.0, 2, -2]])
    levels, counts = make_levels(planes)
    rng = np.random.default_rng(4)
    levels[1][rng.random(BLOCKS) < 0.1] += 50.0
    levels[2][3, 4] = np.nan
    found = fit_levels(levels, counts, np.full(4, 0.25), BLOCK, SHAPE)
    assert np.abs(found - centre(planes, None)).max() < 0.3


def test_what_says_nothing_stays():
    """One input, no overlap, weight zero, order −1: zeros; few blocks: a constant."""
    planes = np.array([[0.0, 0, 0], [8.0, 5, 5]])
    levels, counts = make_levels(planes)
    assert not fit_levels(levels[:1], counts[:1], np.ones(1), BLOCK, SHAPE).any()
    assert not fit_levels(levels, counts, np.full(2, 0.5), BLOCK, SHAPE, order=-1).any()
    assert not fit_levels(levels, counts, np.array([1.0, 0.0]), BLOCK, SHAPE).any()
    apart = counts.copy()
    apart[0][:, 10:], apart[1][:, :10] = 0, 0
    assert not fit_levels(levels, apart, np.full(2, 0.5), BLOCK, SHAPE).any()
    few = np.zeros_like(counts)
    few[:, 7, 5:15] = 256
    found = fit_levels(levels, few, np.full(2, 0.5), BLOCK, SHAPE)
    assert not found[:, 1:].any()
    assert found[1, 0] - found[0, 0] == pytest.approx(8.0, abs=1.5)
