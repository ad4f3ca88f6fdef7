"""Two repositories side by side: which units are identical, and by how much the others differ.

Same inputs, settings and environment must give identical content whatever the worker count; across environments
(library versions, CPU dispatch) differences are measured and held against stated tolerances.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from lap_assets.model.ids import DataId
from lap_assets.model.products import get_product
from lap_assets.store.repo import Repo

# how far products of the same recipe may lie apart in two environments
IMAGE_TOLERANCE_SIGMA = 0.01  # of the pixel's own noise, 99.9th percentile
# compressed images are rounded to a 16th of it: what lies at the edge of a step falls to either side
COMPRESSED_TOLERANCE_SIGMA = 0.1
TABLE_TOLERANCE_RELATIVE = 1e-3  # median over rows, worst column; every number of a document
MASK_TOLERANCE = 1e-4  # share of pixels


@dataclass
class Comparison:
    """What two repositories have in common.

    Attributes
    ----------
    same, different : lists of data ids as text
    only_here, only_there : data ids that one of them lacks
    fingerprints : (here, there)
        Short hashes of the environments the units were made in.
    largest : mapping of product to (what, value)
        Largest difference among the units of a product.
    beyond : list of data ids over tolerance
    """

    same: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    only_here: list[str] = field(default_factory=list)
    only_there: list[str] = field(default_factory=list)
    fingerprints: tuple[set[str], set[str]] = field(default_factory=lambda: (set(), set()))
    largest: dict[str, tuple[str, float]] = field(default_factory=dict)
    beyond: list[str] = field(default_factory=list)


def compare_repositories(here: Repo, there: Repo) -> Comparison:
    """Compare all units of two repositories by content, and measure what differs."""
    result = Comparison()
    mine, theirs = set(here.all_units()), set(there.all_units())
    result.only_here = sorted(map(str, mine - theirs))
    result.only_there = sorted(map(str, theirs - mine))
    for data_id in sorted(mine & theirs):
        a, b = here.manifest(data_id), there.manifest(data_id)
        result.fingerprints[0].add(a.fingerprint["id"])
        result.fingerprints[1].add(b.fingerprint["id"])
        if (a.state, a.content_sha256) == (b.state, b.content_sha256):
            result.same.append(str(data_id))
            continue
        result.different.append(str(data_id))
        what, value, fine = ("state", np.inf, False) if a.state != b.state else measure_difference(here, there, data_id)
        if value >= result.largest.get(data_id.product, ("", -1.0))[1]:
            result.largest[data_id.product] = (what, value)
        if not fine:
            result.beyond.append(str(data_id))
    return result


def measure_difference(here: Repo, there: Repo, data_id: DataId) -> tuple[str, float, bool]:
    """The difference of two versions of a unit that is largest against its limit.

    Returns
    -------
    what, value, fine
        Member and quantity, its difference, and whether every member is within its limit.
    """
    found: list[tuple[float, str, float]] = []
    for name in sorted(set(here.manifest(data_id).members) | set(there.manifest(data_id).members)):
        if name.endswith(".png"):
            continue
        for what, value, limit in measure_member(here, there, data_id, name):
            found.append((value / limit, f"{name} {what}", value))
    if not found:
        return "", 0.0, True
    ratio, what, value = max(found)
    return what, value, ratio <= 1.0


def measure_member(here: Repo, there: Repo, data_id: DataId, name: str) -> list[tuple[str, float, float]]:
    """(quantity, difference, limit) of one member; infinite where one of them lacks it or shapes differ."""
    if name not in here.manifest(data_id).members or name not in there.manifest(data_id).members:
        return [("is in one of them only", np.inf, 1.0)]
    if name.endswith(".fits"):
        limit = COMPRESSED_TOLERANCE_SIGMA if get_product(data_id.product).compressed else IMAGE_TOLERANCE_SIGMA
        return measure_planes(here.read_planes(data_id, name), there.read_planes(data_id, name), limit)
    if name.endswith(".parquet"):
        return [
            (*measure_tables(here.read_table(data_id, name), there.read_table(data_id, name)), TABLE_TOLERANCE_RELATIVE)
        ]
    mine, theirs = (dict(flatten(repo.read_json(data_id, name))) for repo in (here, there))
    return [(*measure_numbers(mine, theirs), TABLE_TOLERANCE_RELATIVE)]


def measure_planes(
    mine: dict[str, Any], theirs: dict[str, Any], limit: float = IMAGE_TOLERANCE_SIGMA
) -> list[tuple[str, float, float]]:
    """Science in sigma, other floats relative to their median size (99.9th percentile), integers by share changed.

    `limit` is that of floats.
    """
    if set(mine) != set(theirs) or any(mine[name][0].shape != theirs[name][0].shape for name in mine):
        return [("planes or shapes", np.inf, 1.0)]
    measured = []
    for name in mine:
        a, b = mine[name][0], theirs[name][0]
        if a.dtype.kind in "iu":
            measured.append((f"{name} (share of pixels)", float(np.mean(a != b)), MASK_TOLERANCE))
        elif name == "SCI" and "VAR" in mine:
            good = mine["VAR"][0] > 0
            sigma = np.abs(a.astype(float) - b)[good] / np.sqrt(mine["VAR"][0][good])
            measured.append(("SCI (sigma)", percentile(sigma), limit))
        else:
            size = float(np.median(np.abs(a[a != 0]))) if np.any(a != 0) else 1.0
            measured.append((f"{name} (relative)", percentile(np.abs(a.astype(float) - b) / size), limit))
    return measured


def percentile(values: np.ndarray) -> float:
    """99.9th percentile; 0 of nothing, infinite where any value is not finite."""
    if not values.size:
        return 0.0
    return float(np.percentile(values, 99.9)) if np.isfinite(values).all() else float("inf")


def measure_tables(mine: pd.DataFrame, theirs: pd.DataFrame) -> tuple[str, float]:
    """Median relative difference of the worst column; infinite where rows, texts or gaps are not the same."""
    if len(mine) != len(theirs) or list(mine.columns) != list(theirs.columns):
        return f"rows {len(mine)} against {len(theirs)}", np.inf
    worst = ("", 0.0)
    for column in mine.columns:
        if mine[column].dtype.kind not in "iuf":
            value = float("inf") if not mine[column].equals(theirs[column]) else 0.0
        else:
            a, b = mine[column].to_numpy(float), theirs[column].to_numpy(float)
            scale = np.maximum(np.abs(a), np.abs(b))
            both = np.isfinite(a) & np.isfinite(b) & (scale > 0)
            gaps = not np.array_equal(np.isfinite(a), np.isfinite(b))
            value = np.inf if gaps else float(np.median(np.abs(a - b)[both] / scale[both])) if both.any() else 0.0
        if value >= worst[1]:
            worst = (f"{column} (relative)", value)
    return worst


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of a JSON document."""
    if isinstance(value, dict):
        for key in sorted(value):
            yield from flatten(value[key], f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from flatten(one, f"{name}[{number}]")
    else:
        yield name, value


def measure_numbers(mine: dict[str, Any], theirs: dict[str, Any]) -> tuple[str, float]:
    """Largest relative difference of the numbers of two flat documents; infinite where keys or texts differ."""
    if set(mine) != set(theirs):
        return "keys", np.inf
    worst = ("", 0.0)
    for key, a in mine.items():
        b = theirs[key]
        if a == b:
            continue
        numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in (a, b))
        value = abs(a - b) / max(abs(a), abs(b)) if numbers else float("inf")
        if value >= worst[1]:
            worst = (f"{key} (relative)", value)
    return worst


def describe_comparison(result: Comparison) -> list[str]:
    """The comparison as lines."""
    here, there = (", ".join(sorted(ids)) or "-" for ids in result.fingerprints)
    lines = [f"environments: {here} here, {there} there"]
    lines.append(
        f"{len(result.same)} units identical, {len(result.different)} different, "
        f"{len(result.only_here)} only here, {len(result.only_there)} only there"
    )
    lines += [
        f"  {product}: largest difference {value:.3g} in {what}"
        for product, (what, value) in sorted(result.largest.items())
    ]
    if result.different:
        lines.append(
            f"{len(result.beyond)} beyond tolerance "
            f"({IMAGE_TOLERANCE_SIGMA} sigma per pixel, {COMPRESSED_TOLERANCE_SIGMA} where compressed, "
            f"{TABLE_TOLERANCE_RELATIVE:g} in tables)"
        )
    return lines
