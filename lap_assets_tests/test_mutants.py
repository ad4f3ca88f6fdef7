"""The table of mutants fits the code: each text is there once, and its tests cite the rule."""

import pytest

from lap_assets_tests.mutants import MUTANTS, PACKAGE, TESTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: f"{one.rule} {one.before[:40]}")
def test_mutant_can_be_made(mutant):
    assert (PACKAGE / mutant.file).read_text().count(mutant.before) == 1
    assert mutant.rule in (TESTS / mutant.tests).read_text()
