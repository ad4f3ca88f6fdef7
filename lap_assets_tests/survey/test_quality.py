"""What a person learns about the exposures of the tiny survey: QC1 parameters and the focal plane (PHX-08, LV-12)."""

import json
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lap_assets_tests.survey.conftest import lap

pytestmark = [pytest.mark.survey, pytest.mark.slow, pytest.mark.xdist_group("survey")]


def test_qc1_parameters_of_every_exposure_are_in_one_table(tiny):
    """PHX-08, GW-07: all twelve exposures, all four chips of each."""
    rows = json.loads(lap("--repo", tiny.root, "quality", "--json").stdout)
    table = pd.DataFrame(rows)
    assert len(table) == 12 and table.partition.is_unique
    assert (table.chips_good == 4).all() and (table.chips_failed == 0).all() and (table.chips_incomplete == 0).all()
    assert table.fwhm_moffat_arcsec.between(0.7, 1.68).all() and (table.ellipticity < 0.33).all()
    assert table.limit_mag_5sigma.between(20, 27).all()
    (one,) = json.loads(lap("--repo", tiny.root, "quality", table.partition[0], "--json").stdout)
    assert one == rows[0]
    masters = json.loads(lap("--repo", tiny.root, "quality", "--product", "master_flats", "--json").stdout)
    assert {row["partition"].split("|")[2] for row in masters} == {"g", "r"}


def test_the_focal_plane_is_drawn_and_what_cannot_be_is_told_in_a_line(tiny, tmp_path):
    """LV-12."""
    name = json.loads(lap("--repo", tiny.root, "quality", "--json").stdout)[0]["partition"]
    lap("--repo", tiny.root, "quality", name, "-o", tmp_path / "fp.png")
    pixels = np.asarray(Image.open(BytesIO((tmp_path / "fp.png").read_bytes())).convert("RGB")).astype(int)
    assert pixels.shape[0] > 300 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    refused = (
        (("nothing-*",), 1, "no QC1 parameters of solutions match 'nothing-*'"),
        (("--product", "warps"), 2, "no QC1 parameters are kept of 'warps'"),
        (("nothing-1", "-o", str(tmp_path / "x.png")), 1, "nothing-1 has no solution"),
        ((name, "-o", str(tmp_path / "x.png"), "--colour", "x"), 2, "not 'x'"),
    )
    for arguments, status, text in refused:
        result = lap("--repo", tiny.root, "quality", *arguments, check=False)
        assert result.returncode == status and text in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "x.png").exists()
