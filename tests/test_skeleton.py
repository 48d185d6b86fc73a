"""The repository around the library: pinned versions, README, files that must agree."""

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import report

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


def test_the_readme_names_every_lesson_and_only_real_commands():
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f"notebooks/{notebook.name}" in README
        assert f"solutions/{notebook.stem}.py" in README
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


TAUGHT = {"attention", "gated_prompts", "image_prompts", "wrapped_layer"}  # in method/


def test_taught_code_uses_named_axes():
    """The lessons' axes have names: no bare view, permute or transpose in what they teach."""
    files = {path.stem: path for path in (ROOT / "llama_adapter_edu" / "method").glob("*.py")}
    assert files.keys() >= TAUGHT
    for name, path in files.items():
        code = path.read_text(encoding="utf-8")
        assert not re.search(r"\.(view|permute|transpose|reshape)\(", code), name


@pytest.mark.parametrize("name", report.FILES)
def test_written_results_are_those_of_the_benchmarks(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert report.written(name) == text, "run: python -m benchmarks.report --write"
