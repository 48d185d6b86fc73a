"""What a master holds: a lesson, its exercises, and what is said when a rule is broken."""

from dataclasses import dataclass, field
from pathlib import Path

from nbformat import NotebookNode

from tools.colab import Settings
from tools.regions import solve


class MasterError(Exception):
    """A master breaks a rule: file, cell and reason."""

    def __init__(self, path: Path, reason: str, cell: NotebookNode | None = None):
        where = f"{path.parent.name}/{path.name}"
        if cell is not None:
            lines = [line.strip() for line in cell.source.splitlines() if line.strip()]
            where += f", cell {cell.number} ({(lines or ['empty'])[0][:60]})"
        super().__init__(f"{where}: {reason}")


@dataclass
class Exercise:
    """One exercise: where its cells stand in `Lesson.cells`, and the answers that prove it."""

    id: str
    names: tuple[str, ...]
    card: int
    code: int
    check: int
    library: str | None
    assemble: bool | str = False  # its lines can be put in order; other right orders
    wrong: list[tuple[str, str]] = field(default_factory=list)  # (words of the message, answer)
    right: list[str] = field(default_factory=list)


@dataclass
class Lesson:
    """A master that keeps the rules. The cells are without the raw cells of the answers."""

    path: Path
    number: int
    cells: list[NotebookNode]  # with .number (from 1, in the master) and .tags
    exercises: list[Exercise]
    settings: Settings = field(default_factory=Settings)

    @property
    def name(self) -> str:
        return self.path.stem

    def solution(self, exercise: Exercise) -> str:
        return solve(self.cells[exercise.code].source)

    def solutions(self) -> dict[str, str]:
        """{exercise id: the solved cell}."""
        return {exercise.id: self.solution(exercise) for exercise in self.exercises}
