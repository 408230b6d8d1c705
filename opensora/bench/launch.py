"""Measurements in processes of their own, and what every bench says of the machine."""

import datetime
import json
import re
import signal
import subprocess
import sys
from typing import Any

import torch

from opensora import __version__
from opensora.errors import OpenSoraError
from opensora.platforms import Platform

_TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def answer_of(module: str, *arguments: str, ranks: int | None = None) -> dict[str, Any]:
    """What `python -m module arguments` gives to `tell`; under torchrun when `ranks` says how many processes.

    Raises OpenSoraError, with the command, when it fails.
    """
    launcher = [] if ranks is None else [*_TORCHRUN, str(ranks)]
    command = [*launcher, "-m", module, *arguments]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not found:
        raise OpenSoraError(
            f"bench: {_why(done.stderr, done.returncode)}; to see more, run `python {' '.join(command)}`"
        )
    return json.loads(found[-1])


def _why(stderr: str, code: int) -> str:
    """The message of the first exception, before torchrun's own; else what ended a rank or the process; else the last line."""
    raised = re.search(r"^(?:\[rank\d+\]:\s*)?(?:[\w.]*Error): (.+)$", stderr, re.MULTILINE)
    if raised is not None:
        return raised[1].removeprefix("bench: ")
    first = stderr.rpartition("Root Cause")[2]  # the others are those that torchrun ended because of it
    ended = re.search(r"rank\s*: (\d+).*?exitcode\s*: (-?\d+)", first, re.DOTALL)
    if ended is not None:
        return f"rank {ended[1]} {_ended(int(ended[2]))}"
    told = [line for line in stderr.splitlines() if line.strip("*= ")]
    return told[-1].strip() if told and code >= 0 else f"the process {_ended(code)}"


def _ended(code: int) -> str:
    """In words; a negative code is the signal that did it, as subprocess and torchrun have it."""
    if code >= 0:
        return f"ended with exit code {code}"
    hint = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
    return f"was ended by signal {-code} ({signal.strsignal(-code)}){hint}"


def tell(found: dict[str, Any]) -> None:
    """Answer the process that asked; one rank does."""
    print(json.dumps(found), flush=True)


def machine(platform: Platform) -> dict[str, Any]:
    """What the numbers belong to."""
    return {
        "device": platform.device_name(),
        "platform": platform.name,
        "memory_gib": round(platform.memory_bytes() / 2**30, 1),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "opensora": __version__,
        "date": datetime.date.today().isoformat(),
    }


def heading(found: dict[str, Any]) -> str:
    """The line above the tables: machine, torch, day."""
    device = found["machine"]
    return f"{device['device']}, {device['memory_gib']} GiB, torch {device['torch']}, {device['date']}"
