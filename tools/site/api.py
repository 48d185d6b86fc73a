"""API pages: one for each public module of the library, found in its folder."""

import ast
from pathlib import Path

HIDDEN = {"pytest_plugin"}  # what pytest loads; nobody imports it
PAGE = """# {name}

```{{eval-rst}}
.. automodule:: {module}
   :members:
   :ignore-module-all:
   :show-inheritance:
   :member-order: bysource
```
"""
INDEX = """# API reference

What you import is at the top of the package:

```python
from llama_adapter_edu import (
{names}
)
```

The modules below have pictures of what they compute, and the shapes of all tensors.

| module | what is in it |
|---|---|
{rows}

```{{toctree}}
:hidden:

{pages}
```
"""


def api_pages(package: Path, public: dict[str, str]) -> dict[str, str]:
    """{file name: text} of all pages. `public` maps each public name to the module it is in."""
    modules = {path.stem: _first_line(path) for path in sorted(package.glob("*.py"))}
    modules = {
        name: line
        for name, line in modules.items()
        if not name.startswith("_") and name not in HIDDEN
    }
    pages = {
        f"{name}.md": PAGE.format(name=name, module=f"{package.name}.{name}") for name in modules
    }
    rows = [f"| [{name}]({name}.md) | {line} |" for name, line in modules.items()]
    names = [f"    {name},  # {module}" for name, module in sorted(public.items())]
    pages["index.md"] = INDEX.format(
        names="\n".join(names), rows="\n".join(rows), pages="\n".join(modules)
    )
    return pages


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].replace("|", "\\|")
