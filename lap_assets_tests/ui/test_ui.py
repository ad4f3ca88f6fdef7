"""What a person sees and does in the Dagster UI: the graph, the partitions, a backfill of everything."""

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

import lap_assets
from lap_assets.defs import status
from lap_assets.model.ids import join_key
from lap_assets.model.products import PRODUCTS
from lap_assets.operations.workspace import Workspace
from lap_assets_tests.defs.surveys import create_survey, ingest_small, simulate_small
from lap_assets_tests.ui.servers import find_free_port, serve

pytestmark = [pytest.mark.ui, pytest.mark.slow, pytest.mark.xdist_group("ui")]

LAP = [sys.executable, "-c", "from lap_assets.cli import main; main()"]
BACKFILL_SECONDS = 1500.0
# what the page sends when "Materialize all" is confirmed for assets of several partition sets
LAUNCH = """
mutation Launch($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }
"""
STATUS = """
query Status($id: String!) { partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill { status error { message }
      assetBackfillData { assetBackfillStatuses { ... on AssetPartitionsStatusCounts {
          assetKey { path } numPartitionsTargeted numPartitionsMaterialized numPartitionsFailed } } } } } }
"""
ASSETS = "{ assetNodes { assetKey { path } dependencyKeys { path } isPartitioned } }"


def open_page(browser, url: str, *texts: str, seconds: float = 60.0) -> str:
    """Go to a page and wait until all the texts stand on it; returns all text that is there."""
    browser.get(url)
    end = time.monotonic() + seconds
    while True:
        found = browser.find_element("tag name", "body").text
        if all(text in found for text in texts):
            return found
        assert time.monotonic() < end, f"not on {url}: {[t for t in texts if t not in found]}; there is:\n{found}"
        time.sleep(0.5)


def find_graph_nodes(browser) -> dict[str, tuple[float, float]]:
    """Asset names drawn on the canvas of the graph (not in the list beside it), each with its place on the screen."""
    script = """
        return [...document.querySelectorAll('svg foreignObject')].map(node => {
            const box = node.getBoundingClientRect();
            return [node.textContent, box.x + box.width / 2, box.y + box.height / 2, box.width]; });
    """
    places = {}
    for text, x, y, width in browser.execute_script(script):
        names = [name for name in PRODUCTS if text.startswith(name)]
        if names and width > 0:
            places[max(names, key=len)] = (x, y)
    return places


def find_overlays(browser) -> list[str]:
    """Dialogs that lie over the page."""
    script = "return [...document.querySelectorAll('[role=dialog], .bp5-overlay-backdrop, .bp4-overlay-backdrop')]"
    return browser.execute_script(f"{script}.map(node => node.textContent)")


def assert_graph_is_readable(browser, url: str, picture: Path) -> None:
    """All assets are drawn, each in a place of its own after what it is made from, and nothing covers them."""
    open_page(browser, f"{url}/asset-groups/", "Lineage", *PRODUCTS)
    end = time.monotonic() + 60
    while len(places := find_graph_nodes(browser)) < len(PRODUCTS) and time.monotonic() < end:
        time.sleep(0.5)
    browser.save_screenshot(str(picture))
    assert set(places) == set(PRODUCTS)
    assert len(set(places.values())) == len(PRODUCTS)
    for name, product in PRODUCTS.items():
        assert all(places[source][0] < places[name][0] for source in product.inputs), (name, places)
    assert find_overlays(browser) == []
    covered = "const [x, y] = arguments; return document.elementFromPoint(x, y).closest('svg') === null"
    for name, place in places.items():
        assert not browser.execute_script(covered, *place), f"{name} is covered"


def pause_all(space: Workspace) -> None:
    """Nothing is made but what is asked for by hand: the sensors are on in every server."""
    for run in space.ledger.runs():
        space.ledger.pause(run.lap_id, True)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """`lap ui` of a repository in which all is ingested and nothing made."""
    folder = tmp_path_factory.mktemp("planned")
    space, port = create_survey(folder / "repository"), find_free_port()
    pause_all(space)
    root = space.root
    command = [*LAP, "--repo", str(root), "ui", "--port", str(port)]
    with serve(command, folder, port, folder / "dagster.log") as server:
        server.root = root
        yield server
    assert server.members() == []


def test_lap_ui_shows_the_chain(planned, browser, pictures):
    """The whole graph is open at first sight, with no dialog over it."""
    assert_graph_is_readable(browser, planned.url, pictures / "asset_graph.png")


