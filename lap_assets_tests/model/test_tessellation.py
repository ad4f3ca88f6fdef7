"""RINGS.V3 against what STScI publishes of it, local tessellations, and overlaps at the seam and at the poles."""

import itertools

import numpy as np
import pytest
from astropy.wcs import WCS

from lap_assets.errors import BadInput, NotFound
from lap_assets.model.tessellation import load_tessellation

LOCAL = {
    "kind": "local", "name": "demo", "ra_deg": 150.0, "dec_deg": 2.0, "pixel_scale_arcsec": 0.4, "skycell_px": 300,
    "grid": [3, 2], "overlap_px": 20,
}  # fmt: skip
# a neighbour that overlaps the first, and one far away
SEVERAL = {key: value for key, value in LOCAL.items() if key not in ("ra_deg", "dec_deg")} | {
    "centres": [[150.0, 2.0], [150.07, 2.0], [148.0, 2.5]]
}
RINGS = load_tessellation({"kind": "rings", "name": "rings.v3"})


def box(ra: float, dec: float, side: float):
    """A square of `side` degrees on the sky about a position, by offsets in the tangent plane."""
    h = np.radians(side / 2)
    local = load_tessellation(LOCAL | {"ra_deg": ra, "dec_deg": dec}).only
    scale = np.radians(0.4 / 3600)
    x, y = np.array([-h, h, h, -h]) / scale, np.array([-h, -h, h, h]) / scale
    return list(zip(*local.pixel_to_sky(x + local.crpix[0] - 1, y + local.crpix[1] - 1), strict=True))


def test_rings_has_its_cells_in_its_zones():
    assert len(RINGS.cell_names) == 2644
    assert (RINGS.cell_names[0], RINGS.cell_names[-1]) == ("rings.v3.0000", "rings.v3.2643")
    # first cell of a zone, its declination (STScI, table ps1grid.fits)
    for number, dec in (
        (0, -90),
        (1, -86),
        (635, -30),
        (714, -26),
        (1232, -2),
        (1322, 2),
        (1412, 6),
        (2454, 62),
        (2634, 86),
        (2643, 90),
    ):
        cell = RINGS.cell(RINGS.cell_names[number])
        assert (cell.ra_deg, cell.dec_deg) == (0.0, dec)
    assert RINGS.cell("rings.v3.1405").ra_deg == 332.0
    assert RINGS.cell("rings.v3.2642").ra_deg == 320.0


def test_a_published_skycell_is_where_stsci_says():
    """Centre of skycell.1405.053 from STScI's ps1filenames; corners from its image header (in FK5: 0.02 arcsec off)."""
    sky = RINGS.cell("rings.v3.1405").skycells["53"]
    assert (sky.nx, sky.ny, sky.crpix) == (6240, 6243, (11760.0, 242.0))
    wcs = WCS(sky.header())
    x, y = wcs.all_world2pix(332.6004516572, 2.1998090576, 0)
    np.testing.assert_allclose([x, y], [(sky.nx - 1) / 2, (sky.ny - 1) / 2], atol=1.0)
    corners = [(332.817060, 1.983023), (332.383516, 1.983180), (332.383617, 2.416705), (332.817275, 2.416513)]
    ours = RINGS.cell("rings.v3.1405").footprint("53")
    offsets = (np.array(ours) - corners) * [np.cos(np.radians(2.2)), 1.0] * np.array(3600.0)
    assert np.abs(offsets).max() < 0.1


@pytest.mark.parametrize(
    ("ra", "dec", "cell"),
    [
        (0.0, 0.0001, "rings.v3.1322"), (0.0, -0.0001, "rings.v3.1232"), (359.99, 1.0, "rings.v3.1322"),
        (2.01, 1.0, "rings.v3.1323"), (9.0, 3.998086, "rings.v3.1324"), (9.0, 3.998088, "rings.v3.1414"),
        (9.0, -3.998088, "rings.v3.1145"), (123.0, 90.0, "rings.v3.2643"), (0.0, -90.0, "rings.v3.0000"),
        (77.0, 89.0, "rings.v3.2643"), (0.0, 86.0, "rings.v3.2634"), (40.0, -86.0, "rings.v3.0002"),
    ],
)  # fmt: skip
def test_owners_at_edges_and_poles(ra, dec, cell):
    assert RINGS.owner(ra, dec)[0] == cell
    assert RINGS.owner(ra - 360.0, dec) == RINGS.owner(ra, dec) == RINGS.owner(ra + 360.0, dec)


