import json
import logging
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

from lap_assets.errors import BadInput, Conflict, IntegrityError, NotFound
from lap_assets.model.ids import DataId, Pin
from lap_assets.model.image import Mask
from lap_assets.store import mosaic
from lap_assets.store.repo import Repo
from lap_assets.store.verify import fsck
from lap_assets_tests.store.samples import (
    FINAL,
    STACK,
    WARP,
    check_stack,
    make_header,
    make_image,
    make_stack,
    publish,
)


@pytest.fixture
def repo(tmp_path):
    return Repo(tmp_path)


def stack_id(skycell, band="r", collection="main"):
    return DataId(collection, "stacks", f"demo.0|{band}", skycell)


@pytest.fixture
def cell(repo):
    """Four overlapping skycells of 10 × 12 pixels of one cell, 8 and 9 apart; 11 has no data."""
    for row in (0, 1):
        for column in (0, 1):
            if (row, column) == (1, 1):
                publish(repo, stack_id("11"), {}, state="no_work", reason="too few inputs")
            else:
                members = make_stack(10 * row + column + 1, x0=8 * column, y0=9 * row)
                publish(repo, stack_id(f"{row}{column}"), members, metrics={"depth_mag": 24.0 + row})
    return repo


def test_products_are_got_by_name_and_key_and_aliases(cell):
    """Type and data id, never a path (LV-01, AP-08)."""
    image = cell.get("stacks", cell="demo.0", band="r", skycell="01")
    assert image.header["VALUE"] == 2.0
    assert cell.get("stacks", tract="demo.0", filter="r", sky="01").header["VALUE"] == 2.0
    assert cell.get("stacks", cell="demo.0", band="r", skycell=1).header["VALUE"] == 2.0
    assert len(cell.get("stacks", "inputs.parquet", cell="demo.0", band="r", skycell="01")) == 2
    assert cell.uri("stacks", cell="demo.0", band="r", skycell="01").name == "image.fits"


def test_a_cell_is_put_together_from_its_skycells(cell):
    whole = cell.get("stacks", cell="demo.0", band="r")
    assert whole.shape == (21, 18)
    expected = np.zeros((21, 18))
    for value, x0, y0 in ((1, 0, 0), (2, 8, 0), (11, 0, 9)):
        here = expected[y0 : y0 + 12, x0 : x0 + 10]
        here[here == 0] = value
    np.testing.assert_array_equal(whole.sci, expected)
    np.testing.assert_array_equal(whole.planes["NINPUT"], expected)
    empty = expected == 0
    assert empty.any()
    np.testing.assert_array_equal((whole.mask & int(Mask.NO_DATA)) != 0, empty)
    assert (whole.var[empty] == 0).all()
    # the same point of the sky from the mosaic and from the skycell
    sky = cell.get("stacks", cell="demo.0", band="r", skycell="01").wcs.pixel_to_world_values(3, 4)
    np.testing.assert_allclose(whole.wcs.pixel_to_world_values(3 + 8, 4), sky, rtol=0, atol=1e-12)


def test_mosaics_too_large_or_off_the_grid_are_refused():
    near, far, shifted = (make_header(x0=x, y0=x) for x in (0, 200_000, 0))
    for header in (near, far, shifted):
        header["NAXIS1"] = header["NAXIS2"] = 10
    shifted["CRPIX1"] += 0.5
    with pytest.raises(BadInput, match="whole pixels apart"):
        mosaic.plan_mosaic([near, shifted])
    with pytest.raises(BadInput, match="give skycell="):
        mosaic.plan_mosaic([near, far])
    shifted["CRVAL1"] = 20.0
    with pytest.raises(BadInput, match="not on one grid"):
        mosaic.plan_mosaic([near, shifted])


def test_tables_of_a_cell_are_concatenated(cell):
    table = cell.get("stacks", "inputs.parquet", cell="demo.0", band="r")
    assert table["skycell"].tolist() == ["00", "00", "01", "01", "10", "10"]
    assert table["weight"].tolist() == [1, 1, 2, 2, 11, 11]
    assert table.attrs["units"] == {"fwhm_arcsec": "arcsec"}


