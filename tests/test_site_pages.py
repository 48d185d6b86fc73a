"""The course site's pages, before Sphinx reads them. `make test-site` tests the site itself."""

import json

import nbformat
import pytest
from course import ROOT

import llama_adapter_edu
from llama_adapter_edu.course.figures import stored_dial
from tools.master import read_lesson
from tools.site import api, front, lessons, results
from tools.site.__main__ import contents, site_links
from tools.site.charts import Chart
from tools.site.docstrings import to_rst


@pytest.fixture
def lesson():
    return read_lesson(ROOT / "solutions" / "01_shapes.py")


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / "notebooks" / "01_shapes.ipynb", as_version=4)


def test_each_solution_stands_folded_behind_its_open_exercise(lesson, notebook):
    page = lessons.lesson_page(lesson, notebook)
    shown = [i for i, cell in enumerate(page.cells) if cell.source.startswith("<details class=")]
    assert len(shown) == len(lesson.exercises) == 6
    for place, exercise in zip(shown, lesson.exercises, strict=True):
        assert "raise NotImplementedError" in page.cells[place - 1].source
        assert lesson.solution(exercise).strip() in page.cells[place].source
        assert "NotImplementedError" not in page.cells[place].source
    assert len(notebook.cells) == len(page.cells) - 6 - 1
    nbformat.validate(page)


def test_a_notebook_with_other_exercises_than_its_master_is_refused(lesson, notebook):
    missing = nbformat.from_dict(notebook)
    tagged = [c for c in missing.cells if "exercise" in c.metadata.get("tags", [])]
    tagged[-1].metadata["tags"] = []
    with pytest.raises(ValueError, match="lacks an exercise"):
        lessons.lesson_page(lesson, missing)
    tagged[-1].metadata["tags"] = ["exercise"]
    lesson.exercises.pop()
    with pytest.raises(ValueError, match="too many exercises"):
        lessons.lesson_page(lesson, missing)


@pytest.mark.parametrize(
    ("folder", "before", "after"),
    [
        ("", "[x](../notebooks/01_shapes.ipynb)", "[x](./lessons/01_shapes.ipynb)"),
        ("", "[x](../solutions/01_shapes.py#a)", "[x](./lessons/01_shapes.ipynb#a)"),
        ("teaching", "[x](../../notebooks/01_shapes.ipynb)", "[x](../lessons/01_shapes.ipynb)"),
        ("", "![x](../solutions/figures/a.svg)", "![x](./figures/a.svg)"),
        ("", "see [the readme](../README.md).", "see the readme."),
        ("", "[a later one](../notebooks/99_later.ipynb)", "a later one"),
        ("teaching", "[x](../glossary.md) [y](https://arxiv.org)", None),
    ],
)
def test_links_out_of_the_docs_lead_to_pages_or_become_text(folder, before, after):
    assert site_links(before, folder, {"01_shapes"}) == (after or before)


