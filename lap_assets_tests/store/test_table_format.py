import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.errors import PermanentFailure
from lap_assets.store.fits_format import MalformedFile
from lap_assets.store.table_format import decode_json, decode_table, encode_json, encode_table, hash_table

TABLE = pd.DataFrame(
    {
        "object_id": np.array([5, 7, 9], np.int64),
        "ra": [1.5, np.nan, 3.25],
        "flux": np.array([1, 2, 3], np.float32),
        "band": ["g", "r", None],
        "good": [True, False, True],
        "shape": [[1.0, 2.0], [], [3.0]],
    }
)
TABLE.attrs["units"] = {"ra": "deg", "flux": "nJy"}


def test_tables_come_back_with_types_and_units():
    data, content = encode_table(TABLE)
    back, same = decode_table(data)
    assert same == content
    assert back.attrs["units"] == {"ra": "deg", "flux": "nJy"}
    assert (back["object_id"].dtype, back["flux"].dtype, back["good"].dtype) == (np.int64, np.float32, bool)
    np.testing.assert_array_equal(back["ra"], TABLE["ra"])
    assert back["band"].isna().tolist() == [False, False, True]
    assert [list(one) for one in back["shape"]] == [[1.0, 2.0], [], [3.0]]
    assert list(decode_table(data, ["ra"])[0].columns) == ["ra"]


@given(
    st.lists(
        st.tuples(st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=5), st.booleans()),
        min_size=1,
        max_size=20,
    )
)
@settings(deadline=None)
def test_content_hash_survives_the_file_and_bytes_repeat(rows):
    table = pd.DataFrame(rows, columns=["i", "x", "name", "flag"])
    data, content = encode_table(table)
    assert decode_table(data)[1] == content
    assert encode_table(table.copy()) == (data, content)


def test_content_hash_is_of_values_not_of_the_file():
    data, content = encode_table(TABLE)
    arrow = pq.read_table(pa.BufferReader(data))
    sink = pa.BufferOutputStream()
    pq.write_table(arrow, sink, compression="none", row_group_size=1)
    assert decode_table(sink.getvalue().to_pybytes())[1] == content
    assert hash_table(arrow.slice(0, 2)) != content


def test_content_hash_sees_values_types_names_units_order_and_nulls():
    variants = [TABLE]
    for change in (
        lambda t: t.assign(ra=[1.5, np.nan, 3.5]),
        lambda t: t.assign(flux=t["flux"].astype("f8")),
        lambda t: t.rename(columns={"ra": "dec"}),
        lambda t: t[t.columns[::-1]],
        lambda t: t.assign(band=["g", "r", ""]),
        lambda t: t.assign(band=["gr", "", None]),
        lambda t: t.assign(shape=[[1.0], [2.0], [3.0]]),
        lambda t: t.iloc[::-1],
    ):
        changed = change(TABLE.copy())
        changed.attrs["units"] = TABLE.attrs["units"]
        variants.append(changed)
    unit = TABLE.copy()
    unit.attrs["units"] = {"ra": "rad", "flux": "nJy"}
    variants.append(unit)
    assert len({encode_table(one)[1] for one in variants}) == len(variants)


def test_nan_has_one_bit_pattern():
    odd = np.array([0x7FF8000000000001, 0xFFF8000000000000], np.uint64).view(np.float64)
    plain = np.array([np.nan, np.nan])
    assert encode_table(pd.DataFrame({"x": odd}))[1] == encode_table(pd.DataFrame({"x": plain}))[1]


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"x": [object()]}),
        pd.DataFrame({"x": [1 + 2j]}),
        pd.DataFrame({"t": pd.to_datetime(["2020-01-01"])}),
        pd.DataFrame({1: [1]}),
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
    ],
)
def test_what_the_store_does_not_keep_is_refused_in_one_line(table):
    with pytest.raises(PermanentFailure) as caught:
        encode_table(table)
    assert "\n" not in str(caught.value)


def test_damaged_parquet_and_absent_columns_are_named():
    data, _ = encode_table(TABLE)
    for bad in (b"", data[:-1], data[: len(data) // 2], b"PAR1" + bytes(20)):
        with pytest.raises(MalformedFile):
            decode_table(bad)
    with pytest.raises(MalformedFile, match="no column parallax"):
        decode_table(data, ["ra", "parallax"])


def test_json_is_canonical_and_numpy_becomes_plain():
    one = encode_json({"b": np.float32(0.5), "a": [np.int64(3), (1, 2)], "c": np.arange(2)})
    assert one == encode_json({"c": [0, 1], "a": [3, [1, 2]], "b": 0.5})
    assert decode_json(one) == {"a": [3, [1, 2]], "b": 0.5, "c": [0, 1]}


def test_json_refuses_what_would_not_come_back_and_names_the_key():
    with pytest.raises(PermanentFailure, match=r"document\.chips\.c0"):
        encode_json({"chips": {"c0": float("nan")}})
    with pytest.raises(PermanentFailure, match=r"document\.path"):
        encode_json({"path": object()})


@pytest.mark.parametrize("data", [b"", b"[1]", b'{"a": NaN}', b'{"a": 1, "a": 2}', b'{"a": 1', b"\xff", b"[" * 100000])
def test_unreadable_json_is_noticed(data):
    with pytest.raises(MalformedFile):
        decode_json(data)
