"""Stars of several exposures: grouped rightly, and eliminated exactly as a fit with all positions free would do."""

import numpy as np
import pytest

from lap_assets.science.joint_stars import Observations, eliminate_stars, match_observations

ARCSEC = 1.0 / 3600.0


def observe_grid(shifts, ref, drop=()):
    """Exposures of a 5×5 grid of stars 20 arcsec apart, each displaced by some arcsec."""
    x, y = (one.ravel() for one in np.meshgrid(np.arange(5.0), np.arange(5.0)))
    stars = np.stack([x, y], axis=1) * 20.0 * ARCSEC
    planes, pixels = [], []
    for number, shift in enumerate(shifts):
        kept = np.array([k for k in range(25) if (number, k) not in drop])
        planes.append(stars[kept] + np.array(shift) * ARCSEC)
        pixels.append(
            {"block": np.full(len(kept), number), "x": kept.astype(float), "y": 0.0 * kept, "error": 1e-6 + 0.0 * kept}
        )
    return match_observations(planes, [ref] * len(shifts), ref, np.full_like(ref, 1e-6), pixels, 0.7), stars


def test_measurements_of_a_star_are_grouped_and_lonely_ones_left_out():
    seen, _ = observe_grid([(0, 0), (0.3, 0), (0, -0.3)], np.zeros((0, 2)), drop={(0, 3), (1, 3), (2, 7)})
    assert seen.n_stars == 24  # star 3 is seen once
    for star in range(seen.n_stars):
        assert len(np.unique(seen.x[seen.star == star])) == 1
    assert sorted(np.bincount(seen.star)) == [2] + [3] * 23
    assert not np.isfinite(seen.ref).any()


def test_a_single_measurement_counts_where_there_is_a_reference():
    _, stars = observe_grid([(0, 0)], np.zeros((0, 2)))
    ref = np.concatenate([stars[:10], [[np.nan, np.nan]], [[1.0, 1.0]]])
    seen, _ = observe_grid([(0.2, 0.2)], ref)
    assert seen.n_stars == 10
    assert np.allclose(seen.ref, stars[:10])
    assert np.array_equal(seen.x, np.arange(10.0))


def test_beyond_the_radius_nothing_is_grouped():
    seen, _ = observe_grid([(0, 0), (1.0, 0)], np.zeros((0, 2)))
    assert seen.n_stars == 0 and len(seen.star) == 0


def test_dropping_measurements_drops_what_they_leave_alone():
    seen, _ = observe_grid([(0, 0), (0.1, 0)], np.zeros((0, 2)))
    used = np.ones(len(seen.star), bool)
    used[seen.star == 4] = [True, False]
    kept, _ = seen.drop_lonely(used, np.zeros(seen.n_stars, bool))
    assert not kept[seen.star == 4].any() and kept.sum() == len(used) - 2


@pytest.mark.parametrize("idle", [(), (2,)])
def test_elimination_equals_the_fit_with_all_positions_free(idle):
    """Parameters of the two systems agree to 1e-10, with references on some stars and one column left out."""
    rng = np.random.default_rng(3)
    n_stars, n_blocks, n_columns, per_block = 12, 4, 5, 9
    block = np.repeat(np.arange(n_blocks), per_block)
    star = np.concatenate([rng.permutation(n_stars)[:per_block] for _ in range(n_blocks)])
    ref = np.where(np.arange(n_stars)[:, None] < 7, rng.normal(0, 1, (n_stars, 2)), np.nan)
    zero = np.zeros(len(star))
    seen = Observations(block, star, zero, zero, zero, np.zeros((len(star), 2)), ref, np.ones_like(ref))
    position, weight = rng.normal(0, 1, (len(star), 2)), rng.uniform(0.5, 2.0, len(star))
    ref_weight = np.where(np.isfinite(ref), 3.0, 0.0)
    design = [(np.sort(rng.permutation(n_columns)[:4]), rng.normal(0, 1, (2, per_block, 4))) for _ in range(n_blocks)]
    active = np.array([k not in idle for k in range(n_columns)])
    stars = seen.average(position, weight, ref_weight)
    normal, right = eliminate_stars(design, seen, stars, weight, active, star_groups(n_stars))
    assert np.allclose(normal, normal.T)
    values = np.linalg.solve(normal[np.ix_(active, active)], right[active])

    rows, targets = [], []
    for axis in (0, 1):
        for k in range(len(star)):
            row = np.zeros(n_columns + 2 * n_stars)
            index, numbers = design[block[k]]
            row[index] = numbers[axis, k % per_block]
            row[n_columns + axis * n_stars + star[k]] = -1.0
            rows.append(row * np.sqrt(weight[k]))
            targets.append(-position[k, axis] * np.sqrt(weight[k]))
        for s in range(7):
            row = np.zeros(n_columns + 2 * n_stars)
            row[n_columns + axis * n_stars + s] = np.sqrt(3.0)
            rows.append(row)
            targets.append(np.sqrt(3.0) * ref[s, axis])
    wanted = np.concatenate([active, np.ones(2 * n_stars, bool)])
    full, *_ = np.linalg.lstsq(np.array(rows)[:, wanted], np.array(targets), rcond=None)
    assert np.allclose(values, full[: active.sum()], atol=1e-10)


def star_groups(n_stars):
    return np.arange(n_stars) % 3
