"""Makes `pytest --nbval notebooks/` readable for learners: one row an exercise, in words.

Nothing happens in a pytest run without --nbval, nor in one whose notebooks hold no check of the
course. What the rows say is in `verdicts.py`.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from llama_adapter_edu.course.progress import tables, verdicts
from llama_adapter_edu.course.progress.exercises import checks_in, defines, is_given, lesson_of
from llama_adapter_edu.course.progress.kernels import notice_death, revive

# option: the ways in which a user gives an own one
DEFAULTS = {
    "--nbval-current-env": ("--nbval-current-env", "--current-env", "--nbval-kernel-name"),
    "--nbval-cell-timeout=300": ("--nbval-cell-timeout",),
    "--nbval-kernel-startup-timeout=120": ("--nbval-kernel-startup-timeout",),
    "--continue-on-collection-errors": (),  # one unreadable notebook does not hide the others
}
NO_NBVAL = "--nbval needs the package nbval: pip install nbval ipykernel"
OWN = "a cell of your own, not the course's"
NO_OPTION = "a notebook of the course is judged with --nbval: pytest --nbval {}"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("llama_adapter_edu", "exercises of the course")
    help_text = "with --nbval: write the table of exercises to FILE (.md, .html, .json)"
    group.addoption("--progress-report", metavar="FILE", type=Path, help=help_text)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Add the options that the notebooks need, unless the user gave their own."""
    if not {"--nbval", "--nbval-lax"} & set(args):
        if notebooks := [a for a in args if a.endswith(".ipynb") and _of_the_course(Path(a))]:
            raise pytest.UsageError(NO_OPTION.format(notebooks[0]))
        return
    if not _runs_the_course(args):
        return
    if not any(map(early_config.pluginmanager.hasplugin, ("nbval", "nbval.plugin"))):
        raise pytest.UsageError(NO_NBVAL)
    given = [argument.split("=")[0] for argument in args]
    args[:0] = [option for option, own in DEFAULTS.items() if not set(own) & set(given)]
    in_parallel = any(name.startswith("-n") or name == "--numprocesses" for name in given)
    if in_parallel and "--dist" not in given:
        args.insert(0, "--dist=loadfile")  # the cells of a notebook belong to one kernel


def pytest_configure(config: pytest.Config) -> None:
    report = config.option.progress_report
    if report and report.suffix not in tables.WRITERS:
        known = " or ".join(tables.WRITERS)
        raise pytest.UsageError(f"--progress-report={report}: the name must end with {known}")
    asked = getattr(config.option, "nbval", False) or getattr(config.option, "nbval_lax", False)
    if asked and _runs_the_course(config.invocation_params.args):
        os.environ.pop("MPLBACKEND", None)  # or a kernel would show no figures
        config.pluginmanager.register(_Course(config), "llama_adapter_edu_course")


def _runs_the_course(args: Iterable[str]) -> bool:
    """Whether one of the notebooks that these arguments name, or that lie here, is the course's."""
    named = [Path(argument.split("::")[0]) for argument in args if not argument.startswith("-")]
    places = [path for path in named if path.exists()] or [Path()]
    return any(_of_the_course(path) for place in places for path in _notebooks(place))