def test_json_and_planes_come_as_dicts(repo):
    data_id = DataId("main", "mass_fits", "demo.0")
    profile = pd.DataFrame({name: [1.0] for name in ("radius_mpc", "gamma_t", "gamma_x", "gamma_err", "n")})
    publish(repo, data_id, {"fit.json": {"mass": 1e15}, "profile.parquet": profile})
    assert repo.get("mass_fits", cell="demo.0") == {"mass": 1e15}
    data_id = DataId("main", "mass_maps", "demo.0")
    peaks = pd.DataFrame({name: [1.0] for name in ("ra", "dec", "snr", "radius_arcmin")})
    planes = {
        name: (np.full((3, 4), i, np.float32), make_header()) for i, name in enumerate(("E", "B", "SNR", "SNR_B"))
    }
    publish(repo, data_id, {"map.fits": planes, "peaks.parquet": peaks})
    got = repo.get("mass_maps", cell="demo.0")
    assert list(got) == ["E", "B", "SNR", "SNR_B"]
    assert got["SNR"][0].max() == 2 and got["SNR"][1]["CRVAL1"] == 150.0


def test_what_is_missing_is_named_with_the_command_that_makes_it(cell):
    """Never "no locations for get" without what and where (AP-09)."""
    with pytest.raises(
        NotFound, match=r"no stacks for cell=demo.0 band=z in collection main; .*lap run --select 'cell=demo.0 band=z'"
    ):
        cell.get("stacks", cell="demo.0", band="z")
    with pytest.raises(NotFound, match=r"no_work \(too few inputs\)"):
        cell.get("stacks", cell="demo.0", band="r", skycell="11")
    with pytest.raises(NotFound, match=r"main/warps/sim-1\|demo.0/03 is missing; make it with: lap run --select"):
        cell.read_image(WARP)
    with pytest.raises(NotFound, match=r"no member 'psf\.fits'; there are: image\.fits, inputs\.parquet"):
        cell.read_image(stack_id("00"), "psf.fits")
    with pytest.raises(BadInput, match="unknown product 'stackz'"):
        cell.get("stackz")
    with pytest.raises(BadInput, match="there are: cell, band, skycell"):
        cell.get("stacks", colour="r")


def test_an_ambiguous_question_is_answered_with_the_choice(cell):
    publish(cell, stack_id("00", band="g"), make_stack(5))
    with pytest.raises(BadInput, match=r"choose one by band=g\^r"):
        cell.get("stacks", cell="demo.0")
    with pytest.raises(BadInput, match="choose one by skycell="):
        cell.uri("stacks", cell="demo.0", band="r")
    chips = [DataId("main", "chips", "sim-1", chip) for chip in ("c0", "c1")]
    for data_id in chips:
        publish(cell, data_id, {"image.fits": make_image()})
    with pytest.raises(BadInput, match=r"choose one by chip=c0\^c1"):
        cell.get("chips", exposure="sim-1")
    assert cell.get("chips", exposure=1, chip="c1").shape == (12, 10)


def test_reads_fall_through_the_chain_of_collections(tmp_path):
    """A rerun sees its own products first, then those it builds on (LV-02, AP-11)."""
    repo = Repo(tmp_path, ("rerun", "main"))
    publish(repo, stack_id("00"), make_stack(1))
    publish(repo, stack_id("01"), make_stack(2))
    publish(repo, stack_id("00", collection="rerun"), make_stack(7))
    keys = {"cell": "demo.0", "band": "r"}
    assert repo.get("stacks", skycell="00", **keys).header["VALUE"] == 7
    assert repo.get("stacks", skycell="01", **keys).header["VALUE"] == 2
    assert repo.get("stacks", collection="main", skycell="00", **keys).header["VALUE"] == 1
    assert Repo(tmp_path).get("stacks", skycell="00", **keys).header["VALUE"] == 1
    assert sorted(repo.query("stacks")["data_id"]) == ["main/stacks/demo.0|r/01", "rerun/stacks/demo.0|r/00"]
    master = DataId("calib", "master_flats", "simcam|flat|r|2024-01-01", "c0")
    publish(repo, master, {"image.fits": make_image(4)})
    assert repo.get("master_flats", camera="simcam", band="r", chip="c0").header["VALUE"] == 4


