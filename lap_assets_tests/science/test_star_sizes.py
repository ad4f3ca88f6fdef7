"""Stars told from galaxies over all chips of an exposure (LV-12): clusters are found out, real seeing is not."""

import numpy as np
import pandas as pd
import pytest

from lap_assets.science.detection import select_stars
from lap_assets.science.star_sizes import fits_better, limit_star_sizes

STAR_PX = 1.8


def make_sources(seed, star_px=STAR_PX, n_stars=50, galaxies=None):
    """Sources of one chip: stars of one half-light radius to 2 per cent, galaxies as (number, radius, scatter)."""
    rng = np.random.default_rng(seed)
    radius = [rng.normal(star_px, 0.02 * star_px, n_stars)]
    # field galaxies, of all sizes above
    radius.append(star_px * rng.uniform(1.1, 2.5, 40))
    if galaxies:
        number, size, scatter = galaxies
        radius.append(rng.normal(size, scatter, number))
    shared = {"flux": 1e4, "flux_err": 50.0, "a": 1.5, "b": 1.45, "mask": 0, "sep_flag": 0}
    table = pd.DataFrame({"radius": np.concatenate(radius), **shared})
    return table.assign(is_star=select_stars(table))


def limit(chips):
    sizes = {name: float(table.radius[table.is_star].median()) for name, table in chips.items()}
    return sizes, limit_star_sizes(chips, sizes)


CLUSTER = (150, 2.5, 0.02)  # compact galaxies of one size, three for each star


@pytest.mark.parametrize("clustered", [(2,), (2, 3), (1, 2, 3), (0, 1, 2, 3)])
def test_a_cluster_is_found_out_on_one_half_or_all_of_the_chips(clustered):
    """LV-12: two wide chips of four pull the median of all to where neither seems wide."""
    chips = {f"c{k}": make_sources(k, galaxies=CLUSTER if k in clustered else None) for k in range(4)}
    sizes, limits = limit(chips)
    assert all(sizes[f"c{k}"] > 2.4 for k in clustered)  # they were fooled
    assert sorted(limits) == [f"c{k}" for k in clustered]
    for name, most in limits.items():
        again = chips[name][select_stars(chips[name], max_radius_px=most)]
        assert abs(again.radius.median() / STAR_PX - 1.0) < 0.02
        assert len(again) >= 45


@pytest.mark.parametrize("growth", [0.1, 0.2, 0.3, 0.4, 0.6, 0.8])
@pytest.mark.parametrize("seed", [0, 100, 200])
def test_seeing_that_grows_over_the_focal_plane_is_no_failure(growth, seed):
    """LV-12: from one edge to the other the stars become wider by up to 80 per cent; galaxies do so with them."""
    chips = {f"c{k}": make_sources(seed + k, star_px=STAR_PX * (1.0 + growth * k / 7)) for k in range(8)}
    sizes, limits = limit(chips)
    assert sizes["c7"] / sizes["c0"] == pytest.approx(1.0 + growth, rel=0.02)
    assert limits == {}


def test_a_cluster_where_the_seeing_is_widest_is_limited_by_the_stars_there():
    """LV-12: not by those of the sharp end of the focal plane, below which this chip has nothing."""
    widths = STAR_PX * np.linspace(1.0, 1.3, 6)
    chips = {
        f"c{k}": make_sources(k, star_px=widths[k], galaxies=(150, 3.2, 0.02) if k == 5 else None) for k in range(6)
    }
    _, limits = limit(chips)
    assert sorted(limits) == ["c5"]
    again = chips["c5"][select_stars(chips["c5"], max_radius_px=limits["c5"])]
    assert again.radius.median() == pytest.approx(widths[5], rel=0.02)


def test_stars_too_few_for_a_locus_are_known_by_the_other_chips():
    """LV-12: four stars before 150 galaxies; on an exposure of this one chip nothing could tell them."""
    chips = {f"c{k}": make_sources(k) for k in range(3)} | {"c3": make_sources(3, n_stars=4, galaxies=CLUSTER)}
    _, limits = limit(chips)
    assert sorted(limits) == ["c3"]
    assert STAR_PX < limits["c3"] < 1.25 * STAR_PX
    assert limit({"c3": chips["c3"]})[1] == {}


def test_single_small_sources_and_missing_chips_raise_no_doubt():
    """Two unmasked hits of cosmic rays among fifty stars; and no chip at all."""
    chip = make_sources(1)
    hits = chip.iloc[:2].assign(radius=0.7, is_star=False)
    assert limit({"c0": pd.concat([chip, hits], ignore_index=True)})[1] == {}
    assert limit_star_sizes({}, {}) == {}


def test_chips_whose_stars_have_no_size_tell_nothing_about_the_others():
    """0 and NaN: no flux, or nothing measured."""
    chips = {f"c{k}": make_sources(k, galaxies=CLUSTER if k == 2 else None) for k in range(5)}
    sizes, limits = limit(chips)
    assert limit_star_sizes(chips, sizes | {"c3": 0.0, "c4": float("nan")}) == limits
    assert sorted(limits) == ["c2"]


def test_the_order_of_chips_changes_nothing():
    chips = {f"c{k}": make_sources(k, galaxies=CLUSTER if k > 1 else None) for k in range(4)}
    assert limit(chips)[1] == limit(dict(reversed(chips.items())))[1]


def test_a_psf_is_better_only_where_its_stars_are_clearly_more_alike():
    """Two fits to the same stars differ by some per cent; stars and galaxies by a factor of four."""
    assert fits_better(0.015, 0.066)
    assert not fits_better(0.014, 0.015)
    assert not fits_better(0.05, 0.0) and not fits_better(0.0, 0.0)