def _notebooks(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
    for folder, inner, files in os.walk(place):
        inner[:] = [name for name in inner if not name.startswith(".") and name != "site-packages"]
        yield from (Path(folder, name) for name in files if name.endswith(".ipynb"))


def _of_the_course(path: Path) -> bool:
    try:
        text = path.read_text("utf-8", errors="replace") if path.suffix == ".ipynb" else ""
    except OSError:
        return False
    return "@check(" in text or "with check(" in text


class _Course:
    """The hooks of a run with --nbval."""

    def __init__(self, config: pytest.Config):
        self.config = config
        self.rows: list[verdicts.Row] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Find the checks, and the cells that they check; cells run in the notebook's order."""
        notebooks: dict[pytest.Collector, list[pytest.Item]] = {}
        for item in items:
            if hasattr(item, "cell_num"):
                item.checks = checks_in(item.cell.source)
                notebooks.setdefault(item.parent, []).append(item)
        for parent, cells in notebooks.items():
            places = [place for place, item in enumerate(items) if item.parent is parent]
            cells.sort(key=lambda item: item.cell_num)  # another plugin may have mixed them
            for place, item in zip(places, cells, strict=True):
                items[place] = item
            self._prepare(cells)

    def _prepare(self, cells: list[pytest.Item]) -> None:
        lesson = next((lesson_of(c) for item in cells for c in item.checks), None)
        for place, item in enumerate(cells):
            item.position, item.earlier, item.own = place + 1, cells[:place], False
            if lesson is None:
                continue
            item.own = not item.checks and not is_given(lesson, item.cell.source)
            if item.checks or item.own:
                item.options["check"] = False  # a red box in a saved file does not count
            if item.cell.get("execution_count") is None:
                item.cell.outputs = []  # nbval refuses outputs without a count, as editors save
            names = [name for check in item.checks for name in check[1]]
            answers = [x for x in item.earlier if defines(x.cell.source, names)] if names else []
            for answer in answers or (item.earlier[-1:] if names else []):
                answer.checked_by = item

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Iterator[None]:
        report = yield
        if report.failed and getattr(collector, "path", Path()).suffix == ".ipynb":
            report.longrepr = verdicts.unreadable(collector.path)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        if hasattr(item, "cell_num"):
            revive(item)
            notice_death(item.parent.kernel)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo
    ) -> Iterator[pytest.TestReport]:
        report = yield
        if not hasattr(item, "cell_num") or (report.when != "call" and report.passed):
            return report
        error = call.excinfo and call.excinfo.value
        rows = verdicts.judge(item.checks, item.position, report.outcome, error)
        for row in rows:
            if report.when == "setup":  # the kernel did not start
                row.set("not judged", row.reason)
            elif hasattr(report, "wasxfail"):
                row.set("not judged", "an earlier cell ran out of time")
            elif row.reason == verdicts.TIMED_OUT and "interrupt" not in str(error):
                item.parent.timed_out = False  # it was stopped: the cells below can be judged
            if item.own and row.status == "broken":
                row.reason = f"{OWN}: {row.reason}"
            _share_with_check(item, row)
            row.notebook = report.nodeid.partition("::")[0]
        report.course = [vars(row) for row in rows]
        if report.failed:
            report.longrepr = "\n".join(row.text() for row in rows if row.status != "solved")
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple | None:
        """Count open exercises by their own names; pytest then prints no traceback for them."""
        rows = [verdicts.Row(**row) for row in getattr(report, "course", [])]
        row = next((row for row in rows if row.status in verdicts.QUIET), None)
        if not row or not report.failed:
            return None
        category = row.status if row.is_exercise else ""
        return category, verdicts.MARKS.get(row.status, "!"), row.status.upper()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if hasattr(report, "course"):
            self.rows += [verdicts.Row(**row) for row in report.course]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and report.nodeid.endswith(".ipynb"):
            reason = str(report.longrepr)
            self.rows.append(verdicts.Row("notebook", "", "broken", reason, [], report.nodeid))

    @pytest.hookimpl(tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        table = verdicts.table(self.rows, self.config.rootpath)
        if not table:
            return
        terminalreporter.write_sep("=", "exercises")
        width = terminalreporter._tw.fullwidth
        encoding = getattr(terminalreporter._tw._file, "encoding", None)
        for line in tables.printable(tables.as_text(table, width), encoding).splitlines():
            terminalreporter.write_line(line)
        target = self.config.option.progress_report
        if target:
            try:
                tables.write(table, target)
            except OSError as error:
                terminalreporter.write_line(f"{target} was not written: {error.strerror}")


def _share_with_check(item: pytest.Item, row: verdicts.Row) -> None:
    """An error in an exercise's cell is told by its check, not as a broken cell."""
    check = getattr(item, "checked_by", None)
    if check and row.status == "broken":
        check.cause, row.status = row.reason, verdicts.IN_EXERCISE
    elif hasattr(item, "cause") and row.status == "solved":
        row.reason = f"solved, though a cell with its code stops: {item.cause}"
    elif hasattr(item, "cause"):
        row.set("wrong", item.cause)
