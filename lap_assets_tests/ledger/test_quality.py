"""QC1 parameters: from the metrics of units, added to by whoever judges, read by place and name."""

import math

from lap_assets.ledger.quality import read_metrics
from lap_assets.model.ids import DataId
from lap_assets.model.quality import QualityRow
from lap_assets_tests.ledger.conftest import Report

SOLUTION = DataId("main", "solutions", "cam-000001")


def record(ledger, metrics: dict, product: str = "solutions") -> None:
    report = Report(DataId("main", product, "cam-000001"), metrics=metrics)
    ledger.record_partition("main", product, "cam-000001", "done", unit_reports=[report])


def test_metrics_of_a_solution_are_parameters_of_its_exposure(ledger):
    """PHX-08: numbers, texts, and whether they are within their limits."""
    record(ledger, {"fwhm_arcsec": 1.1, "fwhm_arcsec_passed": True, "n_stars": 12, "band": "r", "depth": math.nan})
    found = {row.name: (row.value, row.text, row.passed) for row in ledger.quality("main", "solutions")}
    assert found == {"fwhm_arcsec": (1.1, "", True), "n_stars": (12.0, "", None), "band": (None, "r", None)}
    record(ledger, {"fwhm_arcsec": 1.3}, "chips")
    assert ledger.quality("main", "chips") == []


def test_what_is_made_again_has_its_new_parameters_only(ledger):
    record(ledger, {"fwhm_arcsec": 1.1, "n_stars": 12})
    record(ledger, {"fwhm_arcsec": 1.2})
    assert [(row.name, row.value) for row in ledger.quality("main")] == [("fwhm_arcsec", 1.2)]
    record(ledger, {})  # an attempt that failed: what was made before is there still
    assert [(row.name, row.value) for row in ledger.quality("main")] == [("fwhm_arcsec", 1.2)]


def test_parameters_are_added_and_replaced_by_unit_and_name(ledger):
    """PHX-08: a chip each, whoever writes them; the last of the same name counts."""
    record(ledger, {"fwhm_arcsec": 1.1})
    rows = [QualityRow("fwhm_arcsec", 1.5, passed=False, unit=chip) for chip in ("c1", "c0", "c0")]
    ledger.write_quality("main", "solutions", "cam-000001", rows)
    ledger.write_quality("main", "solutions", "cam-000001", [QualityRow("fwhm_arcsec", 1.2, passed=True, unit="c1")])
    ledger.write_quality("other", "solutions", "cam-000001", [QualityRow("fwhm_arcsec", 9.0)])
    found = ledger.quality("main", "solutions", "cam-000001", ["fwhm_arcsec"])
    assert [(row.unit, row.value, row.passed) for row in found] == [
        ("", 1.1, None), ("c0", 1.5, False), ("c1", 1.2, True),
    ]  # fmt: skip
    assert ledger.quality("main", names=["depth_mag"]) == []
    assert {(row.collection, row.partition) for row in found} == {("main", "cam-000001")}


def test_lists_and_tables_are_no_parameters():
    """What is neither number nor text nor truth is left out, and a truth alone is a row of its own."""
    rows = read_metrics(
        SOLUTION, {"chips": [1, 2], "by_chip": {"c0": 1}, "none": None, "enough_chips": True, "x": 1e400}
    )
    assert [(row.name, row.value, row.passed) for row in rows] == [("enough_chips", None, True)]
