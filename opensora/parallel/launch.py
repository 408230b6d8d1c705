"""Start the ranks of one machine: what `torchrun --standalone` does, with the exit codes and messages of the command.

Without restarts, and without torch: a launcher needs none of it. For several machines there is torchrun.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from opensora.errors import ConfigError

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
LAUNCHER = "OPENSORA_LAUNCHER"  # set for ranks that were started here: its process id
GRACE_SECONDS = 30  # between the first rank that fails and the end of the others
_POLL_SECONDS = 0.05
_INTERRUPTED = 130


def start_ranks(count: int, arguments: Sequence[str]) -> int:
    """Run `python ARGUMENTS` as `count` ranks and return the exit code of the command.

    Signals go to every rank, in sessions of their own so that Ctrl-C comes once. When a rank fails, the others are
    stopped. The code is 0, or that of the first rank that failed: 2 for a mistake, 130 after a second Ctrl-C, 1 for
    anything else, with a last line that names the rank. Raises ConfigError where torchrun has started this process.
    """
    if "RANK" in os.environ:
        raise ConfigError(
            "command line: --ranks: found in a process that torchrun started; allowed: one of the two; remove --ranks"
        )
    ranks: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), LAUNCHER: str(os.getpid())}
        python = os.environ.get("PYTHON_EXEC", sys.executable)  # as torchrun has it
        sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        for rank in range(count):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            environment = {**os.environ, **meeting, **sizes, **place}
            ranks.append(subprocess.Popen([python, *arguments], env=environment, start_new_session=True))
        failed = _first_to_fail(ranks)
        if failed is not None:
            _stop(ranks)
    finally:
        for process in ranks:
            if process.poll() is None:  # an error here
                process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0 if failed is None else _report(failed, ranks[failed].returncode)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first_to_fail(ranks: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait until a rank fails and return it; None once all have ended well."""
    while True:
        codes = [rank.poll() for rank in ranks]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed or None not in codes:
            # A mistake that is everywhere the same has its sentence from rank 0.
            return min(failed, key=lambda rank: codes[rank] != 2, default=None)
        time.sleep(_POLL_SECONDS)


def _stop(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for rank in ranks:
        with suppress(subprocess.TimeoutExpired):
            rank.wait(max(0.0, deadline - time.monotonic()))
        if rank.poll() is None:
            rank.kill()
            rank.wait()


def _report(rank: int, code: int) -> int:
    """Print the last line and return the exit code of the command."""
    if code in (2, _INTERRUPTED):  # the rank has said all
        return code
    if code < 0:
        name = signal.Signals(-code).name
        why = "; the system kills processes when memory runs out" if name == "SIGKILL" else ""
        print(f"error: rank {rank} was ended by {name}{why}; the other ranks were stopped", file=sys.stderr)
    else:
        print(f"error: rank {rank} failed; its message stands above, the other ranks were stopped", file=sys.stderr)
    return 1
