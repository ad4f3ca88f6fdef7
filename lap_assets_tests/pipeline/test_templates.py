"""Templates: the run's stack less a night, other exposures, other repositories; what is said where there is none."""

import numpy as np
import pytest
from astropy.wcs import WCS

from lap_assets.errors import BadInput, IntegrityError
from lap_assets.model.ids import DataId
from lap_assets.model.image import Mask
from lap_assets.model.products import get_product
from lap_assets.pipeline import diffs
from lap_assets.pipeline.elsewhere import Elsewhere
from lap_assets.pipeline.engine import Session, find_cleaned_inputs
from lap_assets.pipeline.psf_members import read_psf_grid
from lap_assets.pipeline.recipes import compute_recipe
from lap_assets.pipeline.stages import STAGES
from lap_assets.pipeline.templates import make_template, read_used
from lap_assets.science.psf_grid import average_grids
from lap_assets.settings import parse_settings
from lap_assets_tests.pipeline.difference_world import NIGHTS, SIZE, SKY, World, make_cell

CHANGE = (200.4, 210.7, 3000.0)  # x, y, flux: about 25 sigma, away from the stars


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Seven warps of three nights, the first-pass stack of them; two of the third night show a new source."""
    world = World(tmp_path_factory.mktemp("world"))
    world.fill(e5={"changes": [CHANGE]}, e6={"changes": [CHANGE]})
    (stack,) = world.run("stacks")
    assert stack.state == "done"
    return world


def plan_one(world, name, **chosen):
    """The one task of an exposure's difference."""
    settings = parse_settings({"diffs": chosen}, "test")
    (task,) = diffs.plan(world.survey, world.repo, settings, world.collection, f"{name}|{world.cell.name}")
    return task


def make_one(world, name, **chosen):
    """Its template, and the science image."""
    task = plan_one(world, name, **chosen)
    mine = next(pin for pin in task.pins("warps") if pin.data_id.parts[0] == name)
    science = world.repo.read_image(mine)
    return make_template(task, world.repo, mine, science), science


def find_change(sources):
    """Rows at the place of the new source."""
    return sources[np.hypot(sources["x"] - CHANGE[0], sources["y"] - CHANGE[1]) < 1.5]


