"""What a warp takes from the joint calibration (LV-15): zero point, terms over the focal plane, chips left out."""

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.wcs import WCS

from lap_assets.model.ids import DataId
from lap_assets.pipeline.joint_correction import JointCorrection, read_correction
from lap_assets.store.repo import Repo
from lap_assets_tests.store.samples import publish

RA, DEC, SCALE = 30.0, 10.0, 0.26 / 3600


def chip_wcs(crpix=(1000.0, 2000.0)):
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRVAL1"], header["CRVAL2"], header["CRPIX1"], header["CRPIX2"] = RA, DEC, *crpix
    header["CD1_1"], header["CD1_2"], header["CD2_1"], header["CD2_2"] = -SCALE, 0.0, 0.0, SCALE
    return WCS(header)


def test_a_gradient_brightens_one_edge_and_dims_the_other_by_what_the_terms_say():
    one = JointCorrection(terms=(0.05, -0.02), centre=(RA, DEC, 0.5))
    y, x = np.mgrid[0:4096:97, 0:2048:53].astype(float)
    ra, dec = (z.reshape(x.shape) for z in chip_wcs().all_pix2world(x.ravel(), y.ravel(), 0))
    factor = one.scale_at(ra, dec)
    u, v = -(x - 999.0) * SCALE / 0.5, (y - 1999.0) * SCALE / 0.5
    expected = 10 ** (-0.4 * (0.05 * u - 0.02 * v))
    assert np.abs(factor / expected - 1).max() < 1e-5  # 0.01 mmag


def test_without_terms_nothing_changes():
    for one in (JointCorrection(0.1), JointCorrection(0.1, (0.0, 0.0))):
        assert (one.scale_at(np.full((2, 3), RA), np.full((2, 3), DEC)) == np.ones((2, 3))).all()


def test_an_exposure_finds_its_own_rows(tmp_path):
    repo = Repo(tmp_path)
    table = pd.DataFrame({
        "exposure": ["a-1", "a-2"], "dzp_mag": [0.01, -0.01], "dzp_err_mag": 0.001, "n_stars": [50, 60],
        "term_10_mag": [0.02, 0.0], "term_01_mag": [-0.03, 0.0], "ra_deg": RA, "dec_deg": DEC, "radius_deg": 0.5,
    })  # fmt: skip
    selection = pd.DataFrame({
        "exposure": ["a-1", "a-1", "a-2"], "chip": ["c0", "c1", "c0"], "used": [True, False, True],
        "reason": ["", "farther than 1 deg", ""],
    })  # fmt: skip
    data_id = DataId("main", "joint_solutions", "c.0|r")
    headers = {"a-1": {"c0": {"CRVAL1": 1.0}}}
    members = {"zeropoints.parquet": table, "selection.parquet": selection, "astrometry.json": headers}
    publish(repo, data_id, members)
    pins = (repo.pin(data_id),)
    first = read_correction(repo, pins, "a-1")
    assert (first.dzp_mag, first.terms) == (0.01, (0.02, -0.03))
    assert first.left_out == {"c1": "farther than 1 deg"} and first.headers == {"c0": {"CRVAL1": 1.0}}
    assert read_correction(repo, pins, "a-9") == JointCorrection()
    assert read_correction(repo, (), "a-1") == JointCorrection()
