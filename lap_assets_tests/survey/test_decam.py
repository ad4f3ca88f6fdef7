"""Nine real DECam exposures, calibrated by the Community Pipeline, from ingest to the catalogue of one local cell.

Data: NOIRLab, as kept by legacysurvey/legacypipe (see the shared data's README).
"""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lap_assets.model.ids import DataId
from lap_assets.operations.workspace import Workspace
from lap_assets.qa.metrics import match_positions, measure_offsets
from lap_assets.qa.noise import measure_aperture_noise
from lap_assets.store.repo import Repo
from lap_assets_tests.survey.conftest import lap

pytestmark = [pytest.mark.survey, pytest.mark.slow, pytest.mark.xdist_group("decam")]
FIELD = (186.7437, 25.4617)
SATURATED_MAG = 16.5


@pytest.fixture(scope="module")
def decam(shared_data, tmp_path_factory):
    """The repository of the nine exposures, run to the end."""
    root = tmp_path_factory.mktemp("decam") / "repo"
    data = shared_data / "decam_cutouts"
    at = ("--repo", root)
    lap("init", root)
    lap(
        *at,
        "ingest",
        data / "images",
        "--camera",
        "decam",
        "--kind",
        "calibrated",
        "--zero-points",
        data / "survey-ccds-1.fits.gz",
    )
    lap(*at, "ingest", data / "gaia", "--kind", "refcat", "--name", "gaia")
    lap(*at, "tessellation", "field", "--ra", FIELD[0], "--dec", FIELD[1], "--size", 1.2, "--pixel-scale", 0.262)
    lap(*at, "run")
    return root


def test_decam_nine_exposures_three_stacks_one_catalog(decam):
    """AP-10, LV-16: fewer than six inputs per band, so the final stacks are made without a first pass."""
    repo = Repo(decam)
    assert len(repo.query("chips", "state=done")) == len(repo.query("solutions", "state=done")) == 9
    first = repo.query("stacks")
    assert set(first["state"]) == {"no_work"} and all("6 needed" in reason for reason in first["reason"])
    assert sorted(repo.query("final_stacks", "state=done")["band"]) == ["g", "r", "z"]
    objects = repo.get("object_catalogs", cell="field.0")
    assert len(objects) >= 10 and {"flux_psf_g", "flux_psf_r", "flux_psf_z"} <= set(objects.columns)


def read_sources(repo: Repo) -> dict[str, pd.DataFrame]:
    survey = Workspace.open(repo.root).survey()
    return {
        name: repo.read_table(DataId("main", "solutions", name), "sources.parquet").assign(band=one.band)
        for name, one in survey.exposures.items()
    }


def test_decam_brightest_star_agrees_between_exposures(decam):
    """Aperture magnitudes of the brightest star on all nine, at the given zero points: 0.03 mag rms per band."""
    tables = read_sources(Repo(decam))
    every = pd.concat(tables.values(), ignore_index=True)
    star = every.loc[every["mag"].idxmin()]
    rows = []
    for name, table in tables.items():
        mine, _ = match_positions(table["ra"], table["dec"], [star["ra"]], [star["dec"]], 1.0)
        assert len(mine) == 1, name
        rows.append({"exposure": name, "band": table["band"].iloc[0], "mag": table["mag"].to_numpy()[mine[0]]})
    spread = pd.DataFrame(rows).groupby("band")["mag"].std(ddof=1)
    assert (spread <= 0.03).all(), spread


def test_decam_positions_are_gaias(decam):
    """Every Gaia star on a cutout whose core has no bad pixel lies within 0.1 arcsec, its proper motion applied."""
    repo = Repo(decam)
    survey = Workspace.open(decam).survey()
    gaia = repo.read_refcat("gaia", *FIELD, 0.05)
    matched = 0
    for name, sources in read_sources(repo).items():
        table = sources[sources.usable]
        years = (survey.exposures[name].mjd - 51544.5) / 365.25 + 2000.0 - gaia["ref_epoch_yr"]
        ra = gaia["ra"] + years * gaia["pmra"] / 3.6e6 / np.cos(np.radians(gaia["dec"]))
        dec = gaia["dec"] + years * gaia["pmdec"] / 3.6e6
        mine, theirs = match_positions(table["ra"], table["dec"], ra, dec, 0.5)
        east, north = measure_offsets(
            table["ra"].to_numpy()[mine], table["dec"].to_numpy()[mine], ra.to_numpy()[theirs], dec.to_numpy()[theirs]
        )
        matched += len(mine)
        assert np.hypot(east, north).max() <= 100, f"{name}: {np.hypot(east, north)} mas"
    assert matched >= 26  # of 27: three on each of nine, one with a bad pixel


def test_decam_stacks_are_as_deep_as_their_inputs_allow(decam):
    """Noise of empty apertures against the inverse variances of the inputs: within 10 % of ideal."""
    repo = Repo(decam)
    objects = repo.get("object_catalogs", cell="field.0")
    for band in "grz":
        stack = repo.get("final_stacks", cell="field.0", band=band)
        x, y = stack.wcs.all_world2pix(objects["ra"], objects["dec"], 0)
        full = stack.planes["NINPUT"] == stack.planes["NINPUT"].max()
        measured = measure_aperture_noise(stack.sci, stack.usable & full, x, y, 2.0, avoid_px=6.0)
        weights = []
        for pin in repo.manifest(DataId("main", "final_stacks", f"field.0|{band}", "00")).inputs:
            if pin.data_id.product != "warps":
                continue
            warp = repo.read_image(pin)
            weights.append(
                np.where(warp.usable, 1.0 / np.maximum(warp.var, 1e-30), 0.0) / float(warp.header["NOISECOV"])
            )
        ideal = float(np.sqrt(np.median(1.0 / np.sum(weights, axis=0)[stack.usable & full])))
        assert 0.9 <= ideal / measured <= 1.1, (band, ideal / measured)


def test_decam_colour_picture(decam, tmp_path):
    """A picture of the field in three bands: the brightest objects shine, in colours, out of a dark sky."""
    lap("--repo", decam, "cutout", *FIELD, 60, "-o", tmp_path / "field.png")
    picture = np.asarray(Image.open(tmp_path / "field.png").convert("RGB"), float)[::-1]
    objects = Repo(decam).get("object_catalogs", cell="field.0")
    side = picture.shape[0]
    scale = 0.262 / 3600
    x = side // 2 - (objects["ra"] - FIELD[0]) * np.cos(np.radians(FIELD[1])) / scale
    y = side // 2 + (objects["dec"] - FIELD[1]) / scale
    inside = (x > 5) & (x < side - 6) & (y > 5) & (y < side - 6)
    brightest = objects[inside].nlargest(4, "flux_auto_r").index
    peaks = np.array(
        [
            picture[round(y[i]) - 2 : round(y[i]) + 3, round(x[i]) - 2 : round(x[i]) + 3].max(axis=(0, 1))
            for i in brightest
        ]
    )
    assert np.median(picture) < 40 and (peaks.max(axis=1) > 150).all(), peaks
    assert np.ptp(peaks, axis=1).max() > 40, "no colours"
