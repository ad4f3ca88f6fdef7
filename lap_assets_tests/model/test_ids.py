"""The one allow-list of names, and data ids as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lap_assets.errors import BadInput
from lap_assets.model.ids import MAX_LENGTH, DataId, Pin, check_key, check_name, join_key

ALLOWED = "abcXYZ019_.-"
names = st.text(ALLOWED, min_size=1, max_size=40).filter(lambda s: s[0] not in ".-" and ".." not in s)


@pytest.mark.parametrize("name", ["decam-783028", "rings.v3.1405", "r", "main", "_x", "0", "a" * MAX_LENGTH])
def test_names_that_pass(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "../x", "..", "a..b", ".a", "-a", "a|b", "a,b", "a/b", "a b", "a\n", "\na", "ä", "a\x00", "a%2e", "a" * 121],
)  # fmt: skip
def test_names_that_do_not(name):
    with pytest.raises(BadInput) as error:
        check_name(name, "exposure id")
    assert "\n" not in str(error.value) and "exposure id" in str(error.value)
    assert len(str(error.value)) < 250


@given(st.text(max_size=150))
def test_what_passes_is_one_safe_path_component_and_one_key(text):
    """Whatever comes in: refused, or free of separators, of `..` and of characters Dagster keys may not have."""
    try:
        check_name(text)
    except BadInput:
        return
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
    assert ".." not in text and text[0] not in ".-" and len(text) <= MAX_LENGTH


@given(st.lists(names, min_size=1, max_size=4))
def test_keys_join_and_split(parts):
    key = join_key(*parts)
    assert check_key(key) == key
    assert DataId("main", "warps", key).parts == tuple(parts)


@pytest.mark.parametrize("key", ["", "|", "a|", "|a", "a||b", "a|../b"])
def test_keys_with_empty_or_unsafe_parts_are_refused(key):
    with pytest.raises(BadInput):
        check_key(key)


@given(names, names, st.lists(names, min_size=1, max_size=3), st.one_of(st.just(""), names))
def test_data_ids_survive_the_way_through_text(collection, product, parts, unit):
    data_id = DataId(collection, product, join_key(*parts), unit)
    assert DataId.parse(str(data_id)) == data_id


@pytest.mark.parametrize("text", ["", "a/b", "a/b/c/d/e", "main/warps/../../x", "main//x", "main/warps/x/../y"])
def test_texts_that_are_no_data_id(text):
    with pytest.raises(BadInput):
        DataId.parse(text)


def test_order_is_by_collection_product_partition_unit():
    ids = [
        DataId("main", "warps", "b"),
        DataId("main", "warps", "a", "01"),
        DataId("main", "warps", "a", "00"),
        DataId("a", "z", "z"),
    ]
    assert [str(one) for one in sorted(ids)] == ["a/z/z", "main/warps/a/00", "main/warps/a/01", "main/warps/b"]
    assert sorted([Pin(ids[1], "b"), Pin(ids[1], "a")])[0].content == "a"
