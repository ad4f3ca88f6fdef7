"""Warps follow the joint calibration of their run and the sky that was chosen (LV-15, LV-17)."""

import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

from lap_assets.errors import NotFound, NoWork
from lap_assets.model.ids import DataId
from lap_assets.model.image import NO_WEIGHT, Mask, MaskedImage
from lap_assets.model.survey import ChipFile, Exposure, Run, Survey
from lap_assets.model.tessellation import LocalTessellation
from lap_assets.pipeline import warps
from lap_assets.pipeline.psf_members import planes_of_models, read_psf_grid
from lap_assets.pipeline.warps import NANOJANSKY_ZERO_POINT
from lap_assets.science.psf import PsfModel, measure_shape, shift_stamps
from lap_assets.science.warp_kernels import KERNELS
from lap_assets.settings import Settings, WarpSettings
from lap_assets.store.repo import Repo
from lap_assets_tests.science.star_fields import add_star
from lap_assets_tests.store.samples import publish

RA, DEC, N, SCALE = 40.0, -20.0, 320, 0.4 / 3600
FLUX, SKY, RADIUS = 5e4, 100.0, 0.02
CELL = LocalTessellation("demo", [(RA, DEC)], 0.4, 400, (1, 1), 20).only
CHIP = DataId("main", "chips", "a-1", "c0")
SOLUTION, JOINT = DataId("main", "solutions", "a-1"), DataId("main", "joint_solutions", "demo.0|r")
PLACES = [(x, y) for x in (60, 160, 260) for y in (60, 160, 260)]


@pytest.fixture
def repo(tmp_path):
    """One chip with nine stars of 5e4 nJy on a sky of 100, that a mesh and the focal plane tell 100 and 90."""
    header = fits.Header()
    header["NAXIS1"], header["NAXIS2"], header["BUNIT"] = N, N, "electron"
    header["CTYPE1"], header["CTYPE2"], header["CRVAL1"], header["CRVAL2"] = "RA---TAN", "DEC--TAN", RA, DEC
    header["CRPIX1"], header["CRPIX2"], header["CD1_1"], header["CD2_2"] = N / 2, N / 2, -SCALE, SCALE
    header["CD1_2"], header["CD2_1"] = 0.0, 0.0
    sci = np.full((N, N), SKY)
    for x, y in PLACES:
        add_star(sci, x, y, FLUX, 3.0)
    image = MaskedImage(sci.astype(np.float32), np.zeros((N, N), np.int16), np.full((N, N), 25.0, np.float32), header)
    repo = Repo(tmp_path)
    publish(repo, CHIP, {"image.fits": image})
    publish_solution(repo, header)
    return repo


def draw_psf():
    """The model that belongs to the stars of the chip."""
    stamp = np.zeros((25, 25))
    add_star(stamp, 12, 12, 1.0, 3.0)
    return PsfModel((stamp / stamp.sum())[None].astype(np.float32), 0, (160.0, 160.0, 160.0, 160.0), 9, 0.0)


def publish_solution(repo, header, without=(), **facts):
    chip = {"state": "good", "reason": "", "wcs": {card.keyword: card.value for card in header.cards},
            "fwhm_arcsec": 1.2, "fwhm_moffat_arcsec": 1.2, "moffat_beta": 3.0} | facts  # fmt: skip
    x, y = np.array(PLACES, float).T
    flux = np.where(np.arange(9) < 7, FLUX, 100.0)
    sources = pd.DataFrame({
        "chip": "c0", "x": x, "y": y, "ra": RA, "dec": DEC, "flux": flux, "flux_err": 50.0,
        "is_star": np.arange(9) > 0, "usable": np.arange(9) != 1,
    })  # fmt: skip
    sources = sources.drop(columns=list(without), errors="ignore")
    members = {
        "solution.json": {"zero_point_mag": NANOJANSKY_ZERO_POINT, "chips": {"c0": chip}}, "sources.parquet": sources,
        "backgrounds.fits": {"C0": np.full((2, 2), SKY, np.float32)},
        "skies.fits": {"C0": np.full((2, 2), SKY - 10.0, np.float32)},
        "psfs.fits": planes_of_models({"c0": draw_psf()}),
    }  # fmt: skip
    publish(repo, SOLUTION, {name: value for name, value in members.items() if name not in without})


