"""Pointing search: the true shift and rotation are found, and nothing is found where nothing is."""

import numpy as np
import pytest

from lap_assets.errors import UnprocessableData
from lap_assets.science.pointing_search import find_pointing, find_shift

ARCSEC = 1.0 / 3600.0
FIELD_DEG = 0.5


def scatter_stars(rng, n_stars=900, n_galaxies=1500, n_extra=900):
    """Detections (stars first, brightest first) and references of a square field: 60 % of the stars are in both."""
    stars = rng.uniform(-FIELD_DEG, FIELD_DEG, (n_stars, 2))
    ref = np.concatenate([stars[rng.random(n_stars) < 0.6], rng.uniform(-0.6, 0.6, (n_extra, 2))])
    seen = np.concatenate([stars, rng.uniform(-FIELD_DEG, FIELD_DEG, (n_galaxies, 2))])
    return seen[rng.permutation(len(seen))] + rng.normal(0, 0.3 * ARCSEC, seen.shape), ref


def turn(angle_deg):
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[c, -s], [s, c]])


@pytest.mark.parametrize(("shift", "angle"), [((0.0, 0.0), 0.0), ((85.0, -83.0), 2.0), ((-118.0, 10.0), -1.1)])
def test_pointings_off_by_two_arcmin_and_two_degrees_are_found(shift, angle):
    """LV-11: to two arcsec everywhere in the field, which the alignment of the chips goes on from."""
    rng = np.random.default_rng(1)
    true, ref = scatter_stars(rng)
    offset = np.array(shift) * ARCSEC
    stars = (true - offset) @ turn(angle)
    found = find_pointing(stars, ref, 120.0, 2.0)
    error = (stars @ found.matrix.T + found.shift - true) * 3600.0
    assert np.hypot(*error.T).max() < 2.0
    assert found.n_pairs > 300


@pytest.mark.parametrize("seed", range(3))
def test_another_field_does_not_match(seed):
    """Clustered detections too: fragments of one galaxy are not many stars."""
    rng = np.random.default_rng(seed)
    stars, _ = scatter_stars(rng)
    stars = np.concatenate([stars, stars[:200] + rng.normal(0, ARCSEC, (200, 2))])
    _, ref = scatter_stars(rng)
    with pytest.raises(UnprocessableData, match=r"no match .* check RA, DEC and the catalogue"):
        find_pointing(stars, ref, 120.0, 2.0)


def test_a_pointing_beyond_the_search_is_refused():
    stars, ref = scatter_stars(np.random.default_rng(2))
    with pytest.raises(UnprocessableData, match="within 120 arcsec and 2 deg"):
        find_pointing(stars + 180.0 * ARCSEC, ref, 120.0, 2.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (np.diag([-1.0, 1.0]), "mirrored"),
        (np.diag([1.0, -1.0]), "mirrored"),
        (np.eye(2) * 1.05, r"wrong by \+5 %"),
        (np.eye(2) * 0.95, r"wrong by -5 %"),
        (np.diag([-1.05, 1.05]), r"mirrored \(parity\) and the pixel scale of the headers is wrong by \+5 %"),
        (-np.eye(2), "turned by 180 deg"),
    ],
)
def test_what_else_would_match_is_named(change, reason):
    stars, ref = scatter_stars(np.random.default_rng(3))
    with pytest.raises(UnprocessableData, match=reason):
        find_pointing(stars @ change + 30.0 * ARCSEC, ref, 120.0, 2.0)


def test_too_little_to_match_is_refused():
    stars, ref = scatter_stars(np.random.default_rng(4))
    for few, some in ((stars[:2], ref), (stars, ref[:2]), (stars[:0], ref[:0])):
        with pytest.raises(UnprocessableData, match=rf"{len(few)} bright sources, {len(some)} catalogue stars"):
            find_pointing(few, some, 120.0, 2.0)


def test_a_field_seen_twice_is_refused():
    stars, ref = scatter_stars(np.random.default_rng(5))
    with pytest.raises(UnprocessableData, match="twice"):
        find_pointing(np.concatenate([stars, stars + np.array([25.0, 0.0]) * ARCSEC]), ref, 120.0, 2.0)


def test_the_shift_of_a_chip_is_found_and_none_where_there_is_none():
    rng = np.random.default_rng(6)
    ref = rng.uniform(-0.05, 0.05, (60, 2))
    stars = ref[:30] - np.array([3.0, -2.0]) * ARCSEC
    assert np.allclose(find_shift(stars, ref, 6.0) * 3600.0, [3.0, -2.0], atol=0.1)
    assert find_shift(rng.uniform(-0.05, 0.05, (60, 2)), ref, 6.0) is None
