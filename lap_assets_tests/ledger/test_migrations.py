"""From the first tables to today's, with rows in them, on both databases: nothing is lost, what is new is filled."""

import json

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from lap_assets.errors import BadInput, Conflict
from lap_assets.ledger.database import Database
from lap_assets.ledger.ledger import Ledger
from lap_assets.ledger.migrations import configure, upgrade
from lap_assets.ledger.tables import metadata
from lap_assets.model.survey import hash_files
from lap_assets_tests.ledger.conftest import LOCAL, finish_runs, make_calibration, make_exposure

CELLS = {"kind": "rings", "name": "rings.v3"}
FLAT = make_calibration("flat", "r")
ONE = make_exposure(1, ra=2.0, dec=2.0)  # on the edge of two cells of RINGS.V3
SETS = ("calibration_set", "calibration_frame")
TABLES = (*SETS, "exposure", "chip_file", "tessellation", "lap_sequence", "lap_run", "lap_exp", "partition", "unit")


@pytest.fixture
def old(place):
    """URL of a ledger of the first version, with a run in each state and what was made for it."""
    url = place.make_url()
    database = Database(url, create=True)
    with database.writing() as connection:
        upgrade(connection, "0001")
        fill(connection)
    database.close()
    return url


def fill(connection) -> None:
    """Rows as the first version wrote them."""
    head = {"id": ONE.id, "camera": "cam", "band": "r", "filter": "r", "night": "2026-01-02", "mjd": 1.0,
            "exptime_s": 60.0, "ra_deg": ONE.ra_deg, "dec_deg": ONE.dec_deg, "airmass": 1.0, "object": "it's",
            "comment": "", "obs_mode": "3PI", "kind": "raw"}  # fmt: skip
    insert(connection, "exposure", head)
    for chip in ONE.chips:
        insert(connection, "chip_file", {
            "exposure": ONE.id, "chip": chip.chip, "path": chip.path, "hdu": chip.hdu,
            "footprint": json.dumps(chip.footprint), "sha256": chip.sha256, "variance_path": "", "mask_path": "",
        })  # fmt: skip
    for number, definition in enumerate((CELLS, LOCAL), start=1):
        values = {"tess_id": number, "name": definition["name"], "definition": json.dumps(definition)}
        insert(connection, "tessellation", values)
    insert(connection, "lap_sequence", {"seq_id": 1, "name": "main", "description": ""})
    for number, state in enumerate(("new", "run", "full"), start=1):
        insert(connection, "lap_run", {
            "lap_id": number, "seq_id": 1, "tess_id": 1, "projection_cell": "rings.v3.1322", "filter": f"r{number}",
            "state": state, "registered": 1.0, "fault": 0, "label": "old", "dist_group": "dr1",
        })  # fmt: skip
        insert(connection, "lap_exp", {
            "lap_id": number, "exp_id": ONE.id, "private": False, "pairwise": False, "active": state != "full",
            "data_state": "new",
        })  # fmt: skip
    insert(connection, "partition", {
        "collection": "main", "product": "chips", "partition": ONE.id, "state": "done", "inputs_sha256": "i",
        "content_sha256": "c", "config_sha256": "k", "attempts": 0, "n_units": '{"done": 1}', "reason": "",
        "updated": 1.0,
    })  # fmt: skip
    insert(connection, "unit", {
        "collection": "main", "product": "chips", "partition": ONE.id, "unit": "c0", "state": "done",
        "content_sha256": "u", "bytes": 5, "reason": "", "seconds": 1.0, "run_id": "r", "updated": 1.0,
    })  # fmt: skip
    insert(connection, "calibration_set", {
        "key": FLAT.key, "camera": "cam", "kind": "flat", "band": "r", "valid_from": FLAT.valid_from,
        "valid_to": "2026-03-01", "state": "certified",
    })  # fmt: skip
    for frame in FLAT.frames:
        insert(connection, "calibration_frame", {
            "calibration": FLAT.key, "path": frame.path, "chip": frame.chip, "hdu": frame.hdu,
            "footprint": json.dumps(frame.footprint), "sha256": frame.sha256,
        })  # fmt: skip
    for name, value in (("lap_id", 3), ("seq_id", 1), ("tess_id", 2)):
        insert(connection, "counter", {"name": name, "value": value})


