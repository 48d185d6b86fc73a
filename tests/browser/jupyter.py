"""JupyterLab on the loopback address, and a notebook in it as a learner sees it."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page

SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    # Cells out of sight are in the page too.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}
READ_CELLS = """() => [...document.querySelectorAll(".jp-Notebook .jp-CodeCell")].map(cell => ({
    prompt: cell.querySelector(".jp-InputPrompt").textContent,
    boxes: [...cell.querySelectorAll('.jp-OutputArea [style*="border-left"]')]
        .map(box => [box.textContent, getComputedStyle(box).borderLeftColor]),
    errors: [...cell.querySelectorAll('[data-mime-type$=".error"], [data-mime-type$=".stderr"]')]
        .map(x => x.textContent.slice(0, 300)),
    pictures: [...cell.querySelectorAll(".jp-OutputArea img")].filter(x => x.naturalWidth).length,
}))"""
RUNNING = """() => [...document.querySelectorAll(".jp-Notebook .jp-InputPrompt")]
    .some(x => x.textContent.includes("*"))"""
BROKEN = """() => [...document.querySelectorAll(".jp-MarkdownCell img")]
    .filter(x => !x.naturalWidth).map(x => x.alt)"""


@dataclass
class Cell:
    """A code cell as it looks: the check's boxes (text and colour), errors, pictures drawn."""

    prompt: str
    boxes: list[list[str]]
    errors: list[str]
    pictures: int


class Notebook:
    """One notebook, open in JupyterLab."""

    def __init__(self, page: Page, path: Path, address: str):
        self.page, self.path = page, path
        page.goto(address.format(path=path.name))
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=120_000)
        # Before that, Run would ask which kernel to take.
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=120_000)

    def run_all(self, seconds: float) -> None:
        """Menu Run, Run All Cells; wait for the last one."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        self.page.wait_for_function(RUNNING)  # until then the prompts show the stored numbers
        self._wait(lambda: not self.page.evaluate(RUNNING), seconds, "Run All")

    def cells(self) -> list[Cell]:
        return [Cell(**cell) for cell in self.page.evaluate(READ_CELLS)]

    def broken_pictures(self) -> list[str]:
        """Alt texts of pictures in the text that did not load."""
        return self.page.evaluate(BROKEN)

    def write(self, index: int, source: str) -> None:
        """Click into a code cell, and put this in the place of what it holds."""
        editor = self.page.locator(".jp-Notebook .jp-CodeCell").nth(index).locator(".cm-content")
        editor.scroll_into_view_if_needed()
        editor.click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.insert_text(source)

    def run_two_cells(self, first: int, seconds: float) -> None:
        """Shift+Enter twice: the cell with the cursor, and the one below it."""
        before = [cell.prompt for cell in self.cells()]
        self.page.keyboard.press("Shift+Enter")
        self.page.keyboard.press("Shift+Enter")

        def done() -> bool:
            now = [cell.prompt for cell in self.cells()]
            return now[first + 1] != before[first + 1] and not self.page.evaluate(RUNNING)

        self._wait(done, seconds, "Shift+Enter")

    def save(self) -> None:
        """Ctrl+S; wait for the file."""
        before = self.path.stat().st_mtime_ns
        self.page.keyboard.press("Control+S")
        self._wait(lambda: self.path.stat().st_mtime_ns != before, 60, "Ctrl+S")

    def screenshot(self, folder: Path | None, what: str, index: int) -> None:
        """The window around this code cell's output, as NAME-what.png; nothing without a folder."""
        if folder:
            cell = self.page.locator(".jp-Notebook .jp-CodeCell").nth(index)
            output = cell.locator(".jp-Cell-outputWrapper")
            output.evaluate("x => x.scrollIntoView({block: 'center'})")
            self.page.wait_for_timeout(500)
            self.page.screenshot(path=folder / f"{self.path.stem}-{what}.png")

    def _wait(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"{what}: not done after {seconds:g} s"
            self.page.wait_for_timeout(300)


@contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """A server for the notebooks in a folder; yields a pattern of their addresses."""
    settings = folder / ".settings"
    settings.mkdir()
    (settings / "overrides.json").write_text(json.dumps(SETTINGS))
    port, token = _free_port(), secrets.token_hex(16)
    command = [
        *(sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"),
        *(f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1"),
        *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"),
        f"--LabApp.app_settings_dir={settings}",
    ]
    # A kernel that knows of pytest would let checks raise, as `pytest --nbval` wants it.
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_", "MPLB"))}
    places = {f"JUPYTER_{x}_DIR": str(folder / f".{x.lower()}") for x in ("CONFIG", "RUNTIME")}
    log = folder / ".jupyter.log"
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env={**own, **places})
    try:
        _wait_for(f"http://127.0.0.1:{port}/api/status?token={token}", server, log)
        yield f"http://127.0.0.1:{port}/lab/tree/{{path}}?reset&token={token}"
    finally:
        server.terminate()
        server.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
