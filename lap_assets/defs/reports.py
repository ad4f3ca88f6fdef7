"""How a partition's report is shown in Dagster: metadata of the materialization, and its checks.

`units_done` (a warning) says which units did not end `done`, and why. `files_on_disk` (blocking) fails when what was
published is not on disk as its manifests say; `master_comparison` (blocking, of masters only) as long as a master is
not certified; `subtraction` (a warning, of differences only) where one cannot be believed. Nothing else stops a
partition from flowing on.
"""

import base64
from collections import Counter
from collections.abc import Iterator, Mapping
from textwrap import shorten
from typing import Any

import dagster as dg

from lap_assets.model.ids import JOIN
from lap_assets.model.products import CELL_BANDS, CELLS, EXPOSURE_CELLS, EXPOSURES, MASTERS, get_product
from lap_assets.model.quality import GOOD, Verdict
from lap_assets.model.states import DONE, GONE, RESULTS
from lap_assets.model.survey import Survey
from lap_assets.pipeline.engine import PartitionReport
from lap_assets.store.repo import Repo

CHECKS = {
    "units_done": "Every unit (chip, skycell) of the partition ended done; the others are listed with their reason.",
    "files_on_disk": "The files of the partition are on disk as their manifests say.",
}
COMPARISON = "master_comparison"
MASTER_CHECKS = {
    COMPARISON: "The master is certified: like the certified one before it, or by a person; nothing uses it before.",
}
SUBTRACTION = "subtraction"
DIFF_CHECKS = {
    SUBTRACTION: "The template fits every skycell: flux ratio, matched stars, their residuals and the sky are as they "
    "should be, and bright stars leave no sources. Nothing is taken from the others.",
}
BLOCKING = "files_on_disk"
STOPPING = frozenset({BLOCKING, COMPARISON})  # nothing is made from what fails these
SUBTRACTION_NUMBERS = ("kernel_sum", "stamp_chi2", "sky_chi", "offset_px", "n_matched_stars", "n_clean_sources")
MAX_ROWS = 100
MAX_TEXT = 300  # characters
SHARED = frozenset({"n_inputs", "n_template_inputs", "n_chips"})  # counts of what the units of a partition share
PREVIEW = "preview.png"


def write_metadata(repo: Repo, report: PartitionReport) -> dict[str, dg.MetadataValue]:
    """Metadata of a partition: state, unit counts, numbers (means over units), seconds, bytes, reasons, a picture."""
    metadata: dict = {
        "state": report.state,
        "units_done": report.count(DONE),
        "units": len(report.units),
        "units_skipped": report.skipped,
        "seconds": round(sum(unit.seconds for unit in report.units), 3),
        "bytes": sum(unit.bytes for unit in report.units),
        "content_sha256": report.content,
    }
    metadata |= average_metrics(report)
    if report.reasons:
        records = [
            dg.TableRecord({"unit": unit or "-", "reason": reason})
            for unit, reason in list(report.reasons.items())[:MAX_ROWS]
        ]
        metadata["not_done"] = dg.MetadataValue.table(records)
    if report.differences:
        # of what was re-created: in what it is not what it was, and why
        metadata["difference"] = "; ".join(f"{unit or '-'}: {text}" for unit, text in report.differences.items())
    picture = find_picture(repo, report)
    if picture:
        metadata["preview"] = dg.MetadataValue.md(
            f"![preview](data:image/png;base64,{base64.b64encode(picture).decode()})"
        )
    return {name: dg.MetadataValue.text(value) if isinstance(value, str) else value for name, value in metadata.items()}


def list_checks(product: str) -> dict[str, str]:
    """The checks of a product, with what they say."""
    own = MASTER_CHECKS if product in MASTERS.values() else DIFF_CHECKS if product == "diffs" else {}
    return CHECKS | own


def describe_runs(survey: Survey, product: str, partition: str) -> dict[str, dg.MetadataValue]:
    """The LAP runs a partition is made for: numbers, states, and the distribution groups it belongs to (LAP-06)."""
    kind, (name, *rest) = get_product(product).partitions, partition.split(JOIN)
    found = {
        EXPOSURES: lambda run: name in run.member or name in run.members,
        EXPOSURE_CELLS: lambda run: run.cell == rest[-1] and (name in run.member or name in run.members),
        CELL_BANDS: lambda run: run.cell == name and run.band == rest[-1],
        CELLS: lambda run: run.cell == name,
    }
    runs = [run for run in survey.runs if kind in found and found[kind](run)]
    if not runs:
        return {}
    groups = sorted({run.dist_group for run in runs if run.dist_group})
    texts = {
        "lap_id": ", ".join(str(run.lap_id) for run in runs),
        "lap_state": ", ".join(sorted({run.state for run in runs})),
    } | ({"dist_group": ", ".join(groups)} if groups else {})
    return {key: dg.MetadataValue.text(text) for key, text in texts.items()}


