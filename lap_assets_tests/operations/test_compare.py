"""What `lap compare` calls a difference, and against which limit."""

import numpy as np
import pandas as pd
import pytest

from lap_assets.model.ids import DataId
from lap_assets.model.image import MaskedImage
from lap_assets.operations.compare import (
    compare_repositories,
    flatten,
    measure_difference,
    measure_numbers,
    measure_planes,
    measure_tables,
)
from lap_assets.store.repo import Repo
from lap_assets_tests.store.samples import FINAL, make_stack, publish

SHAPE = (32, 32)


def planes(sci=0.0, var=1.0, mask=0):
    header = None
    return {
        "SCI": (np.full(SHAPE, 100.0 + sci, np.float32), header),
        "MASK": (np.full(SHAPE, mask, np.int16), header),
        "VAR": (np.full(SHAPE, var, np.float32), header),
    }


def test_planes_are_measured_each_in_its_own_terms():
    found = {what: value for what, value, _ in measure_planes(planes(), planes(sci=0.5, var=1.5, mask=1))}
    assert found == {
        "SCI (sigma)": pytest.approx(0.5),
        "MASK (share of pixels)": 1.0,
        "VAR (relative)": pytest.approx(0.5),
    }


def test_not_finite_and_missing_planes_are_infinitely_different():
    other = planes()
    other["SCI"][0][3, 4] = np.nan
    assert max(value for _, value, _ in measure_planes(planes(), other)) == np.inf
    del other["MASK"]
    assert measure_planes(planes(), other)[0][1] == np.inf


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (lambda t: t, 0.0),
        (lambda t: t.assign(flux=t["flux"] * 1.01), pytest.approx(0.0099, rel=1e-2)),
        (lambda t: t.assign(flux=[1.0, np.nan, 3.0]), np.inf),
        (lambda t: t.assign(name=["a", "b", "x"]), np.inf),
        (lambda t: t.iloc[:2], np.inf),
    ],
)
def test_tables_differ_by_numbers_gaps_texts_and_rows(change, value):
    table = pd.DataFrame({"flux": [1.0, 2.0, 3.0], "name": ["a", "b", "c"]})
    assert measure_tables(table, change(table))[1] == value


def test_documents_are_compared_number_by_number():
    mine = dict(flatten({"mass": 1.0e15, "rings": [1, 2], "unit": "Msun"}))
    assert measure_numbers(mine, mine) == ("", 0.0)
    assert measure_numbers(mine, mine | {"mass": 1.1e15}) == ("mass (relative)", pytest.approx(1 / 11))
    assert measure_numbers(mine, mine | {"unit": "kg"})[1] == np.inf


def test_a_repository_differs_where_its_bytes_do(tmp_path):
    """The worst member against its own limit decides, not the largest number."""
    ids = [DataId("main", "warps", f"cam-{n}|demo.0", "00") for n in (1, 2, 3)]
    for folder, shift in (("a", 0.0), ("b", 0.005), ("c", 0.5)):
        repo = Repo(tmp_path / folder)
        for data_id in ids[: 3 if folder == "a" else 2]:
            moved = shift if data_id == ids[0] else 0.0
            image = MaskedImage(*(plane for plane, _ in planes(sci=moved).values()))
            members = {"image.fits": image}
            repo.publish(data_id, members, inputs=(), recipe="r", config_sha256="c", code=1, metrics={})
    near, far = (compare_repositories(Repo(tmp_path / "a"), Repo(tmp_path / other)) for other in "bc")
    assert near.different == far.different == [str(ids[0])] and near.same == [str(ids[1])]
    assert near.only_here == [str(ids[2])] and not near.only_there
    assert not near.beyond and far.beyond == [str(ids[0])]
    assert far.largest["warps"] == ("image.fits SCI (sigma)", pytest.approx(0.5, rel=1e-3))


def test_compressed_images_may_lie_a_step_of_their_rounding_apart(tmp_path):
    """Where two environments differ in the last bits, some pixels round to either side: no difference of the sky."""
    here, near, far = (Repo(tmp_path / name) for name in ("here", "near", "far"))
    members = make_stack(3.0, shape=(60, 80))
    image, rng = members["image.fits"], np.random.default_rng(6)
    image.sci[:] = rng.normal(0, 2, image.shape)
    publish(here, FINAL, members)
    image.sci += rng.normal(0, 0.005, image.shape).astype(np.float32)
    publish(near, FINAL, members)
    image.sci += np.float32(0.5)
    publish(far, FINAL, members)
    assert measure_difference(here, near, FINAL)[2]
    what, sigma, fine = measure_difference(here, far, FINAL)
    assert what == "image.fits SCI (sigma)" and sigma > 0.2 and not fine
