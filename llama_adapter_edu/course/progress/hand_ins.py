"""Finds what a class has handed in: folders, zips and flat exports of course platforms."""

import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

NOTEBOOKS = (".ipynb", ".ipynb.json", ".ipynb.txt")  # some browsers add an ending
NOT_THEIRS = (".ipynb_checkpoints", "__MACOSX", "__pycache__")
LARGEST = 50_000_000  # bytes of a file, and of all helper files of a notebook
MOST = 20_000  # files in a zip
# Canvas: lovelaceada_LATE_12_345_01_shapes.ipynb; Moodle: Ada Lovelace_12_assignsubmission_file_
PLATFORMS = r"(?P<student>.+?)(?:_LATE)?_\d+_(?:assignsubmission_file_?|\d+_).*"


@dataclass
class HandIn:
    """A notebook of a student; `name` is how the report calls it."""

    student: str
    name: str
    path: Path
    helpers: list[Path] = field(default_factory=list)


@dataclass
class Found:
    """Everything below a folder: notebooks, students with none, and what was left out and why."""

    hand_ins: list[HandIn]
    students: list[str]
    skipped: list[tuple[str, str]]


def find(root: Path, unpacked: Path, pattern: str = PLATFORMS) -> Found:
    """What lies below `root`; zips are unpacked below `unpacked`.

    A student is a subfolder, or a zip, or a file of `root` itself. `pattern` is a regular
    expression with a group `student` for names as course platforms make them; other names are
    taken as they are.
    """
    found = Found([], [], [])
    places = [root]
    zips = [path for path in sorted(root.rglob("*.zip")) if path.is_file()]
    whole_class = len(zips) == 1 and not any(_is_notebook(path) for path in root.rglob("*"))
    for path in zips:
        inner = unpacked / ("" if whole_class else path.relative_to(root).with_suffix(""))
        if problem := _unzip(path, inner):
            found.skipped.append((_shown(path.relative_to(root)), problem))
    if zips:
        places.append(unpacked)
    for place in places:
        for path in sorted(place.rglob("*")):
            _add(found, place, path, pattern)
    found.hand_ins.sort(key=lambda one: (one.student, one.name))
    return found


def _add(found: Found, place: Path, path: Path, pattern: str) -> None:
    inside = path.relative_to(place)
    if set(inside.parts) & set(NOT_THEIRS) or path.name.startswith("._"):
        return
    if path.is_symlink():
        found.skipped.append((_shown(inside), "it is a link"))
    elif path.is_dir():
        if len(inside.parts) == 1:
            found.students.append(student_of(inside, pattern))
    elif _is_notebook(path):
        helpers = list(_helpers(path)) if len(inside.parts) > 1 else []
        student = student_of(inside, pattern)
        found.students.append(student)
        found.hand_ins.append(HandIn(student, _shown(inside), path, helpers))
    elif len(inside.parts) == 1 and path.suffix != ".zip":
        found.skipped.append((_shown(inside), "it is no notebook"))


def student_of(inside: Path, pattern: str) -> str:
    """The student's name from a path below the folder."""
    first = inside.parts[0]
    match = re.fullmatch(pattern, first)
    if match:
        return _shown(match["student"].strip())
    for ending in sorted(NOTEBOOKS, key=len, reverse=True):
        first = first.removesuffix(ending)
    return _shown(first)


def _is_notebook(path: Path) -> bool:
    hidden = path.name.startswith("._") or set(path.parts) & set(NOT_THEIRS)
    return path.name.lower().endswith(NOTEBOOKS) and not hidden and path.is_file()


def _helpers(notebook: Path) -> Iterator[Path]:
    """The other files beside a notebook: modules and data that it may use."""
    size = 0
    for path in sorted(notebook.parent.iterdir()):
        if path.is_file() and not path.is_symlink() and not _is_notebook(path):
            size += path.stat().st_size
            if size > LARGEST:
                return
            if path.suffix != ".zip" and not path.name.startswith("._"):
                yield path


def _unzip(path: Path, folder: Path) -> str | None:
    """Unpack what is safe to unpack; what is wrong with the zip, if anything."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if not one.is_dir()]
            if len(members) > MOST:
                return f"it holds more than {MOST} files"
            for member in members:
                inside = PurePosixPath(member.filename.replace("\\", "/"))
                unsafe = inside.is_absolute() or ".." in inside.parts or ":" in inside.parts[0]
                if unsafe or member.file_size > LARGEST or set(inside.parts) & set(NOT_THEIRS):
                    continue
                target = folder / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy, LARGEST)
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        return f"it cannot be unpacked: {error}"
    return None


def read_roster(path: Path) -> list[str]:
    """The names in a file: one a line, or the first column of a table with commas."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    names = [line.split(",")[0].split(";")[0].strip().strip('"') for line in lines]
    return [name for name in names if name]


def _shown(name: object) -> str:
    text = name.as_posix() if isinstance(name, Path) else str(name)
    return "".join(sign if sign.isprintable() else "?" for sign in text)