def test_near_the_pole_the_cell_with_the_farther_edge_owns():
    """The ring's cell ends 2.09° north of its centre, the polar one 2.0° from the pole (STScI, ps1skycell.py)."""
    ring, pole = RINGS.cell("rings.v3.2634"), RINGS.cell("rings.v3.2643")
    for dec in np.arange(86.5, 89.5, 0.05):
        depth = {}
        for cell in (ring, pole):
            x, y = WCS(cell.header()).all_world2pix(0.0, dec, 0)
            depth[cell.name] = min(x, y, cell.nx - 1 - x, cell.ny - 1 - y)
        if abs(depth[ring.name] - depth[pole.name]) > 3.0:  # they count edges within 2 pixels
            assert RINGS.owner(0.0, dec)[0] == max(depth, key=depth.get)
    # in the corners of the polar square it reaches farther than the zone's edge at 87.97°
    assert RINGS.owner(45.0, 87.9)[0] == "rings.v3.2643"
    assert RINGS.owner(0.0, 87.9)[0] == "rings.v3.2634"


@pytest.mark.parametrize("name", ["rings.v3.1405", "rings.v3.2643", "rings.v3.0000", "rings.v3.2640", "demo.0"])
def test_headers_mean_what_the_pixels_mean(name):
    """Astropy reads the header as `pixel_to_sky` does, also at the poles, where the standard would turn the image."""
    cell = load_tessellation(LOCAL).cell(name) if name == "demo.0" else RINGS.cell(name)
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, cell.nx, 200), rng.uniform(0, cell.ny, 200)
    ra, dec = cell.pixel_to_sky(x, y)
    np.testing.assert_allclose(WCS(cell.header()).all_world2pix(ra, dec, 0), (x, y), atol=1e-6)
    np.testing.assert_allclose(cell.sky_to_pixel(ra, dec), (x, y), atol=1e-6)
    sky = cell.skycells[cell.skycell_name(2, 1)]
    np.testing.assert_allclose(WCS(sky.header()).all_world2pix(ra, dec, 0), (x - sky.x0, y - sky.y0), atol=1e-6)
    header = sky.header()
    assert (header["NAXIS1"], header["NAXIS2"]) == (sky.nx, sky.ny)
    assert header["CD1_1"] < 0 < header["CD2_2"]  # x to the west


@pytest.mark.parametrize("grid", [[1, 1], [2, 1], [3, 2], [4, 5]])
def test_inner_regions_cover_a_cell_exactly_once(grid):
    cell = load_tessellation(LOCAL | {"grid": grid, "skycell_px": 61, "overlap_px": 8}).only
    assert (cell.nx, cell.ny) == tuple(45 * n + 16 for n in grid)
    owned = np.zeros((cell.ny, cell.nx), int)
    for sky in cell.skycells.values():
        x0, x1, y0, y1 = sky.inner
        assert 0 <= x0 < x1 <= sky.nx and 0 <= y0 < y1 <= sky.ny
        owned[sky.y0 + y0 : sky.y0 + y1, sky.x0 + x0 : sky.x0 + x1] += 1
        # a pixel's owner by position is the skycell whose inner region it lies in
        ra, dec = cell.pixel_to_sky(sky.x0 + np.array([x0, x1 - 1]), sky.y0 + np.array([y0, y1 - 1]))
        names = load_tessellation(LOCAL | {"grid": grid, "skycell_px": 61, "overlap_px": 8}).owners(ra, dec)[1]
        assert set(names) == {sky.name}
    assert (owned == 1).all()


