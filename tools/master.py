"""Reads a lesson's master, `solutions/NN_name.py`; MasterError if it breaks a rule."""

import re
from collections.abc import Iterator
from pathlib import Path

import jupytext
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from tools import code_rules, names, pieces, text_rules
from tools.colab import read_settings, setup_cell
from tools.lesson import Exercise, Lesson, MasterError
from tools.regions import blank, solve

TAGS = {"card", "exercise", "check", "wrong", "right", "nbval-ignore-output", "nbval-skip"}
METADATA = {"tags", "library", "says", "assemble"}
FROM_JUPYTEXT = {"cell_marker", "lines_to_next_cell", "lines_to_end_of_cell_marker"}
FILE_NAME = re.compile(r"(\d\d)_[a-z0-9_]+\.py")


def read_lesson(path: Path) -> Lesson:
    """The lesson in a master; MasterError with file, cell and reason if it breaks a rule."""
    file_name = FILE_NAME.fullmatch(path.name)
    if not file_name:
        raise MasterError(path, "the name of a master is NN_words.py, in small letters")
    text = path.read_text(encoding="utf-8")
    if text.startswith("# ---"):
        raise MasterError(path, "a master has no YAML header; start with `# %% [markdown]`")
    try:
        settings = read_settings(path.resolve().parents[1])
    except ValueError as error:
        raise MasterError(path, str(error)) from None
    reader = _Reader(Lesson(path, int(file_name[1]), [], [], settings))
    for number, cell in enumerate(jupytext.reads(text, fmt="py:percent").cells, start=1):
        reader.read(number, cell)
    for rule in (_alone, text_rules.headings, code_rules.answers, _unfit):
        for cell, reason in rule(reader.lesson):
            raise MasterError(path, reason, cell)
    return reader.lesson


