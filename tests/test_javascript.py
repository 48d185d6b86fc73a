"""The scripts of figures and site, linted where oxlint is: `make test-figures` installs it."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("llama_adapter_edu/course/figures/js", "docs/_static")
LINTER = shutil.which("oxlint", path=sysconfig.get_path("scripts")) or shutil.which("oxlint")

pytestmark = pytest.mark.skipif(not LINTER, reason="oxlint is not installed: make test-figures")


def lint(*paths: Path | str) -> subprocess.CompletedProcess:
    command = [LINTER, "--config", ".oxlintrc.json", "--deny-warnings", *map(str, paths)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_no_script_has_a_finding():
    found = lint(*FOLDERS)
    assert found.returncode == 0, found.stdout
    scripts = [path for folder in FOLDERS for path in (ROOT / folder).glob("*.js")]
    assert f"on {len(scripts)} files" in found.stdout


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ("no-undef", "make('p', {}, lable);"),
        ("no-unused-vars", "function draw() { const unused = 1; }\ndraw();"),
        ("no-shadow", "function make(tag) { const make = tag; return make; }\nmake(1);"),
        ("no-dupe-keys", "make('p', { class: 'a', class: 'b' });"),
    ],
)
def test_the_linter_finds(tmp_path, rule, fault):
    (tmp_path / "figure.js").write_text(fault, encoding="utf-8")
    found = lint(tmp_path / "figure.js")
    assert found.returncode == 1 and f"({rule})" in found.stdout, found.stdout
