"""Astrometry: pointing, rotation, chip places and distortion are recovered against a truth the fit does not know."""

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

from lap_assets.errors import UnprocessableData
from lap_assets.science.astrometry import ChipStars, solve_exposure
from lap_assets_tests.science.telescopes import CRPIX, Telescope, errors_mas, observe


@pytest.mark.parametrize(
    ("ra0", "dec0", "offset", "rotation"),
    [(150.0, 2.0, (12.0, -9.0), 0.05), (0.01, -70.0, (-85.0, 70.0), -1.9), (210.0, 54.0, (0.0, 0.0), 0.0)],
)
def test_truth_is_met_within_10_mas_per_axis_despite_20_mas_reference_scatter(ra0, dec0, offset, rotation):
    rng = np.random.default_rng(7)
    telescope = Telescope(rng, ra0, dec0, offset, rotation)
    chips, catalog = observe(rng, telescope, per_chip=80)
    solutions = solve_exposure(chips, catalog, 2016.0, trusted=False)
    assert errors_mas(telescope, solutions).max() < 10.0
    assert all(one.order >= 3 and one.n_matched > 60 for one in solutions.values())
    assert all(17.0 < value < 32.0 for one in solutions.values() for value in one.rms_mas)


def test_without_distortion_terms_the_same_field_is_far_off():
    rng = np.random.default_rng(7)
    telescope = Telescope(rng, 150.0, 2.0, (12.0, -9.0), 0.05)
    chips, catalog = observe(rng, telescope, per_chip=80)
    assert errors_mas(telescope, solve_exposure(chips, catalog, 2016.0, trusted=False, max_order=1)).max() > 30.0


def test_terms_the_stars_do_not_ask_for_are_left_out():
    rng = np.random.default_rng(8)
    telescope = Telescope(rng, 150.0, 2.0, (3.0, 2.0), 0.02, distortion=0.0)
    chips, catalog = observe(rng, telescope, per_chip=60)
    solutions = solve_exposure(chips, catalog, 2016.0, trusted=False)
    assert {one.order for one in solutions.values()} == {1}
    assert errors_mas(telescope, solutions).max() < 10.0


def test_a_pointing_beyond_the_search_radius_is_refused_not_guessed():
    rng = np.random.default_rng(9)
    telescope = Telescope(rng, 150.0, 2.0, (200.0, 0.0))
    chips, catalog = observe(rng, telescope, per_chip=40)
    with pytest.raises(UnprocessableData, match="no match"):
        solve_exposure(chips, catalog, 2016.0, trusted=False)


def test_a_catalogue_of_unrelated_stars_is_refused():
    rng = np.random.default_rng(10)
    telescope = Telescope(rng, 150.0, 2.0)
    chips, catalog = observe(rng, telescope, per_chip=40)
    elsewhere = rng.uniform(-0.08, 0.08, (2, len(catalog)))
    catalog = catalog.assign(ra=150.0 + elsewhere[0], dec=2.0 + elsewhere[1])
    with pytest.raises(UnprocessableData):
        solve_exposure(chips, catalog, 2016.0, trusted=False)


def test_trusted_headers_with_three_stars_are_shifted_and_with_one_kept():
    rng = np.random.default_rng(11)
    telescope = Telescope(rng, 150.0, 2.0, (0.15, -0.1), distortion=0.0)
    telescope.places = {chip: (np.zeros(2), 0.0) for chip in CRPIX}
    chips, catalog = observe(rng, telescope, per_chip=3, ref_err_mas=1.0, galaxies=0)
    chips = {"c0": chips["c0"]}
    catalog = catalog.iloc[:-50]
    shifted = solve_exposure(chips, catalog, 2016.0, trusted=True)
    assert shifted["c0"].order == 0 and shifted["c0"].n_matched >= 2
    assert errors_mas(telescope, shifted).max() < 40.0  # centroids of up to 0.06 px
    kept = solve_exposure(chips, catalog.iloc[:1], 2016.0, trusted=True)
    assert kept["c0"].order == -1
    assert errors_mas(telescope, kept)[0] == pytest.approx(150.0, abs=3.0)


def test_the_solution_does_not_depend_on_the_order_of_the_chips():
    rng = np.random.default_rng(12)
    telescope = Telescope(rng, 150.0, 2.0, (5.0, 5.0))
    chips, catalog = observe(rng, telescope, per_chip=50)
    first = solve_exposure(chips, catalog, 2016.0, trusted=False)
    second = solve_exposure(dict(reversed(chips.items())), catalog, 2016.0, trusted=False)
    assert all(first[name].header.tostring() == second[name].header.tostring() for name in chips)


def change_headers(chips, change):
    """The chips with CD matrices changed: what a wrong camera file makes of them."""
    changed = {}
    for name, chip in chips.items():
        header = chip.header.copy()
        cd = change @ np.array([[header["CD1_1"], header["CD1_2"]], [header["CD2_1"], header["CD2_2"]]])
        (header["CD1_1"], header["CD1_2"]), (header["CD2_1"], header["CD2_2"]) = cd
        changed[name] = ChipStars(chip.x, chip.y, chip.xy_err, chip.flux, header, chip.shape)
    return changed


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (np.eye(2) * 1.05, r"pixel scale of the headers is wrong by \+5"),
        (np.eye(2) / 1.05, r"pixel scale of the headers is wrong by -5"),
        (np.diag([-1.0, 1.0]), "mirrored"),
        (np.diag([1.0, -1.0]), "mirrored"),
    ],
)
def test_a_wrong_pixel_scale_and_a_flipped_parity_are_refused_by_name(change, reason):
    """LV-11: what is wrong with the headers is said, not fitted."""
    rng = np.random.default_rng(13)
    telescope = Telescope(rng, 150.0, 2.0, (20.0, 10.0), 0.1)
    chips, catalog = observe(rng, telescope, per_chip=80)
    with pytest.raises(UnprocessableData, match=reason):
        solve_exposure(change_headers(chips, change), catalog, 2016.0, trusted=False)


