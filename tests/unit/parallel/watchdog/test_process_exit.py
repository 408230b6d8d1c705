"""The end of a rank's process."""

import signal
import subprocess
import sys


def test_exit_skips_library_destructors() -> None:
    """An abort in a destructor is no failure of the run; Python's own exit handlers run."""
    script = (
        "import atexit, ctypes, sys, threading, time\n"
        "from opensora.parallel.watchdog.process_exit import exit_process\n"
        "library = ctypes.CDLL(None)\n"
        "library.on_exit(ctypes.cast(library.abort, ctypes.c_void_p), None)\n"
        "atexit.register(lambda: sys.stdout.write('handlers '))\n"
        "done = threading.Event()\n"
        "threading.Thread(target=lambda: (done.wait(), sys.stdout.write('threads '))).start()\n"
        "done.set()\n"
        "{}(0)\n"
    )
    codes, texts = [], []
    for way in ("sys.exit", "exit_process"):
        ended = subprocess.run([sys.executable, "-c", script.format(way)], capture_output=True, text=True, check=False)
        codes.append(ended.returncode)
        texts.append(ended.stdout)
    assert codes == [-signal.SIGABRT, 0]
    assert texts[1] == "threads handlers "


def test_command_line_exits_without_destructors() -> None:
    script = (
        "import ctypes, sys\n"
        "from opensora.cli.main import program\n"
        "library = ctypes.CDLL(None)\n"
        "library.on_exit(ctypes.cast(library.abort, ctypes.c_void_p), None)\n"
        "program()\n"
    )
    ended = [
        subprocess.run([sys.executable, "-c", script, word], capture_output=True, text=True, check=False)
        for word in ("--help", "trian")
    ]
    assert [each.returncode for each in ended] == [0, 2]
    assert "usage: opensora COMMAND" in ended[0].stdout
    assert "found 'trian'" in ended[1].stderr
