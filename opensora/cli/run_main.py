"""Errors as sentences, exit codes that are true."""

import faulthandler
import io
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from opensora.errors import OpenSoraError
from opensora.parallel.openmp import wait_passively

WAIT_SECONDS = 20  # for the launcher to end this rank because the main rank has left


def run_main(command: Callable[[], int], interrupted: str = "") -> int:
    """Run `command`; an error the user can act on is one line on stderr, anything else keeps its traceback.

    interrupted: the rest of the line after Ctrl-C.
    """
    wait_passively()
    if isinstance(sys.stdout, io.TextIOWrapper):  # paths are printed with the bytes they have, UTF-8 or not
        sys.stdout.reconfigure(errors="surrogateescape")
    if sys.__stderr__ is not None and not faulthandler.is_enabled():
        faulthandler.enable(sys.__stderr__)  # a crash of compiled code says where it was
    try:
        return command()
    except _AlreadyReported as said:
        return said.exit_code
    except OpenSoraError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"error: interrupted{interrupted}", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1


@contextmanager
def report_on_main_rank_only() -> Iterator[None]:
    """For what comes before the ranks have met: every rank makes the same mistake, the main rank alone reports it."""
    try:
        yield
    except OpenSoraError as error:
        if _is_main():
            raise
        # A launcher ends all ranks when the first one leaves: let that be the main rank, once it has said why.
        if signal.sigtimedwait({signal.SIGTERM}, WAIT_SECONDS) is None:
            raise  # it has not left: the mistake is on this machine alone
        raise _AlreadyReported(error.exit_code) from error


class _AlreadyReported(Exception):
    def __init__(self, exit_code: int):
        super().__init__()
        self.exit_code = exit_code


def _is_main() -> bool:
    from opensora.parallel.rank_environment import rank_from_environment

    try:
        return rank_from_environment()[0] == 0
    except OpenSoraError:
        return True  # the mistake may be in the environment itself