@pytest.mark.parametrize("name", ["rings.v3.1405", "rings.v3.0635", "rings.v3.2640", "rings.v3.2643"])
def test_inner_regions_of_rings_join_without_gap(name):
    cell = RINGS.cell(name)
    assert len(cell.skycells) == 100
    for start, size, n in ((0, "nx", cell.nx), (2, "ny", cell.ny)):
        row = [cell.skycells[f"{i:02d}" if start == 0 else f"{10 * i:02d}"] for i in range(10)]
        origin = [sky.x0 if start == 0 else sky.y0 for sky in row]
        ends = [(o + sky.inner[start], o + sky.inner[start + 1]) for o, sky in zip(origin, row, strict=True)]
        assert ends[0][0] == 0 and ends[-1][1] == n == origin[-1] + getattr(row[-1], size)
        assert all(left[1] == right[0] for left, right in itertools.pairwise(ends))
        # neighbours share 480 pixels
        assert {b + getattr(row[0], size) - a for b, a in itertools.pairwise(origin)} == {480}


def test_names_count_columns_westward_then_rows_northward():
    cell = load_tessellation(LOCAL).only
    assert list(cell.skycells) == ["00", "01", "02", "03", "04", "05"]
    (ra1, dec1), (ra2, dec2) = (cell.pixel_to_sky(sky.x0, sky.y0) for sky in (cell.skycells["01"], cell.skycells["03"]))
    assert ra1 < ra2 and dec1 < dec2  # 01 is west of 00, 03 north of it
    big = load_tessellation(LOCAL | {"grid": [12, 10]}).only
    assert list(big.skycells)[-1] == "119" and "007" in big.skycells


def test_a_local_cell_is_symmetric_about_its_centre():
    cell = load_tessellation(LOCAL).only
    ra, dec = np.array(cell.footprint()).T
    assert cell.crpix == ((cell.nx + 1) / 2, (cell.ny + 1) / 2)
    assert (ra.min() + ra.max()) / 2 == pytest.approx(150.0, abs=1e-9)
    width = 3600 * np.ptp(ra) * np.cos(np.radians(dec[2]))
    assert width == pytest.approx(cell.nx * 0.4, rel=1e-4)


def test_definitions_are_canonical_and_complete():
    sky = load_tessellation(LOCAL | {"ra_deg": 510, "dec_deg": 2})
    assert sky.definition() == LOCAL
    assert load_tessellation(sky.definition()).only == load_tessellation(LOCAL).only
    assert load_tessellation(RINGS.definition()).cell_names == RINGS.cell_names


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "hexagons"}, "unknown kind"), ({"kind": "rings"}, "unknown or missing"), ({"colour": 1}, "colour"),
        ({"name": "../x"}, "not allowed"), ({"ra_deg": "ten"}, "ra_deg"), ({"ra_deg": float("nan")}, "ra_deg"),
        ({"dec_deg": 91.0}, "dec_deg"), ({"pixel_scale_arcsec": 0.0}, "pixel_scale_arcsec"), ({"grid": [0, 1]}, "grid"),
        ({"grid": [2.5, 1]}, "grid"), ({"grid": 3}, "grid"), ({"overlap_px": -1}, "overlap_px"),
        ({"overlap_px": 150}, "overlap_px"), ({"skycell_px": 1e3}, "skycell_px"),
        ({"skycell_px": 10**6}, "corners lie"), ({"centres": [[1.0, 2.0]]}, "ra_deg"),
    ],
)  # fmt: skip
def test_definitions_that_cannot_be_used(change, said):
    with pytest.raises(BadInput, match=said) as error:
        load_tessellation(LOCAL | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("centres", "said"),
    [
        ([], "1 to 1000 pairs"), ("150,2", "1 to 1000 pairs"), ([[150.0]], "must be a pair"), ([150.0, 2.0], "a pair"),
        ([[150.0, 2.0], [150.0, 91.0]], "dec_deg"), ([[150.0, 2.0], ["x", 2.0]], "ra_deg"),
        ([[150.0, 2.0], [510.0, 2.0]], "two of its centres are the same"), ([[0.0, 0.0]] * 1001, "1 to 1000 pairs"),
    ],
)  # fmt: skip
def test_centres_that_cannot_be_used(centres, said):
    with pytest.raises(BadInput, match=said) as error:
        load_tessellation(SEVERAL | {"centres": centres})
    assert "\n" not in str(error.value)


