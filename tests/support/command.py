"""Commands as a user starts them, watched through their standard error."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAIN, SAMPLE = "configs/stdit/train/debug.py", "configs/stdit/sample/debug.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


class Command:
    """`python ARGUMENTS` in the repository, running; `lines` holds the lines of its standard error so far.

    python: another one, for torchrun's ranks too. ranks: one for torchrun's ranks alone.
    """

    def __init__(self, arguments: Sequence[str], python: str, ranks: str | None):
        # two CPU cores and many processes: one thread each, as torchrun has it
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON_EXEC": ranks or python}
        self.process = subprocess.Popen(
            [python, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self.lines: list[str] = []

    def read_until(self, words: str) -> None:
        """Read standard error up to the line that has `words`."""
        for line in self._read():
            if words in line:
                return
        raise AssertionError(f"never wrote {words!r}:\n" + "\n".join(self.lines))

    def finish(self) -> int:
        """The exit code, once the process and all it started have closed their standard error."""
        list(self._read())
        return self.process.wait()

    def ranks(self) -> list[int]:
        """Process ids of the ranks that torchrun started."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def lines_with(self, words: str) -> list[str]:
        return [line for line in self.lines if words in line]

    def _read(self) -> Iterator[str]:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            yield line


@contextmanager
def running(*arguments: str, python: str = sys.executable, ranks: str | None = None) -> Iterator[Command]:
    """A command that does not outlive the block."""
    command = Command(arguments, python, ranks)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            left = [*command.ranks(), command.process.pid]
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            command.process.wait()
        for pipe in (command.process.stdout, command.process.stderr):
            assert pipe is not None
            pipe.close()
