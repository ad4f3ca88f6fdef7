"""Real DECam exposures through chips and solutions: cutouts with three Gaia stars each, a given WCS and zero point."""

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from lap_assets.model.camera import load_camera
from lap_assets.model.ids import DataId
from lap_assets.model.image import Mask
from lap_assets.model.survey import Survey
from lap_assets.pipeline import chips, solutions
from lap_assets.pipeline.foreign_tables import inspect_refcat
from lap_assets.pipeline.ingest import inspect_calibrated
from lap_assets.science.astrometry import propagate_positions
from lap_assets.settings import Settings
from lap_assets.store.repo import Repo


@pytest.fixture(scope="module")
def decam(shared_data, tmp_path_factory):
    """Survey, repository with chips and solutions of all nine exposures, and the Gaia table."""
    folder = shared_data / "decam_cutouts"
    images = sorted((folder / "images").rglob("*ooi*.fits"))
    exposures, rejected = inspect_calibrated(images, load_camera("decam"), folder / "survey-ccds-1.fits.gz")
    assert len(exposures) == 9 and not rejected
    gaia = pd.concat([inspect_refcat(path)[0] for path in sorted((folder / "gaia").glob("*.fits"))], ignore_index=True)
    repo = Repo(tmp_path_factory.mktemp("decam"))
    repo.write_refcat("gaia", gaia)
    survey = Survey("main", {one.id: one for one in exposures}, reference_catalogs={"*": "gaia"})
    for exposure in survey.exposures:
        for module in (chips, solutions):
            for task in module.plan(survey, repo, Settings(), "main", exposure):
                output = module.make(task, repo)
                repo.publish(
                    task.data_id, output.members, inputs=task.inputs, recipe="r", config_sha256="c", code=1,
                    metrics=output.metrics,
                )  # fmt: skip
    return survey, repo, gaia


def test_decam_chips_keep_the_pipeline_s_flags_and_variances(decam):
    survey, repo, _ = decam
    one = survey.exposures["decam-630780"].chips[0]
    image = repo.read_image(DataId("main", "chips", "decam-630780", one.chip))
    codes, ivar = fits.getdata(one.mask_path, 1), fits.getdata(one.variance_path, 1)
    assert np.array_equal((image.mask & int(Mask.COSMIC_RAY)) != 0, codes == 5)
    weighted = ivar > 0
    assert np.allclose(image.var[weighted], 1.0 / ivar[weighted], rtol=1e-5)
    # the noise of the sky is what the variance says (resampling and source light aside)
    values = image.sci[image.usable]
    spread = 1.4826 * np.median(np.abs(values - np.median(values)))
    assert spread == pytest.approx(np.sqrt(np.median(image.var[image.usable])), rel=0.1)


def test_decam_gaia_stars_lie_within_0_1_arcsec(decam):
    """Stars of S/N > 50 with proper motions applied; in g, refraction at 1.8 airmasses spreads them by 0.05 arcsec."""
    survey, repo, gaia = decam
    checked = 0
    for exposure in survey.exposures.values():
        ra, dec = propagate_positions(gaia, 2000.0 + (exposure.mjd - 51544.5) / 365.25)
        table = repo.read_table(DataId("main", "solutions", exposure.id), "sources.parquet")
        table = table[table.usable & (table.flux > 50 * table.flux_err)]
        for a, d in zip(table.ra, table.dec, strict=True):
            distance = np.hypot((ra - a) * np.cos(np.radians(d)), dec - d) * 3600
            if distance.min() < 1.5:
                assert distance.min() < 0.1
                checked += 1
    assert checked >= 20


def test_decam_brightest_star_repeats_to_0_03_mag_with_the_given_zero_points(decam):
    survey, repo, gaia = decam
    tables = {e: repo.read_table(DataId("main", "solutions", e), "sources.parquet") for e in survey.exposures}
    centre = np.mean([[table.ra.mean(), table.dec.mean()] for table in tables.values()], axis=0)
    near = np.hypot((gaia.ra - centre[0]) * np.cos(np.radians(centre[1])), gaia.dec - centre[1]) < 40.0 / 3600
    star = gaia[near].sort_values("phot_g_mean_mag").head(1)
    magnitudes = {}
    for exposure in survey.exposures.values():
        document = repo.read_json(DataId("main", "solutions", exposure.id), "solution.json")
        assert document["zero_point_source"] == "given"
        (ra,), (dec,) = propagate_positions(star, 2000.0 + (exposure.mjd - 51544.5) / 365.25)
        table = tables[exposure.id]
        distance = np.hypot((table.ra - ra) * np.cos(np.radians(dec)), table.dec - dec) * 3600
        assert distance.min() < 0.1
        magnitudes.setdefault(exposure.band, []).append(table.mag[distance.idxmin()])
    assert {band: len(values) for band, values in magnitudes.items()} == {"g": 2, "r": 3, "z": 4}
    for values in magnitudes.values():
        assert np.std(values) < 0.03


def test_decam_wcs_stays_that_of_the_header_but_for_a_small_shift(decam):
    survey, repo, _ = decam
    for exposure in survey.exposures.values():
        file = exposure.chips[0]
        one = repo.read_json(DataId("main", "solutions", exposure.id), "solution.json")["chips"][file.chip]
        assert one["astrometry"] in ("header, shifted", "header as given")
        header = fits.getheader(file.path, 1)
        x, y = np.meshgrid(np.linspace(0, 180, 5), np.linspace(0, 180, 5))
        ours = np.array(WCS(fits.Header(one["wcs"])).all_pix2world(x, y, 0))
        theirs = np.array(WCS(header).all_pix2world(x, y, 0))
        offset = (ours - theirs) * 3600 * np.array([np.cos(np.radians(25.4)), 1.0])[:, None, None]
        assert np.abs(offset).max() < 0.3
        assert np.ptp(offset, axis=(1, 2)).max() < 1e-3