def test_a_local_tessellation_may_have_several_cells():
    """Each has the grid of the others; a definition with one centre is the same as one without the list."""
    sky = load_tessellation(SEVERAL)
    assert sky.cell_names == ("demo.0", "demo.1", "demo.2")
    assert sky.definition() == SEVERAL and load_tessellation(sky.definition()).cells == sky.cells
    alone = load_tessellation(LOCAL)
    assert sky.cell("demo.0") == alone.only
    assert list(sky.cell("demo.2").skycells) == list(alone.only.skycells)
    assert (sky.cell("demo.1").ra_deg, sky.cell("demo.1").dec_deg) == (150.07, 2.0)
    assert load_tessellation(SEVERAL | {"centres": [[150.0, 2.0]]}).definition() == LOCAL
    with pytest.raises(NotFound, match=r"it has demo\.0, demo\.1, demo\.2"):
        sky.cell("demo.3")


def test_cells_of_a_local_tessellation_overlap_what_lies_on_them():
    sky = load_tessellation(SEVERAL)
    assert sky.cells_overlapping(box(150.035, 2.0, 0.001)) == ["demo.0", "demo.1"]
    assert sky.cells_overlapping(box(150.07, 2.0, 0.001)) == ["demo.1"]
    assert sky.cells_overlapping_any([box(150.0, 2.0, 0.001), box(148.0, 2.5, 0.001)]) == ["demo.0", "demo.2"]
    assert sky.cells_overlapping(box(10.0, 50.0, 0.001)) == []


def test_where_local_cells_overlap_the_one_with_the_farther_edge_owns():
    """As near the poles of RINGS.V3: every point has one owner, and it holds the point deepest."""
    sky = load_tessellation(SEVERAL)
    rng = np.random.default_rng(3)
    ra, dec = 150.0 + rng.uniform(-0.08, 0.14, 2000), 2.0 + rng.uniform(-0.05, 0.05, 2000)
    cells, skycells = sky.owners(ra, dec)
    depths = []
    for cell in sky.cells:
        x, y = cell.sky_to_pixel(ra, dec)
        np.testing.assert_allclose(WCS(cell.header()).all_world2pix(ra[:9], dec[:9], 0), (x[:9], y[:9]), atol=1e-6)
        depths.append(np.min([x + 0.5, cell.nx - 0.5 - x, y + 0.5, cell.ny - 0.5 - y], axis=0))
        # the skycell is the one that a tessellation of this cell alone names
        alone = load_tessellation(LOCAL | {"ra_deg": cell.ra_deg, "dec_deg": cell.dec_deg})
        mine = cells == cell.name
        assert (alone.owners(ra[mine], dec[mine])[1] == skycells[mine]).all()
    deepest = np.array([*sky.cell_names])[np.argmax(depths, axis=0)]
    inside = np.array(depths) >= 0.0
    assert (cells == np.where(inside.any(axis=0), deepest, "")).all()
    assert ((cells == "") == (skycells == "")).all()
    shared = (inside.sum(axis=0) > 1).sum()
    assert shared > 100
    assert sky.owner(330.0, -2.0) is None


def test_missing_keys_and_cells_are_named():
    with pytest.raises(BadInput, match="missing grid"):
        load_tessellation({key: value for key, value in LOCAL.items() if key != "grid"})
    for name in ("rings.v3.2644", "rings.v3.405", "demo.0", ""):
        with pytest.raises(NotFound, match=r"rings\.v3\.0000 to rings\.v3\.2643"):
            RINGS.cell(name)
    with pytest.raises(NotFound, match=r"its only cell is demo\.0"):
        load_tessellation(LOCAL).cell("demo.1")
    for ra, dec in ((0.0, 91.0), (np.nan, 0.0)):
        with pytest.raises(BadInput, match="not a position"):
            RINGS.owner(ra, dec)


def test_outside_a_local_cell_nobody_owns():
    sky = load_tessellation(LOCAL)
    assert sky.owner(150.0, 2.001) == ("demo.0", "04")
    assert sky.owner(151.0, 2.0) is None and sky.owner(330.0, -2.0) is None