def test_a_catalogue_without_stars_here_is_refused_with_the_place():
    rng = np.random.default_rng(14)
    telescope = Telescope(rng, 150.0, 2.0)
    chips, catalog = observe(rng, telescope, per_chip=40)
    with pytest.raises(UnprocessableData, match=r"no star around RA 150\.0\d+, DEC \+[12]\."):
        solve_exposure(chips, catalog.iloc[:0], 2016.0, trusted=False)
    with pytest.raises(UnprocessableData, match="no star around"):
        solve_exposure(chips, catalog.assign(ra=np.nan), 2016.0, trusted=False)


def test_rows_without_a_position_are_left_out_and_numbers_of_rows_stay_right():
    rng = np.random.default_rng(15)
    telescope = Telescope(rng, 150.0, 2.0, (5.0, 5.0))
    chips, catalog = observe(rng, telescope, per_chip=60)
    holes = pd.DataFrame({name: np.nan for name in catalog.columns}, index=range(40))
    mixed = pd.concat([holes, catalog], ignore_index=True)
    plain = solve_exposure(chips, catalog, 2016.0, trusted=False)
    solved = solve_exposure(chips, mixed, 2016.0, trusted=False)
    for name, one in solved.items():
        assert np.array_equal(one.refs - 40, plain[name].refs)
        assert one.header.tostring() == plain[name].header.tostring()


def test_too_few_stars_for_the_order_lower_it_and_say_so():
    rng = np.random.default_rng(16)
    telescope = Telescope(rng, 150.0, 2.0, (5.0, 5.0), distortion=1e-3)
    chips, catalog = observe(rng, telescope, per_chip=14, ref_err_mas=5.0, galaxies=5)
    solutions = solve_exposure(chips, catalog, 2016.0, trusted=False, max_order=7)
    assert all(one.note.startswith("too few stars for order 7") for one in solutions.values())
    assert all(1 <= one.order < 7 for one in solutions.values())
    plenty = solve_exposure(*observe(rng, telescope, per_chip=80), 2016.0, trusted=False, max_order=3)
    assert all(one.note == "" for one in plenty.values())


def test_a_chip_without_stars_lies_where_the_others_tell():
    """Three chips of a regular mosaic say where the fourth, on which nothing matches, is: within 0.3 arcsec."""
    rng = np.random.default_rng(17)
    places = {chip: (np.zeros(2), 0.0) for chip in CRPIX}
    telescope = Telescope(rng, 150.0, 2.0, (30.0, -20.0), 0.3, distortion=1e-3, places=places)
    chips, catalog = observe(rng, telescope, per_chip=60)
    keep = slice(0, 2)
    empty = chips["c2"]
    chips["c2"] = ChipStars(
        empty.x[keep], empty.y[keep], empty.xy_err[keep], empty.flux[keep], empty.header, empty.shape
    )
    solutions = solve_exposure(chips, catalog, 2016.0, trusted=False)
    assert solutions["c2"].order == 0
    assert errors_mas(telescope, {"c2": solutions["c2"]}).max() < 300.0


def test_an_exposure_that_jumped_is_refused_with_the_distance():
    """Every star is there twice, 20 arcsec apart (told to two bins): no single pointing is right."""
    rng = np.random.default_rng(18)
    telescope = Telescope(rng, 150.0, 2.0)
    chips, catalog = observe(rng, telescope, per_chip=60, galaxies=0)
    doubled = {
        name: ChipStars(
            np.concatenate([chip.x, chip.x + 50.0]), np.concatenate([chip.y, chip.y]), np.tile(chip.xy_err, 2),
            np.tile(chip.flux, 2), chip.header, chip.shape,
        )
        for name, chip in chips.items()
    }  # fmt: skip
    with pytest.raises(UnprocessableData, match=r"match the reference catalogue twice, (1[89]|2[0-2]) arcsec apart"):
        solve_exposure(doubled, catalog, 2016.0, trusted=False)


def test_a_tpv_header_is_a_starting_point_like_any_other():
    """Chips whose headers came as TPV, with the distortion in them, are solved as well as those that came as TAN."""
    rng = np.random.default_rng(19)
    telescope = Telescope(rng, 150.0, 2.0, (10.0, 5.0), distortion=0.0)
    chips, catalog = observe(rng, telescope, per_chip=80)
    cards = {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.0, "PV2_1": 1.0, "PV1_7": 0.3, "PV2_7": 0.3}
    tpv = {
        name: ChipStars(chip.x, chip.y, chip.xy_err, chip.flux, fits.Header(chip.header, copy=True), chip.shape)
        for name, chip in chips.items()
    }
    for chip in tpv.values():
        chip.header.update(cards)
    solutions = solve_exposure(tpv, catalog, 2016.0, trusted=False)
    assert {one.header["CTYPE1"][-3:] for one in solutions.values()} <= {"TAN", "SIP"}
    assert errors_mas(telescope, solutions).max() < 10.0
