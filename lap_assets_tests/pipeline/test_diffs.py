"""The stage `diffs`, through the engine and a real repository: what is measured, when it is not believed, bad input."""

import re

import dagster as dg
import numpy as np
import pytest

from lap_assets.defs.reports import SUBTRACTION, evaluate_checks
from lap_assets.model.ids import DataId, join_key
from lap_assets.model.image import Mask
from lap_assets.pipeline.diffs import read_psf
from lap_assets.pipeline.engine import PartitionReport
from lap_assets.pipeline.stack_inputs import read_used
from lap_assets.science.diff_sources import SourceFlag
from lap_assets.store.repo import Repo
from lap_assets_tests.pipeline.difference_world import SCALE, SIZE, SKY, World

pytestmark = pytest.mark.slow

CHANGE = (200.4, 210.7, 3000.0)
MEMBERS = ("e1", "e3", "e4", "e6")
PLAIN = {"diffs": {"template": "warps"}}
METHODS = ("alard_lupton", "zogy")


def make_world(root, spoil=None, **drawn):
    """Four warps of three nights; `spoil` changes the image of e6 before it is published, `drawn` how it is drawn."""
    world = World(root, members=MEMBERS)
    for name in MEMBERS:
        chosen = ({"changes": [CHANGE]} | drawn) if name == "e6" else {}
        image, stamp = world.draw(name, **chosen)
        if spoil is not None and name == "e6":
            spoil(image)
        world.publish_warp(name, image, stamp)
    return world


def by(method):
    """Settings for a difference by a method."""
    return {"diffs": {"template": "warps", "method": method}}


def find_change(sources):
    return sources[np.hypot(sources["x"] - CHANGE[0], sources["y"] - CHANGE[1]) < 1.5]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A world whose e6 has been differenced, and the report."""
    world = make_world(tmp_path_factory.mktemp("good"))
    (report,) = world.run("diffs", "e6", **PLAIN)
    return world, report


def test_a_difference_says_how_good_it_is(good):
    """AP-08: residual chi, kernel sum, matched stars in metrics and header; its PSF and that PSF's noise beside it."""
    world, report = good
    assert (report.state, report.metrics["quality"]) == ("done", "good")
    image, _ = world.read("diffs", "e6")
    assert report.metrics["n_matched_stars"] == image.header["NMATCH"] > 20
    assert report.metrics["kernel_sum"] == pytest.approx(1.0, abs=0.02)
    assert image.header["KSUM"] == pytest.approx(report.metrics["kernel_sum"], abs=1e-5)
    assert 0.5 < report.metrics["stamp_chi2"] < 2.0
    assert report.metrics["sky_chi"] == pytest.approx(1.0, abs=0.05)
    assert report.metrics["offset_px"] < 0.05
    assert image.header["QUALITY"] == "good"
    psf, gain = read_psf(world.repo, world.repo.pin(DataId("main", "diffs", "e6|t.0", SKY)), image.header)
    assert psf.evaluate(100.0, 300.0).sum() == pytest.approx(1.0)
    assert psf.fwhm_px * SCALE == pytest.approx(image.header["FWHM"], rel=0.01)
    assert 1.0 < gain < 3.0


def test_sources_are_measured(good):
    """Flux to its error, a point of the PSF's size, the distance to the nearest bright star as it is."""
    world, _ = good
    _, sources = world.read("diffs", "e6")
    (found,) = find_change(sources).itertuples()
    assert found.flags == 0
    assert found.flux == pytest.approx(CHANGE[2], abs=3.5 * found.flux_err)
    assert found.sharpness == pytest.approx(1.0, abs=0.2)
    assert found.ellipticity < 0.3
    bright = world.stars[world.stars[:, 2] / 100 > 300]
    away = np.hypot(bright[:, 0] - found.x, bright[:, 1] - found.y)
    assert found.star_distance_px == pytest.approx(away.min(), abs=0.01)
    assert found.star_flux == pytest.approx(bright[np.argmin(away), 2])
    assert (sources["flags"] == 0).sum() <= 3


def test_zogy_by_configuration(good):
    """The same interface, chosen by `diffs.method`."""
    world, _ = good
    (report,) = world.run("diffs", "e6", diffs={"template": "warps", "method": "zogy"})
    assert (report.state, report.metrics["method"], report.metrics["quality"]) == ("done", "zogy", "good")
    (found,) = find_change(world.read("diffs", "e6")[1]).itertuples()
    assert found.flags == 0
    assert found.flux == pytest.approx(CHANGE[2], abs=3.5 * found.flux_err)
    assert found.snr == pytest.approx(found.flux / found.flux_err)


