import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.errors import BadInput
from lap_assets.model.ids import JOIN, DataId
from lap_assets.model.products import KEY_PARTS, PRODUCTS
from lap_assets.store.layout import Layout, is_content_name

LAYOUT = Layout(Path("/repository"))
first = st.sampled_from(string.ascii_letters + string.digits)
names = st.builds(str.__add__, first, st.text(string.ascii_letters + string.digits + "_-.", max_size=30)).filter(
    lambda name: ".." not in name
)
collections = names.filter(lambda name: name not in {"logs", "quarantine", "refcats"})


@st.composite
def data_ids(draw):
    product = draw(st.sampled_from(sorted(PRODUCTS.values(), key=lambda p: p.name)))
    parts = [draw(names) for _ in KEY_PARTS[product.partitions]]
    return DataId(draw(collections), product.name, JOIN.join(parts), draw(names | st.just("")))


@given(data_ids())
@settings(deadline=None)
def test_unit_directories_are_read_back(data_id):
    """Paths are built and parsed by one module, both ways (LV-01)."""
    assert LAYOUT.parse(LAYOUT.unit_dir(data_id)) == data_id


@given(data_ids(), data_ids())
@settings(deadline=None)
def test_two_units_never_share_a_file(one, other):
    if one != other:
        assert LAYOUT.unit_dir(one) != LAYOUT.unit_dir(other)
        assert LAYOUT.log(one) != LAYOUT.log(other)
        assert LAYOUT.quarantine_dir(one) != LAYOUT.quarantine_dir(other)


@given(data_ids())
@settings(deadline=None)
def test_everything_lies_below_the_store_and_logs_apart_from_units(data_id):
    for path in (LAYOUT.unit_dir(data_id), LAYOUT.log(data_id), LAYOUT.quarantine_dir(data_id)):
        assert path.is_relative_to(LAYOUT.store)
        assert ".." not in path.parts
    with pytest.raises(BadInput):
        LAYOUT.parse(LAYOUT.log(data_id))


@pytest.mark.parametrize("collection", ["logs", "quarantine", "refcats"])
def test_names_the_store_uses_are_no_collections(collection):
    with pytest.raises(BadInput, match="used by the store"):
        LAYOUT.unit_dir(DataId(collection, "chips", "e", "c0"))


@pytest.mark.parametrize(
    "data_id",
    [DataId("main", "warps", "sim-1", "03"), DataId("main", "chips", "a|b", "c0"), DataId("main", "chips", "a", "_")],
)
def test_keys_of_the_wrong_shape_are_refused(data_id):
    with pytest.raises(BadInput):
        LAYOUT.unit_dir(data_id)


@pytest.mark.parametrize("path", ["/elsewhere/main/chips/e/c0", "/repository/store/main/chips", "/repository/store"])
def test_other_paths_are_no_units(path):
    with pytest.raises(BadInput):
        LAYOUT.parse(Path(path))


@pytest.mark.parametrize("name", ["../../etc", "a/b", ".tmp-0", "", "manifest.json"])
def test_only_hashes_name_content_directories(name):
    assert not is_content_name(name)
    with pytest.raises(BadInput):
        LAYOUT.member(DataId("main", "chips", "e", "c0"), name, "image.fits")


def test_members_cannot_leave_their_directory():
    with pytest.raises(BadInput):
        LAYOUT.member(DataId("main", "chips", "e", "c0"), "0" * 32, "../manifest.json")


def test_units_are_found_and_temporary_ones_are_not(tmp_path):
    layout = Layout(tmp_path)
    wanted = [
        DataId("main", "chips", "e-1", "c0"),
        DataId("main", "chips", "e-1", "c1"),
        DataId("main", "chips", "e-2", "c0"),
    ]
    for data_id in wanted:
        layout.unit_dir(data_id).mkdir(parents=True)
    (layout.unit_dir(wanted[0]).parent / ".tmp-0123").mkdir()
    (layout.unit_dir(wanted[0]).parent / "link").symlink_to(tmp_path)
    assert list(layout.find_units("main", "chips")) == wanted
    assert list(layout.find_units("main", "chips", "e-1")) == wanted[:2]
    assert list(layout.find_units("main", "warps")) == []
    assert list(layout.find_all_units()) == wanted
