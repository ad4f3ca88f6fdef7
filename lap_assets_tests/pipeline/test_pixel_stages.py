"""The small things the pixel stages do themselves: grown footprints, ownership, cards of differences."""

from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lap_assets.model.ids import DataId
from lap_assets.model.image import MaskedImage
from lap_assets.model.sphere import grow_polygons
from lap_assets.pipeline import streak_masks, transients
from lap_assets.pipeline.diffs import read_psf
from lap_assets.pipeline.task import Task
from lap_assets.pipeline.transients import select_owned
from lap_assets.science.diff_sources import SourceFlag
from lap_assets.settings import Settings
from lap_assets.store.repo import Repo


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
    grown = grow_polygons(np.array(corners), 60.0 / 3600.0)
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


def test_owned_pixels_are_half_open():
    table = pd.DataFrame({"x": [9.4, 9.5, 50.0, 99.4, 99.5], "y": [20.0] * 5})
    assert select_owned(table, [10, 100, 0, 30]).tolist() == [False, True, True, True, False]


# ---- from published differences


def publish_diff(repo, exposure, sources, trail=False, quality="good"):
    """A difference of 120 px about RA 0 with PSF cards; a trail of 10 sigma per pixel crosses it if asked for."""
    image = make_warp(exposure, 10.0, 1.0, int(exposure[-1]))
    image.header["CRVAL1"], image.header["CRVAL2"] = 0.0, 10.0
    image.header["CRPIX1"] = image.header["CRPIX2"] = 60.5
    image.header["PSFFWHM"], image.header["PSFCOV"] = 2.5, 1.4
    if trail:
        image.sci[58:63] += 100.0
    image.header["QUALITY"] = quality
    table = pd.DataFrame(sources, columns=["x", "y", "flux", "flux_err", "snr"]).astype(float)
    table["flags"] = 0 if quality == "good" else int(SourceFlag.BAD_SUBTRACTION)
    table["ra"], table["dec"] = image.wcs.all_pix2world(table["x"], table["y"], 0)
    data_id = DataId("main", "diffs", f"{exposure}|t.0", "00")
    manifest = repo.publish(
        data_id, {"image.fits": image, "sources.parquet": table}, inputs=(), recipe="x", config_sha256="x", code=1,
        metrics={},
    )  # fmt: skip
    return manifest.pin


def test_a_difference_that_tells_no_psf_has_a_round_one(tmp_path):
    """Of the width in its header; the factor of its noise is a card."""
    repo = Repo(tmp_path)
    pin = publish_diff(repo, "sim-1", [])
    psf, gain = read_psf(repo, pin, repo.read_image(pin).header)
    assert (psf.fwhm_px, gain) == (2.5, 1.4)
    assert psf.evaluate(0.0, 0.0).sum() == pytest.approx(1.0)


def test_nothing_is_measured_on_a_bad_subtraction(tmp_path):
    """Its sources are flagged: no transient of them; and no point of a light curve of those seen elsewhere."""
    repo = Repo(tmp_path)
    both = (30.0, 40.0, 3000.0, 100.0, 30.0)
    pins = tuple(publish_diff(repo, name, [both]) for name in ("sim-1", "sim-2"))
    bad = publish_diff(repo, "sim-3", [both], quality="flux ratio 1.6")
    output = make_transients(repo, (*pins, bad))
    assert (output.metrics["n_transients"], output.metrics["n_sources"]) == (1, 2)
    assert output.members["lightcurves.parquet"]["exposure"].tolist() == ["sim-1", "sim-2"]


def open_thumbnail(data):
    """The picture as greys."""
    assert data.startswith(b"\x89PNG") and len(data) <= 10_000
    return np.asarray(Image.open(BytesIO(data)).convert("L"))


def test_the_picture_of_a_streak_mask_shows_the_trail_and_is_plain_without(tmp_path):
    """The rows of the trail, which is masked with its margin of 2 px, are bright; without it all is one dark grey."""
    repo, shown = Repo(tmp_path), {}
    for exposure, trail in (("sim-1", False), ("sim-2", True)):
        pin = publish_diff(repo, exposure, [], trail)
        task = Task(DataId("main", "streak_masks", f"{exposure}|t.0", "00"), (pin,), Settings())
        output = streak_masks.make(task, repo)
        assert output.metrics == {"n_streaks": int(trail)}
        assert streak_masks.make(task, repo).members["preview.png"] == output.members["preview.png"]
        shown[trail] = open_thumbnail(output.members["preview.png"])
    assert shown[False].shape == shown[True].shape == (120, 120)
    assert np.ptp(shown[False]) == 0 and 0 < shown[False].max() < 100
    # row 0 of the image is the bottom row of the picture
    assert (shown[True][57:62] > 2 * shown[False].max()).all()
    assert (shown[True][:50] == shown[False][:50]).all() and (shown[True][70:] == shown[False][70:]).all()


def make_transients(repo, pins):
    facts = {f"sim-{k}": ["r", "2024-01-01", 60310.0 + 0.01 * k] for k in (1, 2, 3)}
    params = {"exposures": facts, "inner": {"00": [0, 120, 0, 120]}, "shape": {"00": [120, 120]}}
    return transients.make(Task(DataId("main", "transients", "t.0"), pins, Settings(), params), repo)


def test_transients_come_with_a_picture_of_the_cell_also_when_there_are_none(tmp_path):
    """One object seen twice and one lone detection, on both sides of RA 0; then differences without any source."""
    repo = Repo(tmp_path)
    both, once = (30.0, 40.0, 3000.0, 100.0, 30.0), (90.0, 80.0, 700.0, 100.0, 7.0)
    pins = (publish_diff(repo, "sim-1", [both, once]), publish_diff(repo, "sim-2", [both]))
    output = make_transients(repo, pins)
    assert (output.metrics["n_transients"], output.metrics["n_sources"]) == (1, 3)
    picture = open_thumbnail(output.members["preview.png"])
    assert make_transients(repo, pins).members["preview.png"] == output.members["preview.png"]
    empty = make_transients(Repo(tmp_path / "empty"), (publish_diff(Repo(tmp_path / "empty"), "sim-1", []),))
    assert empty.metrics["n_transients"] == 0
    assert (open_thumbnail(empty.members["preview.png"]) < 128).sum() < (picture < 128).sum()
