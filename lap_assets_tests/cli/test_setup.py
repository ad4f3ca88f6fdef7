"""`lap tessellation`: one projection cell or several, by options."""

import pytest

from lap_assets.operations.workspace import Workspace
from lap_assets_tests.cli.outcomes import assert_refused


@pytest.fixture
def space(lap, elsewhere):
    """An empty repository here."""
    lap("init", elsewhere / "repository")
    return Workspace.open(elsewhere / "repository")


def test_a_tessellation_of_several_cells(lap, space):
    """`--also` adds cells NAME.1, NAME.2, … with the same grid; without it there is one, as ever."""
    size = ("--dec", 2.0, "--size", 6, "--pixel-scale", 0.5, "--grid", 2, "--overlap", 20)
    status, out, _ = lap("--repo", space.root, "tessellation", "two", "--ra", 150.0, *size,
                         "--also", "150.05,2.0", "--also=0.5, -3")  # fmt: skip
    assert (status, out) == (0, "defined tessellation two: 3 cells of 2x2 skycells of 400 pixels at 0.5 arcsec\n")
    sky = space.ledger.tessellation("two")
    assert [(cell.name, cell.ra_deg, cell.dec_deg) for cell in sky.cells] == [
        ("two.0", 150.0, 2.0), ("two.1", 150.05, 2.0), ("two.2", 0.5, -3.0),
    ]  # fmt: skip
    status, out, _ = lap("--repo", space.root, "tessellation", "one", "--ra", 150.0, *size)
    assert (status, out) == (0, "defined tessellation one: 2x2 skycells of 400 pixels at 0.5 arcsec\n")
    assert "centres" not in space.ledger.tessellation("one").definition()


@pytest.mark.parametrize(
    ("also", "said"),
    [
        ("150", "is no centre: give RA,DEC"), ("a,b", "is no centre"), ("1,2,3", "is no centre"), ("1,95", "dec_deg"),
        ("nan,2", "no finite number"), ("150,2", "two of its centres are the same"),
    ],
)  # fmt: skip
def test_centres_that_are_none_are_refused(lap, space, also, said):
    arguments = ("tessellation", "x", "--ra", 150.0, "--dec", 2.0, "--size", 6, "--also", also)
    assert_refused(lap("--repo", space.root, *arguments), said)
    assert space.ledger.tessellations() == []