def calibrate(repo, left_out="", headers=None, **terms):
    table = pd.DataFrame({"exposure": ["a-1"], "dzp_mag": [0.1], "dzp_err_mag": 0.001, "n_stars": 50, **terms,
                          "ra_deg": RA, "dec_deg": DEC, "radius_deg": RADIUS})  # fmt: skip
    selection = pd.DataFrame({"exposure": ["a-1"], "chip": ["c0"], "used": [not left_out], "reason": [left_out]})
    members = {"zeropoints.parquet": table, "selection.parquet": selection, "astrometry.json": headers or {}}
    publish(repo, JOINT, members)


def make_warp(repo, names=("c0",), **chosen):
    corners = tuple((RA + dx / np.cos(np.radians(DEC)), DEC + dy) for dx, dy in ((-1, -1), (1, -1), (1, 1), (-1, 1)))
    corners = tuple((RA + (ra - RA) * N / 2 * SCALE, DEC + (dec - DEC) * N / 2 * SCALE) for ra, dec in corners)
    exposure = Exposure(
        "a-1",
        "toy",
        "r",
        "r",
        "2024-01-01",
        60310.0,
        30.0,
        RA,
        DEC,
        chips=tuple(ChipFile(name, "", name, corners) for name in names),
    )
    survey = Survey("main", {"a-1": exposure}, {"demo.0": CELL}, (Run(1, "demo.0", "r", ("a-1",)),))
    settings = Settings(warps=WarpSettings(**chosen))
    (task,) = warps.plan(survey, repo, settings, "main", "a-1|demo.0")
    return warps.make(task, repo)


def measure_stars(output):
    """Flux of each star in the warp, nJy, and the median of the sky."""
    image = output.members["image.fits"]
    fluxes = []
    for x, y in PLACES:
        ra, dec = RA - (x - N / 2 + 1) * SCALE / np.cos(np.radians(DEC)), DEC + (y - N / 2 + 1) * SCALE
        px, py = image.wcs.all_world2pix(ra, dec, 0)
        box = image.sci[int(py) - 14 : int(py) + 16, int(px) - 14 : int(px) + 16]
        fluxes.append(float(box.sum()))
    return np.array(fluxes), float(np.median(image.sci[image.var > 0]))


def test_zero_point_and_focal_plane_terms_of_the_run_are_applied(repo):
    """A star at u = 0.5 of a term of 0.2 mag is 0.1 mag brighter than without it, and the variance follows."""
    calibrate(repo)
    plain = make_warp(repo)
    calibrate(repo, term_10_mag=[-0.2], term_01_mag=[0.0])
    tilted = make_warp(repo)
    before, after = measure_stars(plain)[0], measure_stars(tilted)[0]
    assert before == pytest.approx(FLUX * 10 ** (-0.4 * 0.1), rel=2e-3)
    u = np.array([-(x - N / 2 + 1) * SCALE / RADIUS for x, _ in PLACES])
    assert -2.5 * np.log10(after / before) == pytest.approx(-0.2 * u, abs=2e-3)
    # the variance goes with the square of the flux
    ratio = tilted.members["image.fits"].var / np.where(
        plain.members["image.fits"].var > 0, plain.members["image.fits"].var, np.nan
    )
    edges = np.array([-1.0, 1.0]) * (N / 2) * SCALE / RADIUS
    assert np.nanpercentile(ratio, [0.5, 99.5]) == pytest.approx(10 ** (0.8 * 0.2 * edges), rel=0.02)