# ---- what is not believed


def brighten(image):
    image.sci *= 1.6
    image.var *= 1.6**2


@pytest.mark.parametrize("method", METHODS)
def test_a_bad_subtraction_fails_its_check_and_gives_nothing_away(tmp_path, method):
    """A zero point wrong by 60 %: named; its sources flagged, no transient and no trail from it, the check warns."""
    world = make_world(tmp_path, brighten)
    (report,) = world.run("diffs", "e6", **by(method))
    assert report.state == "done"
    assert "flux ratio" in report.metrics["quality"] and "zero points" in report.metrics["quality"]
    assert report.metrics["n_clean_sources"] == 0
    image, sources = world.read("diffs", "e6")
    assert len(sources) and (sources["flags"] & int(SourceFlag.BAD_SUBTRACTION)).all()
    assert image.header["QUALITY"].startswith("flux ratio")
    (trails,) = world.run("streak_masks", "e6")
    assert trails.state == "no_work" and "its subtraction is bad" in trails.reason
    whole = PartitionReport("diffs", "e6|t.0", "done", (report,))
    told = {one.check_name: one for one in evaluate_checks(dg.AssetKey(["main", "diffs"]), world.repo, whole)}
    check = told[SUBTRACTION]
    assert (check.passed, check.severity, check.blocking) == (False, dg.AssetCheckSeverity.WARN, False)
    assert "flux ratio" in check.metadata["bad"].value[SKY]
    (row,) = check.metadata["numbers"].records
    assert row.data["skycell"] == SKY and abs(np.log(row.data["kernel_sum"])) == pytest.approx(np.log(1.6), abs=0.1)
    assert check.metadata["kernel_sum"].value == pytest.approx(row.data["kernel_sum"])


def test_a_good_one_passes_its_check(good):
    world, report = good
    whole = PartitionReport("diffs", "e6|t.0", "done", (report,))
    told = {one.check_name: one for one in evaluate_checks(dg.AssetKey(["main", "diffs"]), world.repo, whole)}
    assert told[SUBTRACTION].passed


@pytest.mark.parametrize("method", METHODS)
def test_a_wcs_wrong_by_5_arcsec_is_caught(tmp_path, method):
    """The stars of exposure and template do not match: a result that says so, and no sources."""
    world = make_world(tmp_path, shift=(5.0 / SCALE, 0.0))
    (report,) = world.run("diffs", "e6", **by(method))
    assert report.state == "done" and report.metrics["n_clean_sources"] == 0
    assert re.fullmatch(r"\d stars in both images, 5 needed: overlap or WCS", report.metrics["quality"])


# ---- bad input


def test_a_warp_with_all_pixels_masked_is_no_work(tmp_path):
    def mask_all(image):
        image.mask[:] = int(Mask.NO_DATA)
        image.sci[:], image.var[:] = 0, 0

    (report,) = make_world(tmp_path, mask_all).run("diffs", "e6", **PLAIN)
    assert report.state == "no_work" and "of e6 on skycell 00 of t.0" in report.reason


def spoil_islands(image):
    """Islands that are masked and hold what must not spread: huge values."""
    for x, y in ((60, 60), (300, 120), (150, 350)):
        box = np.s_[y : y + 12, x : x + 12]
        image.sci[box], image.var[box] = 1e30, 1e-30
        image.mask[box] = int(Mask.NO_DATA)


def spoil_variance(image):
    """Variance zero and negative where nothing is masked."""
    image.var[40:60, 40:60] = 0
    image.var[300:320, 40:60] = -5.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spoil", [spoil_islands, spoil_variance])
def test_islands_without_information_are_masked_and_all_is_finite(tmp_path, spoil, method):
    """Nothing spreads from them: the source elsewhere keeps its flux, no source stands on them."""
    world = make_world(tmp_path, spoil)
    (report,) = world.run("diffs", "e6", **by(method))
    assert (report.state, report.metrics["quality"]) == ("done", "good"), report.reason
    image, sources = world.read("diffs", "e6")
    assert np.isfinite(image.sci).all() and np.isfinite(image.var).all()
    clean = world.draw("e6")[0]
    before = clean.sci.copy()
    spoil(clean)
    spoilt = (clean.sci != before) | (clean.var <= 0)
    assert not image.usable[spoilt].any()
    (found,) = find_change(sources).itertuples()
    assert found.flux == pytest.approx(CHANGE[2], abs=3.5 * found.flux_err)
    good = sources[sources["flags"] == 0]
    assert not spoilt[good["y"].round().astype(int), good["x"].round().astype(int)].any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fwhm", [2.33, 10.0])