def test_the_template_is_the_stack_less_the_night_by_arithmetic(world):
    """LAP-28, AP-06: it is the weighted mean of the other nights' pixels that entered, to 1e-5 sigma; its PSF too."""
    template, _ = make_one(world, "e6")
    task = plan_one(world, "e6")
    assert {pin.data_id.parts[0] for pin in task.pins("warps")} == {"e5", "e6", "e7"}
    assert len(task.pins("stacks")) == 1
    stack = task.pins("stacks")[0]
    inputs, used = world.repo.read_table(stack, "inputs.parquet"), read_used(world.repo, stack)
    top, bottom, noise = (np.zeros((SIZE, SIZE)) for _ in range(3))
    v, u = (np.indices((SIZE, SIZE)) - 0.5 * (SIZE - 1)) / (0.5 * SIZE)
    grids, weights = [], []
    for row, one in inputs.iterrows():
        if NIGHTS[one["exposure"]] == "n3":
            continue
        pin = world.repo.pin(DataId("main", "warps", f"{one['exposure']}|t.0", SKY))
        warp = world.repo.read_image(pin)
        level = one["level_0"] + one["level_1"] * u + one["level_2"] * v
        weight = one["weight"] * ((used[row // 31] >> (row % 31)) & 1)
        top += weight * (warp.sci - level)
        bottom += weight
        noise += weight**2 * warp.var
        grids.append(read_psf_grid(world.repo, pin))
        weights.append(one["weight"])
    there = bottom > 0
    assert there.mean() > 0.99
    sigma = np.sqrt(noise[there]) / bottom[there]
    off = np.abs(template.image.sci[there] - top[there] / bottom[there]) / sigma
    assert off.max() < 1e-4 and np.percentile(off, 99) < 1e-5
    assert np.abs(template.image.var[there] / sigma**2 - 1).max() < 1e-4
    assert template.n_inputs == 4
    expected = average_grids(grids, np.array(weights)).evaluate(200.0, 200.0)
    assert np.abs(template.psf.evaluate(200.0, 200.0) - expected).max() < 2e-3 * expected.max()


def test_what_came_in_one_night_is_found_in_full(world):
    """AP-06: the night's other exposure shows it too, and takes nothing away; the nights before show nothing."""
    reports = world.run("diffs", "e5", "e6", "e7", "e1")
    assert [one.state for one in reports] == ["done"] * 4
    assert all(one.metrics["quality"] == "good" for one in reports)
    assert [one.metrics["n_template_inputs"] for one in reports] == [4, 4, 4, 5]
    for name in ("e5", "e6"):
        image, sources = world.read("diffs", name)
        (found,) = find_change(sources).itertuples()
        assert found.flags == 0 and found.snr > 15
        assert found.flux == pytest.approx(CHANGE[2], abs=3.5 * found.flux_err)
        assert image.header["TEMPLATE"] == "stack"
    assert find_change(world.read("diffs", "e7")[1]).empty
    # among the other nights of e1 are two with the source, out of five
    gone = find_change(world.read("diffs", "e1")[1])
    assert (gone["flux"] < 0).all()


def test_warps_and_matched_warps_give_the_same_difference(world):
    """AP-06: combined anew, and PSF-matched before that; flux to the errors."""
    for kind in ("warps", "matched"):
        (report,) = world.run("diffs", "e6", diffs={"template": kind})
        assert (report.state, report.metrics["quality"]) == ("done", "good")
        image, sources = world.read("diffs", "e6")
        assert image.header["TEMPLATE"] == kind
        (found,) = find_change(sources).itertuples()
        assert found.flux == pytest.approx(CHANGE[2], abs=3.5 * found.flux_err)
    template, _ = make_one(world, "e6", template="matched")
    assert template.psf.fwhm_px == pytest.approx(1.05 * 3.4, rel=0.02)


def test_too_few_other_nights_are_no_template(world):
    """AP-09: the reason names exposure, skycell and what was looked for."""
    (report,) = world.run("diffs", "e6", diffs={"min_template_inputs": 5})
    assert report.state == "no_work"
    assert report.reason == (
        "no template for e6 on skycell 00 of t.0: looked for 5 warps of other nights than n3, the stack holds 4"
    )
    (report,) = world.run("diffs", "e6", diffs={"min_template_inputs": 5, "template": "warps"})
    assert report.reason.endswith("looked for 5 warps of other nights than n3, there are 4")


def test_another_exposure_is_a_template_too(world):
    """AP-06: `exposure=NAME`, of the same night or not; one that is not there is named (AP-09)."""
    (report,) = world.run("diffs", "e6", diffs={"template": "exposure=e7"})
    assert (report.state, report.metrics["n_template_inputs"]) == ("done", 1)
    (found,) = find_change(world.read("diffs", "e6")[1]).itertuples()
    assert found.flux == pytest.approx(CHANGE[2], abs=3.5 * found.flux_err)
    (report,) = world.run("diffs", "e6", diffs={"template": "exposure=e99"})
    assert report.state == "no_work"
    assert "no template for e6 on skycell 00 of t.0: looked for a warp of e99" in report.reason
    with pytest.raises(BadInput, match="template"):
        parse_settings({"diffs": {"template": "exposure="}}, "test")


# ---- elsewhere


def make_stack_elsewhere(root, cell, collection="deep", members=("e1", "e3", "e4"), showing=()):
    """A repository with a stack of another tessellation or of ours; `showing` are members that have the new source."""
    other = World(root, members=members, cell=cell, collection=collection)
    ours = make_cell().skycells[SKY]
    sky = ours_to_sky(ours, other.stars)
    x, y = header_wcs(cell).all_world2pix(sky[0], sky[1], 0)
    near = (np.abs(np.array([x, y]) - 0.5 * SIZE) < 0.5 * SIZE + 15).all(axis=0)
    stars = np.column_stack([x, y, other.stars[:, 2]])[near]
    new = np.column_stack([*header_wcs(cell).all_world2pix(*ours_to_sky(ours, np.array([CHANGE])), 0), CHANGE[2]])
    for name in other.survey.exposures:
        changes = new if name in showing else ()
        other.publish_warp(name, *other.draw(name, changes, stars=stars, seed=20 + int(name[1:])))
    (report,) = other.run("stacks", stacks={"min_inputs": 3})
    assert report.state == "done"
    return other


def header_wcs(cell):
    return WCS(cell.skycells[SKY].header())


def ours_to_sky(skycell, stars):
    return WCS(skycell.header()).all_pix2world(stars[:, 0], stars[:, 1], 0)


@pytest.mark.parametrize("same", [True, False])
def test_a_stack_of_another_repository(world, tmp_path, same):
    """AP-06, AP-07: the same skycell, or what overlaps ours, found by its WCS and resampled, wherever it lies."""
    cell = make_cell() if same else make_cell("far", ra_deg=150.004, dec_deg=1.9965)
    other = make_stack_elsewhere(tmp_path / "other", cell)
    chosen = {"template_repository": str(tmp_path / "other"), "template_collection": "deep"}
    (report,) = world.run("diffs", "e6", diffs=chosen)
    assert (report.state, report.metrics["quality"]) == ("done", "good"), report.reason
    assert report.metrics["n_template_inputs"] == 3
    image, sources = world.read("diffs", "e6")
    (found,) = find_change(sources).itertuples()
    assert found.flux == pytest.approx(CHANGE[2], abs=3.5 * found.flux_err)
    assert image.usable.mean() > (0.9 if same else 0.6)
    assert report.metrics["template"].startswith(f"deep/stacks/{other.cell.name}|r/{SKY}@")
    before = plan_one(world, "e6", **chosen)
    assert before.params["template_pins"][0][0] == f"deep/stacks/{other.cell.name}|r/{SKY}"
    (tmp_path / "other").rename(tmp_path / "moved")
    after = plan_one(world, "e6", template_repository=str(tmp_path / "moved"), template_collection="deep")
    assert compute_recipe(STAGES["diffs"], before) == compute_recipe(STAGES["diffs"], after)


def test_a_stack_of_another_collection_is_an_input_like_any_other(tmp_path):
    """AP-06: in the same repository, with its content pinned in the manifest; found also for the same exposure."""
    world = World(tmp_path).fill(e6={"changes": [CHANGE]})
    other = make_stack_elsewhere(tmp_path, make_cell())
    (report,) = world.run("diffs", "e6", diffs={"template_collection": "deep"})
    assert (report.state, report.metrics["quality"]) == ("done", "good")
    pinned = {pin.data_id.collection: pin for pin in world.repo.manifest(report.data_id).inputs}
    assert pinned["deep"] == other.repo.pin(DataId("deep", "stacks", "t.0|r", SKY))
    other.repo.clean(pinned["deep"].data_id)
    session = Session(world.survey, world.repo, parse_settings({"diffs": {"template_collection": "deep"}}, "test"))
    assert find_cleaned_inputs(session, "diffs", "e6|t.0") == []  # the stack of main of that name was never made
    (found,) = find_change(world.read("diffs", "e6")[1]).itertuples()
    assert found.flux == pytest.approx(CHANGE[2], abs=3.5 * found.flux_err)
    (again,) = world.run("diffs", "e3", diffs={"template_collection": "deep", "template": "exposure=e3"})
    assert again.state == "done"
    assert again.metrics["template"].startswith(f"deep/warps/e3|t.0/{SKY}@")


@pytest.mark.parametrize("same", [True, False])
def test_a_stack_of_another_repository_is_taken_without_the_night(world, tmp_path, same):
    """AP-06: it holds the exposure's night, in which the source shone: in full on the difference; with 2 of 7 inputs
    showing it, 29 % would be missing. Where the night's warps are cleaned there, that is said.
    """
    cell = make_cell() if same else make_cell("far", ra_deg=150.004, dec_deg=1.9965)
    other = make_stack_elsewhere(tmp_path / "other", cell, members=tuple(NIGHTS), showing=("e5", "e6"))
    chosen = {"template_repository": str(tmp_path / "other"), "template_collection": "deep"}
    (report,) = world.run("diffs", "e6", diffs=chosen)
    assert (report.state, report.metrics["quality"], report.metrics["n_template_inputs"]) == ("done", "good", 4)
    (found,) = find_change(world.read("diffs", "e6")[1]).itertuples()
    assert found.flux == pytest.approx(CHANGE[2], abs=3.5 * found.flux_err) and found.flux_err < 0.07 * CHANGE[2]
    other.repo.clean(DataId("deep", "warps", f"e5|{cell.name}", SKY))
    (report,) = world.run("diffs", "e6", diffs=chosen)
    assert (report.state, report.skipped) == ("done", True)  # what was made stays
    (report,) = world.run("diffs", "e6", diffs=chosen | {"source_snr": 5.5})
    assert report.state == "no_work"
    assert (
        "a stack in band r in collection deep, it holds the night of e6, of which 1 warps are cleaned" in report.reason
    )


def test_a_template_that_does_not_overlap_is_no_work(world, tmp_path):
    """AP-07, AP-09: named: exposure, skycell, what was looked for; a collection that is not there is bad input."""
    far = make_cell("far", ra_deg=151.0, dec_deg=2.0)
    other = World(tmp_path / "other", members=("e1", "e3", "e4"), cell=far, collection="deep").fill()
    other.run("stacks", stacks={"min_inputs": 3})
    chosen = {"template_repository": str(tmp_path / "other"), "template_collection": "deep"}
    (report,) = world.run("diffs", "e6", diffs=chosen)
    assert report.state == "no_work"
    assert report.reason == (
        "no template for e6 on skycell 00 of t.0: looked for a stack in band r in collection deep, "
        "nothing there overlaps it"
    )
    with pytest.raises(BadInput, match=r"template_collection: no collection 'wide' in .*there are: deep"):
        plan_one(world, "e6", template_repository=str(tmp_path / "other"), template_collection="wide")


def test_of_a_far_cell_one_header_is_read(tmp_path):
    """AP-06: a repository of the whole sky is searched by cell; what is far is not read: here it could not be."""
    far = make_cell("far", ra_deg=180.0, dec_deg=40.0)
    other = World(tmp_path, members=("e1",), cell=far, collection="deep")
    image, _ = other.draw("e1")
    for unit in ("00", "01"):
        data_id = DataId("deep", "warps", "e1|far.0", unit)
        pin = other.repo.publish(data_id, {"image.fits": image}, inputs=(), recipe="x", config_sha256="x", code=1,
                                 metrics={}).pin  # fmt: skip
    broken = other.repo.path(pin, "image.fits")
    broken.chmod(0o644)
    broken.write_bytes(b"no FITS")
    place = Elsewhere(other.repo, "deep", "e1", "r")
    assert place.find("t.0", SKY, make_cell().skycells[SKY].header()) == []
    with pytest.raises(IntegrityError, match=r"e1.*01"):
        place.find("far.1", SKY, far.skycells[SKY].header())


def test_a_template_that_covers_too_little_is_no_work(world, tmp_path):
    """AP-07: a corner of ours alone."""
    corner = make_cell("far", ra_deg=150.0 + 0.9 * SIZE * 0.3 / 3600, dec_deg=2.0 + 0.9 * SIZE * 0.3 / 3600)
    make_stack_elsewhere(tmp_path / "other", corner)
    chosen = {"template_repository": str(tmp_path / "other"), "template_collection": "deep"}
    (report,) = world.run("diffs", "e6", diffs=chosen)
    assert report.state == "no_work"
    assert "of e6 on skycell 00 of t.0, 20% needed" in report.reason


def test_pixels_without_a_template_are_masked(world):
    """Nothing is subtracted where nothing is left of the stack: NO_DATA there, finite all over."""
    template, science = make_one(world, "e6")
    assert template.image.shape == science.shape
    assert np.isfinite(template.image.sci).all() and np.isfinite(template.image.var).all()
    empty = template.image.var == 0
    assert ((template.image.mask[empty] & int(Mask.NO_DATA)) != 0).all()
    assert get_product("diffs").code == 3
