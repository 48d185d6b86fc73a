"""A box in a notebook's output, and the same as text elsewhere."""

import html
import re
import sys

from llama_adapter_edu.course.progress.tables import printable

STYLE = "border-left: 6px solid #5c6bc0; padding: 0.4em 0.8em"


def show(text: str, inner: str) -> None:
    """Display the HTML `inner` with a bar beside it; print `text` where there is no notebook."""
    ipython = sys.modules.get("IPython")
    if getattr(ipython and ipython.get_ipython(), "kernel", None) is None:
        print(printable(text, sys.stdout.encoding))
        return
    from IPython.display import display

    display(data(text, inner), raw=True)


def data(text: str, inner: str) -> dict[str, str]:
    """The data of a notebook's output."""
    return {"text/html": f'<div style="{STYLE}">{inner}</div>', "text/plain": text}


def marked(text: str) -> str:
    """Text as HTML; what stands in backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
