"""The end of a process that is a rank."""

import atexit
import os
import sys
import threading


def exit_process(code: int) -> None:
    """End a process that may be one of several ranks.

    After a failure at once: another rank may wait for this one in a collective, and Python's own exit would hang. After
    success with all that Python does at its end, but without the destructors of libraries: now and then one of two ranks,
    done and saved, was aborted there by a thread that nobody had joined (gloo's outlive their group), and torchrun
    called the job failed.
    """
    if not code:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
