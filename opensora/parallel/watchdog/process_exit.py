"""The end of a process that is a rank."""

import atexit
import os
import sys
import threading


def exit_process(code: int) -> None:
    """End a process that may be one of several ranks.

    After a failure it ends at once: another rank may wait for this one in a collective, and Python's own exit would hang.
    After success it runs everything that Python runs at its end, but no destructors of libraries: now and then they
    aborted one of two ranks that was done and had saved, because of a thread that was not joined (gloo's outlive their
    group), and torchrun called the job failed.
    """
    if not code:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
