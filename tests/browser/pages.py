"""Figures that move, in the places where people meet them: pages, frames, notebooks."""

import base64
import html
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output
from playwright.sync_api import Browser, Page

PAGE = """<!doctype html><html lang="en"><title>A figure</title>
<main><h1>A figure</h1>{}</main></html>"""
DARK = "<style>html { background: #131416; color: #cfd0d0; }</style>"
# As Colab shows an output: a frame of another origin that may run scripts.
FRAME = """<iframe title="output" sandbox="allow-scripts allow-forms" srcdoc="{}"
width="700" height="900"></iframe>"""


@contextmanager
def shown(browser: Browser, text: str, **context) -> Iterator[tuple[Page, list[str]]]:
    """A page with this text, offline; and what goes wrong in it."""
    troubles: list[str] = []
    with browser.new_context(offline=True, **context) as surroundings:
        page = surroundings.new_page()
        page.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: troubles.append(request.url))
        page.set_content(PAGE.format(text))
        yield page, troubles


def in_a_frame(text: str) -> str:
    return FRAME.format(html.escape(PAGE.format(text)))


def picture(fig) -> str:
    """A matplotlib figure as PNG, in base64."""
    file = io.BytesIO()
    fig.savefig(file, format="png")
    plt.close(fig)
    return base64.b64encode(file.getvalue()).decode()


def notebook(path: Path, figure, png: str, title: str) -> None:
    """A notebook of one cell that was run: a picture, and the figure below it."""
    outputs = [
        new_output("display_data", {"image/png": png}, metadata={"image/png": {"alt": title}}),
        new_output(
            "execute_result",
            {"text/html": figure._repr_html_(), "text/plain": repr(figure)},
            execution_count=1,
        ),
    ]
    cell = new_code_cell("figure", outputs=outputs, execution_count=1)
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nbformat.write(new_notebook(cells=[cell], metadata={"kernelspec": kernel}), path)
