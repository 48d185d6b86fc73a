"""A headless Chromium for the tests of this folder, and the built site on the loopback address."""

import functools
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "site"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", type=Path, help="keep a picture of each notebook in a folder")


@pytest.fixture
def pictures_folder(pytestconfig: pytest.Config) -> Path | None:
    return pytestconfig.getoption("screenshots")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The machine's own Chromium or Chrome, or the one the variable CHROMIUM names."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not path:
        pytest.fail("no Chromium found: install it, or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        # Chromium refuses to run as root inside its own sandbox, as containers have it.
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=not root)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def site_address() -> Iterator[str]:
    """Where the built site is served."""
    handler = functools.partial(_Quiet, directory=str(SITE))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass
