"""Solutions of exposures whose chips hold more galaxies than stars: none of them becomes the PSF in silence (LV-12)."""

import galsim
import numpy as np
import pytest
from astropy.io import fits

from lap_assets.model.camera import load_camera
from lap_assets.model.ids import DataId
from lap_assets.model.image import MaskedImage
from lap_assets.model.survey import ChipFile, Exposure, Survey
from lap_assets.pipeline import solutions
from lap_assets.settings import QualitySettings, Settings
from lap_assets.store.repo import Repo
from lap_assets_tests.science.star_fields import add_star, observe
from lap_assets_tests.store.samples import publish

pytestmark = pytest.mark.slow

N, SKY, FWHM, RA, DEC = 512, 400.0, 2.6, 40.0, -20.0
CHIPS = ("c0", "c1", "c2", "c3")


def draw_chip(rng, header, n_stars, n_galaxies, fwhm_px=FWHM, max_shear=0.18):
    """Stars, and galaxies of one size, drawn out as disks seen from the side are; no two closer than 24 px."""
    cells = rng.permutation(15 * 15)[: n_stars + n_galaxies]
    places = 32.0 * (1 + np.stack([cells % 15, cells // 15])) + rng.uniform(-4, 4, (2, len(cells)))
    image = np.zeros((N, N))
    for k, (x, y) in enumerate(places.T):
        flux = 10 ** rng.uniform(4.0, 5.2)
        if k < n_stars:
            add_star(image, x, y, flux, fwhm_px)
            continue
        shear = galsim.Shear(g=rng.uniform(0, max_shear), beta=rng.uniform(0, np.pi) * galsim.radians)
        profile = galsim.Exponential(half_light_radius=0.95 * fwhm_px).shear(shear)
        ix, iy = round(x), round(y)
        offset = (x - ix, y - iy)
        stamp = galsim.Convolve(profile, galsim.Moffat(beta=3.0, fwhm=fwhm_px)).withFlux(flux)
        image[iy - 16 : iy + 17, ix - 16 : ix + 17] += stamp.drawImage(nx=33, ny=33, scale=1.0, offset=offset).array
    var = (image + SKY + 25.0).astype(np.float32)
    return MaskedImage(observe(rng, image, SKY), np.zeros((N, N), np.int16), var, header)


def solve(root, chips, **quality):
    """Make the solution of one exposure, whose headers are right; `chips` by name as keywords of `draw_chip`."""
    rng, repo, camera = np.random.default_rng(12), Repo(root), load_camera("simcam")
    files = []
    for name, contents in chips.items():
        header = fits.Header(camera.nominal_wcs(name, RA, DEC), copy=True)
        header["NAXIS1"], header["NAXIS2"], header["BUNIT"], header["CHIP"] = N, N, "electron", name
        publish(repo, DataId("main", "chips", "sim-1", name), {"image.fits": draw_chip(rng, header, **contents)})
        files.append(ChipFile(name, "", name, (), zero_point_mag=28.0))
    exposure = Exposure("sim-1", "simcam", "r", "sim-r", "2024-01-01", 60310.0, 30.0, RA, DEC, kind="calibrated",
                        chips=tuple(files))  # fmt: skip
    settings = Settings(quality=QualitySettings(**quality))
    (task,) = solutions.plan(Survey("main", {"sim-1": exposure}, {}, ()), repo, settings, "main", "sim-1")
    return solutions.make(task, repo).members["solution.json"]["chips"]


FIELD, CLUSTER = {"n_stars": 40, "n_galaxies": 30}, {"n_stars": 40, "n_galaxies": 150}
ALONE = {"n_stars": 0, "n_galaxies": 150, "max_shear": 0.7}


def test_half_of_the_chips_on_a_cluster_have_the_psf_of_the_stars(tmp_path):
    """LV-12: on two of four chips 150 galaxies of one size stand against 40 stars."""
    found = solve(tmp_path, dict(zip(CHIPS, (FIELD, FIELD, CLUSTER, CLUSTER), strict=True)))
    assert {one["state"] for one in found.values()} == {"good"}
    truth = found["c0"]["fwhm_arcsec"]
    assert truth == pytest.approx(0.4 * FWHM, rel=0.08)  # the pixel widens it a little
    for one in found.values():
        assert one["fwhm_arcsec"] == pytest.approx(truth, rel=0.02)
        assert one["psf_residual"] < 0.03
        assert 30 <= one["n_stars"] <= 45


def test_seeing_that_grows_from_chip_to_chip_stays(tmp_path):
    """LV-12: 45 per cent from the first chip to the last."""
    growth = np.array([1.0, 1.15, 1.3, 1.45])
    found = solve(tmp_path, {name: FIELD | {"fwhm_px": 2.4 * g} for name, g in zip(CHIPS, growth, strict=True)})
    assert {one["state"] for one in found.values()} == {"good"}
    widths = np.array([found[name]["fwhm_moffat_arcsec"] for name in CHIPS])
    # what the pixel adds is less, relatively, to wider stars
    assert widths / widths[0] == pytest.approx(growth, rel=0.04)


def test_a_chip_of_galaxies_alone_fails_with_the_reason(tmp_path):
    """LV-12: no star to choose instead, so the cut on the PSF's residual tells; without the cut it passes."""
    chips = dict(zip(CHIPS, (FIELD, FIELD, FIELD, ALONE), strict=True))
    found = solve(tmp_path / "cut", chips, max_fwhm_arcsec=None)
    assert [found[name]["state"] for name in CHIPS] == ["good", "good", "good", "failed"]
    assert found["c3"]["reason"].startswith("psf_residual 0.0") and found["c3"]["reason"].endswith(" > 0.05")
    passed = solve(tmp_path / "uncut", chips, max_fwhm_arcsec=None, max_psf_residual=None)
    assert passed["c3"]["state"] == "good" and passed["c3"]["psf_residual"] > 0.05