def test_wildly_different_seeing(tmp_path, fwhm, method):
    """0.7 and 3 arcsec against templates of 0.9: nothing but the source is found, with its flux."""
    world = make_world(tmp_path, seeing=fwhm, changes=[(*CHANGE[:2], 10000.0)])
    (report,) = world.run("diffs", "e6", **by(method))
    assert report.state == "done", report.reason
    image, sources = world.read("diffs", "e6")
    assert np.isfinite(image.sci).all() and np.isfinite(image.var).all()
    assert report.metrics["quality"] == "good"
    (found,) = find_change(sources).itertuples()
    assert found.flux == pytest.approx(10000, abs=max(3.5 * found.flux_err, 300))
    assert (sources["flags"] == 0).sum() <= 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["warps", "matched", "stack", "exposure=e1"])
def test_a_template_of_wildly_different_seeing(tmp_path, kind, method):
    """One of its inputs has 3 arcsec, the others 0.9 (the last: that one alone). Either the source is found, nearly
    alone; or no kernel makes one PSF of the other, stars stay all over, and the difference is named and not believed.
    """
    world = World(tmp_path, members=MEMBERS).fill(e1={"seeing": 10.0}, e6={"changes": [(*CHANGE[:2], 10000.0)]})
    world.run("stacks", stacks={"min_inputs": 3})
    (report,) = world.run("diffs", "e6", diffs={"template": kind, "method": method})
    assert report.state == "done", report.reason
    image, sources = world.read("diffs", "e6")
    assert image.header["TEMPLATE"] == kind.partition("=")[0]
    assert np.isfinite(image.sci).all() and np.isfinite(image.var).all()
    (found,) = find_change(sources).itertuples()
    if method == "alard_lupton" and report.metrics["quality"] != "good":
        assert kind in ("warps", "stack") and "stars leave a source" in report.metrics["quality"]
        assert len(sources) > 20 and report.metrics["n_clean_sources"] == 0
        return
    assert report.metrics["quality"] == "good"
    assert found.flux == pytest.approx(10000, abs=max(3.5 * found.flux_err, 300))
    assert (sources["flags"] == 0).sum() <= 4


def test_an_exposure_without_a_warp_says_why(tmp_path):
    """AP-09: the reason of the warp is that of the difference."""
    world = make_world(tmp_path)
    world.repo.publish(
        DataId("main", "warps", join_key("e6", "t.0"), SKY), {}, inputs=(), recipe="x", config_sha256="x", code=1,
        metrics={}, state="unprocessable", reason="exposure e6 has no solution",
    )  # fmt: skip
    (report,) = world.run("diffs", "e6", **PLAIN)
    assert report.state == "no_work" and report.reason.endswith("unprocessable (exposure e6 has no solution)")


@pytest.mark.parametrize("method", METHODS)
def test_a_trail_on_a_difference_is_masked_for_the_second_pass(tmp_path, method):
    """LAP-30: a trail of 4 sigma per pixel across the whole image, on a decorrelated difference, as on any other; the
    final stack is made without it.
    """
    v, u = np.mgrid[0:SIZE, 0:SIZE]

    def draw_trail(image):
        image.sci += 40 * np.exp(-0.5 * ((v - 0.6 * u - 60) / 1.17 / 1.8) ** 2).astype(np.float32)

    world = make_world(tmp_path, draw_trail)
    (report,) = world.run("diffs", "e6", **by(method))
    assert report.metrics["quality"] == "good"
    (trails,) = world.run("streak_masks", "e6")
    assert (trails.state, trails.metrics["n_streaks"]) == ("done", 1)
    (one,) = Repo(tmp_path).read_table(trails.data_id, "streaks.parquet").itertuples()
    slope = (one.y1 - one.y0) / (one.x1 - one.x0)
    assert slope == pytest.approx(0.6, abs=0.02)
    assert one.y0 - slope * one.x0 == pytest.approx(60, abs=2)
    (final,) = world.run("final_stacks")
    assert (final.state, final.metrics["n_streaks"], final.metrics["n_restacked"]) == ("done", 1, 1)
    used, inputs = read_used(world.repo, final.data_id)[0], world.repo.read_table(final.data_id, "inputs.parquet")
    mine = 1 << int(np.flatnonzero(inputs["exposure"] == "e6")[0])
    on_trail = np.abs(v - 0.6 * u - 60) / 1.17 < 1.0
    assert ((used & mine) == 0)[on_trail].all()
    assert ((used & mine) != 0)[np.abs(v - 0.6 * u - 60) > 30].mean() > 0.95
