"""Makes `pytest --nbval notebooks/` readable for learners: one row an exercise, in words.

Nothing happens in a pytest run without --nbval. What the rows say is in `progress.py`.
"""

import os
import queue
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from llama_adapter_edu.course.progress import tables, verdicts

# option: the ways in which a user gives an own one
DEFAULTS = {
    "--nbval-current-env": ("--nbval-current-env", "--current-env", "--nbval-kernel-name"),
    "--nbval-cell-timeout=300": ("--nbval-cell-timeout",),
    "--nbval-kernel-startup-timeout=120": ("--nbval-kernel-startup-timeout",),
    "--continue-on-collection-errors": (),  # one unreadable notebook does not hide the others
}
NO_NBVAL = "--nbval needs the package nbval: pip install nbval ipykernel"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("llama_adapter_edu", "exercises of the course")
    help_text = "with --nbval: write the table of exercises to FILE (.md, .html, .json)"
    group.addoption("--progress-report", metavar="FILE", type=Path, help=help_text)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Add the options that the notebooks need, unless the user gave their own."""
    if not {"--nbval", "--nbval-lax"} & set(args):
        return
    if not early_config.pluginmanager.hasplugin("nbval"):
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
    if getattr(config.option, "nbval", False) or getattr(config.option, "nbval_lax", False):
        os.environ.pop("MPLBACKEND", None)  # or a kernel would show no figures
        config.pluginmanager.register(_Course(config), "llama_adapter_edu_course")


class _Course:
    """The hooks of a run with --nbval."""

    def __init__(self, config: pytest.Config):
        self.config = config
        self.rows: list[verdicts.Row] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Find the checks, and the cells that they check."""
        cells = [item for item in items if hasattr(item, "cell_num")]
        positions = Counter()
        for item in cells:
            positions[item.parent] += 1
            item.position = positions[item.parent]
            item.exercise = verdicts.check_in(item.cell.source)
            if item.exercise:
                item.options["check"] = False  # a red box in a saved file does not count
        courses = {item.parent for item in cells if item.exercise}
        for item in cells:
            if item.parent in courses and item.cell.get("execution_count") is None:
                item.cell.outputs = []  # nbval refuses outputs without a count, as editors save
        for before, item in pairwise(cells):
            if item.exercise and before.parent is item.parent:
                before.checked_by = item

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Iterator[None]:
        report = yield
        if report.failed and getattr(collector, "path", Path()).suffix == ".ipynb":
            report.longrepr = verdicts.unreadable(collector.path)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        if hasattr(item, "cell_num"):
            _notice_death(item.parent.kernel)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo
    ) -> Iterator[pytest.TestReport]:
        report = yield
        if not hasattr(item, "cell_num") or (report.when != "call" and report.passed):
            return report
        error = call.excinfo and call.excinfo.value
        row = verdicts.judge(item.exercise, item.position, report.outcome, error)
        if report.when == "setup":  # the kernel did not start
            row.set("not judged", row.reason)
        elif hasattr(report, "wasxfail"):
            row.set("not judged", "an earlier cell ran out of time")
        elif row.reason == verdicts.TIMED_OUT and "interrupt" not in str(error):
            item.parent.timed_out = False  # it was stopped: the cells below can be judged
        _share_with_check(item, row)
        row.notebook = report.nodeid.partition("::")[0]
        report.course = vars(row)
        if report.failed:
            report.longrepr = row.text()
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple | None:
        """Count open exercises by their own names; pytest then prints no traceback for them."""
        row = verdicts.Row(**report.course) if hasattr(report, "course") else None
        if not row or not report.failed or row.status not in verdicts.QUIET:
            return None
        category = row.status if row.is_exercise else ""
        return category, verdicts.MARKS.get(row.status, "!"), row.status.upper()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if hasattr(report, "course"):
            self.rows.append(verdicts.Row(**report.course))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and report.nodeid.endswith(".ipynb"):
            reason = str(report.longrepr)
            self.rows.append(verdicts.Row("notebook", "", "broken", reason, [], report.nodeid))

    @pytest.hookimpl(tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        table = verdicts.table(self.rows)
        if not table:
            return
        terminalreporter.write_sep("=", "exercises")
        width = terminalreporter._tw.fullwidth
        terminalreporter.write_line(tables.as_text(table, width))
        target = self.config.option.progress_report
        if target:
            try:
                tables.write(table, target)
            except OSError as error:
                terminalreporter.write_line(f"{target} was not written: {error.strerror}")


def _share_with_check(item: pytest.Item, row: verdicts.Row) -> None:
    """A syntax error in an exercise's cell is told by its check, not as a broken cell."""
    check = getattr(item, "checked_by", None)
    if check and row.status == "broken":
        check.cause, row.status = row.reason, verdicts.IN_EXERCISE
    elif hasattr(item, "cause") and row.status != "solved":
        row.set("wrong", item.cause)


def _notice_death(kernel) -> None:
    """nbval waits the whole cell timeout for a kernel that has died; look every second instead."""
    wait = kernel.await_reply

    def await_reply(msg_id: str, timeout: float) -> None:
        end = time.monotonic() + timeout
        while True:
            try:
                return wait(msg_id, timeout=max(0.01, min(1, end - time.monotonic())))
            except queue.Empty:
                if not kernel.is_alive():
                    raise RuntimeError(verdicts.DEAD) from None
                if time.monotonic() >= end:
                    raise

    if not hasattr(kernel, "notices_death"):
        kernel.await_reply, kernel.notices_death = await_reply, True
