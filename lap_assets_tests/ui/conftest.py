"""A headless Chromium, and where its pictures go."""

from pathlib import Path

import pytest

from lap_assets_tests.conftest import require_tool

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--window-size=1800,1100",
)  # fmt: skip


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium with an empty profile."""
    chromium, driver = require_tool("chromium", "chromium-browser", "google-chrome"), require_tool("chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (pip install '.[test]')")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    window.set_page_load_timeout(60)
    yield window
    window.quit()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Folder of the screenshots, kept by pytest with its other temporary folders."""
    return tmp_path_factory.mktemp("pictures")
