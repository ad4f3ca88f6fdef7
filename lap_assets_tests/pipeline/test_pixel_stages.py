"""The small things the pixel stages do themselves: grown footprints, headers of stacks, ownership, cards of
differences.
"""

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.errors import NoWork
from lap_assets.model.image import Mask, MaskedImage
from lap_assets.pipeline.diffs import read_psf
from lap_assets.pipeline.final_stacks import mask_streaks
from lap_assets.pipeline.stacks import combine_warps, describe_stack
from lap_assets.pipeline.transients import select_owned
from lap_assets.pipeline.warps import grow_polygon
from lap_assets.science.streaks import STREAK_COLUMNS
from lap_assets.settings import StackSettings


def separation_arcsec(a, b):
    (ra1, dec1), (ra2, dec2) = np.radians(a), np.radians(b)
    s = np.sin((dec2 - dec1) / 2) ** 2 + np.cos(dec1) * np.cos(dec2) * np.sin((ra2 - ra1) / 2) ** 2
    return np.degrees(2 * np.arcsin(np.sqrt(s))) * 3600


@settings(max_examples=40, deadline=None)
@given(ra=st.floats(0, 359.999), dec=st.floats(-89.9, 89.9), size=st.floats(0.01, 1.0))
def test_grown_footprints_contain_the_old_ones(ra, dec, size):
    """Every corner moves outwards by √2 of the margin, at RA 0/360 and beside the poles too."""
    # a square about the point, built on the sphere
    centre = np.array(
        [
            np.cos(np.radians(dec)) * np.cos(np.radians(ra)),
            np.cos(np.radians(dec)) * np.sin(np.radians(ra)),
            np.sin(np.radians(dec)),
        ]
    )
    east = np.array([-np.sin(np.radians(ra)), np.cos(np.radians(ra)), 0.0])
    north = np.cross(centre, east)
    half = np.radians(size)
    corners = []
    for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        v = centre + half * (a * east + b * north)
        v /= np.linalg.norm(v)
        corners.append((np.degrees(np.arctan2(v[1], v[0])) % 360, np.degrees(np.arcsin(v[2]))))
    grown = grow_polygon(corners, 60.0)
    for old, new in zip(corners, grown, strict=True):
        assert separation_arcsec(old, new) == pytest.approx(60 * np.sqrt(2), rel=0.01)
        assert separation_arcsec(new, (ra, dec)) > separation_arcsec(old, (ra, dec))


def make_warp(exposure, sigma, fwhm, seed):
    rng = np.random.default_rng(seed)
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"], header["CD1_1"], header["CD2_2"] = (
        "RA---TAN",
        "DEC--TAN",
        -0.4 / 3600,
        0.4 / 3600,
    )
    header["EXPOSURE"], header["BAND"], header["NIGHT"], header["MJD"] = exposure, "r", "2024-01-01", 60310.1
    header["FWHM"], header["NOISECOV"] = fwhm, 1.3
    sci = rng.normal(0, sigma, (120, 120)).astype(np.float32)
    return MaskedImage(sci, np.zeros(sci.shape, np.int16), np.full(sci.shape, sigma**2, np.float32), header)


def test_stack_says_what_it_is_made_of():
    """Depth from VAR and covariance: two inputs of 10 and 20 nJy, 1.1″ FWHM."""
    images = [make_warp("sim-1", 10.0, 1.0, 1), make_warp("sim-2", 20.0, 1.5, 2)]
    stack, inputs = combine_warps(images, StackSettings())
    assert inputs["exposure"].tolist() == ["sim-1", "sim-2"]
    assert inputs["weight"].tolist() == pytest.approx([0.8, 0.2])
    assert stack.header["FWHM"] == pytest.approx(1.1)
    assert stack.header["NOISECOV"] == pytest.approx(1.3)
    output = describe_stack(stack, inputs)
    sigma = np.sqrt(1 / (1 / 100 + 1 / 400)) * np.sqrt(1.3)
    noise_pixels = 4 * np.pi * (1.1 / 0.4 / 2.3548) ** 2
    assert output.metrics["limit_mag_5sigma"] == pytest.approx(
        31.4 - 2.5 * np.log10(5 * sigma * np.sqrt(noise_pixels)), abs=0.01
    )
    assert output.metrics["n_inputs"] == 2
    assert set(output.members) == {"image.fits", "inputs.parquet", "preview.png"}


def test_stack_of_nothing_is_no_work():
    image = make_warp("sim-1", 10.0, 1.0, 1)
    image.mask[:] = int(Mask.NO_DATA)
    image.var[:] = 0
    with pytest.raises(NoWork, match="none of 1 inputs"):
        combine_warps([image], StackSettings())


def test_streaks_are_masked_before_stacking():
    """A trail in one of three inputs: masked, it leaves the mean alone; the other inputs count."""
    images = [make_warp(f"sim-{k}", 10.0, 1.0, k) for k in range(3)]
    trail = pd.DataFrame([(0.0, 60.0, 119.0, 60.0, 5.0, 50.0)], columns=list(STREAK_COLUMNS))
    images[0].sci[58:63] += 30.0  # below the clip: only the mask can take it out
    masked = [mask_streaks(one, trail if k == 0 else None, 1.0) for k, one in enumerate(images)]
    stack, _ = combine_warps(masked, StackSettings())
    assert (stack.planes["NINPUT"][58:63] == 2).all()
    assert abs(stack.sci[58:63].mean()) < 1.5
    plain, _ = combine_warps([make_warp("x", 10.0, 1.0, 0), *images[1:]], StackSettings())
    assert (plain.planes["NINPUT"][58:63] == 3).mean() > 0.99


def test_owned_pixels_are_half_open():
    table = pd.DataFrame({"x": [9.4, 9.5, 50.0, 99.4, 99.5], "y": [20.0] * 5})
    assert select_owned(table, [10, 100, 0, 30]).tolist() == [False, True, True, True, False]


def test_psf_cards_are_read_back():
    header = fits.Header({"PSFFWHM": 2.5, "PSFBETA": 3.1, "PSFRESP": 0.99, "PSFCOV": 1.4})
    psf, gain = read_psf(header)
    assert (psf.fwhm_px, psf.beta, psf.response, gain) == (2.5, 3.1, 0.99, 1.4)
