"""Joint astrometry: a run's shared geometry is recovered better than any exposure alone could."""

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

from lap_assets.errors import UnprocessableData
from lap_assets.science.astrometry import ChipStars, solve_exposure
from lap_assets.science.focal_plane_geometry import GeometryFit, lay_out
from lap_assets.science.joint_astrometry import fit_joint_astrometry
from lap_assets.science.tan_sip import deproject_tan, fit_tan_sip, grid_points, project_tan
from lap_assets_tests.science.telescopes import CRPIX, SCALE, N, Telescope, errors_mas, nominal_header

EPOCHS = {"e0": 2020.0, "e1": 2020.1, "e2": 2022.0, "e3": 2022.0}
DITHERS = {"e0": (0.0, 0.0), "e1": (40.0, -20.0), "e2": (-30.0, 35.0), "e3": (15.0, 30.0)}
TURNS = {"e0": 0.0, "e1": 0.05, "e2": -0.04, "e3": 90.0}


class Run:
    """Four dithered exposures of one star field by one telescope, the last with the camera turned by 90°."""

    def __init__(self, seed, n_stars=900, star_err_px=0.012, ref_err_mas=20.0, turns=TURNS, pm_mas=0.0):
        rng = np.random.default_rng(seed)
        places = {chip: (rng.normal(0, 2.0, 2), np.radians(rng.normal(0, 0.03))) for chip in CRPIX}
        ra, dec = deproject_tan(*rng.uniform(-0.1, 0.1, (2, n_stars)), 150.0, 2.0)
        motion = rng.normal(0, pm_mas, (2, n_stars))
        self.telescopes, self.exposures, self.solutions = {}, {}, {}
        known = rng.random(n_stars) < 0.7
        err = ref_err_mas / 3.6e6
        self.catalog = pd.DataFrame(
            {
                "ra": ra + rng.normal(0, err, n_stars) / np.cos(np.radians(dec)),
                "dec": dec + rng.normal(0, err, n_stars),
                "pmra": motion[0], "pmdec": motion[1], "ref_epoch_yr": 2016.0,
                "ra_err_mas": ref_err_mas, "dec_err_mas": ref_err_mas,
            }
        )[known].reset_index(drop=True)  # fmt: skip
        for name, dither in DITHERS.items():
            scope = Telescope(rng, 150.0, 2.0, dither, turns[name], places=places)
            years = EPOCHS[name] - 2016.0
            there = (
                ra + years * motion[0] / 3.6e6 / np.cos(np.radians(dec)),
                dec + years * motion[1] / 3.6e6,
            )
            self.telescopes[name] = scope
            self.exposures[name] = {
                chip: self.observe(rng, scope, chip, there, star_err_px, turns[name]) for chip in CRPIX
            }
            self.solutions[name] = {chip: self.solve(rng, scope, chip) for chip in CRPIX}

    def observe(self, rng, scope, chip, sky, err, turn):
        """Pixels of the stars on a chip, by inverting the true map (Newton's method)."""
        header = nominal_header(chip, 150.0, 2.0)
        angle = np.radians(turn)
        cd = SCALE * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([-1.0, 1.0])
        for k in range(4):
            header[f"CD{k // 2 + 1}_{k % 2 + 1}"] = cd[k // 2, k % 2]
        goal = np.stack(project_tan(*sky, 150.0, 2.0), axis=1)
        pixel = np.full((len(goal), 2), N / 2.0)
        inverse = np.linalg.inv(cd)
        for _ in range(8):
            now = np.stack(project_tan(*scope.sky(chip, *pixel.T), 150.0, 2.0), axis=1)
            pixel = pixel + (goal - now) @ inverse.T
        on = np.all((pixel > 2) & (pixel < N - 3), axis=1)
        pixel = pixel[on] + rng.normal(0, err, (int(on.sum()), 2))
        n = len(pixel)
        return ChipStars(*pixel.T, np.full(n, err), np.full(n, 100.0), header, (N, N))

    def solve(self, rng, scope, chip):
        """A solution as an exposure alone might give it: each chip off by 30 mas, tilted and curved a little."""
        x, y = grid_points((N, N))
        xi, eta = project_tan(*scope.sky(chip, x, y), 150.0, 2.0)
        u, v = x / N, y / N
        wrong = rng.normal(0, 30 / 3.6e6, (2, 4)) @ np.stack([np.ones_like(u), u, v, u * v])
        return fit_tan_sip(x, y, *deproject_tan(xi + wrong[0], eta + wrong[1], 150.0, 2.0), (N, N))

    def errors(self, headers):
        """Rms per axis against truth, mas, over all chips of all exposures."""
        found = [
            errors_mas(self.telescopes[name], {chip: Solved(header) for chip, header in chips.items()})
            for name, chips in headers.items()
        ]
        return np.sqrt(np.mean(np.square(found), axis=0))


class Solved:
    def __init__(self, header):
        self.header = header


@pytest.fixture(scope="module")
def run():
    return Run(1)


@pytest.fixture(scope="module")
def joint(run):
    return fit_joint_astrometry(run.exposures, run.solutions, run.catalog, EPOCHS)


def test_the_injected_geometry_is_recovered_to_4_mas_where_the_solutions_were_30_mas_off(run, joint):
    """LV-15: chips misplaced and turned, cubic distortion, four pointings, one of them with the camera turned."""
    assert run.errors(run.solutions).min() > 25.0
    assert run.errors(joint.headers).max() < 4.0
    assert joint.order >= 3


def test_scatter_is_told_as_it_was_injected(joint):
    """LV-15: centroids of 0.012 px (4.8 mas) and references of 20 mas."""
    assert joint.repeatability_mas == pytest.approx((4.8, 4.8), rel=0.15)
    assert joint.reference_rms_mas == pytest.approx((20.0, 20.0), rel=0.1)
    assert joint.n_observations > joint.n_stars > joint.n_references > 250


def test_one_geometry_for_all_beats_each_exposure_alone(run, joint):
    alone = {
        name: {
            chip: one.header
            for chip, one in solve_exposure(chips, run.catalog, EPOCHS[name], trusted=False, max_order=3).items()
        }
        for name, chips in run.exposures.items()
    }
    assert run.errors(joint.headers).max() < 0.7 * run.errors(alone).max()


def test_rigid_chips_get_no_shape_of_their_own_and_exposures_no_terms(joint):
    assert joint.priors_mas["chip"] == 0.0
    assert joint.priors_mas["exposure"] == 0.0
    assert joint.priors_mas["shape"] <= 30.0


def test_without_distortion_terms_the_same_run_is_worse(run):
    flat = fit_joint_astrometry(run.exposures, run.solutions, run.catalog, EPOCHS, max_order=1)
    assert flat.order == 1
    assert run.errors(flat.headers).max() > 8.0


def test_proper_motions_between_the_exposures_do_not_bias_them():
    """LV-07: stars that move by 60 mas/yr rms, exposures two years apart; ignored, they would scatter."""
    run = Run(2, pm_mas=60.0)
    still = {"pmra": 0.0, "pmdec": 0.0}
    good = fit_joint_astrometry(run.exposures, run.solutions, run.catalog, EPOCHS)
    bad = fit_joint_astrometry(run.exposures, run.solutions, run.catalog.assign(**still), EPOCHS)
    assert run.errors(good.headers).max() < 5.0
    assert max(bad.repeatability_mas) > 3.0 * max(good.repeatability_mas)


def test_wrong_stars_and_wrong_references_are_rejected(run):
    """One centroid and one reference in twenty off by 0.3 arcsec change the result by less than 2 mas."""
    rng = np.random.default_rng(5)
    spoilt = {
        name: {
            chip: ChipStars(
                one.x + np.where(rng.random(len(one.x)) < 0.05, 0.75, 0.0), one.y, one.xy_err, one.flux, one.header,
                one.shape,
            )
            for chip, one in chips.items()
        }
        for name, chips in run.exposures.items()
    }  # fmt: skip
    wrong = rng.random(len(run.catalog)) < 0.05
    catalog = run.catalog.assign(dec=run.catalog.dec + np.where(wrong, 0.3 / 3600, 0.0))
    joint = fit_joint_astrometry(spoilt, run.solutions, catalog, EPOCHS)
    assert run.errors(joint.headers).max() < 5.0


def test_chips_that_an_exposure_lacks_are_taken_from_another(run):
    solutions = {name: dict(chips) for name, chips in run.solutions.items()}
    for name, chip in (("e0", "c0"), ("e1", "c1"), ("e2", "c2"), ("e3", "c3")):
        del solutions[name][chip]
    joint = fit_joint_astrometry(run.exposures, solutions, run.catalog, EPOCHS)
    assert {name: sorted(chips) for name, chips in joint.headers.items()} == {
        name: sorted(chips) for name, chips in solutions.items()
    }
    assert run.errors(joint.headers).max() < 5.0


def test_exposures_without_a_chip_in_common_are_each_fitted(run):
    """Cut-outs of different chips: nothing is shared but a few stars, and nothing breaks."""
    solutions = {f"e{k}": {f"c{k}": run.solutions[f"e{k}"][f"c{k}"]} for k in range(4)}
    joint = fit_joint_astrometry(run.exposures, solutions, run.catalog, EPOCHS)
    assert run.errors(joint.headers).max() < 15.0


def test_the_result_does_not_depend_on_the_order_of_exposures_and_chips(run, joint):
    again = fit_joint_astrometry(
        {name: dict(reversed(chips.items())) for name, chips in reversed(run.exposures.items())},
        {name: dict(reversed(chips.items())) for name, chips in reversed(run.solutions.items())},
        run.catalog, EPOCHS,
    )  # fmt: skip
    for name, chips in joint.headers.items():
        assert all(again.headers[name][chip].tostring() == header.tostring() for chip, header in chips.items())


def test_a_single_exposure_and_nothing_at_all(run):
    one = fit_joint_astrometry(run.exposures, {"e0": run.solutions["e0"]}, run.catalog, EPOCHS)
    assert run.errors(one.headers).max() < 10.0
    with pytest.raises(UnprocessableData, match="0 solved exposures"):
        fit_joint_astrometry(run.exposures, {}, run.catalog, EPOCHS)
    with pytest.raises(UnprocessableData, match="0 reference stars: nothing to fit"):
        fit_joint_astrometry(run.exposures, run.solutions, run.catalog.iloc[:0], EPOCHS)
    with pytest.raises(UnprocessableData, match="of 3 reference stars in 4 exposures: too few"):
        fit_joint_astrometry(run.exposures, run.solutions, run.catalog.iloc[[3, 30, 60]], EPOCHS)


def test_designs_are_the_derivatives_of_positions(run):
    """A change of every parameter in turn moves positions as its column says, to a thousandth of the change."""
    geometry = lay_out(run.exposures, run.solutions, 4)
    x, y = np.array([5.0, 300.0, 500.0]), np.array([400.0, 20.0, 250.0])
    _, design = geometry.design("c1", x, y)
    columns = geometry.columns("e1", "c1")
    start = geometry.start()
    before = geometry.place(start, "e1", "c1", x, y)
    for k, column in enumerate(columns):
        values = np.zeros(geometry.n_columns)
        values[column] = 1e-5
        moved = geometry.place(GeometryFit(4, start.priors, values), "e1", "c1", x, y) - before
        expected = (geometry.first["e1"][1] @ design[:, :, k]).T * 1e-5
        assert np.allclose(moved, expected, atol=1e-8)
    assert len(np.unique(columns)) == len(columns) == design.shape[2]
    assert isinstance(run.exposures["e0"]["c0"].header, fits.Header)