def test_partitions_page_shows_the_keys(planned, browser, pictures):
    """One can pick partitions: those of the survey are listed, as missing."""
    survey = Workspace.open(planned.root).survey()
    for product in ("chips", "stacks"):
        keys = survey.partitions(product)
        url = f"{planned.url}/assets/main/{product}?view=partitions"
        text = open_page(browser, url, f"{len(keys)} Partitions Selected", f"Missing ({len(keys)})", *keys)
        browser.save_screenshot(str(pictures / f"partitions_{product}.png"))
        assert text.count("Materialized (0)") == 1
    assert find_overlays(browser) == []


def test_dagster_dev_alone_in_a_fresh_clone_shows_the_graph(tmp_path, browser, pictures):
    """No repository, no environment: `dagster dev` comes up with empty partition sets and the same graph."""
    top = Path(lap_assets.__file__).parents[1]
    clone = tmp_path / "clone"
    shutil.copytree(top / "lap_assets", clone / "lap_assets", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("workspace.yaml", "dagster.yaml", "pyproject.toml"):
        shutil.copy(top / name, clone)
    port = find_free_port()
    command = [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port)]
    with serve(command, clone, port, tmp_path / "dagster.log", PYTHONPATH=str(clone)) as server:
        nodes = server.ask(ASSETS)["assetNodes"]
        found = {node["assetKey"]["path"][-1]: {key["path"][-1] for key in node["dependencyKeys"]} for node in nodes}
        assert found == {name: set(product.inputs) for name, product in PRODUCTS.items()} | {status.NAME: set()}
        assert_graph_is_readable(browser, server.url, pictures / "fresh_clone.png")
        open_page(browser, f"{server.url}/assets/main/chips?view=partitions", "0 Partitions Selected")
    assert server.members() == []


@pytest.mark.timeout(1800)
def test_backfill_of_everything_with_exposures_that_cannot_be_processed(tmp_path, browser, pictures):
    """All assets, all partitions, one raw file cut and one gone: it completes, the cell is stacked from the rest."""
    space = ingest_small(tmp_path / "repository", simulate_small(tmp_path / "sim"), executor="processes")
    survey = space.survey()
    _, bad, gone = survey.partitions("chips")
    os.truncate(survey.exposures[bad].chips[0].path, 3 * 2880)
    Path(survey.exposures[gone].chips[0].path).unlink()
    pause_all(space)
    port = find_free_port()
    command = [*LAP, "--repo", str(space.root), "ui", "--port", str(port)]
    with serve(command, tmp_path, port, tmp_path / "dagster.log") as server:
        keys = [node["assetKey"] for node in server.ask(ASSETS)["assetNodes"] if node["isPartitioned"]]
        params = {"assetSelection": keys, "allPartitions": True, "tags": []}
        launched = server.ask(LAUNCH, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        end = time.monotonic() + BACKFILL_SECONDS
        while True:
            backfill = server.ask(STATUS, id=launched["backfillId"])["partitionBackfillOrError"]
            if backfill["status"] not in ("REQUESTED", "CANCELING"):
                break
            assert time.monotonic() < end, f"{backfill}\n{server.log.read_text()[-5000:]}"
            time.sleep(2)
        assert (backfill["status"], backfill["error"]) == ("COMPLETED_SUCCESS", None), backfill
        counts = {one["assetKey"]["path"][-1]: one for one in backfill["assetBackfillData"]["assetBackfillStatuses"]}
        made = [name for name in PRODUCTS if survey.partitions(name)]  # its camera needs no dark, sky or fringe
        assert set(counts) == set(made)
        for name in made:
            expected = len(survey.partitions(name))
            assert counts[name]["numPartitionsTargeted"] == counts[name]["numPartitionsMaterialized"] == expected, name
        text = open_page(browser, f"{server.url}/runs/b/{launched['backfillId']}", "Succeeded", "mass_fits")
        assert text.count("100% completed") == len(made)
        browser.save_screenshot(str(pictures / "backfill.png"))
        url = f"{server.url}/assets/main/chips?view=partitions&partition={bad}"
        open_page(browser, url, "unprocessable", "not_done")
        browser.save_screenshot(str(pictures / "unprocessable.png"))
    assert server.members() == []
    assert_stacked_without(space, bad, gone)


def assert_stacked_without(space: Workspace, bad: str, gone: str) -> None:
    """Every partition ended with a result; the stack of the cell is made of the other exposure."""
    survey, states = space.survey(), space.ledger.partition_states("main")
    assert {ref for ref in states} == {(name, key) for name in PRODUCTS for key in survey.partitions(name)}
    assert states["chips", bad].state == states["solutions", bad].state == "unprocessable"
    assert states["chips", gone].state == "dropped"
    others = sorted(set(survey.exposures) - {bad, gone})
    (cell,) = survey.cells
    for unit in space.repo.units("main", "final_stacks", join_key(cell, "r")):
        assert space.repo.manifest(unit).state == "done"
        assert sorted(set(space.repo.read_table(unit, "inputs.parquet")["exposure"])) == others
