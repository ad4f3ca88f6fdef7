"""Detection: stars are found, centred and measured to their noise; galaxies and flawed sources are told apart."""

import numpy as np
import pandas as pd
import pytest

from lap_assets.errors import UnprocessableData
from lap_assets.model.image import Mask
from lap_assets.science.detection import (
    detect_sources,
    filter_matched,
    mask_sources,
    measure_sources,
    recenter_sources,
    select_stars,
)
from lap_assets_tests.science.star_fields import add_star, observe, star_field

SKY, FWHM = 600.0, 2.6


@pytest.fixture(scope="module")
def field():
    rng = np.random.default_rng(3)
    stars, x, y, flux = star_field(rng, (512, 512), 120, FWHM, flux=(2e3, 2e5))
    image = observe(rng, stars, SKY) - np.float32(SKY)
    var = (stars + SKY + 25.0).astype(np.float32)
    return image, var, np.zeros(image.shape, np.int16), x, y, flux


def measure(field):
    image, var, mask, *_ = field
    sources, segments = detect_sources(image, var, mask, 4.0, 5, FWHM)
    sources = recenter_sources(image, var, mask, sources, FWHM)
    return measure_sources(image, var, mask, sources, 1.5 * FWHM), segments


def pair(sources, x, y):
    distance = np.hypot(sources.x.to_numpy()[:, None] - x, sources.y.to_numpy()[:, None] - y)
    nearest = distance.argmin(axis=0)
    return nearest, distance[nearest, np.arange(len(x))] < 1.0


def test_every_star_is_found_and_centroids_scatter_as_their_errors_say(field):
    sources, _ = measure(field)
    nearest, found = pair(sources, field[3], field[4])
    assert found.all()
    matched = sources.iloc[nearest]
    pull = np.concatenate([(matched.x - field[3]) / matched.xy_err, (matched.y - field[4]) / matched.xy_err])
    assert 0.75 < np.sqrt(np.mean(pull**2)) < 1.35
    assert len(sources) - len(field[3]) < 0.1 * len(field[3])  # noise peaks


def test_fluxes_of_bright_stars_share_one_aperture_ratio_within_their_errors(field):
    sources, _ = measure(field)
    nearest, _ = pair(sources, field[3], field[4])
    matched = sources.iloc[nearest]
    bright = field[5] > 2e4
    ratio = (matched.flux / field[5])[bright]
    assert np.std(ratio / np.median(ratio)) < 0.012
    expected = (matched.flux_err / matched.flux)[bright]
    assert np.std(ratio / np.median(ratio) / 1.0) < 2.0 * np.sqrt(np.mean(expected**2)) + 0.002


def test_matched_filter_has_unit_noise_and_the_snr_of_optimal_photometry():
    rng = np.random.default_rng(5)
    noise = 25.0 * rng.normal(size=(256, 256)).astype(np.float32)
    weight = np.full(noise.shape, 1.0 / 625.0)
    assert filter_matched(noise, weight, FWHM).std() == pytest.approx(1.0, rel=0.03)
    y, x = np.mgrid[:256, :256]
    star = np.exp(-0.5 * ((x - 128) ** 2 + (y - 128) ** 2) / (FWHM / 2.355) ** 2)
    snr = filter_matched((1e4 * star / star.sum()).astype(np.float32), weight, FWHM)
    optimal = 1e4 / (25.0 * np.sqrt(4 * np.pi) * FWHM / 2.355)
    assert snr.max() == pytest.approx(optimal, rel=0.02)
    weight[:, :64] = 0.0
    assert not filter_matched(noise, weight, FWHM)[:, :60].any()


