"""Builds the course from solutions/NN_name.py: notebooks, reference modules, teaching notes.

python tools/build.py            all lessons
python tools/build.py 01 03      lessons 01 and 03
python tools/build.py --texts    all but the notebooks, without a kernel
python tools/build.py --check    compare what is committed with the masters, without a kernel
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools import claims  # noqa: E402
from tools.colab import read_settings, with_links  # noqa: E402
from tools.compare import stale  # noqa: E402
from tools.lesson import Lesson, MasterError  # noqa: E402
from tools.master import read_lesson  # noqa: E402
from tools.notebook import copy_output, make_notebook, notebook_path, write_text  # noqa: E402
from tools.reference import reference_path, reference_text  # noqa: E402
from tools.run import run_solved  # noqa: E402
from tools.teaching import teaching_path, teaching_text  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Build or check; 1 if a master breaks a rule or something committed does not match."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lessons", nargs="*", metavar="NN", help="lesson numbers; default: all")
    parser.add_argument("--check", action="store_true", help="only compare; needs no kernel")
    parser.add_argument("--texts", action="store_true", help="leave the notebooks as they are")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    masters = _masters(root, options.lessons)
    if options.check:
        return _report(stale(root, masters, everything=not options.lessons))
    try:
        lessons = [read_lesson(path) for path in masters]
        texts = _make_texts(lessons, root)
        texts |= {} if options.texts else _make_notebooks(lessons, root)
    except MasterError as error:
        return _report([str(error), "nothing was written; CONTRIBUTING.md has the rules"])
    for path, text in texts.items():
        _replace(path, text)
        print(f"wrote {path.relative_to(root)}")
    if root == ROOT and not options.texts:
        claims.main(options.lessons)
    return 0


def _masters(root: Path, numbers: list[str]) -> list[Path]:
    found = sorted((root / "solutions").glob("*.py"))
    known = [path.name[:2] for path in found]
    if twice := {number for number in known if known.count(number) > 1}:
        raise SystemExit(f"two masters have the number {min(twice)}")
    if unknown := set(numbers or ["NN"] * (not found)) - set(known):
        raise SystemExit(f"there is no master solutions/{min(unknown)}_*.py")
    return [path for path in found if not numbers or path.name[:2] in numbers]


def _make_texts(lessons: list[Lesson], root: Path) -> dict[Path, str]:
    """In memory, as all that is made: a mistake leaves every file as it was."""
    texts = {reference_path(root, lesson): reference_text(lesson, root) for lesson in lessons}
    readme = root / "README.md"
    if readme.exists():
        links = with_links(readme.read_text(encoding="utf-8"), read_settings(root))
        texts[readme] = links
    return texts | {teaching_path(root, lesson): teaching_text(lesson) for lesson in lessons}


def _make_notebooks(lessons: list[Lesson], root: Path) -> dict[Path, str]:
    texts = {}
    for lesson in lessons:
        start = time.monotonic()
        ran = run_solved(lesson, make_notebook(lesson, lesson.solutions()))
        print(f"ran {lesson.name} in {time.monotonic() - start:.0f} s", flush=True)
        notebook = make_notebook(lesson)
        copy_output(ran, notebook)
        texts[notebook_path(root, lesson)] = write_text(notebook)
    return texts


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
        temporary = Path(folder) / path.name
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)


def _report(problems: list[str]) -> int:
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
