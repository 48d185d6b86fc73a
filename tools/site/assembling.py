"""The assemble form on the site, where no kernel runs: buttons, judged by `assemble.js`."""

import html
import json
import re

from llama_adapter_edu.course.assembly import SAYS
from tools.lesson import Lesson
from tools.pieces import puzzle

CELL = re.compile(r'^assemble\("(?P<id>[\d.]+)", ""\)$', re.M)
FORM = """<div class="assemble" data-puzzle="{data}">
<p>Instead of writing it: put the lines in order. Two of them are mistakes.
Press a line to add it to your order, and again to take it out.</p>
<ol class="pieces" type="A">{pieces}</ol>
<p>Your order:</p>
<pre class="order"></pre>
<p role="status"></p>
</div>"""


def form(lesson: Lesson, source: str) -> str | None:
    """The HTML in the place of the cell that calls `assemble`; None for any other cell."""
    called = CELL.search(source)
    exercise = called and next((e for e in lesson.exercises if e.id == called["id"]), None)
    if not exercise:
        return None
    found = puzzle(lesson, exercise)
    says = SAYS | {"start": ""}  # the form's first sentence says it
    data = {"says": says, "orders": found["orders"], "pieces": found["pieces"]}
    texts = (text.replace("\n", "&#10;") for text in (html.escape(t) for t, _ in found["pieces"]))
    return FORM.format(
        data=html.escape(json.dumps(data, ensure_ascii=False)),
        pieces="".join(f"<li><code>{text}</code></li>" for text in texts),
    )