def test_a_chip_that_the_run_leaves_out_is_not_warped_and_the_reason_is_told(repo):
    """LV-13."""
    calibrate(repo, left_out="exposure with fewer than 30 reference stars")
    with pytest.raises(NoWork, match="lands on skycell 00; exposure with fewer than 30 reference stars"):
        make_warp(repo)


def test_joint_astrometry_moves_the_chip(repo):
    calibrate(repo)
    cards = repo.read_json(SOLUTION, "solution.json")["chips"]["c0"]["wcs"]
    plain = make_warp(repo).members["image.fits"].sci
    calibrate(repo, headers={"a-1": {"c0": cards | {"CRPIX1": cards["CRPIX1"] + 3}}})
    moved = make_warp(repo).members["image.fits"].sci
    y0, x0 = np.unravel_index(np.argmax(plain), plain.shape)
    around = moved[y0 - 3 : y0 + 4, x0 - 8 : x0 + 9]
    assert abs(int(np.unravel_index(np.argmax(around), around.shape)[1]) - 8) == 3


def test_the_sky_is_the_mesh_or_the_surface_over_the_focal_plane(repo):
    """LV-17: the 10 electrons that the mesh took for sky stay."""
    calibrate(repo)
    assert measure_stars(make_warp(repo))[1] == pytest.approx(0.0, abs=0.01)
    kept = measure_stars(make_warp(repo, sky="focal_plane"))[1]
    assert kept == pytest.approx(10.0 * 10 ** (-0.4 * 0.1), rel=0.01)


WARP = DataId("main", "warps", "a-1|demo.0", "00")


def test_the_psf_is_published_with_the_warp_and_is_that_of_its_stars(repo):
    """Adaptive sizes to 1 %, the fluxes fitted with it to 0.5 %; LV-16."""
    output = make_warp(repo)
    publish(repo, WARP, output.members)
    grid = read_psf_grid(repo, repo.pin(WARP))
    image = output.members["image.fits"]
    half = grid.stamp_px // 2
    assert output.metrics["fwhm_arcsec"] == pytest.approx(0.4 * grid.fwhm_px, abs=1e-4)
    # also on a skycell smaller than the step, whose corners alone say nothing of where all exposures meet
    assert len(grid.x) == len(grid.y) == 5
    for x, y in star_places(image)[[0, 4, 8]]:
        ix, iy = round(x), round(y)
        box = image.sci[iy - half : iy + half + 1, ix - half : ix + half + 1].astype(float)
        psf = shift_stamps(grid.evaluate(x, y)[None], np.array([x - ix]), np.array([y - iy]))[0]
        assert np.sum(box * psf) / np.sum(psf**2) == pytest.approx(FLUX, rel=5e-3)
        assert measure_shape(box).fwhm_px == pytest.approx(measure_shape(psf).fwhm_px, rel=0.01)


def star_places(image):
    """(9, 2) pixels of the stars on the warp."""
    x, y = np.array(PLACES, float).T
    sky = RA - (x - N / 2 + 1) * SCALE / np.cos(np.radians(DEC)), DEC + (y - N / 2 + 1) * SCALE
    return np.column_stack(image.wcs.all_world2pix(*sky, 0))


def test_without_a_moffat_profile_the_wings_are_those_of_the_usual_one(repo):
    header = fits.Header(list(repo.read_json(SOLUTION, "solution.json")["chips"]["c0"]["wcs"].items()))
    fitted = make_warp(repo).members["psf.fits"]["PSF"][0]
    publish_solution(repo, header, fwhm_moffat_arcsec=None, moffat_beta=None)
    assert make_warp(repo).members["psf.fits"]["PSF"][0] == pytest.approx(fitted, abs=1e-4)


