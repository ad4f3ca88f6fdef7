"""Which exposures a run gets: the quick way, by SQL, finds exactly what looking at every footprint finds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lap_assets.errors import BadInput, Conflict, NotFound
from lap_assets.ledger.selection import select_members
from lap_assets.model.decisions import ASSIGN, Step
from lap_assets.model.regions import Box, Cone, Polygon
from lap_assets.model.survey import ChipFile
from lap_assets.model.tessellation import load_tessellation
from lap_assets_tests.ledger.conftest import LOCAL, make_exposure, square

SKY = {"kind": "rings", "name": "rings.v3"}
RINGS = load_tessellation(SKY)


def scatter(n: int = 110):
    """Exposures where selecting is hard: about RA 0, the poles and the edges of cells, of two bands and modes."""
    rng = np.random.default_rng(11)
    places = [(0.0, 0.0), (359.95, 3.99), (2.0, 2.0), (120.0, 89.9), (45.0, -89.95), (200.0, 86.0), (90.0, 40.0)]
    exposures = []
    for number in range(n):
        ra, dec = places[number % len(places)]
        dec = float(np.clip(dec + rng.uniform(-1.5, 1.5), -89.99, 89.99))
        ra = float((ra + rng.uniform(-1.5, 1.5) / max(0.01, np.cos(np.radians(dec)))) % 360.0)
        mode = "ENGINEERING" if number % 5 == 3 else "3PI"
        side = min(0.8, 90.0 - abs(dec))
        chips = tuple(
            ChipFile(f"c{i}", "/x", f"c{i}", square(ra + i * side, dec, side), sha256=str(number)) for i in (0, 1)
        )
        exposures.append(make_exposure(number, "gr"[number % 2], ra, dec, obs_mode=mode, chips=chips))
    return exposures


EXPOSURES = scatter()


def find_slowly(bands, cells, obs_mode, region) -> dict:
    """Every footprint against every cell."""
    members: dict = {}
    for one in EXPOSURES:
        points = [(one.ra_deg, one.dec_deg), *(corner for chip in one.chips for corner in chip.footprint)]
        inside = region is None or region.contains(*np.array(points).T).any()
        if (bands is None or one.band in bands) and (obs_mode is None or one.obs_mode == obs_mode) and inside:
            overlapped = RINGS.cells_overlapping_any([chip.footprint for chip in one.chips])
            for cell in overlapped:
                if cells is None or cell in cells:
                    members.setdefault((cell, one.band), {})[one.id] = overlapped
    return members


ra, dec = st.floats(0.0, 360.0), st.sampled_from([-89.0, -2.0, 0.0, 2.0, 40.0, 86.0, 90.0])
REGIONS = st.one_of(
    st.none(),
    st.builds(Cone, st.one_of(ra, st.just(0.0)), dec, st.floats(0.01, 60.0)),
    st.builds(lambda a, w, d, h: Box(a, (a + w) % 360.0, d - h, d), ra, st.floats(0.1, 350.0), dec,
              st.floats(0.1, 0.9)),
    st.builds(lambda a, d, w: Polygon([(a, d), (a + w, d), (a + w / 2, min(d + w, 90.0))]), ra, st.floats(-80.0, 79.0),
              st.floats(0.1, 10.0)),
)  # fmt: skip
CELLS = st.sampled_from([["rings.v3.1322"], ["rings.v3.2643"], ["rings.v3.0000", "rings.v3.1323"], ["rings.v3.1232"]])


def test_the_index_finds_what_looking_at_everything_finds(ledger):
    """Cone, box or polygon, by pointing or any chip corner, and overlap with the cell (LAP-10, LAP-11, LAP-16)."""
    ledger.add_exposures(EXPOSURES)
    found: list[int] = []

    @settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.sampled_from([None, ["r"], ["g", "r"]]), st.one_of(st.none(), CELLS), st.sampled_from([None, "3PI"]), REGIONS
    )
    def check(bands, cells, obs_mode, region):
        with ledger._database.reading() as connection:
            quick = select_members(connection, RINGS, bands, cells, obs_mode, region)
        assert quick == find_slowly(bands, cells, obs_mode, region)
        found.append(len(quick))

    check()
    assert max(found) > 5


@pytest.fixture
def sky(ledger):
    ledger.add_tessellation(SKY)
    ledger.add_tessellation(LOCAL)
    ledger.add_exposures(EXPOSURES)
    ledger.define_sequence("main")
    return ledger


def test_one_new_run_with_its_members(sky, place):
    """Of one cell, one band, mode 3PI, inside the cone; nothing is queued (LAP-10, LAP-11, LAP-13)."""
    cone = Cone(0.5, 1.0, 2.0)
    run = sky.define_run("main", "rings.v3", "rings.v3.1322", "r", region=cone, label="l", dist_group="dr1", priority=3)
    assert sky.runs() == [run]
    assert (run.lap_id, run.state, run.label, run.dist_group, run.priority) == (1, "new", "l", "dr1", 3)
    expected = find_slowly(["r"], ["rings.v3.1322"], "3PI", cone)["rings.v3.1322", "r"]
    members = sky.members(1)
    assert [one.exposure for one in members] == sorted(expected) and len(members) > 2
    assert {one.chip_id for one in members} == {None} and all(one.active for one in members)
    for one in members:
        assert one.neighbours == tuple(cell for cell in expected[one.exposure] if cell != "rings.v3.1322")
    assert any(one.neighbours for one in members)
    assert place.entries[-1]["kind"] == "run"
    engineering = sky.define_run("main", "rings.v3", "rings.v3.1322", "g", obs_mode=None)
    modes = {sky.exposures()[one.exposure].obs_mode for one in sky.members(engineering.lap_id)}
    assert modes == {"3PI", "ENGINEERING"}


def test_an_exposure_is_processed_once_per_sequence(sky):
    """chip_id is copied from an earlier member of the same sequence, not of another (LAP-12)."""
    first = sky.define_run("main", "rings.v3", "rings.v3.1322", "r")
    shared = next(one.exposure for one in sky.members(first.lap_id) if "rings.v3.1232" in one.neighbours)
    sky.apply([Step(first.lap_id, ASSIGN, shared, f"main/{shared}")])
    second = sky.define_run("main", "rings.v3", "rings.v3.1232", "r")
    chip_ids = {one.exposure: one.chip_id for one in sky.members(second.lap_id)}
    assert chip_ids.pop(shared) == f"main/{shared}" and set(chip_ids.values()) == {None}
    sky.define_sequence("other")
    third = sky.define_run("other", "rings.v3", "rings.v3.1232", "r")
    assert {one.chip_id for one in sky.members(third.lap_id)} == {None}


def test_what_cannot_be_defined_is_said_and_leaves_nothing(sky, place):
    """Unknown sequence, tessellation, cell, filter; a run twice; nothing to process."""
    sky.define_run("main", "rings.v3", "rings.v3.1322", "r")
    before = len(place.entries)
    for arguments, options, error, said in (
        (("main", "rings.v3", "rings.v3.1322", "r"), {}, Conflict, "is run 1 of this sequence already"),
        (("nope", "rings.v3", "rings.v3.1322", "r"), {}, NotFound, "no sequence 'nope'"),
        (("main", "nope", "rings.v3.1322", "r"), {}, NotFound, "no tessellation 'nope'"),
        (("main", "rings.v3", "rings.v3.9999", "r"), {}, NotFound, "no cell"),
        (("main", "rings.v3", "demo.0", "r"), {}, NotFound, "no cell"),
        (("main", "rings.v3", "rings.v3.1322", "z"), {}, BadInput, "no exposure for cell rings.v3.1322 in z"),
        (("main", "rings.v3", "rings.v3.1322", "g'; --"), {}, BadInput, "filter"),
        (("main'; --", "rings.v3", "rings.v3.1322", "g"), {}, NotFound, "no sequence"),
        (("main", "rings.v3", "rings.v3.1322", "g"), {"region": Cone(90.0, 40.0, 1.0)}, BadInput, "in that region"),
        (("main", "rings.v3", "rings.v3.1322", "g"), {"obs_mode": "x'; --"}, BadInput, "with obs_mode x"),
    ):
        with pytest.raises(error, match=said) as caught:
            sky.define_run(*arguments, **options)
        assert "\n" not in str(caught.value)
    assert len(sky.runs()) == 1 and len(place.entries) == before
    assert sky.define_run("main", "rings.v3", "rings.v3.1322", "g").lap_id == 2  # no number was lost


def test_all_runs_of_an_area_in_one_call(sky):
    """Every overlapping cell by every band of a region (LAP-16)."""
    box = Box(355.0, 5.0, -3.0, 6.0)
    runs = sky.define_runs("main", "rings.v3", region=box, obs_mode="3PI")
    expected = find_slowly(None, None, "3PI", box)
    assert {(run.cell, run.band): {one.exposure for one in sky.members(run.lap_id)} for run in runs} == {
        key: set(names) for key, names in expected.items()
    }
    assert {one.neighbours for one in sky.members(runs[0].lap_id)} != {()}
    assert sky.define_runs("main", "rings.v3", region=box, obs_mode="3PI") == []


def test_an_exposure_whose_chips_come_later_reaches_farther(ledger):
    """What lies near is told from the reach of the chips: it grows with them, as does the hash of the files."""
    ledger.add_tessellation(LOCAL)
    ledger.define_sequence("main")
    whole = make_exposure(1, ra=149.9)
    far = replace(whole.chips[1], footprint=((149.99, 1.99), (150.01, 1.99), (150.01, 2.01), (149.99, 2.01)))
    ledger.add_exposures([replace(whole, chips=whole.chips[:1])])
    first = ledger.survey("main", lean=True).exposures["cam-000001"].content
    with pytest.raises(BadInput, match="no exposure"):
        ledger.define_run("main", "demo", "demo.0", "r")
    ledger.add_exposures([replace(whole, chips=(far,))])
    run = ledger.define_run("main", "demo", "demo.0", "r")
    assert [one.exposure for one in ledger.members(run.lap_id)] == [whole.id]
    (lean,), (full,) = (ledger.survey("main", lean=x).exposures.values() for x in (True, False))
    assert lean.chips == () and lean.content == full.content != first


def test_a_run_of_a_cell_of_several(ledger):
    """Neighbours are the other cells of a local tessellation, too (LAP-08)."""
    several = {key: value for key, value in LOCAL.items() if key not in ("ra_deg", "dec_deg")}
    ledger.add_tessellation(several | {"centres": [[150.0, 2.0], [150.05, 2.0]]})
    ledger.define_sequence("main")
    ledger.add_exposures([make_exposure(1, ra=150.0), make_exposure(2, ra=149.96)])
    run = ledger.define_run("main", "demo", "demo.0", "r")
    assert [one.neighbours for one in ledger.members(run.lap_id)] == [("demo.1",), ()]
    assert ledger.survey("main").runs[0].member["cam-000001"].neighbours == ("demo.1",)
