"""The oldest versions that pyproject.toml allows, as constraints for pip.

    python tools/lower_bounds.py                 accelerate==1.4.0 ... transformers==4.56.0
    python tools/lower_bounds.py torch==2.13.0   the same, with another torch

It needs no package, so that it can run before the environment is there.
"""

import re
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
BOUND = re.compile(r'"([a-z0-9-]+)>=([0-9.]+)[";]')


def lower_bounds(project: str, instead: list[str]) -> list[str]:
    """`name==version` for each `"name>=version"` in the text; `instead` replaces its own names."""
    own = project.partition("[project]")[2]  # what builds the package may be newer
    bounds = {name: f"{name}=={version}" for name, version in BOUND.findall(own)}
    replaced = {text.partition("==")[0]: text for text in instead}
    return sorted((bounds | replaced).values())


if __name__ == "__main__":
    print(*lower_bounds(PROJECT.read_text(encoding="utf-8"), sys.argv[1:]), sep="\n")
