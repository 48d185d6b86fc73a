"""The wheel: all that a learner needs to be checked, and nothing else of the repository."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llama_adapter_edu"
BUILD = "from hatchling.build import build_wheel; import sys; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=ROOT, check=True)
    [path] = folder.glob("llama_adapter_edu-*-py3-none-any.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def test_it_holds_the_whole_package_and_nothing_else(wheel):
    there = {name for name in wheel.namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert there == wanted
    for needed in ("reference/lesson_00.py", "results/ablations.json", "pytest_plugin.py"):
        assert f"llama_adapter_edu/{needed}" in there


def test_installing_it_brings_the_plugin_and_the_licence(wheel):
    [entry_points] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    text = wheel.read(entry_points).decode()
    assert "[pytest11]\nllama_adapter_edu = llama_adapter_edu.course.progress.pytest_plugin" in text
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_a_lesson_is_judged_by_what_the_wheel_holds(wheel):
    """Its modules can be imported from the wheel alone, and know the exercises and checks."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from llama_adapter_edu import exercises, pytest_plugin, __file__ as where\n"
        "assert where.startswith(sys.argv[1])\n"
        "from importlib.resources import files\n"
        "course = files('llama_adapter_edu') / 'course'\n"
        "text = course.joinpath('reference/lesson_03.py').read_text()\n"
        "assert 'EXERCISES' in text and 'CHECKS' in text\n"
    )
    run = [sys.executable, "-c", code, wheel.filename]
    subprocess.run(run, cwd=Path(wheel.filename).parent, check=True)
