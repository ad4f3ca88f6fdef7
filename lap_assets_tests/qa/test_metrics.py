"""The formulas reports count with, against brute force and by hand."""

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.qa.metrics import (
    match_positions,
    measure_offsets,
    measure_separation,
    robust_sigma,
)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), ra0=st.sampled_from([0.0, 120.0]), dec0=st.sampled_from([0.0, -60.0, 89.999]))
def test_matches_are_mutual_nearest_neighbours(seed, ra0, dec0):
    rng = np.random.default_rng(seed)
    lists = []
    for n in (30, 20):
        east, north = rng.uniform(-20, 20, (2, n)) / 3600
        place = SkyCoord(ra0 * u.deg, dec0 * u.deg).spherical_offsets_by(east * u.deg, north * u.deg)
        lists.append((place.ra.deg, place.dec.deg))
    first, second = match_positions(*lists[0], *lists[1], 5.0)
    a, b = (SkyCoord(*one, unit="deg") for one in lists)
    distance = a[:, None].separation(b[None, :]).arcsec
    expected = [
        (i, int(distance[i].argmin()))
        for i in range(30)
        if distance[i].min() <= 5.0 and distance[:, distance[i].argmin()].argmin() == i
    ]
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == expected


def test_match_of_nothing_is_nothing():
    none, one = np.zeros(0), np.zeros(1)
    for lists in ((none, none, one, one), (one, one, none, none)):
        assert [len(index) for index in match_positions(*lists, 1.0)] == [0, 0]


def test_separation_and_offsets_across_ra_zero():
    ra, dec = np.array([359.9999]), np.array([60.0])
    assert measure_separation(ra, dec, np.array([0.0001]), dec)[0] == pytest.approx(0.0002 * 3600 * 0.5, rel=1e-6)
    east, north = measure_offsets(np.array([0.0001]), np.array([60.00001]), ra, dec)
    assert [east[0], north[0]] == pytest.approx([360.0, 36.0], rel=1e-6)  # mas


def test_robust_sigma_is_that_of_the_core():
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(3, 2, 10_000), np.full(500, 1e6), [np.nan]])
    assert robust_sigma(values) == pytest.approx(2.0, rel=0.1)
    assert np.isnan(robust_sigma(np.array([np.nan])))