def insert(connection, table: str, values: dict) -> None:
    names = ", ".join(values)
    connection.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES (:{', :'.join(values)})"), values)


def count(connection) -> dict[str, int]:
    return {name: connection.execute(sa.text(f"SELECT count(*) FROM {name}")).scalar_one() for name in TABLES}


def test_an_old_ledger_is_refused_until_it_is_upgraded_and_loses_nothing(old):
    with pytest.raises(BadInput, match=r"has tables of version 0001.*lap ledger upgrade"):
        Ledger.open(old)
    with Database(old).reading() as connection:
        before = count(connection)
    ledger = Ledger.create(old)
    with ledger._database.reading() as connection:
        assert count(connection) == before
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    assert [(run.state, run.label, run.paused, run.settled, run.priority) for run in ledger.runs("main")] == [
        ("new", "old", False, False, 0), ("run", "old", False, False, 0), ("full", "old", False, False, 0),
    ]  # fmt: skip
    assert [row.state for row in ledger.units("main", "chips", ONE.id)] == ["done"]
    ledger.close()


def test_what_is_new_is_filled_from_what_there_is(old):
    """Hash and reach of an exposure, and the other cells it overlaps, as if it had been ingested today."""
    ledger = Ledger.create(old)
    (lean,) = ledger.survey("main", lean=True).exposures.values()
    assert (lean.chips, lean.content, lean.object) == ((), hash_files(ONE.chips), "it's")
    assert {one.neighbours for one in ledger.members(1)} == {("rings.v3.1323",)}
    with ledger._database.reading() as connection:
        reach = connection.execute(sa.text("SELECT reach_deg FROM exposure")).scalar_one()
    assert 0.03 < reach < 0.06
    assert ledger.snapshot("main").survey.runs[2].state == "full"
    ledger.close()


def test_an_upgraded_ledger_goes_on(old):
    """Its runs take steps, its tables refuse what today's refuse (LAP-03, LAP-05)."""
    ledger = Ledger.create(old)
    finish_runs(ledger, 2)
    assert ledger.runs(state="full")[0].final_sass_id == 1
    ledger.add_exposures([make_exposure(2, "r1", ra=2.0, dec=2.0)])
    (grown,) = ledger.define_runs("main", "rings.v3", bands=["r1"], cells=["rings.v3.1322"])
    assert grown.lap_id == 1
    for change in ("lap_run SET fault = 9", "lap_run SET settled = true", "lap_run SET final_sass_id = 9",
                   "exposure SET reach_deg = 200"):  # fmt: skip
        with pytest.raises(Conflict), ledger._database.writing() as connection:
            connection.execute(sa.text(f"UPDATE {change}"))
    ledger.close()


def test_the_way_back_keeps_the_rows_too(old):
    Ledger.create(old).close()
    database = Database(old)
    with database.writing() as connection:
        before = count(connection)
        command.downgrade(configure(connection), "0001")
        assert count(connection) == before
        assert not sa.inspect(connection).has_table("control")
        assert "neighbours" not in {column["name"] for column in sa.inspect(connection).get_columns("lap_exp")}
        upgrade(connection)
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()


def test_calibration_sets_keep_their_frames_and_take_new_kinds(old):
    """A set made anew with other checks loses neither frames nor verdict; frames still go with their set (LV-11)."""
    ledger = Ledger.create(old)
    kept = ledger.calibrations([FLAT.key])[FLAT.key]
    assert (kept.state, kept.valid_to, kept.reason, kept.temperature_c) == ("certified", "2026-03-01", "", None)
    assert [frame.path for frame in kept.frames] == [frame.path for frame in FLAT.frames]
    assert ledger.add_calibrations([make_calibration("fringe", "r")]).added == 1
    for change in ("kind = 'twilight'", "state = 'good'", "valid_to = '2020-01-01'"):
        with pytest.raises(Conflict), ledger._database.writing() as connection:
            connection.execute(sa.text(f"UPDATE calibration_set SET {change}"))
    with pytest.raises(Conflict), ledger._database.writing() as connection:
        connection.execute(sa.text("UPDATE calibration_frame SET calibration = 'nobody'"))
    with ledger._database.writing() as connection:
        connection.execute(sa.text("DELETE FROM calibration_set WHERE kind = 'flat'"))
    assert ledger.count_frames() == {"cam|fringe|r|2026-01-01": 2}
    ledger.close()