def test_usable_bright_stars_are_listed_where_the_warp_has_them(repo):
    """Seven of nine are bright; of them one is no star and one not usable. Places to 0.05 px, fluxes with the terms."""
    calibrate(repo, term_10_mag=[-0.2], term_01_mag=[0.0])
    output = make_warp(repo)
    stars = output.members["stars.parquet"]
    assert len(stars) == 5 and list(stars.columns) == ["x", "y", "flux_njy", "snr"]
    assert stars.snr.to_numpy() == pytest.approx(FLUX / 50)
    assert (np.diff(stars.y) > -1e-9).all()
    places = star_places(output.members["image.fits"])
    for row in stars.itertuples():
        away = np.hypot(places[:, 0] - row.x, places[:, 1] - row.y)
        assert away.min() < 0.05
        x = PLACES[int(np.argmin(away))][0]
        u = -(x - N / 2 + 1) * SCALE / RADIUS
        assert row.flux_njy == pytest.approx(FLUX * 10 ** (-0.4 * (0.1 - 0.2 * u)), rel=2e-3)


def test_no_star_bright_enough_is_an_empty_list(repo):
    output = make_warp(repo, star_min_snr=1e6)
    publish(repo, WARP, output.members)
    stars = repo.read_table(WARP, "stars.parquet")
    assert len(stars) == 0 and {str(kind) for kind in stars.dtypes} == {"float64"}


def test_a_wcs_wrong_by_five_arcsec_shows_in_the_places_of_the_stars(repo):
    """What the stack compares: all stars 12.5 px from where another exposure has them; LV-16."""
    right = make_warp(repo).members["stars.parquet"]
    cards = repo.read_json(SOLUTION, "solution.json")["chips"]["c0"]["wcs"]
    calibrate(repo, headers={"a-1": {"c0": cards | {"CRVAL2": cards["CRVAL2"] + 5.0 / 3600.0}}})
    wrong = make_warp(repo).members["stars.parquet"]
    assert len(wrong) == len(right)
    assert (wrong.y - right.y).to_numpy() == pytest.approx(12.5, abs=0.05)
    assert (wrong.x - right.x).to_numpy() == pytest.approx(0.0, abs=0.05)


def test_levels_tell_what_sky_is_left_and_what_the_focal_plane_would_leave(repo):
    """LV-17: the mesh takes 10 electrons more than the surface; SKY is what brings them back."""
    calibrate(repo)
    levels = {name: plane for name, (plane, _) in make_warp(repo).members["levels.fits"].items()}
    full = levels["COUNT"] > 200
    assert full.sum() > 9
    nanojansky = 10.0 * 10 ** (-0.4 * 0.1)
    assert levels["LEVEL"][full] == pytest.approx(0.0, abs=0.05)
    assert levels["SKY"][full] == pytest.approx(nanojansky, rel=0.01)
    kept = {name: plane for name, (plane, _) in make_warp(repo, sky="focal_plane").members["levels.fits"].items()}
    assert kept["LEVEL"][full] == pytest.approx(nanojansky, rel=0.01)
    assert not kept["SKY"].any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_keeps_fluxes_and_is_named(repo, kernel):
    output = make_warp(repo, kernel=kernel)
    header = output.members["image.fits"].header
    limit = 0.06 if kernel == "nearest" else 5e-3  # nearest counts some pixels twice where the scales differ
    assert measure_stars(output)[0] == pytest.approx(FLUX, rel=limit)
    assert header["KERNEL"] == kernel
    assert header["MEDVAR"] == pytest.approx(np.median(output.members["image.fits"].var[100:300, 100:300]), rel=0.03)
    assert (header["NOISECOV"] > 1.05) == (kernel != "nearest")


def test_without_psf_models_and_surfaces_there_is_a_warp_without_them(repo):
    """A solution of other hands: no PSF, no stars, no sky to add; asked for the surface, it says that there is none."""
    header = fits.Header(list(repo.read_json(SOLUTION, "solution.json")["chips"]["c0"]["wcs"].items()))
    publish_solution(repo, header, without=("psfs.fits", "skies.fits", "is_star"))
    output = make_warp(repo)
    publish(repo, WARP, output.members)
    assert set(output.members) == {"image.fits", "levels.fits", "preview.png"}
    assert read_psf_grid(repo, repo.pin(WARP)) is None
    assert output.metrics["fwhm_arcsec"] == pytest.approx(1.2)
    assert not output.members["levels.fits"]["SKY"][0].any()
    with pytest.raises(NotFound, match=r"skies\.fits"):
        make_warp(repo, sky="focal_plane")


