"""Tables and documents of the store: Parquet with units in the column metadata, and JSON, to bytes and back.

The bytes depend on the content and the library version alone. What a product must contain is checked in `files.py`.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lap_assets.errors import PermanentFailure
from lap_assets.store.fits_format import MalformedFile

_UNITS = b"units"  # key of the file's metadata: JSON object of unit by column


def encode_table(table: pd.DataFrame) -> tuple[bytes, str]:
    """Parquet bytes and content hash of a table; units are taken from `table.attrs["units"]`.

    The index is not stored. Raises `PermanentFailure` for columns that are neither numbers, booleans, text nor lists
    of these.
    """
    units = dict(table.attrs.get("units", {}))
    if not all(isinstance(name, str) for name in table.columns) or not table.columns.is_unique:
        raise PermanentFailure(f"column names must be text and occur once: {list(table.columns)}")
    try:
        arrow = pa.Table.from_pandas(table, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise PermanentFailure(f"the table cannot be stored in Parquet: {' '.join(str(error).split())}") from None
    columns = [_normalise_column(name, arrow.column(name)) for name in arrow.column_names]
    kept = {name: str(units[name]) for name in arrow.column_names if units.get(name)}
    fields = [pa.field(name, column.type) for name, column in zip(arrow.column_names, columns, strict=True)]
    arrow = pa.Table.from_arrays(columns, schema=pa.schema(fields, metadata={_UNITS: encode_json(kept)}))
    buffer = BytesIO()
    pq.write_table(arrow, buffer, compression="zstd", compression_level=1)
    return buffer.getvalue(), hash_table(arrow)


def decode_table(data: bytes, columns: Sequence[str] | None = None) -> tuple[pd.DataFrame, str]:
    """The table in Parquet bytes (some or all columns) and, of what was read, the content hash."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        missing = [name for name in columns or () if name not in file.schema_arrow.names]
        if missing:
            raise MalformedFile(f"no column {', '.join(missing)}; there are: {', '.join(file.schema_arrow.names)}")
        arrow = file.read(columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise MalformedFile(f"unreadable Parquet: {' '.join(str(error).split())[:120]}") from None
    table = arrow.replace_schema_metadata(None).to_pandas(use_threads=False)
    units = _read_units(arrow)
    table.attrs["units"] = {name: units[name] for name in arrow.column_names if name in units}
    return table, hash_table(arrow)


def concatenate_tables(tables: Sequence[pd.DataFrame], unit: str, names: Sequence[str]) -> pd.DataFrame:
    """One table of all units, with a column called `unit` that names each unless there is one."""
    parts = []
    for name, table in zip(names, tables, strict=True):
        part = table.copy(deep=False)
        part.attrs = {}
        if unit and unit not in part.columns:
            part.insert(0, unit, name)
        parts.append(part)
    whole = pd.concat(parts, ignore_index=True)
    whole.attrs["units"] = tables[0].attrs.get("units", {})
    return whole


def hash_table(table: pa.Table) -> str:
    """Content hash: of each column its name, unit, type, length and little-endian values."""
    digest, units = hashlib.sha256(), _read_units(table)
    for name in table.column_names:
        digest.update(f"{name} [{units.get(name, '')}] {table.num_rows}\n".encode())
        _update_digest(digest, _join_chunks(table.column(name)))
    return digest.hexdigest()


def _read_units(table: pa.Table) -> dict[str, str]:
    return decode_json((table.schema.metadata or {}).get(_UNITS, b"{}"))


def _join_chunks(column: pa.ChunkedArray) -> pa.Array:
    joined = column.combine_chunks()
    return joined if isinstance(joined, pa.Array) else pa.concat_arrays(joined.chunks)


def _normalise_column(name: str, column: pa.ChunkedArray) -> pa.Array:
    """One array of a type the store keeps: text as plain strings, lists as plain lists."""
    array, kind = _join_chunks(column), column.type
    if pa.types.is_dictionary(kind):
        array, kind = array.dictionary_decode(), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return array.cast(pa.string())
    if pa.types.is_null(kind):
        return array.cast(pa.string())
    if pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return array.cast(pa.list_(kind.value_type))
    if pa.types.is_list(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return array
    raise PermanentFailure(f"column {name}: cannot store type {kind}; use numbers, booleans, text or lists of these")


def _update_digest(digest: "hashlib._Hash", array: pa.Array) -> None:
    kind = array.type
    name = "list" if pa.types.is_list(kind) else str(kind)  # what a list calls its items depends on who wrote it
    digest.update(f"{name} {len(array)} {array.null_count}\n".encode())
    if array.null_count:
        digest.update(np.packbits(np.asarray(array.is_valid())).tobytes())
    if pa.types.is_list(kind):
        digest.update(np.asarray(array.value_lengths().fill_null(0)).astype("<i8").tobytes())
        _update_digest(digest, array.flatten())
    elif pa.types.is_string(kind):
        texts = [text.encode() for text in array.fill_null("").to_pylist()]
        digest.update(np.array([len(text) for text in texts], dtype="<i8").tobytes())
        digest.update(b"".join(texts))
    else:
        filled = array.fill_null(False if pa.types.is_boolean(kind) else 0) if array.null_count else array
        values = filled.to_numpy(zero_copy_only=False)
        if values.dtype.kind == "f":
            values = np.where(np.isnan(values), values.dtype.type("nan"), values)  # one bit pattern for NaN
        digest.update(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")))


def encode_json(document: Mapping[str, Any]) -> bytes:
    """Canonical bytes of a JSON object: sorted keys, finite numbers; numpy scalars and arrays become plain ones."""
    plain = simplify(document, "document")
    return (json.dumps(plain, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def decode_json(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`; raises `MalformedFile` for anything else, duplicate keys and NaN included."""
    try:
        document = json.loads(data.decode("ascii"), parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeats)
    except (ValueError, RecursionError) as error:
        raise MalformedFile(f"unreadable JSON: {error}") from None
    if not isinstance(document, dict):
        raise MalformedFile("the JSON is not an object")
    return document


def simplify(value: Any, where: str) -> Any:
    """`value` as plain JSON types; raises `PermanentFailure` that names the key of what has none."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise PermanentFailure(f"{where}: {value} cannot be stored in JSON; leave it out or use None")
        return value
    if isinstance(value, Mapping):
        return {str(key): simplify(one, f"{where}.{key}") for key, one in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [simplify(one, f"{where}[{i}]") for i, one in enumerate(value)]
    raise PermanentFailure(f"{where}: cannot store {type(value).__name__} in JSON")


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key occurs twice")
    return document
