"""Commands called inside the test process leave no process group behind; tests/conftest.py restores handlers."""

from collections.abc import Callable

import pytest

from opensora.cli.main import main
from opensora.parallel import world
from tests.e2e.odd_inputs.case import table

Opensora = Callable[..., int]


@pytest.fixture
def opensora() -> Opensora:
    """`opensora("check", "config.py", ...)` runs the command like the console script and returns its exit code."""

    def call(*arguments: str) -> int:
        try:
            return main(arguments)
        finally:
            world.shutdown()

    return call


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of tests/e2e/test_odd_inputs.py, whichever processes ran its cases."""
    reports = [report for key in ("passed", "failed") for report in terminalreporter.getreports(key)]
    rows = [tuple(value) for report in reports for name, value in report.user_properties if name == "odd_input"]
    if rows:
        terminalreporter.section("odd inputs")
        terminalreporter.write_line(table([("case", "expected", "got"), *rows]))
