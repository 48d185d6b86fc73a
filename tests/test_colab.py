"""Notebooks in Colab, VS Code and on GitHub: setup cell, badge, metadata, figures."""

import base64
import io
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from importlib import metadata
from pathlib import Path

import course
import nbformat
import pytest
from packaging.requirements import Requirement
from PIL import Image

from tools.colab import (
    PUBLISHED,
    SOUGHT,
    Settings,
    badge,
    machine,
    read_settings,
    setup_cell,
    with_links,
)
from tools.lesson import MasterError
from tools.master import read_lesson
from tools.notebook import code_cells, make_notebook

NOTEBOOKS = sorted((course.ROOT / "notebooks").glob("*.ipynb"))
FIGURES = sorted((course.ROOT / "solutions" / "figures").glob("*.svg"))
ADDRESS = "https://github.com/ada/llama-adapter-edu"
SVG = "{http://www.w3.org/2000/svg}"


def project(folder: Path, text: str) -> Path:
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


def setting(value: str) -> str:
    return f"[tool.llama-adapter-edu]\nrepository = {value!r}\ngpu_lessons = [91]\n"


def lesson_91(root: Path):
    (root / "solutions").mkdir()
    master = root / "solutions" / "91_second.py"
    master.write_bytes((course.FIXTURE / "solutions" / "91_second.py").read_bytes())
    return read_lesson(master)


def run_setup(source: str, missing: bool) -> list[str]:
    """What the setup cell would install."""
    installed = []
    source = re.sub(r"%pip (.*)", r"pip('''\1''')", source)
    names = {"pip": installed.append, "find_spec": None}
    source = source.replace(
        "from importlib.util import find_spec",
        f"find_spec = lambda name: None if {missing!r} and name == 'gguf' else 1",
    )
    exec(source, names)
    return installed


@pytest.mark.parametrize("settings", [Settings(), Settings(ADDRESS)])
def test_the_setup_cell_is_short_and_does_something_only_where_something_is_missing(settings):
    source = setup_cell(settings).source
    lines = source.splitlines()
    assert len(lines) <= 4
    assert max(map(len, lines)) <= 100
    assert run_setup(source, missing=False) == []
    [command] = run_setup(source, missing=True)
    assert command.startswith("install -q ")
    assert ADDRESS in command if settings.repository else "./llama_adapter_edu-*.whl" in command
    requirements = map(Requirement, metadata.requires("llama-adapter-edu"))
    comes_along = {r.name for r in requirements if not (r.marker and "extra" in str(r.marker))}
    assert set(SOUGHT[1:]) <= comes_along | set(command.split())


def test_the_setup_cell_says_nothing_here():
    """Where everything is installed, as a kernel runs it."""
    source = setup_cell(Settings()).source.replace("%pip", "raise SystemExit #")
    run = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert run.stdout + run.stderr == ""


def test_what_it_looks_for_is_the_course_and_what_the_course_needs():
    needed = {Requirement(text).name for text in metadata.requires("llama-adapter-edu")}
    assert SOUGHT[0] == "llama_adapter_edu"
    assert set(SOUGHT[1:]) <= needed
    versions = (course.ROOT / "tools" / "colab_versions.txt").read_text(encoding="utf-8")
    for name in SOUGHT:
        assert not re.search(rf"^{name}==", versions, re.M)


def test_every_notebook_begins_with_title_and_setup_cell():
    expected = setup_cell(read_settings(course.ROOT)).source
    for path in NOTEBOOKS:
        title, setup = nbformat.read(path, as_version=4).cells[:2]
        assert title.source.startswith("# Lesson"), path.name
        assert setup.source == expected, path.name
        assert "nbval-ignore-output" in setup.metadata.tags
        assert setup.outputs == []


def test_without_an_address_nothing_points_to_one(tmp_path):
    notebook = make_notebook(lesson_91(project(tmp_path, setting(""))))
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "git+" not in text and "colab.research" not in text


def test_an_address_puts_a_badge_below_the_title_and_installs_from_there(tmp_path):
    notebook = make_notebook(lesson_91(project(tmp_path, setting(f"{ADDRESS}/"))))
    title, setup = notebook.cells[:2]
    assert title.source.startswith("# Fixture lesson 91: One exercise\n\n[**▶ Open in Colab**](")
    link = (
        "colab.research.google.com/github/ada/llama-adapter-edu/blob/main/notebooks/91_second.ipynb"
    )
    assert f"(https://{link})" in title.source
    assert setup.source.startswith(f"# {PUBLISHED[0]}")
    assert f'%pip install -q "llama-adapter-edu @ git+{ADDRESS}"' in setup.source


def test_the_readme_links_each_lesson_into_colab_as_soon_as_there_is_an_address():
    readme = (course.ROOT / "README.md").read_text(encoding="utf-8")
    assert with_links(readme, read_settings(course.ROOT)) == readme, "run: tools/build.py --texts"
    published = with_links(readme, Settings(ADDRESS))
    for path in NOTEBOOKS:
        assert f"ada/llama-adapter-edu/blob/main/notebooks/{path.name})" in published
    assert with_links(published, Settings()) == with_links(readme, Settings())


def test_another_host_has_an_install_line_and_no_badge():
    settings = Settings("https://codes.example.org/ada/course")
    assert badge(settings, "03_soft_prompts") == ""
    assert "git+https://codes.example.org/ada/course" in setup_cell(settings).source


@pytest.mark.parametrize("address", ["ada/course", "http://a.b/c", 'https://a.b/c";rm', "git@a:b"])
def test_an_address_that_is_none_is_refused(tmp_path, address):
    with pytest.raises(MasterError, match="expected is an address such as"):
        lesson_91(project(tmp_path, setting(address)))


def test_a_gpu_lesson_asks_for_a_gpu(tmp_path):
    lesson = lesson_91(project(tmp_path, setting("")))
    assert make_notebook(lesson).metadata["accelerator"] == "GPU"
    assert make_notebook(lesson).metadata["colab"] == {"gpuType": "T4"}
    assert machine(lesson.settings, 90) == {}
    assert read_settings(course.ROOT).gpu_lessons == (11,)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_editors_open_the_notebooks_without_a_warning(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.kernelspec.language == notebook.metadata.language_info.name == "python"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_figures_are_in_the_notebook_and_readable_on_a_dark_page(path):
    """Drawn ones have a white face of their own; those of the text are in the file."""
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if picture := output.get("data", {}).get("image/png"):
                image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGBA")
                assert image.getpixel((0, 0)) == (255, 255, 255, 255), cell.source[:60]
                assert image.getchannel("A").getextrema() == (255, 255), cell.source[:60]
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "](figures/" not in text
    for source in re.findall(r'<img [^>]*src="([^"]{0,40})', text):
        assert source.startswith("data:image/")


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_a_drawing_brings_its_own_background(path):
    """Its first shape is a light rectangle as large as the drawing."""
    root = ET.parse(path).getroot()
    width, height = root.get("viewBox").split()[2:]
    shapes = [shape for shape in root if shape.tag not in (f"{SVG}defs", f"{SVG}title")]
    first = shapes[0]
    assert first.tag == f"{SVG}rect"
    assert (first.get("width"), first.get("height")) == (width, height)
    assert first.get("fill").lower() in ("#ffffff", "#fff", "white")
