"""Each notebook in JupyterLab in a real browser: run all, solve an exercise, save, ask nbval."""

import xml.etree.ElementTree as ET

import nbformat
import pytest

from browser.conftest import ROOT
from browser.jupyter import Notebook, jupyterlab
from llama_adapter_edu.course.boxes import STYLE
from tests.course import run_pytest
from tools.master import read_lesson
from tools.notebook import code_cells

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
GREEN, AMBER = "rgb(46, 125, 50)", "rgb(178, 106, 0)"
SLOW = 1200  # seconds for the longest lesson on a busy machine


@pytest.fixture
def opened(chromium, tmp_path, request):
    """The notebook of a test, copied to a folder of its own, open in JupyterLab."""
    path = tmp_path / request.param.name
    path.write_bytes(request.param.read_bytes())
    with jupyterlab(tmp_path) as address, chromium.new_context() as surroundings:
        page = surroundings.new_page()
        page.set_default_timeout(120_000)
        page.set_viewport_size({"width": 1200, "height": 800})
        yield Notebook(page, path, address)


@pytest.mark.timeout(3 * SLOW)
@pytest.mark.parametrize("opened", NOTEBOOKS, ids=lambda path: path.stem, indirect=True)
def test_a_learner_runs_all_solves_one_and_nbval_agrees(opened, pictures_folder):
    lesson = read_lesson(ROOT / "solutions" / f"{opened.path.stem}.py")
    stored = code_cells(nbformat.read(opened.path, as_version=4))
    checks = [i for i, cell in enumerate(stored) if "check" in cell.metadata.get("tags", [])]
    assert len(checks) == len(lesson.exercises)

    opened.run_all(SLOW)
    cells = opened.cells()
    assert len(cells) == len(stored)
    assert opened.broken_pictures() == []
    for index, (cell, before) in enumerate(zip(cells, stored, strict=True)):
        assert cell.errors == [], before.source
        assert cell.pictures == pictures(before), before.source
        if index in checks:
            ((text, color),) = cell.boxes
            assert text[0] == "○" and "not solved yet" in text and color == AMBER, before.source
        else:
            assert len(cell.boxes) == boxes(before), before.source

    opened.screenshot(pictures_folder, "open", checks[0])
    drawn = [i for i, cell in enumerate(cells) if cell.pictures]
    opened.screenshot(pictures_folder, "figure", max(drawn, default=0))

    exercise, check = lesson.exercises[0], checks[0]
    opened.write(check - 1, lesson.solution(exercise))
    opened.run_two_cells(check - 1, SLOW)
    ((text, color),) = opened.cells()[check].boxes
    assert text == f"✓ exercise {exercise.id} {', '.join(exercise.names)}: solved"
    assert color == GREEN
    opened.screenshot(pictures_folder, "solved", check)

    opened.save()
    saved = code_cells(nbformat.read(opened.path, as_version=4))
    assert saved[check - 1].source == lesson.solution(exercise)
    report = run_pytest(opened.path.parent, "--nbval", opened.path.name, "--junitxml=report.xml")
    cases = list(ET.parse(opened.path.with_name("report.xml")).iter("testcase"))
    failed = [i for i, case in enumerate(cases) if case.find("failure") is not None]
    assert failed == checks[1:], report
    assert f"1 of {len(checks)} solved" in report


def pictures(cell) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def boxes(cell) -> int:
    """Predictions and lines to assemble: what the build has stored, the learner's run shows."""
    shown = (output.get("data", {}).get("text/html", "") for output in cell.outputs)
    return sum(text.startswith(f'<div style="{STYLE}">') for text in shown)
