"""Verdicts on chips and exposures (LV-12, LV-13): the numbers of LoVoCCS, and no exposure lost for a star or two."""

import numpy as np
import pandas as pd
import pytest

from lap_assets.science.quality import judge_measures, measure_t_eff, select_chips


def run_of(visits: int, chips: int = 12, stars: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    return pd.DataFrame(
        [
            {"exposure": f"e{v}", "chip": f"c{c:02d}", "n_reference": int(rng.poisson(stars)), "distance_deg": 0.1 * c}
            for v in range(visits)
            for c in range(chips)
        ]
    )


def test_effective_time_halves_with_twice_the_sky_and_falls_with_the_square_of_seeing_and_clouds():
    assert measure_t_eff(0.9, 5.0, 1.0, 0.9, 5.0) == pytest.approx(1.0)
    assert measure_t_eff(0.9, 10.0, 1.0, 0.9, 5.0) == pytest.approx(0.5)
    assert measure_t_eff(1.8, 5.0, 0.5, 0.9, 5.0) == pytest.approx(1 / 16)
    assert np.isnan(measure_t_eff(0.9, 0.0, 1.0, 0.9, 5.0)) and np.isnan(measure_t_eff(0.9, 5.0, np.nan, 0.9, 5.0))


def test_the_cuts_of_lovoccs_name_what_is_beyond_them():
    """LV-12."""
    limits = {"fwhm_arcsec": 1.15, "ellipticity": 0.13}
    assert judge_measures({"fwhm_arcsec": 1.1, "ellipticity": 0.05}, limits) == ""
    assert judge_measures({"fwhm_arcsec": 1.3, "ellipticity": 0.2}, limits) == (
        "fwhm_arcsec 1.3 > 1.15, ellipticity 0.2 > 0.13"
    )
    assert judge_measures({"fwhm_arcsec": None, "ellipticity": float("nan")}, limits) == ""
    assert judge_measures({"fwhm_arcsec": 9.0}, {"fwhm_arcsec": None}) == ""


def test_a_run_of_equals_is_kept_whole():
    """Six exposures with nearly equal counts: the last one is below μ − 2σ by a star, and stays."""
    table = run_of(6)
    sums = table.groupby("exposure").n_reference.sum()
    table.loc[table.exposure == sums.idxmin(), "n_reference"] -= 3
    assert (table.groupby("exposure").n_reference.sum().min() < sums.mean() - 2 * sums.std(ddof=0)) is np.True_
    assert select_chips(table).used.all()


def test_a_cloudy_exposure_an_empty_chip_and_far_chips_are_left_out_with_the_reason():
    """LV-13."""
    table = run_of(9)
    table.loc[table.exposure == "e4", "n_reference"] //= 4
    table.loc[(table.exposure == "e1") & (table.chip == "c03"), "n_reference"] = 1
    found = select_chips(table, max_distance_deg=1.05, min_good_chips=10).set_index(["exposure", "chip"])
    assert found.loc["e4"].used.sum() == 0
    assert set(found.loc["e4"].reason) >= {"farther than 1.05 deg"}
    assert found.loc[("e4", "c00"), "reason"].startswith("exposure with fewer than")
    assert found.loc[("e1", "c03"), "reason"].startswith("fewer than")
    assert not found.xs("c11", level="chip").used.any()
    kept = found.drop("e4").drop("c11", level="chip").drop(("e1", "c03"))
    assert kept.used.all() and (kept.reason == "").all()


def test_an_exposure_with_too_few_good_chips_is_left_out():
    """LV-13: < 10 good chips."""
    table = run_of(4)
    table = table[~((table.exposure == "e2") & (table.chip > "c08"))]
    found = select_chips(table, min_good_chips=10)
    assert not found[found.exposure == "e2"].used.any() and found[found.exposure != "e2"].used.all()
    assert set(found[found.exposure == "e2"].reason) == {"exposure with fewer than 10 good chips"}


def test_no_chip_at_all_is_no_error():
    empty = pd.DataFrame({"exposure": [], "chip": [], "n_reference": [], "distance_deg": []})
    assert len(select_chips(empty)) == 0
