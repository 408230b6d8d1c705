"""Results of single rows, kept on disk as they come.

Keyed by (function, flags, row): a changed flag or row is computed again, whatever else the file holds. A row that takes
long keeps the state to go on from as well. The journal of `out.csv` is the SQLite file `.out.csv.journal` next to it,
until every row is done; it is not read into memory.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from opensora.errors import DataError

_TABLES = """
CREATE TABLE IF NOT EXISTS done (key TEXT PRIMARY KEY, rows TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS states (key TEXT PRIMARY KEY, state TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unused (key TEXT PRIMARY KEY, reason TEXT, left_out INTEGER) WITHOUT ROWID;
"""


class Journal:
    """Rows that came out by key, states of unfinished rows, and why rows were not used. Use it in a `with` statement.

    keep: take over what an earlier run finished; otherwise begin afresh. read_only: leave what is there as it is. A journal
    without a result, and one that is `complete`, is removed at the end.
    """

    def __init__(self, output: str, keep: bool, read_only: bool = False) -> None:
        folder, name = os.path.split(os.path.abspath(output))
        self.output = output
        self.path = os.path.join(folder, f".{name}.journal")
        self.keep = keep
        self.read_only = read_only
        self.complete = False
        self._lock: IO[bytes] | None = None
        self._database = sqlite3.connect(":memory:", isolation_level=None)

    def __enter__(self) -> "Journal":
        if self.read_only and not (self.keep and os.path.exists(self.path)):
            self._database.executescript(_TABLES)
            return self
        self._lock = self._locked_file()
        if not self.keep:
            with suppress(FileNotFoundError):
                os.unlink(f"{self.path}-wal")  # of a run that was killed
            self._lock.truncate(0)
        self._database.close()
        self._database = sqlite3.connect(self.path, isolation_level=None)
        try:
            with self._friendly_errors():
                # Exclusive, because the other way maps a file into memory, which network file systems refuse. The process may
                # be killed at any moment, and loses nothing then; when the machine fails, the last seconds may be lost.
                self._database.executescript(
                    "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;" + _TABLES
                )
        except DataError:
            self._database.close()
            self._lock.close()
            raise
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
        empty = self._lock is None
        with suppress(sqlite3.Error):
            empty = empty or not any(self._count(name) for name in ("done", "states"))
        self._database.close()
        if self._lock is None:
            return
        if (self.complete or empty) and not self.read_only:
            with suppress(OSError):  # before the lock is released, so that it is this run's own file
                os.unlink(self.path)
        self._lock.close()

    def _count(self, table: str) -> int:
        [number] = self._database.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(number)

    def rows(self, key: str) -> list[dict[str, Any]] | None:
        """The rows that came out of a job, or None if it is not finished."""
        entry = self._get("SELECT rows FROM done WHERE key = ?", key)
        return None if entry is None else json.loads(entry[0])

    def state(self, key: str) -> dict[str, Any] | None:
        """The state from which an unfinished job goes on, or None for its start."""
        entry = self._get("SELECT state FROM states WHERE key = ?", key)
        return None if entry is None else json.loads(entry[0])

    def unused(self, key: str) -> tuple[str, bool] | None:
        """Why this run did not use a row, and if its user wanted it so."""
        entry = self._get("SELECT reason, left_out FROM unused WHERE key = ?", key)
        return None if entry is None else (entry[0], bool(entry[1]))

    def _get(self, question: str, key: str) -> tuple[Any, ...] | None:
        with self._friendly_errors():
            entry: tuple[Any, ...] | None = self._database.execute(question, (key,)).fetchone()
            return entry

    def add(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Keep the rows of one finished job; once this returns, a kill cannot lose them."""
        self._write("REPLACE INTO done VALUES (?, ?)", key, json.dumps(rows, default=_plain))
        self._write("DELETE FROM states WHERE key = ?", key)

    def add_state(self, key: str, state: dict[str, Any]) -> None:
        """Keep where an unfinished job can go on."""
        self._write("REPLACE INTO states VALUES (?, ?)", key, json.dumps(state, default=_plain))

    def add_unused(self, key: str, reason: str, left_out: bool) -> None:
        """Keep why a row gave no result; the next run tries it again."""
        self._write("REPLACE INTO unused VALUES (?, ?, ?)", key, reason, left_out)
        self._write("DELETE FROM done WHERE key = ?", key)  # of a file that was removed and cannot be made again

    def forget_unused(self) -> None:
        """Begin to collect the rows of this run that give no result."""
        self._write("DELETE FROM unused")

    def _write(self, command: str, *values: Any) -> None:
        with self._friendly_errors():
            self._database.execute(command, values)

    @contextmanager
    def _friendly_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise DataError(
                f"{self.path}: cannot be written ({error}); what was done before is kept; "
                "free some space and run again with --resume"
            ) from error
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{self.path}: not the journal of an earlier run, or damaged ({error}); remove it, or run without --resume"
            ) from error


def _plain(value: Any) -> Any:
    """Numbers and arrays of NumPy as JSON knows them; dates and the like as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
