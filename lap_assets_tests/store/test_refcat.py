import numpy as np
import pandas as pd
import pytest
from astropy import units as u
from astropy_healpix import HEALPix
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.errors import BadInput, IntegrityError, NotFound
from lap_assets.store.refcat import NSIDE, find_pixels
from lap_assets.store.repo import Repo


def make_refcat(ra, dec) -> pd.DataFrame:
    n = len(ra)
    table = pd.DataFrame({"source_id": np.arange(n, dtype=np.int64)[::-1], "ra": ra, "dec": dec})
    for column in ("pmra", "pmdec", "ra_err_mas", "dec_err_mas"):
        table[column] = 1.0
    table["ref_epoch_yr"] = 2016.0
    table["mag_r"] = np.linspace(15, 20, n)
    table.attrs["units"] = {"ra": "deg", "pmra": "mas/yr"}
    return table


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """A repository with a catalogue all over the sky, dense where coordinates are awkward."""
    rng = np.random.default_rng(3)
    ra = np.concatenate(
        [rng.normal(0, 2, 1500) % 360, rng.uniform(0, 360, 1500), rng.uniform(0, 360, 40), [0.0, 360.0]]
    )
    pole = rng.choice([-1, 1], 1500) * (90 - np.abs(rng.normal(0, 2, 1500)))
    dec = np.concatenate([rng.normal(0, 2, 1500), pole, rng.uniform(-80, 80, 40), [0.0, 0.0]])
    table = make_refcat(ra, dec)
    repo = Repo(tmp_path_factory.mktemp("repo"))
    repo.write_refcat("gaia", table)
    return repo, table


def unit_vectors(ra, dec):
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


@given(
    st.floats(0, 3) | st.floats(357, 360) | st.floats(0, 360),
    st.floats(-3, 3) | st.floats(85, 90) | st.floats(-90, -85) | st.floats(-90, 90),
    st.floats(0.01, 8),
)
@settings(deadline=None, max_examples=60)
def test_a_cone_holds_exactly_the_rows_within_it(sky, ra, dec, radius):
    """Sharded reference catalogues read by position (AP-01), right at RA 0/360 and the poles."""
    repo, table = sky
    got = repo.read_refcat("gaia", ra, dec, radius)
    chord = np.linalg.norm(unit_vectors(table["ra"], table["dec"]) - unit_vectors(ra, dec), axis=1)
    distance = np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1)))
    surely = set(table["source_id"][distance < radius - 1e-9])
    perhaps = set(table["source_id"][distance < radius + 1e-9])
    assert surely <= set(got["source_id"]) <= perhaps
    assert got["source_id"].is_monotonic_increasing


def test_the_pixel_of_a_point_is_among_those_of_any_cone_that_reaches_it():
    rng = np.random.default_rng(8)
    for _ in range(300):
        ra, dec = rng.uniform(0, 360), rng.choice([-1, 1]) * (90 - 90 * rng.random() ** 2)
        radius, angle = np.radians(10 ** rng.uniform(-2, 1)), rng.uniform(0, 2 * np.pi, 500)
        d0 = np.radians(dec)
        d = np.arcsin(np.clip(np.sin(d0) * np.cos(radius) + np.cos(d0) * np.sin(radius) * np.cos(angle), -1, 1))
        across = np.sin(angle) * np.sin(radius) * np.cos(d0)
        a = np.degrees(np.arctan2(across, np.cos(radius) - np.sin(d0) * np.sin(d))) + ra
        pixels = HEALPix(NSIDE, order="nested").lonlat_to_healpix(a * u.deg, np.degrees(d) * u.deg)
        assert set(pixels.tolist()) <= set(find_pixels(ra, dec, float(np.degrees(radius))))


def test_rows_keep_their_values_and_units(sky):
    repo, table = sky
    got = repo.read_refcat("gaia", 0, 0, 180.0)
    pd.testing.assert_frame_equal(
        got, table.sort_values("source_id").reset_index(drop=True), check_like=True, check_dtype=True
    )
    assert got.attrs["units"] == {"ra": "deg", "pmra": "mas/yr"}
    empty = repo.read_refcat("gaia", 200.0, 80.0, 1e-7)
    assert len(empty) == 0 and list(empty.columns) == list(table.columns)


def test_a_new_catalogue_replaces_the_old_one(tmp_path):
    repo = Repo(tmp_path)
    first = repo.write_refcat("gaia", make_refcat([10.0, 11.0], [0.0, 0.0]))
    assert repo.write_refcat("gaia", make_refcat([10.0, 11.0], [0.0, 0.0])) == first
    assert repo.write_refcat("gaia", make_refcat([50.0], [0.0])) != first
    assert len(repo.read_refcat("gaia", 10.5, 0, 5)) == 0
    assert len(repo.read_refcat("gaia", 50, 0, 5)) == 1


def test_missing_and_damaged_catalogues_say_what_to_do(tmp_path):
    repo = Repo(tmp_path)
    with pytest.raises(NotFound, match="lap ingest"):
        repo.read_refcat("gaia", 0, 0, 1)
    repo.write_refcat("gaia", make_refcat([10.0], [0.0]))
    shard = next(repo.root.rglob("*.parquet"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match="ingest it again"):
        repo.read_refcat("gaia", 10, 0, 1)
    shard.unlink()
    with pytest.raises(IntegrityError, match="ingest it again"):
        repo.read_refcat("gaia", 10, 0, 1)


@pytest.mark.parametrize(
    "table",
    [
        make_refcat([10.0], [0.0]).drop(columns="pmra"),
        make_refcat([np.nan], [0.0]),
        make_refcat([10.0], [91.0]),
        make_refcat([-1.0], [0.0]),
        make_refcat([], []),
    ],
    ids=["column", "nan", "dec", "ra", "empty"],
)
def test_unusable_catalogues_are_refused(tmp_path, table):
    with pytest.raises(BadInput, match="reference catalogue gaia"):
        Repo(tmp_path).write_refcat("gaia", table)
