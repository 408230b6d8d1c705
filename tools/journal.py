"""Results of single rows, kept on disk as they come.

One line of JSON per finished row, keyed by (function, flags, row): a changed flag or row is computed again, whatever
else the file holds. A row that takes long adds lines with the state to go on from. A line cut off by a kill is ignored.
The journal of `out.csv` is `.out.csv.journal` next to it, until every row is done.
"""

import fcntl
import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

from opensora import files
from opensora.errors import DataError


def job_key(fn: Callable[..., Any], flags: dict[str, Any], row: dict[str, Any]) -> str:
    name = f"{os.path.basename(fn.__code__.co_filename)}:{fn.__qualname__}"  # __module__ may be __main__
    text = json.dumps([name, flags, row], sort_keys=True, default=str)
    return files.hash_text(text, 12)


class Journal:
    """`done`: key -> rows that came out; `states`: key -> where an unfinished row goes on. Use it in a `with` statement.

    keep: take over what an earlier run finished; otherwise begin afresh. read_only: change nothing on disk. A journal
    without a line, and one that is `complete`, is removed at the end.
    """

    def __init__(self, output: str, keep: bool, read_only: bool = False) -> None:
        folder, name = os.path.split(os.path.abspath(output))
        self.output = output
        self.path = os.path.join(folder, f".{name}.journal")
        self.keep = keep
        self.read_only = read_only
        self.done: dict[str, list[dict[str, Any]]] = {}
        self.states: dict[str, dict[str, Any]] = {}
        self.complete = False
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "Journal":
        if self.read_only:
            if self.keep and os.path.exists(self.path):
                with open(self.path, "rb") as earlier:
                    self._load(earlier)
            return self
        file = self._locked_file()
        if not self.keep:
            file.truncate(0)
        file.seek(0)
        whole = self._load(file)
        file.truncate(whole)  # the cut-off line of a kill would spoil the one written after it
        self._file = file
        return self

    def _locked_file(self) -> IO[bytes]:
        """The file, which no other run can open until it is closed."""
        while True:
            try:
                os.makedirs(os.path.dirname(self.path), exist_ok=True)
                file: IO[bytes] = open(self.path, "a+b")  # noqa: SIM115 (the caller closes it)
            except OSError as error:
                raise DataError(
                    f"{self.output}: cannot be written ({error.strerror}); choose a writable folder"
                ) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                raise DataError(
                    f"{self.output}: another run is writing it; wait for it or choose another output"
                ) from None
            with suppress(FileNotFoundError):  # a run that ended in between has removed it
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                    return file
            file.close()

    def __exit__(self, *_: object) -> None:
        if self._file is None:
            return
        if self.complete or not (self.done or self.states):
            with suppress(OSError):  # before the lock is released, so that it is this run's own file
                os.unlink(self.path)
        self._file.close()

    def _load(self, file: IO[bytes]) -> int:
        """Fill `done` and `states`; returns the bytes of whole lines."""
        whole = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                key, rows = json.loads(line)
            except (ValueError, TypeError):
                break
            if not isinstance(key, str):
                break
            if isinstance(rows, dict):
                self.states[key] = rows
            else:
                self.done[key] = rows
            whole += len(line)
        return whole

    def add(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Keep the rows of one finished job; once this returns, a kill cannot lose them."""
        self.done[key] = self._write(key, rows)
        self.states.pop(key, None)

    def add_state(self, key: str, state: dict[str, Any]) -> None:
        """Keep where an unfinished job can go on."""
        self.states[key] = self._write(key, state)

    def _write(self, key: str, value: Any) -> Any:
        """Append a line; returns the value as it will be read."""
        assert self._file is not None
        line = json.dumps([key, value]).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror}); what was done before is kept; "
                "free some space and run again with --resume"
            ) from error
        return json.loads(line)[1]
