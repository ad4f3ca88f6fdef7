"""Reference catalogues and zero points from outside, in our columns and units."""

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table

from lap_assets.errors import BadInput
from lap_assets.pipeline.foreign_tables import inspect_refcat, read_zero_points

COLUMNS = ["source_id", "ra", "dec", "pmra", "pmdec", "ra_err_mas", "dec_err_mas", "ref_epoch_yr"]
GAIA = {
    "source_id": np.array([4008355572763257088, 5, 6]), "ra": [10.0, 359.99, np.nan], "dec": [1.0, -2.0, 3.0],
    "ra_error": [0.5, np.nan, 0.1], "dec_error": [0.4, 0.0, 0.1],
    "pmra": [-9.25, np.nan, 1.0], "pmdec": [9.5, 0.0, 1.0],
    "ref_epoch": [2015.5, 2015.5, 2015.5], "phot_g_mean_mag": [19.6, 20.0, 21.0], "a_g_val": [0.1, 0.2, 0.3],
}  # fmt: skip


@pytest.mark.parametrize("ending", ["parquet", "fits", "csv", "fits.gz"])
def test_gaia_names_in_every_format(tmp_path, ending):
    path = tmp_path / f"gaia.{ending}"
    if ending == "parquet":
        pd.DataFrame(GAIA).to_parquet(path)
    elif ending == "csv":
        pd.DataFrame(GAIA).to_csv(path, index=False)
    else:
        Table(GAIA).write(path)
    table, n_dropped = inspect_refcat(path)
    assert n_dropped == 1
    assert list(table.columns) == [*COLUMNS, "phot_g_mean_mag"]
    assert table["source_id"].tolist() == [4008355572763257088, 5]  # every digit kept
    assert table.iloc[0][COLUMNS[1:]].tolist() == pytest.approx([10.0, 1.0, -9.25, 9.5, 0.5, 0.4, 2015.5])
    # unknown motions are taken as none, unknown errors as large
    assert table.iloc[1][COLUMNS[3:7]].tolist() == pytest.approx([0.0, 0.0, 100.0, 100.0])
    assert table.attrs["units"]["pmra"] == "mas/yr" and table.attrs["units"]["ra"] == "deg"
    assert not table.isna().any().any()


def test_our_own_columns_pass_unchanged(tmp_path):
    ours = pd.DataFrame(
        {
            "source_id": [1, 2], "ra": [10.0, 20.0], "dec": [1.0, 2.0], "pmra": [1.0, 2.0], "pmdec": [3.0, 4.0],
            "ra_err_mas": [20.0, 21.0], "dec_err_mas": [22.0, 23.0], "ref_epoch_yr": [2016.0, 2016.0],
            "mag_g": [18.0, np.nan], "mag_i": [17.0, 16.0],
        }
    )  # fmt: skip
    ours.to_parquet(tmp_path / "ours.parquet")
    table, n_dropped = inspect_refcat(tmp_path / "ours.parquet")
    assert n_dropped == 0
    pd.testing.assert_frame_equal(table, ours)


def test_bare_positions_get_ids_that_depend_on_nothing_else(tmp_path):
    """Two files that overlap must not give two ids to one source, nor one id to two."""
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(-10, 370, 500), np.degrees(np.arcsin(rng.uniform(-1, 1, 500)))
    for name, part in (("a", slice(0, 300)), ("b", slice(200, 500))):
        pd.DataFrame({"RA": ra[part], "Dec": dec[part]}).to_csv(
            tmp_path / f"{name}.csv", index=False, float_format="%.9f"
        )
    a, b = (inspect_refcat(tmp_path / f"{name}.csv")[0] for name in "ab")
    assert a["source_id"].tolist()[200:] == b["source_id"].tolist()[:100]
    assert len(set(a["source_id"]) | set(b["source_id"])) == 500
    assert ((a["ra"] >= 0) & (a["ra"] < 360)).all()
    assert (a["pmra"] == 0).all() and (a["ref_epoch_yr"] == 2016.0).all()


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"dec": [1.0]}, "has no column ra"),
        ({"ra": [1.0], "dec": [200.0]}, "no row with a position"),
        ({"ra": ["x"], "dec": [1.0]}, "column ra holds what is no number"),
        ({"ra": [1.0], "dec": [1.0], "pmra": [1.0]}, "without an epoch"),
        ({"ra": [1.0], "dec": [1.0], "ref_epoch": [57000.0]}, "must be years"),
        ({"ra": [1.0], "dec": [1.0], "source_id": [1.5]}, "must be whole numbers"),
    ],
)
def test_catalogues_that_cannot_be_used(tmp_path, columns, said):
    path = tmp_path / "bad.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    with pytest.raises(BadInput, match=said) as error:
        inspect_refcat(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("name", ["x.parquet", "x.fits", "x.txt", "absent.parquet", "absent.fits", "absent.csv"])
def test_files_that_are_no_tables(tmp_path, name):
    path = tmp_path / name
    if not name.startswith("absent"):
        path.write_bytes(b"PAR1 not really" * 300)
    with pytest.raises(BadInput, match=name) as error:
        inspect_refcat(path)
    assert "\n" not in str(error.value)


def test_zero_points_of_this_camera_only(tmp_path):
    values = {"camera": ["decam ", "90prime"], "expnum": [7, 7], "ccdname": ["N2", "CCD1"], "ccdzpt": [25.0, 26.0]}
    Table(values).write(tmp_path / "zp.fits")
    assert read_zero_points(tmp_path / "zp.fits", "decam") == {("7", "N2"): 25.0}
    pd.DataFrame({"expnum": [7]}).to_csv(tmp_path / "zp.csv", index=False)
    with pytest.raises(BadInput, match="no column ccdname, ccdzpt"):
        read_zero_points(tmp_path / "zp.csv", "decam")


def test_real_gaia_chunks(shared_data):
    """Chunk 3458 holds one star; the positions of the other lie within its HEALPix pixel of the field."""
    tables = [inspect_refcat(path) for path in sorted((shared_data / "decam_cutouts" / "gaia").glob("*.fits"))]
    assert [(len(table), n_dropped) for table, n_dropped in tables] == [(1, 0), (148, 0)]
    both = pd.concat([table for table, _ in tables])
    assert both["source_id"].is_unique and (both["ref_epoch_yr"] == 2015.5).all()
    assert both["ra"].between(186.4, 187.1).all() and both["dec"].between(25.3, 25.8).all()
    assert (both["ra_err_mas"] > 0).all()