def test_queries_select_by_keys_and_metrics(cell):
    """Query by expression and by glob (LV-01)."""
    table = cell.query("stacks")
    assert table["skycell"].tolist() == ["00", "01", "10", "11"]
    assert table["state"].tolist() == ["done", "done", "done", "no_work"]
    assert set(cell.query("stacks", "depth_mag>24.5")["skycell"]) == {"10"}
    assert set(cell.query(where="product=stacks state=done skycell~0*")["skycell"]) == {"00", "01"}
    assert len(cell.query("stacks", "band=z")) == 0
    assert "state" in cell.query("warps").columns
    assert [data_id.unit for data_id in cell.glob("main/stacks/demo.*/*1")] == ["01", "11"]
    with pytest.raises(BadInput, match="colour"):
        cell.query("stacks", "colour=red")


def test_units_of_a_partition_are_listed_in_order(cell):
    units = cell.units("main", "stacks", "demo.0|r")
    assert [data_id.unit for data_id in units] == ["00", "01", "10", "11"]
    assert cell.units("main", "stacks", "demo.1|r") == []
    assert cell.units("main", "stacks", "demo.0|r") == cell.all_units("main", "stacks")


def test_a_pinned_input_is_read_as_pinned_even_after_it_was_replaced(repo):
    """Re-creation uses the inputs pinned in the manifest, not today's."""
    publish(repo, STACK, make_stack(3))
    pin = repo.pin(STACK)
    old = repo.path(STACK, "image.fits")
    publish(repo, STACK, make_stack(4))
    assert repo.read_image(STACK).header["VALUE"] == 4
    assert repo.read_image(pin).header["VALUE"] == 3
    data = bytearray(old.read_bytes())
    data[-3000] ^= 1
    old.write_bytes(bytes(data))
    with pytest.raises(Conflict, match="replaced since it was pinned"):
        repo.read_image(pin)
    with pytest.raises(Conflict, match="replaced since it was pinned"):
        repo.read_image(Pin(STACK, "0" * 64))


class StaleRepo(Repo):
    """A reader whose first look at the manifest was before a replacement."""

    stale = None

    def manifest(self, data_id):
        first, StaleRepo.stale = StaleRepo.stale, None
        return first or super().manifest(data_id)


def test_a_reader_that_meets_a_vanished_member_looks_again_once(repo):
    StaleRepo.stale = publish(repo, STACK, make_stack(3))
    old = repo.path(STACK, "image.fits")
    publish(repo, STACK, make_stack(4))
    for path in old.parent.iterdir():
        path.unlink()
    assert StaleRepo(repo.root).read_image(STACK).header["VALUE"] == 4
    repo.path(STACK, "image.fits").unlink()
    with pytest.raises(IntegrityError, match="the file is missing"):
        StaleRepo(repo.root).read_image(STACK)


def test_damage_names_product_path_and_cure(repo):
    publish(repo, STACK, make_stack(3))
    path = repo.path(STACK, "image.fits")
    path.write_bytes(path.read_bytes()[:-2880])
    with pytest.raises(IntegrityError) as caught:
        repo.read_image(STACK)
    message = str(caught.value)
    assert str(STACK) in message and str(path) in message and "\n" not in message
    assert "lap fsck" in message and "lap run --select 'cell=demo.0 band=r' --to stacks" in message
    assert not repo.has_files(STACK)


def test_content_is_checked_on_demand(repo):
    publish(repo, STACK, make_stack(3))
    path = repo.path(STACK, "inputs.parquet")
    record = repo.manifest(STACK).members["inputs.parquet"]
    # same size, valid Parquet, other content
    other = repo.root / "other"
    publish(Repo(other), STACK, make_stack(5))
    changed = Repo(other).path(STACK, "inputs.parquet").read_bytes()
    assert len(changed) == record.bytes
    path.write_bytes(changed)
    with pytest.raises(IntegrityError, match="sha256"):
        repo.read_table(STACK, "inputs.parquet")
    image = repo.path(STACK, "image.fits")
    image.write_bytes(Repo(other).path(STACK, "image.fits").read_bytes())
    assert repo.read_image(STACK).header["VALUE"] == 5  # a whole, valid, wrong file: structure is right
    with pytest.raises(IntegrityError, match="sha256"):
        repo.read_image(STACK, full=True)


