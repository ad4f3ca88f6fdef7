"""The true sky: reference catalogue, cluster, densities, transients."""

import numpy as np
import pytest

from lap_assets.sim.design import make_design
from lap_assets.sim.forecast import select_measurable, summarize_lens
from lap_assets.sim.lens import project_tangent
from lap_assets.sim.sky import draw_sky, draw_transients, image_maps

DESIGN = make_design("demo", 2)
SKY = draw_sky(DESIGN)


def offsets_mas(years):
    """Offsets (east, north) in mas of catalogued stars, moved by `years`, from the nearest true star within 1"."""
    refcat, stars = SKY.refcat, SKY.stars
    dec = refcat["dec"] + refcat["pmdec"] * years / 3.6e6
    ra = refcat["ra"] + refcat["pmra"] * years / 3.6e6 / np.cos(np.radians(dec))
    east = (ra.to_numpy()[:, None] - stars["ra"].to_numpy()[None]) * np.cos(np.radians(DESIGN.dec_deg)) * 3.6e6
    north = (dec.to_numpy()[:, None] - stars["dec"].to_numpy()[None]) * 3.6e6
    nearest = np.argmin(np.hypot(east, north), axis=1)
    rows = np.arange(len(refcat))
    east, north = east[rows, nearest], north[rows, nearest]
    matched = np.hypot(east, north) < 1000.0
    return east[matched], north[matched], matched, nearest[matched]


def test_reference_catalogue_scatters_by_20_mas_once_moved_to_the_epoch():
    east, north, matched, _ = offsets_mas(years=2024.18 - 2016.0)
    assert len(east) > 400
    for axis in (east, north):
        assert axis.std() == pytest.approx(20.0, rel=0.12)
        assert abs(axis.mean()) < 4 * 20.0 / np.sqrt(len(axis))
    # without proper motion it does not
    assert np.std(offsets_mas(years=0.0)[0]) > 27.0
    assert 0.02 < 1.0 - matched.mean() < 0.09  # entries without a counterpart


def test_reference_catalogue_misses_some_stars_and_knows_magnitudes_to_a_hundredth():
    _, _, matched, star = offsets_mas(years=8.18)
    listed = SKY.stars["mag_r"].between(14.0, 20.5)
    assert 0.04 < 1.0 - SKY.stars.loc[listed, "in_refcat"].mean() < 0.13
    assert not SKY.stars.loc[~listed, "in_refcat"].any()
    for band in "gri":
        error = SKY.refcat[f"mag_{band}"].to_numpy()[matched] - SKY.stars[f"mag_{band}"].to_numpy()[star]
        assert np.median(np.abs(error)) * 1.4826 == pytest.approx(0.01, rel=0.2)


def test_background_is_sheared_tangentially_about_the_lens():
    """Shapes on the lensed sky, from the maps that draw them: mean tangential ellipticity is the NFW shear."""
    background = SKY.galaxies[SKY.galaxies["z"] > 0.4].reset_index(drop=True)
    maps = image_maps(background)
    moments = np.einsum("nij,nkj->nik", maps, maps)
    size = moments[:, 0, 0] + moments[:, 1, 1] + 2 * np.sqrt(np.linalg.det(moments))
    e1, e2 = (moments[:, 0, 0] - moments[:, 1, 1]) / size, 2 * moments[:, 0, 1] / size
    west, north = SKY.lens.measure_offsets(background["ra"].to_numpy(), background["dec"].to_numpy())
    phi, radius = np.arctan2(north, west), np.hypot(west, north)
    tangential, cross = -(e1 * np.cos(2 * phi) + e2 * np.sin(2 * phi)), e1 * np.sin(2 * phi) - e2 * np.cos(2 * phi)
    true = -(background["g1"] * np.cos(2 * phi) + background["g2"] * np.sin(2 * phi))
    for low, high in ((60, 120), (120, 240), (240, 420)):
        ring = (radius > low) & (radius < high)
        error = e1[ring].std() / np.sqrt(ring.sum())
        assert abs(tangential[ring].mean() - true[ring].mean()) < 4 * error
        assert tangential[ring].mean() > 5 * error
        assert abs(cross[ring].mean()) < 4 * error


def test_background_is_displaced_outwards_so_that_the_core_is_depleted():
    background = SKY.galaxies[SKY.galaxies["z"] > 0.4]
    west, north = SKY.lens.measure_offsets(background["ra"].to_numpy(), background["dec"].to_numpy())
    radius = np.hypot(west, north)
    ring = (radius > 60) & (radius < 120)
    density = ring.sum() / (np.pi * (2.0**2 - 1.0**2))
    # density per source plane area falls by the magnification there (1.2 to 1.6)
    assert density < 0.93 * DESIGN.galaxy_density
    magnified = background["magnification"].to_numpy()[ring].mean()
    assert density == pytest.approx(DESIGN.galaxy_density / magnified, abs=4 * np.sqrt(ring.sum()) / (3 * np.pi))


def test_members_follow_a_red_sequence_and_crowd_around_the_lens():
    members = SKY.galaxies[SKY.galaxies["member"]]
    assert 120 < len(members) < 240
    colour = members["mag_g"] - members["mag_r"]
    slope, _ = np.polyfit(members["mag_r"] - 18.0, colour, 1)
    assert slope == pytest.approx(-0.03, abs=0.01)
    assert np.std(colour - np.polyval(np.polyfit(members["mag_r"], colour, 1), members["mag_r"])) < 0.05
    west, north = SKY.lens.measure_offsets(members["ra"].to_numpy(), members["dec"].to_numpy())
    radius = np.hypot(west, north) / 60
    assert radius.min() < 0.01
    inner, outer = (radius < 2).sum() / 4, ((radius > 4) & (radius < 6)).sum() / 20
    assert inner > 3 * outer


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_expected_snr_is_at_least_eight(seed):
    design = make_design("demo", seed)
    sky = draw_sky(design)
    truth = summarize_lens(design, sky)
    assert truth["expected_snr"]["4"] > 8.0
    assert 28.0 < truth["n_measurable_per_arcmin2"] < 42.0
    assert 0.2 < truth["sigma_e"] < 0.3
    assert 0.75 < truth["z_source"] < 0.9
    east, north = project_tangent(truth["ra"], truth["dec"], design.ra_deg, design.dec_deg)
    assert 20.0 <= 3600 * np.hypot(east, north) <= 60.0
    assert not sky.galaxies.loc[select_measurable(design, sky), "member"].any()


def test_transients_keep_away_from_bright_stars_and_lie_where_asked():
    def is_covered(ra, dec):
        return np.abs(ra - DESIGN.ra_deg) < 0.08

    found = draw_transients(DESIGN, SKY, is_covered)
    assert len(found) == 10 and set(found["night"]) == {DESIGN.nights[-1]}
    assert found["mag"].min() < 19.5 and found["mag"].max() > 22.0 and found["mag"].between(19.0, 22.5).all()
    assert is_covered(found["ra"], found["dec"]).all()
    bright = SKY.stars[SKY.stars["mag_r"] < 16.0]
    beside = 0
    for one in found.itertuples():
        east, north = project_tangent(bright["ra"].to_numpy(), bright["dec"].to_numpy(), one.ra, one.dec)
        assert 3600 * np.hypot(east, north).min() > 10.0
        hosts = SKY.galaxies[SKY.galaxies["mag_r"] < 22.5]
        east, north = project_tangent(hosts["ra"].to_numpy(), hosts["dec"].to_numpy(), one.ra, one.dec)
        beside += 3600 * np.hypot(east, north).min() < 1.3
    assert beside >= 5