def average_metrics(report: PartitionReport) -> dict[str, float | str]:
    """Metrics of the units: counts (`n_…`) summed, other numbers and counts of what units share averaged;
    texts where all units agree, else of those units that differ from most.
    """
    values: dict[str, dict[str, Any]] = {}
    for unit in report.units:
        for name, value in unit.metrics.items():
            if value is not None and value == value:
                values.setdefault(name, {})[unit.data_id.unit] = value
    out: dict[str, float | str] = {}
    for name, by_unit in sorted(values.items()):
        found = list(by_unit.values())
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in found):
            add = name.startswith("n_") and name not in SHARED
            out[name] = sum(found) if add else float(f"{sum(found) / len(found):.6g}")
        elif text := join_texts(by_unit):
            out[name] = text
    return out


def join_texts(by_unit: Mapping[str, Any]) -> str:
    """What the units agree on, else what those say that differ from most of them; shortened."""
    ((usual, n), *_) = Counter(map(str, by_unit.values())).most_common()
    if n == len(by_unit):
        return usual
    others = [f"{unit}: {text}" for unit, text in by_unit.items() if str(text) != usual]
    return shorten("; ".join(([f"most: {usual}"] if usual else []) + others), MAX_TEXT, placeholder=" …")


def find_picture(repo: Repo, report: PartitionReport) -> bytes | None:
    """The preview of the first unit that has one; of streak masks, of the unit with most of them."""
    units = report.units
    if report.product == "streak_masks":
        units = sorted(units, key=lambda unit: -unit.metrics.get("n_streaks", 0))
    for unit in units:
        manifest = repo.manifest(unit.data_id) if unit.state == DONE else None
        if manifest is not None and PREVIEW in manifest.members:
            return repo.read_bytes(unit.data_id, PREVIEW)
    return None


def evaluate_checks(asset_key: dg.AssetKey, repo: Repo, report: PartitionReport) -> Iterator[dg.AssetCheckEvaluation]:
    """The check evaluations of a partition."""
    not_done = report.reasons
    yield dg.AssetCheckEvaluation(
        asset_key=asset_key,
        check_name="units_done",
        passed=report.state == DONE and not not_done,
        metadata={"not_done": dg.MetadataValue.json(dict(list(not_done.items())[:MAX_ROWS]))},
        severity=dg.AssetCheckSeverity.WARN,
        description=report.reason or None,
        blocking=False,
        partition=report.partition,
    )
    claimed = [unit.data_id for unit in report.units if unit.state in RESULTS]
    missing = [str(data_id) for data_id in claimed if not repo.has_files(data_id)]
    # what was cleaned on purpose is marked, and stops nothing: it comes back when something needs it
    cleaned = [str(unit.data_id) for unit in report.units if unit.state in GONE]
    yield dg.AssetCheckEvaluation(
        asset_key=asset_key,
        check_name=BLOCKING,
        passed=not missing and not cleaned,
        metadata={"missing": dg.MetadataValue.json((missing + cleaned)[:MAX_ROWS])},
        severity=dg.AssetCheckSeverity.WARN if cleaned and not missing else dg.AssetCheckSeverity.ERROR,
        blocking=True,
        partition=report.partition,
    )
    if report.product == "diffs":
        yield evaluate_subtraction(asset_key, report)
    if report.verdict is not None:
        yield evaluate_verdict(asset_key, report.partition, report.verdict)


def evaluate_subtraction(asset_key: dg.AssetKey, report: PartitionReport) -> dg.AssetCheckEvaluation:
    """The check of the differences of an exposure: which cannot be believed, and why."""
    said = {unit.data_id.unit: str(unit.metrics.get("quality", GOOD)) for unit in report.units if unit.state == DONE}
    bad = {unit: quality for unit, quality in said.items() if quality != GOOD}
    records = [
        dg.TableRecord(
            {"skycell": unit.data_id.unit, "quality": said[unit.data_id.unit]}
            | {name: float(unit.metrics.get(name, "nan")) for name in SUBTRACTION_NUMBERS}
        )
        for unit in report.units
        if unit.state == DONE
    ]
    averages = average_metrics(report)
    metadata = {name: averages[name] for name in SUBTRACTION_NUMBERS if name in averages}
    metadata |= {"bad": dg.MetadataValue.json(dict(list(bad.items())[:MAX_ROWS]))}
    metadata |= {"numbers": dg.MetadataValue.table(records[:MAX_ROWS])} if records else {}
    return dg.AssetCheckEvaluation(
        asset_key=asset_key,
        check_name=SUBTRACTION,
        passed=not bad,
        metadata=metadata,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(f"{unit}: {quality}" for unit, quality in list(bad.items())[:3]) or None,
        blocking=False,
        partition=report.partition,
    )


def evaluate_verdict(asset_key: dg.AssetKey, partition: str, verdict: Verdict) -> dg.AssetCheckEvaluation:
    """The check of a master: whether it is certified, with the numbers of its comparison."""
    records = [
        dg.TableRecord({"chip": one.unit or "-", "what": one.name, "value": one.text or f"{one.value:.6g}"})
        for one in verdict.quality
        if one.text or one.value is not None
    ]
    metadata = {"state": dg.MetadataValue.text(verdict.state)}
    metadata |= {"numbers": dg.MetadataValue.table(records[:MAX_ROWS])} if records else {}
    return dg.AssetCheckEvaluation(
        asset_key=asset_key,
        check_name=COMPARISON,
        passed=verdict.passed,
        metadata=metadata,
        severity=dg.AssetCheckSeverity.ERROR,
        description=verdict.reason or None,
        blocking=True,
        partition=partition,
    )
