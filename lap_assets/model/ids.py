"""Ids and keys: the one allow-list that names from outside must pass, and the data id of a product.

A data id names one unit of one product: `main/warps/simcam-101|demo.0/03` is skycell 03 of the warp of exposure
simcam-101 on projection cell demo.0 in collection main. Nothing here knows paths on disk (`store/layout.py` does).
"""

import re
from dataclasses import dataclass

from lap_assets.errors import BadInput

MAX_LENGTH = 120
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
JOIN = "|"


def check_name(name: str, what: str = "name") -> str:
    """Return `name` if it passes the allow-list, else raise `BadInput`.

    Letters, digits, `_`, `.`, `-`; not starting with `.` or `-`; no `..`; at most 120 characters.
    """
    text = str(name)
    if len(text) > MAX_LENGTH:
        raise BadInput(f"{what} of {len(text)} characters is too long (at most {MAX_LENGTH}): {text[:40]!r}…")
    if not _NAME.fullmatch(text) or ".." in text:
        raise BadInput(
            f"{what} {text!r} is not allowed: use letters, digits, '_', '.', '-', and start with a letter or digit"
        )
    return text


def check_key(key: str, what: str = "partition key") -> str:
    """Return a partition key (names joined by `|`) if every part passes the allow-list."""
    for part in str(key).split(JOIN):
        check_name(part, what)
    return str(key)


def join_key(*parts: str) -> str:
    """Join names to a partition key: `join_key("simcam-101", "demo.0")` → `simcam-101|demo.0`."""
    return JOIN.join(check_name(part, "part of a partition key") for part in parts)


@dataclass(frozen=True, order=True)
class DataId:
    """One unit of one product.

    Attributes
    ----------
    collection, product : str
    partition : str
        Dagster partition key, e.g. `simcam-101|demo.0`.
    unit : str
        Chip or skycell name; empty where the partition is the unit.
    """

    collection: str
    product: str
    partition: str
    unit: str = ""

    def __post_init__(self) -> None:
        check_name(self.collection, "collection")
        check_name(self.product, "product")
        check_key(self.partition)
        if self.unit:
            check_name(self.unit, "unit")

    @property
    def parts(self) -> tuple[str, ...]:
        """The names joined in the partition key."""
        return tuple(self.partition.split(JOIN))

    def __str__(self) -> str:
        text = f"{self.collection}/{self.product}/{self.partition}"
        return f"{text}/{self.unit}" if self.unit else text

    @classmethod
    def parse(cls, text: str) -> "DataId":
        """Read back what `str()` wrote; raises `BadInput` for anything else."""
        pieces = text.split("/")
        if not 3 <= len(pieces) <= 4:
            raise BadInput(f"{text!r} is no data id: expected COLLECTION/PRODUCT/PARTITION[/UNIT]")
        return cls(*pieces)


@dataclass(frozen=True, order=True)
class Pin:
    """An input pinned by content: which unit, and the `content_sha256` it had."""

    data_id: DataId
    content: str
