"""Commands called inside the test process leave nothing behind: no process group, no signal handlers."""

import signal
from collections.abc import Callable, Iterator

import pytest

from opensora.cli.main import main
from opensora.parallel import world
from tests.e2e.odd_inputs.case import table

Opensora = Callable[..., int]


@pytest.fixture
def opensora() -> Iterator[Opensora]:
    """`opensora("check", "config.py", ...)` runs the command like the console script and returns its exit code."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}

    def call(*arguments: str) -> int:
        try:
            return main(arguments)
        finally:
            world.shutdown()

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of tests/e2e/test_odd_inputs.py, whichever processes ran its cases."""
    reports = [report for key in ("passed", "failed") for report in terminalreporter.getreports(key)]
    rows = [tuple(value) for report in reports for name, value in report.user_properties if name == "odd_input"]
    if rows:
        terminalreporter.section("odd inputs")
        terminalreporter.write_line(table([("case", "expected", "got"), *rows]))