def test_stars_are_selected_and_wider_sources_are_not():
    rng = np.random.default_rng(4)
    stars, x, y, _ = star_field(rng, (512, 512), 60, FWHM, flux=(1e4, 1e5))
    image = stars.copy()
    wide = rng.uniform(40, 470, (40, 2))
    for a, b in wide:
        if np.hypot(x - a, y - b).min() > 20:
            add_star(image, a, b, 3e4, 1.7 * FWHM)
    data = observe(rng, image, SKY) - np.float32(SKY)
    field = data, (image + SKY + 25.0).astype(np.float32), np.zeros(data.shape, np.int16)
    sources, _ = measure(field)
    chosen = select_stars(sources)
    picked = sources[chosen]
    from_star = np.array([np.hypot(x - a, y - b).min() for a, b in zip(picked.x, picked.y, strict=True)]) < 1.0
    assert from_star.sum() > 0.85 * len(x)
    assert (~from_star).sum() <= 1


def test_flagged_pixels_mark_the_source_and_dead_pixels_do_not_make_one(field):
    image, var, mask, x, y, flux = field
    k = int(np.argmax(flux))
    mask = mask.copy()
    mask[round(y[k]), round(x[k])] = int(Mask.SATURATED)
    mask[5, 5] = int(Mask.BAD)
    image = image.copy()
    image[4:7, 4:7] = 0.0
    image[5, 5] = 1e6
    sources, _ = detect_sources(image, var, mask, 4.0, 5, FWHM)
    nearest, _ = pair(sources, x[k : k + 1], y[k : k + 1])
    assert sources["mask"].iloc[nearest[0]] & int(Mask.SATURATED)
    assert np.hypot(sources.x - 5, sources.y - 5).min() > 5.0


def test_segments_cover_the_stars_and_order_is_fixed(field):
    sources, segments = measure(field)
    covered = mask_sources(segments, grow_px=3)
    assert covered[np.rint(field[4]).astype(int), np.rint(field[3]).astype(int)].all()
    assert covered.mean() < 0.3
    assert sources.y.is_monotonic_increasing or np.diff(sources.y).min() > -1.0


def test_an_image_without_usable_pixels_is_unprocessable():
    with pytest.raises(UnprocessableData):
        detect_sources(
            np.zeros((32, 32), np.float32), np.zeros((32, 32), np.float32), np.zeros((32, 32), np.int16), 3.0, 5
        )


def test_a_cluster_s_galaxies_are_no_stars_where_the_seeing_is_known():
    """A chip full of galaxies of one size: they are the densest locus; the stars' own is found below a limit."""
    rng = np.random.default_rng(8)
    radius = np.concatenate([rng.normal(1.75, 0.03, 25), rng.normal(2.5, 0.02, 150)])
    table = pd.DataFrame(
        {"radius": radius, "flux": 1e4, "flux_err": 50.0, "a": 1.5, "b": 1.45, "mask": 0, "sep_flag": 0}
    )
    assert radius[select_stars(table)].min() > 2.3
    chosen = select_stars(table, max_radius_px=1.2 * 1.8)
    assert chosen.sum() > 20 and radius[chosen].max() < 1.9


def test_a_broad_crowd_of_galaxies_does_not_lead_away_from_the_stars():
    """LV-12: 70 stars of one size before 170 galaxies of many, as on a cluster: half of all lies among the galaxies."""
    rng = np.random.default_rng(16)
    for _ in range(20):
        radius = np.concatenate([rng.normal(1.45, 0.05, 70), rng.triangular(1.5, 2.3, 3.6, 170)])
        table = pd.DataFrame(
            {"radius": radius, "flux": 1e4, "flux_err": 50.0, "a": 1.5, "b": 1.45, "mask": 0, "sep_flag": 0}
        )
        chosen = radius[select_stars(table)]
        assert 50 <= len(chosen) <= 85
        assert np.median(chosen) == pytest.approx(1.45, rel=0.03)


def test_three_sources_of_three_sizes_have_no_densest_one():
    """The middle one and its neighbour stay the stars of a chip that has hardly any."""
    radius = np.array([1.8, 2.8, 3.1])
    table = pd.DataFrame(
        {"radius": radius, "flux": 1e4, "flux_err": 50.0, "a": 1.5, "b": 1.45, "mask": 0, "sep_flag": 0}
    )
    assert radius[select_stars(table)].min() == 2.8
