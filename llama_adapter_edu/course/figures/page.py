"""One piece of HTML that carries all it needs: its data, the style, and the scripts of `js/`."""

import hashlib
import html
import json
from importlib.resources import files
from typing import Any

SIZE = 200_000  # bytes of HTML at most: it is kept in the notebook
NO_SCRIPT = (
    "Here stands a figure that moves. It needs scripts, and this page runs none. In a notebook, "
    "run this cell, or trust the notebook (in JupyterLab: Ctrl+Shift+C, Trust Notebook)."
)


class Page:
    """A figure that moves, as Jupyter shows it. Scripts and data are inside; nothing is fetched.

    Where no script runs (a code host, a notebook that is not trusted), one sentence says so.

    Args:
        name: of the script in `js/` that builds the figure.
        data: what it shows, anything that JSON can hold.
        instead: what else the reader can do where no script runs.

    Raises:
        ValueError: the HTML would be larger than `SIZE`.
    """

    def __init__(self, name: str, data: Any, instead: str = "") -> None:
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        text = text.replace("<", "\\u003c")  # or a text in the data could end the script
        self.instead = f"{NO_SCRIPT} {instead}".strip()
        code = "\n".join(_file(part) for part in ("figure.js", f"{name}.js"))
        place = f"{name}-{hashlib.sha256((text + code).encode()).hexdigest()[:12]}"
        self.text = (
            f'<div data-figure="{place}"><p>{html.escape(self.instead)}</p></div>\n'
            f'<script>\n(() => {{\n"use strict";\n{code}\n'
            f"const style = {json.dumps(_file('figure.css'))};\n"
            f"show({json.dumps(place)}, style, {name}, {text});\n}})();\n</script>"
        )
        size = len(self.text.encode())
        if size > SIZE:
            raise ValueError(
                f"the figure takes {size:,} bytes, more than {SIZE:,}: show less in it."
            )

    def _repr_html_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.instead


def _file(name: str) -> str:
    return files(__package__).joinpath("js", name).read_text(encoding="utf-8")
