"""Warps follow the joint calibration of their run and the sky that was chosen (LV-15, LV-17)."""

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

from lap_assets.errors import NoWork
from lap_assets.model.ids import DataId
from lap_assets.model.image import MaskedImage
from lap_assets.model.survey import ChipFile, Exposure, Run, Survey
from lap_assets.model.tessellation import LocalTessellation
from lap_assets.pipeline import warps
from lap_assets.pipeline.warps import NANOJANSKY_ZERO_POINT
from lap_assets.settings import Settings, WarpSettings
from lap_assets.store.repo import Repo
from lap_assets_tests.science.star_fields import add_star
from lap_assets_tests.store.samples import publish

RA, DEC, N, SCALE = 40.0, -20.0, 320, 0.4 / 3600
FLUX, SKY, RADIUS = 5e4, 100.0, 0.02
CELL = LocalTessellation("demo", [(RA, DEC)], 0.4, 400, (1, 1), 20).only
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
    publish(repo, DataId("main", "chips", "a-1", "c0"), {"image.fits": image})
    chip = {"state": "good", "wcs": {card.keyword: card.value for card in header.cards}, "fwhm_arcsec": 1.2}
    sources = pd.DataFrame({name: [0.0] for name in ("x", "y", "ra", "dec", "flux", "flux_err")}).assign(chip="c0")
    members = {
        "solution.json": {"zero_point_mag": NANOJANSKY_ZERO_POINT, "chips": {"c0": chip}}, "sources.parquet": sources,
        "backgrounds.fits": {"C0": np.full((2, 2), SKY, np.float32)},
        "skies.fits": {"C0": np.full((2, 2), SKY - 10.0, np.float32)},
    }  # fmt: skip
    publish(repo, SOLUTION, members)
    return repo


def calibrate(repo, left_out="", headers=None, **terms):
    table = pd.DataFrame({"exposure": ["a-1"], "dzp_mag": [0.1], "dzp_err_mag": 0.001, "n_stars": 50, **terms,
                          "ra_deg": RA, "dec_deg": DEC, "radius_deg": RADIUS})  # fmt: skip
    selection = pd.DataFrame({"exposure": ["a-1"], "chip": ["c0"], "used": [not left_out], "reason": [left_out]})
    members = {"zeropoints.parquet": table, "selection.parquet": selection, "astrometry.json": headers or {}}
    publish(repo, JOINT, members)


def make_warp(repo, **chosen):
    corners = tuple((RA + dx / np.cos(np.radians(DEC)), DEC + dy) for dx, dy in ((-1, -1), (1, -1), (1, 1), (-1, 1)))
    corners = tuple((RA + (ra - RA) * N / 2 * SCALE, DEC + (dec - DEC) * N / 2 * SCALE) for ra, dec in corners)
    exposure = Exposure(
        "a-1", "toy", "r", "r", "2024-01-01", 60310.0, 30.0, RA, DEC, chips=(ChipFile("c0", "", "c0", corners),)
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