@pytest.mark.parametrize("spoil", ["masked", "nan", "infinite variance", "zero variance"])
def test_a_chip_without_a_good_pixel_is_no_work_that_names_the_exposure(repo, spoil):
    image = repo.read_image(CHIP)
    if spoil == "masked":
        image.mask[:] = int(Mask.BAD)
    elif spoil == "nan":
        image.mask[:] = int(Mask.NO_DATA)
        image.sci[:] = 0
    else:
        image.var[:] = 1e38 if spoil == "infinite variance" else 0.0
    publish(repo, CHIP, {"image.fits": image})
    with pytest.raises(NoWork, match="no good pixel of a-1 lands on skycell 00"):
        make_warp(repo)


def test_islands_without_data_are_masked_and_everything_published_is_finite(repo):
    """Variances of 0, −1 and 1e38 and a constant patch: the warp is published, masked there, weights finite."""
    image = repo.read_image(CHIP)
    image.var[40:60, 40:60], image.var[100:110, 200:210], image.var[200:220, 100:120] = 0.0, -1.0, 1e38
    image.sci[250:300, 250:300] = 7.0
    publish(repo, CHIP, {"image.fits": image})
    output = make_warp(repo)
    publish(repo, WARP, output.members)
    back = repo.read_image(WARP)
    good = (back.mask & int(NO_WEIGHT)) == 0
    assert (back.var[good] > 0).all() and np.isfinite(1.0 / back.var[good]).all()
    assert 0.004 < 1 - good[60:340, 60:340].mean() < 0.03
    assert output.metrics["covered_fraction"] == pytest.approx(good.mean(), abs=1e-4)


class WatchedRepo(Repo):
    """Its images give their pixels away once the chip after them is being read."""

    def read_image(self, unit, *rest, **more):
        name = unit.data_id.unit
        BEGUN[name].set()
        return WatchedImage(super().read_image(unit, *rest, **more), f"c{int(name[1:]) + 1}")


class WatchedImage:
    """The planes of a chip; those asking for the pixels wait a while for the reading of the one after it to begin."""

    def __init__(self, image, following):
        self.pixels, self.mask, self.var, self.following = image.sci, image.mask, image.var, following

    @property
    def sci(self):
        if self.following in BEGUN:
            SEEN[self.following] = BEGUN[self.following].wait(20.0)
        return self.pixels


SEEN: dict[str, bool] = {}
BEGUN = {f"c{number}": threading.Event() for number in range(3)}


def test_a_chip_is_read_while_the_one_before_is_resampled(repo):
    """LV-16: three chips on one skycell."""
    solution, image = repo.read_json(SOLUTION, "solution.json"), repo.read_image(CHIP)
    names = ("c0", "c1", "c2")
    for name in names[1:]:
        publish(repo, replace(CHIP, unit=name), {"image.fits": image})
    mesh = {name.upper(): np.full((2, 2), SKY, np.float32) for name in names}
    members = {
        "solution.json": solution | {"chips": dict.fromkeys(names, solution["chips"]["c0"])},
        "sources.parquet": repo.read_table(SOLUTION, "sources.parquet"), "backgrounds.fits": mesh, "skies.fits": mesh,
        "psfs.fits": planes_of_models(dict.fromkeys(names, draw_psf())),
    }  # fmt: skip
    publish(repo, SOLUTION, members)
    output = make_warp(WatchedRepo(repo.root), names)
    assert output.members["image.fits"].header["CHIPS"] == "c0"  # the others lie under it
    assert SEEN == {"c1": True, "c2": True}


def test_the_same_inputs_give_the_same_bytes(repo):
    first, second = (publish(repo, WARP, make_warp(repo).members) for _ in range(2))
    assert first.content_sha256 == second.content_sha256
