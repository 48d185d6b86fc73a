"""Small changes of the solutions are rejected by their checks; `make mutate` tries them all."""

import random

import course
import pytest

from tools import mutate
from tools.master import read_lesson
from tools.mutants import mutants
from tools.regions import own_lines

SAMPLE = 12  # mutants of each exercise
LESSONS = ["01", "09"]


@pytest.mark.parametrize("number", LESSONS)
def test_a_sample_of_small_changes_is_rejected(number):
    lesson = read_lesson(next((course.ROOT / "solutions").glob(f"{number}_*.py")))
    accepted = []
    for exercise, notebook in mutate.at_each_check(lesson):
        equal = mutate.equal_mutants(lesson, exercise)
        own = own_lines(lesson.cells[exercise.code].source)
        every = list(mutants(lesson.solution(exercise), exercise.names, set(), own))
        for what, source in random.Random(0).sample(every, min(SAMPLE, len(every))):
            check = lesson.cells[exercise.check].source
            said = mutate.verdict(check, source, exercise, notebook)
            if not said and what not in equal:
                accepted.append(f"{exercise.id} {what}")
    assert accepted == []


SOLUTION = '''
def scores(query: Tensor, scale: float = 1.0) -> Tensor:
    """A text with 3."""
    if scale != 1:
        query = query * scale
    return rearrange(query, "s (h d) -> h s d", h=3)
'''
LINES = set(range(1, 8))


def test_the_kinds_of_changes():
    found = dict(mutants(SOLUTION, ("scores",), {"query"}, LINES))
    kinds = {what.split(":")[0] if "scores:" not in what else what for what in found}
    assert {"statement dropped", "return dropped", "condition True", "condition False"} <= kinds
    assert {"comparison", "operator", "call dropped", "keyword h dropped", "constant 4"} <= kinds
    assert {"constant 's (d h) -> h s d'", "constant 's (h d) -> s h d'"} <= kinds
    wrapped = ["result detached", "query changed in place", "scale of the first call"]
    wrapped += ["scale ignored", "query read from the notebook"]
    assert {f"scores: {what}" for what in wrapped} <= kinds
    assert all("A text with 3." in source for source in found.values())


def test_every_change_is_python_and_differs_from_the_solution():
    found = list(mutants(SOLUTION, ("scores",), {"query"}, LINES))
    sources = [source for _, source in found]
    assert len(set(sources)) == len(sources) > 30
    for source in sources:
        compile(source, "mutant", "exec")
