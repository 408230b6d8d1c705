"""Errors as one line and true exit codes."""

import signal
import subprocess
import sys
from typing import Any, NoReturn

import pytest

from opensora.cli import run_main as run_main_module
from opensora.cli.run_main import report_on_main_rank_only, run_main
from opensora.errors import ConfigError, DataError


def fail(error: BaseException) -> Any:
    def command() -> NoReturn:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("a.py: key 'x':\n  wrong"), 2, "error: a.py: key 'x': wrong"),
        (DataError("t.csv: empty"), 1, "error: t.csv: empty"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_user_error_is_one_line(capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str) -> None:
    assert run_main(fail(error)) == code
    assert capsys.readouterr().err == line + "\n"


def test_anything_else_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(fail(ZeroDivisionError("by hand"))) == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith("Traceback")
    assert "ZeroDivisionError: by hand" in stderr


def test_a_crash_of_compiled_code_says_where_it_was() -> None:
    script = (
        "import ctypes; from opensora.cli.run_main import run_main\ndef crash(): ctypes.string_at(0)\nrun_main(crash)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in done.stderr
    assert "in crash" in done.stderr


def test_success_is_the_commands_own_code() -> None:
    assert run_main(lambda: 0) == 0


def mistake() -> int:
    with report_on_main_rank_only():
        raise ConfigError("a.py: key 'x': wrong")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The waits of a rank that does not leave at once: the arguments of each."""
    calls: list[Any] = []
    monkeypatch.setattr(run_main_module.signal, "sigtimedwait", lambda *arguments: calls.append(arguments) or calls)
    return calls


def environment(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


MEETING = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    "variables", [{}, {"RANK": "0", **MEETING}, {"RANK": "7"}], ids=["alone", "rank 0", "contradiction"]
)
def test_main_rank_prints_mistake_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], waits: list[Any], variables: dict[str, str]
) -> None:
    environment(monkeypatch, **variables)
    assert run_main(mistake) == 2
    assert capsys.readouterr().err == "error: a.py: key 'x': wrong\n"
    assert waits == []


def test_other_ranks_are_silent_and_leave_after_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], waits: list[Any]
) -> None:
    """torchrun ends every rank when one leaves; the main rank must have printed the mistake by then."""
    environment(monkeypatch, RANK="1", **MEETING)
    assert run_main(mistake) == 2
    assert capsys.readouterr().err == ""
    assert waits == [({signal.SIGTERM}, run_main_module.WAIT_SECONDS)]


def test_mistake_of_one_machine_is_printed_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The main rank found nothing wrong, so no other rank says why this one leaves."""
    environment(monkeypatch, RANK="1", **MEETING)
    monkeypatch.setattr(run_main_module.signal, "sigtimedwait", lambda *arguments: None)
    assert run_main(mistake) == 2
    assert capsys.readouterr().err == "error: a.py: key 'x': wrong\n"
