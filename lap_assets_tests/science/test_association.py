"""Objects from detections: grouping, order, ids, cuts and forced fluxes."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.model.image import Mask, MaskedImage
from lap_assets.science.association import TRANSIENT_COLUMNS, associate_sources, force_psf_flux, name_position
from lap_assets.science.moffat import MoffatPsf
from lap_assets_tests.science.difference_fields import draw_moffat


def make_sources(seed=1, ra0=150.0, dec0=2.0, n_objects=12, n_false=40, scatter_arcsec=0.1):
    """`n_objects` seen in 6 exposures of 3 bands (all of one night), and false detections seen once each."""
    rng = np.random.default_rng(seed)
    rows = []
    grid = np.arange(n_objects)
    truth_ra = ra0 + (grid % 4 - 2) * 0.01 / np.cos(np.radians(dec0))
    truth_dec = dec0 + (grid // 4 - 1) * 0.01
    for k in range(n_objects):
        for e in range(6):
            dx, dy = rng.normal(0, scatter_arcsec / 3600, 2)
            rows.append(
                (
                    truth_ra[k] + dx / np.cos(np.radians(dec0)),
                    truth_dec[k] + dy,
                    3000.0,
                    rng.uniform(6, 30),
                    f"e{e}",
                    "gri"[e // 2],
                )
            )
    for k in range(n_false):
        place = (ra0 + 0.05 + k * 0.001, dec0 + 0.03)
        rows.append((*place, 900.0, 5.2, f"e{k % 6}", "gri"[k % 6 // 2]))
    table = pd.DataFrame(rows, columns=["ra", "dec", "flux", "snr", "exposure", "band"])
    table["ra"] %= 360.0
    table["night"], table["mjd"] = "2024-01-03", 60312.0 + table["exposure"].str[1:].astype(int) * 0.01
    return table, truth_ra % 360.0, truth_dec


@pytest.mark.parametrize("ra0", [150.0, 0.0, 359.999])
@pytest.mark.parametrize("dec0", [2.0, -88.0])
def test_repeated_detections_become_objects_single_ones_do_not(ra0, dec0):
    """12 objects of 6 detections each, none of 40 single ones; positions to 0.1″, at RA 0 and near the pole too."""
    sources, ra, dec = make_sources(ra0=ra0, dec0=dec0)
    objects, membership = associate_sources(sources)
    assert list(objects.columns) == list(TRANSIENT_COLUMNS)
    assert len(objects) == 12
    assert (objects["n_detections"] == 6).all()
    assert (objects["n_bands"] == 3).all()
    for one in objects.itertuples():
        offset = np.hypot(((one.ra - ra + 180) % 360 - 180) * np.cos(np.radians(dec)), one.dec - dec) * 3600
        assert offset.min() < 0.15
    assert (membership[:72] >= 0).all()
    assert (membership[72:] == -1).all()
    assert (sources["exposure"][membership == 3].nunique()) == 6


def test_without_the_cuts_everything_is_an_object():
    sources, _, _ = make_sources()
    objects, _ = associate_sources(sources, min_detections=1, min_snr_max=0.0)
    assert len(objects) == 52


def test_detections_of_one_exposure_are_not_repeats():
    """Two pieces of one residual, in the same exposure and within the radius: no object."""
    sources, _, _ = make_sources(n_objects=1, n_false=0)
    pair = sources.iloc[[0, 0]].assign(snr=[20.0, 15.0])
    assert len(associate_sources(pair.reset_index(drop=True))[0]) == 0
    assert len(associate_sources(sources.iloc[:0])[0]) == 0


@settings(max_examples=20, deadline=None)
@given(order=st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(order):
    sources, _, _ = make_sources(n_objects=6, n_false=10)
    rows = list(range(len(sources)))
    order.shuffle(rows)
    expected, _ = associate_sources(sources)
    shuffled, membership = associate_sources(sources.iloc[rows].reset_index(drop=True))
    assert shuffled["transient_id"].tolist() == expected["transient_id"].tolist()
    assert np.allclose(shuffled["ra"], expected["ra"], rtol=0, atol=1e-11)
    assert np.bincount(membership[membership >= 0]).tolist() == [6] * 6


def test_names():
    assert name_position(150.114231, 2.205114).startswith("T150.11423+02.20511-")
    assert name_position(3.0, -0.5).startswith("T003.00000-00.50000-")
    assert name_position(3.0, -0.5) != name_position(3.0000001, -0.5)


def test_forced_fluxes_are_unbiased_and_their_errors_true():
    """144 sources at any sub-pixel place: bias under 1 %, pulls of unit width; masked places give NaN."""
    rng = np.random.default_rng(2)
    n, psf = 400, MoffatPsf(3.0, 3.5)
    gx, gy = np.meshgrid(np.linspace(25, 375, 12), np.linspace(25, 375, 12))
    x, y = gx.ravel() + rng.uniform(-0.5, 0.5, 144), gy.ravel() + rng.uniform(-0.5, 0.5, 144)
    flux = rng.uniform(-3000, 3000, 144)
    # pixels hold the mean of the profile over them
    fine = (np.arange(5) - 2) / 5
    light = np.mean([draw_moffat(n, x + dx, y + dy, flux, 3.0) for dx in fine for dy in fine], axis=0)
    sci = light + rng.normal(0, 10, (n, n))
    image = MaskedImage(sci.astype(np.float32), np.zeros((n, n), np.int16), np.full((n, n), 100, np.float32))
    measured, error, usable = force_psf_flux(image, x, y, psf)
    pull = (measured - flux) / error
    assert np.std(pull) == pytest.approx(1.0, abs=0.2)
    assert abs(np.mean(pull)) < 0.3
    assert np.sum(measured * flux) / np.sum(flux**2) == pytest.approx(1.0, abs=0.01)
    assert (usable == 1).all()
    image.mask[round(y[0]) - 2 : round(y[0]) + 3, round(x[0]) - 2 : round(x[0]) + 3] = int(Mask.BAD)
    measured, error, usable = force_psf_flux(image, [x[0], x[5], -50.0], [y[0], y[5], 10.0], psf)
    assert np.isnan(measured[[0, 2]]).all()
    assert np.isnan(error[[0, 2]]).all()
    assert np.isfinite(measured[1])
    assert usable[0] < 0.6
    # correlated noise widens the errors
    assert force_psf_flux(image, [x[5]], [y[5]], psf, 1.44)[1][0] == pytest.approx(1.2 * error[1])
