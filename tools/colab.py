"""What a notebook needs in Colab: a setup cell, a badge, and the kind of machine.

The settings stand in pyproject.toml, under [tool.llama-adapter-edu]:
    repository    the address people clone, such as "https://github.com/NAME/llama-adapter-edu";
                  empty as long as there is none
    gpu_lessons   the lessons that ask Colab for a GPU
"""

import re
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

try:
    import tomllib
except ImportError:  # Python 3.10; pytest brings it there
    import tomli as tomllib

# What the course needs and Colab lacks (August 2026). A checkout in the working directory can be
# imported without being installed, so the package alone says nothing about its dependencies.
# Of the extra `course` Colab has all but gguf. The whole extra would change its Jupyter.
SOUGHT = ("llama_adapter_edu", "gguf", "jaxtyping")
SETUP = """\
# {comment}
from importlib.util import find_spec
if not all(map(find_spec, {sought})):
    %pip install -q {what} gguf"""
UPLOADED = (
    "In Colab: upload the course's wheel beside this notebook, or name its folder below.",
    "./llama_adapter_edu-*.whl",
)
PUBLISHED = (
    "In Colab, this installs the course, once. Elsewhere it does nothing.",
    '"llama-adapter-edu @ git+{repository}"',
)
ADDRESS = re.compile(r"https://[\w.-]+(/[\w.~-]+)+")
GITHUB = "https://github.com/"
OPEN_IN_COLAB = "https://colab.research.google.com/github/{name}/blob/main/notebooks/{lesson}.ipynb"
GPU = {"accelerator": "GPU", "colab": {"gpuType": "T4"}}


@dataclass(frozen=True)
class Settings:
    """What pyproject.toml says about the course."""

    repository: str = ""
    gpu_lessons: tuple[int, ...] = ()


def read_settings(root: Path) -> Settings:
    """The settings of the course in `root`; ValueError if the address is none."""
    path = root / "pyproject.toml"
    if not path.is_file():
        return Settings()
    project = tomllib.loads(path.read_text(encoding="utf-8"))
    table = project.get("tool", {}).get("llama-adapter-edu", {})
    repository = table.get("repository", "").rstrip("/")
    if repository and not ADDRESS.fullmatch(repository):
        raise ValueError(
            f"pyproject.toml, [tool.llama-adapter-edu]: repository is {repository!r}; expected is "
            'an address such as "https://github.com/NAME/llama-adapter-edu", or ""'
        )
    return Settings(repository, tuple(table.get("gpu_lessons", ())))


def setup_cell(settings: Settings) -> NotebookNode:
    """Installs the course where it is missing; it says nothing where it is there."""
    comment, what = PUBLISHED if settings.repository else UPLOADED
    what = what.format(repository=settings.repository)
    cell = new_code_cell(SETUP.format(comment=comment, sought=list(SOUGHT), what=what))
    # What pip said in Colab is kept in a saved file. The course site leaves the cell out.
    cell.tags = ["nbval-ignore-output", "remove-cell"]
    return cell


def badge(settings: Settings, lesson: str) -> str:
    """Markdown that opens the lesson in Colab; empty without a public repository."""
    if not settings.repository.startswith(GITHUB):
        return ""
    name = settings.repository.removeprefix(GITHUB).removesuffix(".git")
    return f"[**▶ Open in Colab**]({OPEN_IN_COLAB.format(name=name, lesson=lesson)})"


def with_links(readme: str, settings: Settings) -> str:
    """README.md with each lesson's link into Colab; to how one uploads it, while there is none."""

    def link(row: re.Match) -> str:
        address = re.search(r"\((.*)\)", badge(settings, row["lesson"]))
        return row["before"] + (f"[open]({address[1]})" if address else "[upload](#in-colab)")

    row = r"(?P<before>\(notebooks/(?P<lesson>\w+)\.ipynb\).*)\[(open|upload)\]\([^)]*\)"
    return re.sub(row, link, readme)


def machine(settings: Settings, number: int) -> dict:
    """The notebook metadata from which Colab chooses its machine."""
    return GPU if number in settings.gpu_lessons else {}
