"""Measurements in processes of their own, and the description of the machine that heads every result."""

import datetime
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from opensora import __version__
from opensora.errors import OpenSoraError
from opensora.platforms import Platform

CHECKOUT = Path(__file__).resolve().parents[1]
_TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def run_module(module: str, *arguments: str, ranks: int | None = None) -> dict[str, Any]:
    """Run `python -m module arguments`, under torchrun with `ranks` processes if given, and return its `send_result`.

    The process starts in the checkout, where `bench` can be imported. Raises OpenSoraError, with the command, when it
    fails.
    """
    launcher = [] if ranks is None else [*_TORCHRUN, str(ranks)]
    command = [*launcher, "-m", module, *arguments]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=CHECKOUT)
    results = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not results:
        raise OpenSoraError(
            f"bench: {_reason(done.stderr, done.returncode)}; to see more, run `python {' '.join(command)}` in {CHECKOUT}"
        )
    return json.loads(results[-1])


def _reason(stderr: str, code: int) -> str:
    """The message of the first exception, else the exit of the first rank that failed, else the last line."""
    exception = re.search(r"^(?:\[rank\d+\]:\s*)?(?:[\w.]*Error): (.+)$", stderr, re.MULTILINE)
    if exception is not None:  # it stands before torchrun's own
        return exception[1].removeprefix("bench: ")
    root_cause = stderr.rpartition("Root Cause")[2]  # torchrun ended the other ranks because of this one
    exited = re.search(r"rank\s*: (\d+).*?exitcode\s*: (-?\d+)", root_cause, re.DOTALL)
    if exited is not None:
        return f"rank {exited[1]} {_describe_exit(int(exited[2]))}"
    lines = [line for line in stderr.splitlines() if line.strip("*= ")]
    return lines[-1].strip() if lines and code >= 0 else f"the process {_describe_exit(code)}"


def _describe_exit(code: int) -> str:
    """An exit code in words; a negative one is a signal, as in subprocess and torchrun."""
    if code >= 0:
        return f"ended with exit code {code}"
    hint = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
    return f"was ended by signal {-code} ({signal.strsignal(-code)}){hint}"


def send_result(result: dict[str, Any]) -> None:
    """Print the result for the process that called `run_module`; only one rank does."""
    print(json.dumps(result), flush=True)


def machine(platform: Platform) -> dict[str, Any]:
    """The device, software and day that the numbers belong to."""
    return {
        "device": platform.device_name(),
        "platform": platform.name,
        "memory_gib": round(platform.memory_bytes() / 2**30, 1),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "opensora": __version__,
        "date": datetime.date.today().isoformat(),
    }


def heading(results: dict[str, Any]) -> str:
    """The line above the tables: machine, torch, day."""
    device = results["machine"]
    return f"{device['device']}, {device['memory_gib']} GiB, torch {device['torch']}, {device['date']}"