class _Reader:
    """Adds one cell after the other to a lesson."""

    def __init__(self, lesson: Lesson):
        self.lesson = lesson

    def read(self, number: int, cell: NotebookNode) -> None:
        metadata = {k: v for k, v in cell.metadata.items() if k not in FROM_JUPYTEXT}
        self.cell, cell.number, cell.tags = cell, number, metadata.get("tags", [])
        if set(metadata) - METADATA or not isinstance(cell.tags, list):
            self._refuse(f"the cell's header cannot be read: {metadata}")
        for tag in cell.tags:
            if tag not in TAGS:
                self._refuse(f"the tag {tag!r} is unknown; known: {', '.join(sorted(TAGS))}")
        if cell.cell_type == "raw":
            self._read_answer()
            return
        self.lesson.cells.append(cell)
        if number == 1:
            self._add_setup()
        if cell.cell_type == "markdown":
            self._refuse_if(text_rules.images(cell.source, self.lesson.path.parent))
        else:
            self._read_code()
        if "card" in cell.tags:
            self._refuse_if(text_rules.card(cell.source))
        if "check" in cell.tags:
            self._read_check()

    def _add_setup(self) -> None:
        """Below the title, before everything that needs the course."""
        cell = setup_cell(self.lesson.settings)
        cell.number = self.cell.number
        self.lesson.cells.append(cell)

    def _read_code(self) -> None:
        try:
            stub, solved = blank(self.cell.source), solve(self.cell.source)
            names.parse(stub), names.parse(solved)
        except SyntaxError as error:
            self._refuse(f"{error.msg} (line {error.lineno} of the cell)")
        except ValueError as error:
            self._refuse(str(error))
        if "exercise" not in self.cell.tags:
            if stub != self.cell.source:
                self._refuse("a solution stands in a cell with the tag `exercise`")
            return
        if stub == self.cell.source:
            self._refuse("an exercise has a region from ### BEGIN SOLUTION to ### END SOLUTION")
        self._refuse_if(code_rules.signatures(solved))
        if self.cell.metadata.get("assemble"):
            self._add_assembly()

    def _add_assembly(self) -> None:
        """Between an exercise and its card."""
        card = text_rules.CARD_TITLE.match(self.lesson.cells[-2].source)
        source = pieces.CELL.format(id=card["id"] if card else "")
        cell = new_code_cell(source)
        cell.number, cell.tags = self.cell.number, ["nbval-ignore-output"]
        self.lesson.cells.insert(-1, cell)

    def _read_check(self) -> None:
        called = code_rules.check_call(self.cell.source)
        if not called:
            self._refuse('a check is one function under `@check("1.2", "name")` and nothing else')
        here = len(self.lesson.cells) - 1
        code = self.lesson.cells[here - 1]
        if here < 1 or "exercise" not in code.tags:
            self._refuse("a check directly follows its exercise")
        assemble = code.metadata.get("assemble", False)
        card_at = here - 2 - bool(assemble)
        if card_at < 0 or "card" not in self.lesson.cells[card_at].tags:
            self._refuse("an exercise directly follows its card")
        card = self.lesson.cells[card_at]
        exercise_id, *exercise_names = called
        self._refuse_if(self._wrong_id(exercise_id, card.source))
        defined = code_rules.definitions(solve(code.source))
        if set(defined) != set(exercise_names):
            self._refuse(f"the exercise defines {defined}, its check names {exercise_names}")
        library = code.metadata.get("library")
        cells = (card_at, here - 1, here)
        exercise = Exercise(exercise_id, tuple(exercise_names), *cells, library, assemble)
        self.lesson.exercises.append(exercise)

    def _wrong_id(self, exercise_id: str, card: str) -> str | None:
        expected = f"{self.lesson.number}.{len(self.lesson.exercises) + 1}"
        on_card = text_rules.CARD_TITLE.match(card)["id"]
        if exercise_id != expected:
            return f"this is exercise {expected} of the lesson, not {exercise_id}"
        if on_card != exercise_id:
            return f"the card says exercise {on_card}, the check {exercise_id}"
        return None

    def _read_answer(self) -> None:
        tag = self.cell.tags[0] if len(self.cell.tags) == 1 else ""
        exercise = self.lesson.exercises[-1] if self.lesson.exercises else None
        after_check = exercise and exercise.check == len(self.lesson.cells) - 1
        if tag not in ("wrong", "right") or not after_check:
            self._refuse("a raw cell is a `wrong` or `right` answer and stands after its check")
        says = self.cell.metadata.get("says")
        if (tag == "wrong") != bool(says):
            self._refuse('a wrong answer, and only that, has says="words of the check\'s message"')
        try:
            missing = set(exercise.names) - set(code_rules.definitions(self.cell.source))
        except SyntaxError as error:
            self._refuse(f"{error.msg} (line {error.lineno} of the answer)")
        if missing:
            self._refuse(f"the answer does not define {', '.join(sorted(missing))}")
        if tag == "wrong":
            exercise.wrong.append((says, self.cell.source))
        else:
            exercise.right.append(self.cell.source)

    def _refuse_if(self, reason: str | None) -> None:
        if reason:
            self._refuse(reason)

    def _refuse(self, reason: str) -> None:
        raise MasterError(self.lesson.path, reason, self.cell)


def _alone(lesson: Lesson) -> Iterator[tuple[NotebookNode, str]]:
    """Exercises that no check follows, and cards that no exercise follows."""
    codes = {exercise.code for exercise in lesson.exercises}
    cards = {exercise.card for exercise in lesson.exercises}
    for tag, known, follower in (("exercise", codes, "check"), ("card", cards, "exercise")):
        for number, cell in enumerate(lesson.cells):
            if tag in cell.tags and number not in known:
                yield cell, f"the {tag} is not followed directly by its {follower}"


def _unfit(lesson: Lesson) -> Iterator[tuple[NotebookNode, str]]:
    """Exercises that cannot be cut into pieces, although their master says so."""
    for exercise in lesson.exercises:
        try:
            if exercise.assemble:
                pieces.puzzle(lesson, exercise)
        except ValueError as error:
            yield lesson.cells[exercise.code], str(error)
