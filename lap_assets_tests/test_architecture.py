"""The house rules that a linter cannot say: who may import whom, and what science may touch."""

import ast
from pathlib import Path

import pytest

import lap_assets

PACKAGE = Path(lap_assets.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
MAY_IMPORT = {
    "model": {"model", "errors"},
    "science": {"model", "science", "errors"},
    "store": {"model", "store", "settings", "errors"},
    "ledger": {"model", "ledger", "settings", "errors"},
    "lap": {"model", "ledger", "lap", "errors"},
    "qa": {"model", "science", "qa", "errors"},
    "sim": {"model", "sim", "errors"},
    "pipeline": {"model", "science", "store", "qa", "pipeline", "settings", "compute_settings", "errors"},
}
OUTSIDE = {"os", "pathlib", "logging", "sqlite3", "sqlalchemy", "dagster", "time", "datetime", "random"}
PICKLES = {"pickle", "dill", "shelve", "marshal", "joblib"}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            if node.module == "lap_assets":
                names |= {f"lap_assets.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_house(path):
    names = imports(path)
    ours = {name.split(".")[1] for name in names if name.startswith("lap_assets.")}
    tops = {name.split(".")[0] for name in names}
    here = room(path)
    if here in MAY_IMPORT:
        assert ours <= MAY_IMPORT[here]
    if here not in {"defs", "definitions"}:
        assert "dagster" not in tops
    if here == "science" or path == PACKAGE / "qa" / "metrics.py":
        assert not tops & OUTSIDE
    assert not tops & PICKLES


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_module_says_what_belongs_in_it(path):
    assert ast.get_docstring(ast.parse(path.read_text())), "a module opens with a paragraph"


def test_asset_bodies_call_one_function_of_the_pipeline():
    bodies = 0
    for path in (PACKAGE / "defs" / "assets").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any(ast.unparse(d) == "stages.asset" for d in node.decorator_list):
                statements = node.body[1:]
                assert len(statements) == 1, f"{path}: {node.name}"
                bodies += 1
    from lap_assets.model.products import PRODUCTS

    assert bodies == len(PRODUCTS)


def test_only_layout_builds_store_paths_and_only_ledger_speaks_sql():
    for path in MODULES:
        tops = {name.split(".")[0] for name in imports(path)}
        if room(path) != "ledger":
            assert not tops & {"sqlalchemy", "sqlite3", "alembic", "psycopg2"}, path


def test_shipped_instance_file_is_the_top_level_one():
    assert (PACKAGE / "defs" / "dagster.yaml").read_text() == (PACKAGE.parent / "dagster.yaml").read_text()
