"""TAN-SIP headers: astropy reads back the map they were fitted to, anywhere on the sky, both ways."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.errors import UnprocessableData
from lap_assets.science.tan_sip import convert_header, deproject_tan, fit_tan_sip, grid_points, project_tan, read_map

SIP_CARDS = ("A_", "B_", "AP", "BP")


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 359.999), st.floats(-89.9, 89.9), st.floats(-1.5, 1.5), st.floats(-1.5, 1.5))
def test_projection_agrees_with_astropy_and_inverts(ra0, dec0, xi, eta):
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": ra0, "CRVAL2": dec0})
    header.update({"CRPIX1": 1.0, "CRPIX2": 1.0, "CDELT1": 1.0, "CDELT2": 1.0})
    ra, dec = deproject_tan(np.array([xi]), np.array([eta]), ra0, dec0)
    theirs = WCS(header).all_pix2world([[xi, eta]], 0)[0]
    assert abs(dec[0] - theirs[1]) < 1e-9
    assert abs((ra[0] - theirs[0] + 180) % 360 - 180) * np.cos(np.radians(dec[0])) < 1e-9
    assert np.allclose(project_tan(ra, dec, ra0, dec0), [[xi], [eta]], atol=1e-9)


@pytest.mark.parametrize(("ra0", "dec0"), [(0.0, 0.0), (359.99, 45.0), (120.0, -89.0)])
def test_distorted_map_is_followed_to_a_thousandth_of_a_pixel_both_ways(ra0, dec0):
    shape, scale = (700, 1000), 0.4 / 3600

    def sky(x, y):
        u, v = (x - 1300.0) * scale, (y + 200.0) * scale
        r2 = u**2 + v**2
        return deproject_tan(-u * (1 + 0.1 * r2) + 0.01 * u * v, v * (1 + 0.1 * r2) - 0.02 * v**2, ra0, dec0)

    header = fit_tan_sip(*grid_points(shape), *sky(*grid_points(shape)), shape)
    wcs = WCS(header)
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 999, 200), rng.uniform(0, 699, 200)
    ra, dec = wcs.all_pix2world(x, y, 0)
    true_ra, true_dec = sky(x, y)
    assert np.abs(((ra - true_ra + 180) % 360 - 180) * np.cos(np.radians(dec))).max() < 2e-3 * scale
    assert np.abs(dec - true_dec).max() < 2e-3 * scale
    assert np.abs(invert(header, *wcs.all_pix2world(x, y, 0)) - [x, y]).max() < 0.01


def invert(header, ra, dec):
    """Pixels by the header's AP and BP polynomials, written out from the definition of SIP."""
    linear = WCS(fits.Header([c for c in header.cards if "_ORDER" not in c.keyword and c.keyword[:2] not in SIP_CARDS]))
    linear.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    crpix = np.array([[header["CRPIX1"]], [header["CRPIX2"]]]) - 1
    u, v = np.array(linear.wcs_world2pix(ra, dec, 0)) - crpix
    powers = [(i, j) for i in range(header["AP_ORDER"] + 1) for j in range(header["AP_ORDER"] + 1 - i)]
    du = sum(header[f"AP_{i}_{j}"] * u**i * v**j for i, j in powers)
    dv = sum(header[f"BP_{i}_{j}"] * u**i * v**j for i, j in powers)
    return np.array([u + du, v + dv]) + crpix


def test_a_map_without_distortion_needs_no_sip_and_a_singular_one_is_refused():
    shape = (300, 300)
    x, y = grid_points(shape)
    assert fit_tan_sip(x, y, *deproject_tan(-x * 1e-4, y * 1e-4, 10.0, 20.0), shape)["CTYPE1"] == "RA---TAN"
    with pytest.raises(UnprocessableData, match="singular"):
        fit_tan_sip(x, y, np.full_like(x, 10.0), np.full_like(x, 20.0), shape)


def test_decam_tpv_headers_convert_to_a_milliarcsecond(shared_data):
    """Real TPV headers of the DECam Community Pipeline."""
    paths = sorted((shared_data / "decam_cutouts" / "images").rglob("*ooi*.fits"))
    assert len(paths) == 9
    for path in paths[:3]:
        header = fits.getheader(path, 1)
        shape = header["NAXIS2"], header["NAXIS1"]
        x, y = grid_points(shape, 7)
        theirs = WCS(header).all_pix2world(x, y, 0)
        ours = WCS(convert_header(header, shape)).all_pix2world(x, y, 0)
        offset = (np.array(ours) - theirs) * 3.6e6
        assert np.abs(offset).max() < 1.0


def test_headers_are_read_as_astropy_reads_them():
    """TAN and TAN-SIP by our own evaluation, TPV and a PC matrix through astropy: the same to 1e-6 mas."""
    shape = (700, 1000)
    x, y = grid_points(shape, 7)
    plain = fits.Header({"NAXIS": 2, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 359.9, "CRVAL2": -45.0})
    plain.update({"CRPIX1": 500.0, "CRPIX2": 1300.0, "CUNIT1": "degree", "CUNIT2": "degree"})
    plain.update({"CD1_1": -1e-4, "CD1_2": 2e-6, "CD2_1": 3e-6, "CD2_2": 1.1e-4})
    sip = plain.copy()
    sip.update({"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 3, "B_ORDER": 2})
    sip.update({"A_2_0": 1e-5, "A_1_2": -2e-9, "B_0_2": 3e-6, "B_1_1": -1e-6})
    tpv = plain.copy()
    tpv.update({"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.001, "PV1_4": 0.02, "PV2_1": 0.999})
    pc = plain.copy()
    for i, j in ((1, 1), (1, 2), (2, 1), (2, 2)):
        del pc[f"CD{i}_{j}"]
    pc.update({"CDELT1": -1e-4, "CDELT2": 1e-4, "PC1_2": 0.1, "PC2_1": -0.1})
    for header in (plain, sip, tpv, pc):
        theirs = WCS(header).all_pix2world(x, y, 0)
        ours = read_map(header)(x, y)
        assert np.abs(np.array(ours) - theirs).max() * 3.6e6 < 1e-6
