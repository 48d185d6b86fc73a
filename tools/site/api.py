"""API pages: one for each folder of the library, a section for each of its modules."""

import ast
import inspect
from pathlib import Path
from types import ModuleType

HIDDEN = {"progress", "reference"}  # commands and generated solutions: nobody imports them
PAGE = """# {title}

```{{eval-rst}}
.. automodule:: {package}
```
{sections}"""
SECTION = """
## {module}

```{{eval-rst}}
.. automodule:: {package}.{module}
   :members:
   :ignore-module-all:
   :show-inheritance:
   :member-order: bysource
```
"""
INDEX = """# API reference

What most people need is at the top of the package:

```python
from {package} import add_adaption_prompts, load_llama
```

| name | what it is |
|---|---|
{names}

All modules, by the folder they are in, with the shapes of all tensors:

| folder | what is in it |
|---|---|
{rows}

```{{toctree}}
:hidden:

{pages}
```
"""


def api_pages(package: Path, public: dict[str, tuple[str, str]]) -> dict[str, str]:
    """{file name: text} of all pages. `public`: {name: (full name, what it is)}."""
    folders = sorted(path.parent for path in package.rglob("__init__.py"))
    pages, rows = {}, []
    for folder in folders:
        parts = folder.relative_to(package).parts
        if not parts or HIDDEN & set(parts):
            continue
        title = ".".join(parts)
        pages[f"{title}.md"] = _page(folder, title, f"{package.name}.{title}")
        rows.append(f"| [{title}]({title}.md) | {_first_line(folder / '__init__.py')} |")
    names = [f"| {{py:obj}}`{name} <{full}>` | {text} |" for name, (full, text) in public.items()]
    pages["index.md"] = INDEX.format(
        package=package.name,
        names="\n".join(names),
        rows="\n".join(rows),
        pages="\n".join(name.removesuffix(".md") for name in pages),
    )
    return pages


def public_names(package: ModuleType) -> dict[str, tuple[str, str]]:
    """{name: (full name, first sentence of its docstring)} of what a package hands on."""
    found = {name: getattr(package, name) for name in sorted(package.__all__, key=str.lower)}
    return {
        name: (f"{thing.__module__}.{name}", _in_a_cell(inspect.getdoc(thing)))
        for name, thing in found.items()
    }


def _page(folder: Path, title: str, package: str) -> str:
    modules = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    sections = [SECTION.format(module=module, package=package) for module in modules]
    return PAGE.format(title=title, package=package, sections="".join(sections))


def _first_line(path: Path) -> str:
    return _in_a_cell(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")


def _in_a_cell(docstring: str) -> str:
    return docstring.partition("\n")[0].replace("|", "\\|")