def test_links_do_not_lead_readers_out_of_the_store(repo, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    publish(repo, STACK, make_stack(3))
    path = repo.path(STACK, "image.fits")
    (outside / "image.fits").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside / "image.fits")
    with pytest.raises(IntegrityError):
        repo.read_image(STACK)
    path.unlink()
    folder = path.parent
    folder.rename(outside / "folder")
    folder.symlink_to(outside / "folder")
    with pytest.raises(IntegrityError):
        repo.read_image(STACK)
    unit = repo.layout.unit_dir(STACK)
    unit.rename(outside / "unit")
    unit.symlink_to(outside / "unit")
    with pytest.raises(IntegrityError, match="symbolic link"):
        repo.manifest(STACK)
    assert repo.all_units() == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "..", "x" * 300, "a,b", "", "a b", "ä"])
def test_names_from_outside_pass_the_allow_list(repo, name):
    with pytest.raises((BadInput, NotFound)):
        repo.get("stacks", cell=name, band="r", skycell="00")
    with pytest.raises(BadInput):
        repo.manifest(DataId("main", "stacks", f"{name}|r", "00"))
    with pytest.raises(BadInput):
        repo.read_refcat(name, 0, 0, 1)


def test_a_repository_travels_to_workers(repo):
    publish(repo, STACK, make_stack(3))
    there = ForkingPickler.loads(ForkingPickler.dumps(Repo(repo.root, "main")))
    assert there == Repo(repo.root)
    check_stack(there, STACK, {3})


def test_every_unit_has_a_log_found_by_its_data_id(repo):
    """A log per unit of work, reachable by data id, apart from the scheduler's (LV-29)."""
    log = logging.getLogger("lap_assets.pipeline.stacks")
    with pytest.raises(NotFound, match="never tried"):
        repo.read_log(STACK)
    with repo.keep_log(STACK):
        log.info("six inputs")
    log.info("said later")
    with repo.keep_log(WARP):
        log.warning("no overlap")
    assert "six inputs" in repo.read_log(STACK)
    assert "later" not in repo.read_log(STACK) and "no overlap" not in repo.read_log(STACK)
    assert "no overlap" in repo.read_log(WARP)
    assert repo.query().empty  # logs are no products


def test_journal_of_the_repository(repo):
    repo.append_journal({"kind": "sequence", "name": "3pi"})
    assert repo.read_journal() == [{"kind": "sequence", "name": "3pi"}]
    assert json.loads(repo.layout.journal.read_text()) == {"kind": "sequence", "name": "3pi"}


def test_compressed_products_are_got_like_all_others(repo):
    """Long-lived stacks are compressed on disk and nowhere else: mosaics, planes, pins, a file for other programs."""
    ids = [replace(FINAL, unit=f"0{column}") for column in (0, 1)]
    for column, data_id in enumerate(ids):
        publish(repo, data_id, make_stack(column + 1, x0=8 * column), metrics={"depth_mag": 24.0})
        check_stack(repo, data_id, {column + 1.0})
    assert b"RICE_1" in repo.path(ids[0], "image.fits").read_bytes()
    whole = repo.get("final_stacks", cell="demo.0", band="r")
    assert whole.shape == (12, 18) and abs(float(whole.sci[0, 17]) - 2.0) < 3**0.5 / 31
    np.testing.assert_array_equal(whole.planes["NINPUT"][0], [1] * 10 + [2] * 8)
    assert repo.read_image(repo.pin(ids[1]), planes=("VAR",), full=True).sci is None
    with fits.open(repo.uri("final_stacks", cell="demo.0", band="r", skycell="00")) as hdus:
        np.testing.assert_array_equal(hdus["SCI"].data, repo.read_image(ids[0]).sci)
    assert not fsck(repo, full=True).broken