def test_overlaps_at_the_seam_of_right_ascension():
    """A field at RA 0 overlaps the cell centred there, and none on the other side of the sky."""
    assert RINGS.cells_overlapping(box(0.0, 2.0, 0.5)) == ["rings.v3.1322"]
    assert RINGS.cells_overlapping([(359.9, 1.9), (0.1, 1.9), (0.1, 2.1), (-0.1, 2.1)]) == ["rings.v3.1322"]
    assert RINGS.cells_overlapping(box(358.0, 2.0, 0.5)) == ["rings.v3.1322", "rings.v3.1411"]
    seam = load_tessellation(LOCAL | {"ra_deg": 0.0})
    assert seam.cells_overlapping(box(359.99, 2.0, 0.02)) == ["demo.0"]
    assert seam.only.skycells_overlapping(box(0.0, 2.0, 0.001)) == ["01", "04"]
    assert seam.cells_overlapping(box(180.0, -2.0, 0.5)) == seam.cells_overlapping(box(180.0, 2.0, 0.5)) == []


def test_overlaps_at_the_poles():
    """A field on the pole lies in the polar cell only; the ring's cells begin 1.9° from it."""
    for pole, name in ((90.0, "rings.v3.2643"), (-90.0, "rings.v3.0000")):
        assert RINGS.cells_overlapping(box(33.0, pole, 1.0)) == [name]
        assert name in RINGS.cells_overlapping(box(33.0, np.sign(pole) * 89.0, 1.0))
        inside = [(ra, np.sign(pole) * 89.5) for ra in (0.0, 90.0, 180.0, 270.0)]  # encloses the pole
        # 0.5 degrees are 7200 pixels of the polar cell, its skycells own 5760 each
        listed = set(RINGS.cell(name).skycells_overlapping(inside))
        assert {"44", "45", "54", "55"} <= listed <= {f"{j}{k}" for j in range(3, 7) for k in range(3, 7)}
    everything = [(ra, 85.0) for ra in range(0, 360, 30)]
    assert RINGS.cells_overlapping(everything)[-10:] == [f"rings.v3.{n}" for n in range(2634, 2644)]


def test_a_touch_is_no_overlap_and_a_pixel_is():
    cell = load_tessellation(LOCAL).only
    for reach, names in ((0.0, []), (1.0, ["00", "03"])):
        x = np.array([-500.0, reach - 0.5, reach - 0.5, -500.0])
        y = np.array([-0.5, -0.5, cell.ny - 0.5, cell.ny - 0.5])
        polygon = list(zip(*cell.pixel_to_sky(x, y), strict=True))
        assert cell.skycells_overlapping(polygon) == names
        assert cell.overlaps(polygon) == bool(names)


def test_a_polygon_around_a_cell_and_one_inside_overlap_it():
    cell = load_tessellation(LOCAL).only
    assert cell.skycells_overlapping(box(150.0, 2.0, 5.0)) == list(cell.skycells)
    sky = cell.skycells["02"]
    centre = cell.pixel_to_sky(sky.x0 + 200.0, sky.y0 + 100.0)
    assert cell.skycells_overlapping(box(*map(float, centre), 0.001)) == ["02"]


def test_a_concave_footprint_does_not_fill_its_hollow():
    """A U around skycell 04: its hollow is not covered, its arms are."""
    cell = load_tessellation(LOCAL).only
    sky = cell.skycells["01"]
    left, right, top = sky.x0 - 2.0, sky.x0 + sky.nx + 1.0, cell.ny + 100.0
    outline = [
        (-100, -100),
        (cell.nx + 100, -100),
        (cell.nx + 100, top),
        (right, top),
        (right, -50),
        (left, -50),
        (left, top),
        (-100, top),
    ]
    polygon = list(zip(*cell.pixel_to_sky(*np.array(outline, float).T), strict=True))
    assert cell.skycells_overlapping(polygon) == ["00", "02", "03", "05"]


def test_chips_of_one_exposure_are_joined():
    chips = [box(3.0, 2.0, 0.1), box(0.0, 2.0, 0.1), box(0.0, 2.1, 0.1)]
    assert RINGS.cells_overlapping_any(chips) == ["rings.v3.1322", "rings.v3.1323"]
    assert RINGS.cells_overlapping_any([]) == []
