"""The written pages: what they quote and name is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llama_adapter_edu"
TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^### `(.*)`$", TROUBLESHOOTING, re.M)
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
PAGES = [*(ROOT / "docs").glob("*.md"), ROOT / "docs/teaching/index.md"]
BUILT = ("lessons/", "api/", "results/")  # pages of the site that no file of the repository is


def modules() -> dict[Path, ast.Module]:
    paths = [path for path in PACKAGE.rglob("*.py")]
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def texts() -> list[str]:
    """All texts of the package, with `…` where a value is put in."""
    found = []
    for tree in modules().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", None) for part in node.values)
                text = "".join(part if isinstance(part, str) else "…" for part in parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = re.sub(r"\{[^{}]*\}", "…", node.value)
            else:
                continue
            found.append(" ".join(text.split()))
    return found


@pytest.fixture(scope="module")
def in_the_package() -> list[str]:
    return texts()


def test_there_are_many_messages_and_each_once():
    assert len(QUOTED) > 25
    assert len(QUOTED) == len(set(QUOTED))


@pytest.mark.parametrize("message", QUOTED)
def test_each_quoted_message_is_one_of_the_package(message, in_the_package):
    """Without its beginning or end, or whole; the parts of a message stand in one text."""
    quoted = message.removesuffix(": …") if message.startswith("expected …") else message
    assert any(quoted in text for text in in_the_package)


def test_the_glossarys_names_are_names_of_the_library():
    names = set()
    for tree in modules().values():
        for node in ast.walk(tree):
            names |= {getattr(node, field, None) for field in ("name", "id", "arg", "attr")}
    method = GLOSSARY.partition("## The method")[2].partition("## Words")[0]
    rows = [line.split("|") for line in method.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for row in rows:
        for name in re.findall(r"`(\w+)`", row[2]):
            assert name in names, name
    for name in re.findall(r"\(?`(\w+)`", GLOSSARY.partition("## Words")[2]):
        assert name in names, name


def test_the_glossary_has_the_legend_of_the_asserts():
    from llama_adapter_edu.course.checks.differences import LEGEND

    table = GLOSSARY.partition("## Axes")[2].partition("##")[0]
    assert re.findall(r"^\| `(\w)` \|", table, re.M) == list(LEGEND)


def test_every_link_of_the_pages_leads_somewhere():
    for page in PAGES:
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if not link.startswith(("https:", *BUILT)):
                target = (page.parent / link.partition("#")[0]).resolve()
                assert target.exists(), f"{page.name}: {link}"
