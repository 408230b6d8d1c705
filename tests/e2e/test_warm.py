"""A program in a warm interpreter has the inputs, outputs and exit codes that it has with `python ARGUMENTS`."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import atexit, json, os, random, signal, sys, threading
atexit.register(print, "left", flush=True)
print(json.dumps([sys.argv[1:], os.getcwd(), sorted(os.environ), __name__, sys.path[0], sys.stdin.read()]), flush=True)
print("said", file=sys.stderr)
how = sys.argv[1]
if how == "raise":
    raise ValueError("no")
if how == "words":
    sys.exit("in words")
if how == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "thread":
    threading.Timer(0.05, print, ["thread"]).start()
sys.exit(7 if how == "seven" else None)
"""
WAITING = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
print("here", flush=True)
while True:
    signal.pause()
"""
PARENT = """
import os, time
os.fork()
os.write(1, b"here\\n")
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "waiting.py").write_text(WAITING)
    (tmp_path / "elsewhere").mkdir()
    return tmp_path


def outcome(python: str, arguments: list[str], folder: Path) -> tuple[int, str, str]:
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PWD": str(folder), "MINE": "1"}
    done = subprocess.run(
        [python, *arguments], cwd=folder, env=environment, input="given", capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


HOWS = ("none", "seven", "raise", "words", "kill", "thread")


@pytest.mark.parametrize("program", [["-m", "program"], ["-u", "-m", "program"], ["../program.py"]], ids=str)
def test_program_has_equal_inputs_outputs_and_exit_codes(warm: str, folder: Path, program: list[str]) -> None:
    if program[-1] == "../program.py":
        folder = folder / "elsewhere"
    for how in HOWS if program[0] == "-m" else HOWS[1:2]:
        cold, warmed = (outcome(python, [*program, how, "b c"], folder) for python in (sys.executable, warm))
        assert warmed[:2] == cold[:2], how
        assert json.loads(warmed[1].splitlines()[0])[2] == ["LC_CTYPE", "MINE", "OMP_NUM_THREADS", "PATH", "PWD"]
        assert warmed[2].splitlines()[0] == "said"
        assert warmed[2].splitlines()[-1] == cold[2].splitlines()[-1], how


def test_torch_is_imported_at_start(warm: str, folder: Path) -> None:
    """With a cold interpreter all tests would pass too, only slowly."""
    (folder / "program.py").write_text("import sys; sys.exit(0 if 'torch' in sys.modules else 3)")
    assert outcome(warm, ["-m", "program"], folder)[0] == 0


def test_signals_reach_the_program(warm: str, folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for number, code in ((signal.SIGTERM, 9), (signal.SIGUSR1, -signal.SIGUSR1)):
        with subprocess.Popen([warm, "-m", "waiting"], cwd=folder, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"here\n"
            process.send_signal(number)
            assert process.wait(30) == code


def test_signals_to_a_group_reach_its_other_processes(warm: str, folder: Path) -> None:
    """torchrun sends them to the group of each rank, in which the workers of its loader are."""
    (folder / "parent.py").write_text(PARENT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [warm, "-m", "parent"], cwd=folder, env=environment, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == [b"here\n"] * 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
        assert select.select([process.stdout], [], [], 30)[0], "the child goes on without its parent"
        assert process.stdout.read() == b""


def test_killing_the_caller_ends_the_program(warm: str, folder: Path) -> None:
    """Its output ends like that of a killed program."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([warm, "-m", "waiting"], cwd=folder, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        process.kill()
        assert process.stdout.read() == b""


def test_caller_that_ends_before_the_program_starts_ends_it(warm: str, folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    request = {"arguments": ["-m", "waiting"], "folder": str(folder), "environment": environment, "leads": False}
    message = json.dumps(request).encode()
    read, write = os.pipe()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(warm.removesuffix("python") + "server")
        socket.send_fds(connection, [len(message).to_bytes(4, "big")], [0, write, 2])
        connection.sendall(message)
    os.close(write)
    with os.fdopen(read, "rb") as output:
        while select.select([output], [], [], 60)[0]:
            if output.read1() == b"":
                return
    raise AssertionError("the program goes on without its caller")
