"""Checks of the course's exercises: a function of visible asserts under `@check(...)`.

    @check("1.1", "split_heads", h=[3, 2], d=[4, 6])
    def _(h, d):
        x = torch.randn(2, 5, h * d)
        assert_shape(split_heads(x, d), "b h s d", b=2, h=h, s=5, d=d)

It runs at once, once for each case, and then is gone:

    passes   one green line; the learner's own object stays and is what later cells use
    fails    the name is bound to the course's reference, so that later cells run; then the check
             raises CheckFailed (under pytest and in scripts) or shows a red box (live Jupyter)

Every check starts from the same conditions (seed 0, float32, gradients on, CPU) and has a scope of
its own: it leaves nothing in the notebook, and what it calls finds the notebook's functions,
classes and imports, but none of the values that the given cells have set.
"""

import importlib
from collections.abc import Callable
from types import FunctionType, ModuleType

from llama_adapter_edu.course.checks import scope, source, verdict
from llama_adapter_edu.course.checks.conditions import TimeLimit, standard_conditions

REPLACED = "_replaced_by_reference"  # a notebook variable: {name: (the learner's, the reference)}
ABSENT = object()


class CheckFailed(AssertionError):
    """An exercise is not solved. The message says what is wrong, in words."""

    raw = False  # whether the message is in a library's own words

    def _render_traceback_(self) -> list[str]:
        """What IPython, JupyterLab and nbval show instead of a traceback."""
        return str(self).splitlines()


class check:
    """Judge one exercise by the asserts of the decorated function, which is run at once.

    exercise: its number; the first part is the lesson ("1.2" is in lesson 01).
    names: what the learner defines; a failed check binds them all to the reference.
    seconds: an endless loop is cut off after this time.
    in_place: the exercise is meant to change its input tensors.
    cases: lists of equal length; the function runs once with each place of them as its arguments.

    Raises CheckFailed where nobody watches (pytest, scripts); shows a red box in live Jupyter.
    """

    def __init__(
        self,
        exercise: str,
        *names: str,
        seconds: float = 60,
        in_place: bool = False,
        **cases: list,
    ):
        if not names:
            raise ValueError(f'check("{exercise}", ...) needs the name that the learner defines')
        if len({len(values) for values in cases.values()}) > 1:
            raise ValueError(f'check("{exercise}", ...) needs lists of equal length as cases')
        self.exercise, self.names = exercise, names
        self.seconds, self.in_place = seconds, in_place
        places = zip(*cases.values(), strict=True)
        self.cases = [dict(zip(cases, case, strict=True)) for case in places] or [{}]
        self.title = f"exercise {exercise} {', '.join(names)}"
        self.reference = _reference(exercise)

    def __call__(self, function: FunctionType) -> object:
        """Run the check; returns what the notebook calls by the function's name: it stays so."""
        self.notebook = function.__globals__
        answer = self._prepare()
        problem = self._problem_of_definitions()
        judged = verdict.Verdict("wrong", problem) if problem else self._run(function, answer)
        self._tell(judged, answer)
        return self.notebook.get(function.__name__)

    def _prepare(self) -> verdict.Answer:
        self._put_back_the_learners()
        self.given = {name: self.notebook.get(name, ABSENT) for name in self.names}
        return verdict.Answer(
            self.given,
            {name: getattr(self.reference, name, None) for name in self.names},
            getattr(self.reference, "STUBS", {}).get(self.exercise),
            frozenset(getattr(self.reference, "GIVEN", ())),
        )

    def _run(self, function: FunctionType, answer: verdict.Answer) -> verdict.Verdict:
        names = dict(self.notebook)
        for name, theirs in self.given.items():
            names[name] = scope.guarded(theirs, name, self.in_place)
        body = scope.in_scope_of(function, names)
        own = set().union(*map(scope.names_set_by, map(source.cell_of, self.given.values())))
        limit, error, case = TimeLimit(self.seconds), None, {}
        try:
            with scope.values_away(self.notebook, answer.hidden, own), standard_conditions(), limit:
                for case in self.cases:
                    body(**case)
        except BaseException as raised:
            if isinstance(raised, KeyboardInterrupt) and not limit.reached:
                raise  # the learner pressed stop
            error = raised
        judged = verdict.judge(error, answer, self.seconds if limit.reached else None)
        if judged.status == "wrong" and case != self.cases[0]:
            judged.reason = (
                f"{_words(self.cases[0])} it is right, {_words(case)} not: {judged.reason}"
            )
        return judged

    def _tell(self, judged: verdict.Verdict, answer: verdict.Answer) -> None:
        if judged.status == "solved":
            verdict.show_passed(self.title, answer.digest)
            return
        self._use_the_reference()
        text = judged.text(self.title, fallback=self.reference is not None)
        if verdict.in_live_notebook():
            verdict.show_box(text, answer.digest)
            return
        failed = CheckFailed(text)
        failed.raw = judged.raw
        raise failed from None

    def _put_back_the_learners(self) -> None:
        """Run again after a failure: test the learner's object, not the reference."""
        replaced = self.notebook.get(REPLACED, {})
        for name in self.names:
            theirs, reference = replaced.pop(name, (ABSENT, ABSENT))
            if reference is not ABSENT and self.notebook.get(name, ABSENT) is reference:
                if theirs is ABSENT:
                    del self.notebook[name]
                else:
                    self.notebook[name] = theirs
        if not replaced:
            self.notebook.pop(REPLACED, None)

    def _problem_of_definitions(self) -> str | None:
        for name, theirs in self.given.items():
            right = getattr(self.reference, name, None)
            if theirs is ABSENT:
                return f"{name} is not defined. Run its cell; does it have a syntax error?"
            if theirs is right:
                return f"{name} is the course's own: write it yourself in its cell, and run that"
            for kind, word in ((type, "a class"), (Callable, "a function")):
                if isinstance(right, kind) and not isinstance(theirs, kind):
                    return f"{name} should be {word}, but it is of type {type(theirs).__name__}"
        return None

    def _use_the_reference(self) -> None:
        for name in self.names:
            if hasattr(self.reference, name):
                right = getattr(self.reference, name)
                replaced = self.notebook.setdefault(REPLACED, {})
                replaced[name] = (self.given[name], right)
                self.notebook[name] = right


def _words(case: dict) -> str:
    return "with " + ", ".join(f"{name}={value}" for name, value in case.items())


def _reference(exercise: str) -> ModuleType | None:
    """The course's solutions of this exercise's lesson; None where none have been built yet."""
    module = f"llama_adapter_edu.course.reference.lesson_{int(exercise.split('.')[0]):02d}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return None
