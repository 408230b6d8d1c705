"""ScratchFolder: a hidden folder next to an output, for what becomes the output and for what does not fit into memory."""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import uuid
from pathlib import Path

from opensora import files
from opensora.errors import DataError

_LOCK = "lock"


class ScratchFolder:
    """Make one at `path`; `close` removes it.

    A program that is killed leaves its folder behind. The next one for the same output removes it: a lock on a file inside
    ends with the process, on whichever machine that was. output: None makes a folder in the system's place for them.
    """

    def __init__(self, output: str | None) -> None:
        target = Path(tempfile.gettempdir(), "opensora") if output is None else Path(os.path.abspath(output))
        stem = f".{target.name[:64]}"
        with files.write_errors_as(DataError, output or str(target), "choose a writable place with free space"):
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(target.parent, stem)
            # The folder gets its name when it is locked, so that no other program takes it for a stale one.
            name = f"{stem}.{uuid.uuid4().hex}"
            new = target.with_name(f"{name}.new")
            new.mkdir(mode=0o700)
            self._lock = open(new / _LOCK, "w+b")  # noqa: SIM115 (`close` closes it)
            with contextlib.suppress(OSError):  # a file system without locks: then nothing there is ever stale
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder = new.rename(target.with_name(f"{name}.tmp"))
        self.path = os.path.realpath(folder)

    def close(self) -> None:
        self._lock.close()  # first, for network file systems keep a file that is open
        shutil.rmtree(self.path, ignore_errors=True)


def _remove_stale(parent: Path, stem: str) -> None:
    """Remove the folders of programs that are gone."""
    is_scratch = re.compile(rf"{re.escape(stem)}\.[0-9a-f]{{32}}\.tmp", re.DOTALL)
    for name in os.listdir(parent):
        if not is_scratch.fullmatch(name):
            continue
        if _is_free(parent / name / _LOCK):
            shutil.rmtree(parent / name, ignore_errors=True)


def _is_free(lock: Path) -> bool:
    """True if the lock is there and no living process holds it."""
    try:
        with open(lock, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
