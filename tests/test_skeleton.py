"""The repository around the library: pinned versions, README, files that must agree."""

import pkgutil
import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import report
from tools import architecture

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def requirements(texts) -> dict[str, Requirement]:
    parsed = [Requirement(text) for text in texts]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return requirements(line for line in lines if line and not line.startswith("#"))


def test_every_dependency_has_a_lower_bound_and_a_pin_above_it():
    needed = requirements(metadata.requires("llama-adapter-edu"))
    needed.pop("llama-adapter-edu", None)
    pinned = constraints()
    assert needed.keys() <= pinned.keys()
    for name, requirement in needed.items():
        assert [bound.operator for bound in requirement.specifier] == [">="], name
        (pin,) = pinned[name].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), name


def test_conda_installs_the_same_versions_and_the_package():
    lines = (ROOT / "environment.yml").read_text(encoding="utf-8").split("\n")
    pip = [line.strip("- ").replace(" ", "=", 1) for line in lines if line.startswith("      -")]
    assert pip == ["constraint=constraints.txt", "editable=.[dev]"]


def test_the_version_is_said_once_more_in_the_package():
    import llama_adapter_edu

    assert llama_adapter_edu.__version__ == metadata.version("llama-adapter-edu")


def anchors(text: str) -> set[str]:
    """The anchors a code host makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_relative_link_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"```+.*?```+|`[^`\n]*`", "", text, flags=re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    links += re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in links:
        path, _, anchor = link.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        target = ROOT / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page}: {link}"


PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += [*(ROOT / "docs").glob("*.md"), ROOT / "docs/teaching/index.md", *ROOT.glob("examples/*")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_and_file_that_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"\bllama_adapter_edu(?:\.\w+)+", text):
        pkgutil.resolve_name(module)
    folders = "llama_adapter_edu|benchmarks|tools|tests|docs"
    for path in re.findall(rf"(?<![\w/])(?:{folders})/[\w./]+", text):
        assert "NN" in path or (ROOT / path.rstrip(".")).exists(), path


def test_the_readme_names_every_lesson_and_only_real_commands():
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f"notebooks/{notebook.name}" in README
        assert f"solutions/{notebook.stem}.py" in README
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("master", sorted((ROOT / "solutions").glob("*.py")), ids=lambda p: p.stem)
def test_the_readme_has_each_lessons_minutes_and_exercises(master):
    lesson = master.read_text(encoding="utf-8")
    minutes = re.search(r"^# \*(\d+) minutes\b", lesson, re.M)[1]
    exercises = len(re.findall(r"^# ### Exercise \d", lesson, re.M))
    row = next(line for line in README.splitlines() if f"(notebooks/{master.stem}.ipynb)" in line)
    assert f"| {minutes} | {exercises} |" in row


def test_taught_code_uses_named_axes():
    """The lessons' axes have names: what is taught has no bare view, permute or reshape."""
    files = {path.stem: path for path in (ROOT / "llama_adapter_edu/method").glob("[a-z]*.py")}
    newer = {"bias_scale", "cartridge", "float32"}
    assert files.keys() == {"attention", "gated_prompts", "image_prompts", "wrapped_layer"} | newer
    for name, path in files.items():
        code = path.read_text(encoding="utf-8")
        assert not re.search(r"\.(view|permute|transpose|reshape)\(", code), name


def words(text: str) -> int:
    """Words as a reader meets them: without addresses of links, with code and its output."""
    text = re.sub(r"\]\([^)\s]*\)", "]", text)
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def test_the_readme_is_short():
    before, _, rest = README.partition(report.START)
    generated, _, after = rest.partition(report.END)
    assert words(before + after) <= 1300
    assert 50 < words(generated) <= 200


def test_the_readme_has_its_parts_in_order_and_every_folder_of_the_library():
    headings = re.findall(r"^## (.*)$", re.sub(r"```.*?```", "", README, flags=re.S), re.M)
    wanted = "Start, Lessons, The library, How checking works, What it reaches, Read on"
    assert headings == wanted.split(", ")
    tree = re.search(r"^llama_adapter_edu/\n((?: +.*\n)+)", README, re.M)[1]
    folders = {path.parent.name for path in (ROOT / "llama_adapter_edu").glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/", tree, re.M)) == folders


@pytest.mark.parametrize("name", report.FILES)
def test_written_results_are_those_of_the_benchmarks(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert report.written(name) == text, "run: python -m benchmarks.report --write"


def test_the_architecture_page_has_the_facts_of_now():
    assert architecture.written() == architecture.PAGE.read_text(encoding="utf-8"), (
        "run: python -m tools.architecture --write"
    )


def test_the_architectures_picture_names_files_that_are_there():
    """A line of files, as in `adapters/manage.py  attach.py`, keeps to one folder until another."""
    picture = (ROOT / "docs/architecture.svg").read_text(encoding="utf-8")
    lines = re.findall(r'font-family="monospace"[^>]*>([^<]+)<', picture)
    assert len(lines) > 10
    for line in lines:
        folder = ""
        for name in line.split() if line != "transformers" else ():
            folder = name.rpartition("/")[0] or folder
            path = ROOT / "llama_adapter_edu" / folder / name.rpartition("/")[2]
            assert path.is_file(), line


def test_facts_count_what_is_there_and_find_imports(tmp_path):
    package = tmp_path / "llama_adapter_edu"
    for name, text in {
        "__main__.py": '"""Start | stop."""\nfrom llama_adapter_edu.course.tasks import x\n',
        "course/__init__.py": '"""The course."""\n',
        "course/tasks.py": "from llama_adapter_edu.method.heads import y\n" * 149,
        "course/reference/lesson.py": "generated = 1\n" * 500,
        "method/__init__.py": '"""The method."""\n',
        "method/heads.py": "y = 1\n" * 120,
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    contract = 'type = "layers"\nlayers = ["__main__", "course", "method"]\n'
    (tmp_path / "pyproject.toml").write_text(f"[[tool.importlinter.contracts]]\n{contract}")
    lines = architecture.facts(tmp_path).splitlines()
    assert r"| 3 | `__main__.py` | Start \| stop. | 1 | 2 | course |" in lines
    assert "| 2 | `course/` | The course. | 1 | 200 | method |" in lines
    assert "| 1 | `method/` | The method. | 1 | 100 |  |" in lines
    assert lines[-1].endswith("about 100 lines. Its longest file is `method/heads.py`.")


def test_tests_of_a_module_share_a_process(request):
    """Else each process makes what a module's fixtures make: some versions part them in silence."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("without -n and --dist loadgroup no groups are asked for")
    assert request.node.nodeid.endswith("@test_skeleton")
