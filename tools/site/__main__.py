"""Builds the course site, without running a notebook and without a network.

    python -m tools.site            writes build/site

Lessons come from the masters and the built notebooks, the API pages from the docstrings, the
results pages from the stored JSON, all other pages from docs/.
"""

import argparse
import posixpath
import re
import shutil
import sys
from pathlib import Path, PurePosixPath

import nbformat

import llama_adapter_edu
from tools.master import read_lesson
from tools.site import api, front, lessons, results

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(
    r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>\.\./[^)\s#]+)(?P<anchor>#[^)\s]*)?\)"
)
LESSON = re.compile(r"^\.\./(notebooks|solutions)/\d\d_\w+\.(ipynb|py)$")


LESSONS = """# Lessons

In order: each stands on the ones before.

{rows}
"""
TOCTREE = """
```{{toctree}}
{options}

{pages}
```
"""


def write_source(root: Path, folder: Path) -> None:
    """All pages of the site as Sphinx reads them, in a fresh folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / "docs", folder, ignore=shutil.ignore_patterns("conf.py", "_static"))
    built = {path.stem for path in (root / "notebooks").glob("*.ipynb")}
    for path in folder.rglob("*.md"):
        inside = path.parent.relative_to(folder).as_posix()
        _write(path, site_links(path.read_text(encoding="utf-8"), inside, built))
    for index in folder.glob("*/index.md"):
        inside = sorted(path.stem for path in index.parent.glob("*.md") if path != index)
        _write_index(index.parent, index.read_text(encoding="utf-8"), inside, ":hidden:")
    shutil.copytree(root / "solutions" / "figures", folder / "figures", dirs_exist_ok=True)
    rows = _write_lessons(root, folder)
    public = api.public_names(llama_adapter_edu)
    for name, text in api.api_pages(root / "llama_adapter_edu", public).items():
        _write(folder / "api" / name, text)
    _write_results(root, folder / "results")
    first = folder / "index.md"
    rows = [row.replace("](", "](lessons/", 1) for row in rows]
    text = front.front_page(first.read_text(encoding="utf-8"), rows)
    _write(first, text + contents(folder))


def contents(folder: Path) -> str:
    """The site's table of contents: lessons first, then every other page of docs/."""
    first = ["lessons/index", "results/index", "api/index"]
    own = sorted(path.stem for path in folder.glob("*.md") if path.stem != "index")
    folders = sorted(p.parent.name + "/index" for p in folder.glob("*/index.md"))
    pages = [*first, *own, *(page for page in folders if page not in first)]
    return TOCTREE.format(options=":hidden:", pages="\n".join(pages))


def site_links(text: str, folder: str, built: set[str]) -> str:
    """The text of a page in docs/`folder`, with links that also work on the site.

    Links to the notebook or master of a `built` lesson lead to its page, figures are found in
    figures/, and links to other files outside docs/ become plain text.
    """
    home = posixpath.relpath(".", folder or ".")

    def moved(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(folder, link["path"]))
        if not target.startswith("../"):
            return link[0]
        name = PurePosixPath(target).name
        if LESSON.search(target) and PurePosixPath(name).stem in built:
            name = f"lessons/{PurePosixPath(name).stem}.ipynb"
        elif target.startswith("../solutions/figures/"):
            name = f"figures/{name}"
        else:
            return link["text"]
        return f"{link['image']}[{link['text']}]({home}/{name}{link['anchor'] or ''})"

    return LINK.sub(moved, text)


def _write_lessons(root: Path, folder: Path) -> list[str]:
    """All pages of lessons; the rows of their table."""
    names, rows = [], []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        lesson = read_lesson(root / "solutions" / f"{path.stem}.py")
        notebook = nbformat.read(path, as_version=4)
        page = lessons.lesson_page(lesson, notebook)
        _write(folder / "lessons" / path.name, nbformat.writes(page))
        _write(folder / "notebooks" / path.name, path.read_text(encoding="utf-8"))
        names.append(path.stem)
        rows.append(lessons.row(lesson, page))
    text = LESSONS.format(rows="\n".join([front.LESSONS, *rows]))
    _write_index(folder / "lessons", text, names, ":hidden:")
    return rows


def _write_results(root: Path, folder: Path) -> None:
    names = []
    for source in ("llama_adapter_edu/course/results", "benchmarks/results"):
        for path in sorted((root / source).glob("*.json")):
            text = path.read_text(encoding="utf-8")
            page, charts = results.page(path.stem, text)
            _write(folder / f"{path.stem}.md", page)
            _write(folder / "data" / path.name, text)
            for chart in charts:
                chart.draw(folder / "figures" / f"{path.stem}-{chart.name}.svg")
            names.append(path.stem)
    text = (
        "# Results\n\nWhat was measured: each number with the machine it was measured on, and a "
        "file with all runs.\n"
    )
    _write_index(folder, text, names)


def _write_index(folder: Path, text: str, pages: list[str], options: str = ":maxdepth: 1") -> None:
    text += TOCTREE.format(options=options, pages="\n".join(pages))
    _write(folder / "index.md", text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Write the source, then the site; Sphinx's warnings are errors."""
    from sphinx.cmd.build import main as sphinx_build  # needs the extra "site"; the pages do not

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "site")
    options = parser.parse_args(arguments)
    source = options.output.with_name("site-source")
    write_source(ROOT, source)
    shutil.rmtree(options.output, ignore_errors=True)
    folders = ["-c", ROOT / "docs", "-d", options.output.with_name("site-doctrees")]
    command = ["-q", "-E", "-W", "--keep-going", *folders, source, options.output]
    failed = sphinx_build([str(word) for word in command])
    if not failed:
        print(f"open {options.output / 'index.html'}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
