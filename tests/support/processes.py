"""Processes that call a function of a test module: `warm_python` forks them, so that they import nothing again."""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.warm_python import ROOT, warm_python


class Process:
    """`function(*arguments)` in another process; both travel pickled. Standard input is file descriptor `stdin`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, stdin: int = subprocess.DEVNULL):
        with tempfile.NamedTemporaryFile(prefix="call-", delete=False) as file:
            pickle.dump((function, arguments), file)
        self._program = subprocess.Popen(
            [warm_python(), "-m", "tests.support.processes", file.name],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=stdin,
        )

    @property
    def exitcode(self) -> int | None:
        """None while it runs, negative for a signal that ended it."""
        return self._program.poll()

    def join(self, seconds: float | None = None) -> None:
        """Wait until it has ended, at most `seconds`."""
        with suppress(subprocess.TimeoutExpired):
            self._program.wait(seconds)

    def kill(self) -> None:
        self._program.kill()


def main(path: str) -> None:
    with Path(path).open("rb") as file:
        function, arguments = pickle.load(file)
    Path(path).unlink()
    function(*arguments)


if __name__ == "__main__":
    main(sys.argv[1])
