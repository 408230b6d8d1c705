"""Programs that start warm: `python ARGUMENTS`, forked from a process that has imported the heavy packages already.

What `warm_python` gives is called as the interpreter is: with `-m MODULE ...` or a script, by a test or by
torchrun (PYTHON_EXEC). The program has the arguments, folder, environment and standard streams of its caller, ends as a
Python program does, and its exit code or signal is passed on. Signals that ask are passed to it, and it is killed when
its caller kills what it called. Called as the leader of a process group, as torchrun starts ranks, it leads one as well,
which gets the signals. Not the same: who its parent is. What is about that, or about starting, starts cold.
"""

import atexit
import contextlib
import fcntl
import functools
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@functools.cache
def warm_python() -> str:
    """The executable. The processes of a test session share a server, which the first to call this starts and which ends
    with the last of them. The interpreter itself, with a warning, where the server cannot run.
    """
    folder = Path(tempfile.gettempdir(), f"opensora-tests-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    address, executable = folder / f"{session[:12]}-server", folder / f"{session[:12]}-python"
    with lock(folder):
        if not join_session(address):
            server = subprocess.Popen(
                [sys.executable, "-m", "tests.support.warm_python", "serve", str(address)],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # an interrupt from the keyboard is for the programs
            )
            assert server.stdout is not None
            if server.stdout.readline() != "ready\n" or not join_session(address):
                warnings.warn("the server of warm starts does not run; every program starts cold", stacklevel=2)
                return sys.executable
        executable.write_text(f"#!/bin/sh\nexec '{sys.executable}' -I -S '{__file__}' start '{address}' \"$@\"\n")
        executable.chmod(0o755)
    return str(executable)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """One process at a time looks if a server runs, and starts or ends one."""
    with (folder / "warm.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


_session: list[socket.socket] = []  # the connection that holds the server; it is closed with this process


def join_session(address: Path) -> bool:
    """Hold the server while this process lives. False if none runs."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(f"{address}-sessions")
    except OSError:
        connection.close()
        return False
    _session.append(connection)
    return True


def serve(address: str) -> list[str]:
    """Fork a program for each caller, while a test process holds the server. Returns in the programs only: their arguments."""
    import tests.dist_imports  # noqa: F401

    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"a fork has one thread, {len(threads)} run after the imports"
    programs, sessions = listener(address), listener(f"{address}-sessions")
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the children that `keep` runs in end by themselves
    holders = [accept(sessions)] if select.select([sessions], [], [], 60)[0] else []
    while holders or not end(address, sessions):
        ready = select.select([programs, sessions, *holders], [], [])[0]
        if sessions in ready:
            holders.append(accept(sessions))
        if programs in ready:
            connection = accept(programs)
            if os.fork() == 0:
                for each in (programs, sessions, *holders):
                    each.close()
                with connection:
                    return keep(connection)
            connection.close()
        holders = [each for each in holders if each not in ready]  # they send nothing: they have ended
    sys.exit()


def listener(address: str) -> socket.socket:
    Path(address).unlink(missing_ok=True)  # of a server that was killed
    made = socket.socket(socket.AF_UNIX)
    made.bind(address)
    made.listen()
    return made


def accept(listener: socket.socket) -> socket.socket:
    return listener.accept()[0]


def end(address: str, sessions: socket.socket) -> bool:
    """Remove the files of the server, unless a process has joined in the meantime."""
    with lock(Path(address).parent):
        if select.select([sessions], [], [], 0)[0]:
            return False
        for path in (address, f"{address}-sessions", f"{address.removesuffix('server')}python"):
            Path(path).unlink(missing_ok=True)
        return True


def keep(connection: socket.socket) -> list[str]:
    """Fork the program and stay with it: its number to the caller first, its exit code in the end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as file:
        request = json.loads(file.read(int.from_bytes(size, "big")))
    program = os.fork()
    if request["leads"]:
        os.setpgid(program, program)  # in both processes, whichever is first
    if program:
        for stream in streams:
            os.close(stream)
        ended = os.pidfd_open(program)
        try:
            connection.sendall(program.to_bytes(4, "big"))
            caller_left = ended not in select.select([ended, connection], [], [])[0]
        except OSError:  # a signal ended the caller while the program was being forked
            caller_left = True
        if caller_left:
            os.kill(program, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(code.to_bytes(4, "big", signed=True))
        os._exit(0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    assert os.environ.get("OMP_NUM_THREADS") == "1", "the server was started with one thread, so must be its programs"
    os.chdir(request["folder"])
    return request["arguments"]


def run(arguments: list[str]) -> None:
    """Run a module or a file, as the interpreter does with its arguments."""
    if arguments[0] == "-u":
        arguments = arguments[1:]
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    if arguments[0] == "-m":
        sys.argv, sys.path[0] = arguments[1:], os.getcwd()
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")


def run_to_the_end(arguments: list[str]) -> NoReturn:
    """As the interpreter does, but that it does not take apart the million objects that are shared with the server."""
    code: Any = 0
    try:
        run(arguments)
    except SystemExit as ended:
        code = ended.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit((code or 0) & 0xFF)


def start(address: str, arguments: list[str]) -> int:
    """The caller's side: have the program started, pass signals on; its exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until the program is there
    leads = os.getpgrp() == os.getpid()
    request = json.dumps(
        {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ), "leads": leads}
    ).encode()
    send = os.killpg if leads else os.kill
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(request)
        program = int.from_bytes(receive(connection), "big")
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: send(program, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        code = int.from_bytes(receive(connection), "big", signed=True)
    if code < 0:
        with contextlib.suppress(OSError):  # of a signal that has no other action
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def receive(connection: socket.socket) -> bytes:
    header = connection.recv(4)
    if len(header) != 4:
        sys.exit("tests/support/warm_python.py: the server is gone")
    return header


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        run_to_the_end(serve(sys.argv[2]))
    else:
        sys.exit(start(sys.argv[2], sys.argv[3:]))
