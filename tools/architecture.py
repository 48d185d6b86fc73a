"""The generated facts of docs/architecture.md: floors, files, sizes, and who imports whom.

python -m tools.architecture            # print them
python -m tools.architecture --write    # put them into the page
"""

import ast
import re
import sys
from pathlib import Path

from tools.colab import tomllib
from tools.marked import replace_marked

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/architecture.md"
START, END = "<!-- facts: python -m tools.architecture --write -->", "<!-- end of facts -->"
GENERATED = "reference"


def floors(project: str) -> list[str]:
    """Folders and files of the library as the `layers` contract in pyproject.toml stacks them."""
    contracts = tomllib.loads(project)["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return layers


def sources(package: Path, name: str) -> list[Path]:
    """The files of a folder of the library, or the one file of that name; no generated ones."""
    if not (package / name).is_dir():
        return [package / f"{name}.py"]
    found = sorted((package / name).rglob("*.py"))
    return [path for path in found if GENERATED not in path.relative_to(package).parts]


def imported(paths: list[Path], package: str) -> set[str]:
    """The other parts of the library that these files import."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    return set(re.findall(rf"^ *(?:from|import) {package}\.(\w+)", text, re.M))


def n_lines(paths: list[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def facts(root: Path) -> str:
    """One row for each folder, top floor first, and the sum."""
    package = root / "llama_adapter_edu"
    rows = ["| floor | where | what is there | files | lines | imports |"]
    rows += ["|--:|---|---|--:|--:|---|"]
    stacked = floors((root / "pyproject.toml").read_text(encoding="utf-8"))
    library = []
    for floor, layer in zip(range(len(stacked), 0, -1), stacked, strict=True):
        for name in layer.split(" | "):
            paths = sources(package, name)
            is_folder = len(paths) > 1
            others = ", ".join(sorted(imported(paths, package.name) - {name}))
            files = [path for path in paths if path.name != "__init__.py"]
            first = paths[0] if not is_folder else package / name / "__init__.py"
            what = ast.get_docstring(ast.parse(first.read_text(encoding="utf-8")))
            what = what.split("\n")[0].replace("|", "\\|")
            where = f"`{name}/`" if is_folder else f"`{name}.py`"
            size = round(n_lines(paths), -2) or n_lines(paths)
            rows.append(f"| {floor} | {where} | {what} | {len(files)} | {size:,} | {others} |")
            library += [] if name == "course" else paths
    longest = max(library, key=lambda path: n_lines([path]))
    return "\n".join(
        [
            *rows,
            "",
            f"Without `course/` the library has about {round(n_lines(library), -2):,} lines. Its "
            f"longest file is `{longest.relative_to(package).as_posix()}`.",
        ]
    )


def written() -> str:
    """The page with the facts of now."""
    return replace_marked(PAGE.read_text(encoding="utf-8"), START, END, facts(ROOT))


def main() -> int:
    if "--write" in sys.argv[1:]:
        PAGE.write_text(written(), encoding="utf-8")
    else:
        print(facts(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