def test_every_page_of_the_docs_is_in_the_contents(tmp_path):
    for name in ("index.md", "glossary.md", "teaching/index.md", "api/index.md", "api/adapt.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pages = contents(tmp_path).split()
    assert pages[-3:-1] == ["glossary", "teaching/index"]
    assert pages.count("api/index") == 1 and "index" not in pages


def test_the_first_page_has_the_demos_answers_the_dial_and_the_lessons():
    stored = stored_dial.stored_stops()
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    text = front.front_page(index, ["| one | 5 | 3 |"])
    assert "<!--" not in text.replace(stored_dial.gate_dial().text, "")
    assert stored_dial.gate_dial().text in text and "| one | 5 | 3 |" in text
    rows = [line for line in text.splitlines() if line.endswith("` |")]
    assert [row.rsplit("`", 2)[1] for row in rows] == [r["output"] for r in stored["rows"][:3]]
    with pytest.raises(ValueError, match="lacks the comment <!-- gate dial -->"):
        front.front_page("<!-- before and after --> <!-- lessons -->", [])


def test_marks_in_an_answer_are_text_in_the_table():
    assert front._cell("a | b\n*c* <d>") == r"a \| b \*c\* \<d\>"


def test_pictures_and_lists_of_a_docstring_survive():
    lines = to_rst(["Sum.", "", "    a ── b", "", "    c", "", "x, `y`: |x| and *y", "  more"])
    assert lines[:7] == ["Sum.", "", "::", "", "        a ── b", "", "        c"]
    assert lines[8:] == [r"- x, `y`: \|x\| and \*y", "  more", ""]
    table = ["Bases.", "", "whole      works", "in pieces  refused", "    for now"]
    assert to_rst(table)[2:-1] == ["::", "", *(f"    {line}" for line in table[2:])]
    google = ["What.", "", "Args:", "    x: a number.", "", "    y: another.", "", "End: here."]
    assert to_rst(google)[:-1] == google


def test_each_folder_has_a_page_with_a_section_for_each_module(tmp_path):
    package = tmp_path / "library"
    for name in ("method", "course/checks", "course/reference"):
        (package / name).mkdir(parents=True)
        for file in ("__init__", "heads", "_private"):
            (package / name / f"{file}.py").write_text(f'"""What {name} has | more."""\n')
    for name in ("__init__.py", "course/__init__.py"):
        (package / name).write_text("")
    pages = api.api_pages(package, {"split": ("library.method.heads.split", "Splits.")})
    assert set(pages) == {"course.md", "course.checks.md", "method.md", "index.md"}
    assert "library.method.heads\n" in pages["method.md"] and "_private" not in pages["method.md"]
    assert r"[method](method.md) | What method has \| more." in pages["index.md"]
    assert "`split <library.method.heads.split>` | Splits. |" in pages["index.md"]


def test_public_names_are_found_where_they_are_defined():
    public = api.public_names(llama_adapter_edu)
    assert set(public) == set(llama_adapter_edu.__all__)
    full_name, what = public["finetune"]
    assert full_name == "llama_adapter_edu.training.loop.finetune"
    assert what == llama_adapter_edu.finetune.__doc__.splitlines()[0]


STORED = ["ablations", "quality", "vision", "gate_dial", "token_way", "swap_experts"]


@pytest.mark.parametrize("name", STORED)
def test_stored_results_become_charts_with_their_numbers(name):
    text = (ROOT / "llama_adapter_edu/course/results" / f"{name}.json").read_text(encoding="utf-8")
    page, charts = results.page(name, text)
    assert charts
    assert page.count("](figures/") == len(charts)
    for chart in charts:
        assert chart.alt() in page and chart.table() in page
        assert len(chart.alt().split(";")) == len(chart.rows)


def test_records_are_grouped_by_what_differs_and_compare_methods():
    same = {"device": "a GPU", "adapter_len": 10}
    records = [
        {**same, "batch": "4 x 128", "method": "ours", "way": "eager", "median_ms": 5.0},
        {**same, "batch": "4 x 128", "method": "LoRA", "way": "eager", "median_ms": 6.0},
        {**same, "batch": "8 x 512", "method": "ours", "way": "eager", "median_ms": 40.0},
        {**same, "batch": "8 x 512", "method": "LoRA", "way": "eager", "failed": "no memory"},
    ]
    page, charts = results.page("train_step", json.dumps(records))
    assert "# Train step" in page and "| device | a GPU |" in page
    assert "| adapter len | 10 |" in page
    found = {chart.title: chart.rows for chart in charts}
    assert found == {
        "batch 4 x 128: median time": {"ours, eager": [5.0], "LoRA, eager": [6.0]},
        "batch 8 x 512: median time": {"ours, eager": [40.0]},
    }
    assert "| ours, eager | 40.00 ms |" in page


def test_results_without_a_reader_are_shown_whole():
    page, charts = results.page("other", json.dumps({"seconds": 3}))
    assert charts == [] and '"seconds": 3' in page


def test_a_chart_says_its_numbers_in_words_and_is_drawn_alike_each_time(tmp_path):
    chart = Chart("score", "Score", "exact match", {"ours": [0.5, 1.0], "bare": [0.0]})
    assert chart.alt().endswith("Means: ours: 75.0 %; bare: 0.0 %.")
    assert "| ours | 75.0 % | 50.0 % | 100.0 % | 2 |" in chart.table()
    assert Chart("m", "", "memory", {}, unit="GB").show(2.5) == "2.50 GB"
    assert Chart("n", "", "parameters", {}, unit="").show(173070) == "173,070"
    for name in ("a", "b"):
        chart.draw(tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
