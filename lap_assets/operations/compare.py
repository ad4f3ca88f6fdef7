"""Two repositories side by side: which units are identical, and by how much the others differ.

Same inputs, settings and environment must give identical content whatever the worker count; across environments
(library versions, CPU dispatch) differences are measured and held against stated tolerances.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from lap_assets.model.ids import DataId
from lap_assets.model.products import get_product
from lap_assets.store.repo import Repo

# how far products of the same recipe may lie apart in two environments
IMAGE_TOLERANCE_SIGMA = 0.01  # of the pixel's own noise, 99.9th percentile
TABLE_TOLERANCE_RELATIVE = 1e-3  # median over rows, worst column


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
    """The largest difference between two versions of a unit: what it is, how large, and whether within tolerance."""
    worst: tuple[str, float, bool] = ("", 0.0, True)
    for member in get_product(data_id.product).members:
        if member.planes:
            found = measure_planes(here.read_planes(data_id, member.name), there.read_planes(data_id, member.name))
            limit = IMAGE_TOLERANCE_SIGMA
        elif member.name.endswith(".parquet"):
            found = measure_tables(here.read_table(data_id, member.name), there.read_table(data_id, member.name))
            limit = TABLE_TOLERANCE_RELATIVE
        else:
            continue
        if found[1] >= worst[1]:
            worst = (f"{member.name} {found[0]}", found[1], found[1] <= limit)
    return worst


def measure_planes(mine: dict[str, Any], theirs: dict[str, Any]) -> tuple[str, float]:
    """99.9th percentile of the science difference over the pixel's noise."""
    name = "SCI" if "SCI" in mine else next(iter(mine))
    a, b = mine[name][0].astype(float), theirs[name][0].astype(float)
    if a.shape != b.shape:
        return f"{name} shape", np.inf
    variance = mine["VAR"][0] if "VAR" in mine else np.ones_like(a)
    good = variance > 0
    if not good.any():
        return name, 0.0
    return f"{name} (sigma)", float(np.percentile(np.abs(a - b)[good] / np.sqrt(variance[good]), 99.9))


def measure_tables(mine: pd.DataFrame, theirs: pd.DataFrame) -> tuple[str, float]:
    """Median relative difference of the worst column; infinite where the rows are not the same number."""
    if len(mine) != len(theirs):
        return f"rows {len(mine)} against {len(theirs)}", np.inf
    worst = ("", 0.0)
    for column in mine.select_dtypes("number").columns.intersection(theirs.columns):
        a, b = mine[column].to_numpy(float), theirs[column].to_numpy(float)
        scale = np.maximum(np.abs(a), np.abs(b))
        both = np.isfinite(a) & np.isfinite(b) & (scale > 0)
        value = float(np.median(np.abs(a - b)[both] / scale[both])) if both.any() else 0.0
        if value >= worst[1]:
            worst = (f"{column} (relative)", value)
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
            f"({IMAGE_TOLERANCE_SIGMA} sigma per pixel, {TABLE_TOLERANCE_RELATIVE:g} in tables)"
        )
    return lines
