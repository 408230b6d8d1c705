"""MarkedManifest: a manifest with the marks and captions that a person gave its rows, in DuckDB.

Every change is kept at once in a hidden file next to the manifest (change_journal.py), so that a kill loses none. `save` writes
all of them into the manifest.
"""

import dataclasses
import os
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from opensora.datasets.missing_values import is_missing
from opensora.errors import ConfigError, DataError
from tools.browse.change_journal import TOOL, ChangeJournal
from tools.datasets.database import ROW, Database
from tools.datasets.expression import condition, values_as_written
from tools.datasets.moved_path import name
from tools.history import extend_history, hash_input, history_metadata, write_history

if TYPE_CHECKING:
    import numpy as np

MARKS = ("good", "bad")
Mark = Literal["good", "bad", ""]
_CHANGED = ("mark", "text")  # columns that a person changes


class MarkedManifest:
    """Use it in a `with` statement. Several threads may call it.

    path: a .csv, .parquet or .jsonl file with a column `path`. Raises ConfigError for another table, and where the hidden
    file holds changes of another state of the manifest, unless `discard` is set.
    """

    def __init__(self, path: str, *, memory_gb: float = 2.0, discard: bool = False) -> None:
        if os.path.isdir(path):
            raise ConfigError(
                f"{path}: is a folder; the page writes its changes back into one file; join the shards first: "
                f"python -m tools.datasets.merge {path} manifest.parquet"
            )
        self.path, self._memory_gb, self._discard = path, memory_gb, discard
        self._lock = threading.RLock()

    def __enter__(self) -> "MarkedManifest":
        self._open(self._discard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._database.__exit__(kind, error, trace)

    def _open(self, discard: bool = False) -> None:
        database = Database(self.path, memory_gb=self._memory_gb).__enter__()
        try:
            source = database.open(self.path)
            source.require("path")
            self._hash = hash_input(self.path)
            changes = ChangeJournal(self.path, self._hash)
            kept = {} if discard else changes.read()
            if discard:
                changes.remove()
            database.execute("CREATE TEMP TABLE changes (n BIGINT PRIMARY KEY, mark VARCHAR, text VARCHAR)")
            cells = [f"r.{name(column)}" for column in source.columns if column not in _CHANGED]
            for column in _CHANGED:
                old = f"CAST(r.{column} AS VARCHAR)" if column in source.types else "CAST(NULL AS VARCHAR)"
                cells.append(f"CASE WHEN c.n IS NULL THEN {old} ELSE c.{column} END AS {column}")
            database.execute(
                f"CREATE TEMP VIEW marked AS SELECT r.{name(ROW)}, {', '.join(cells)} FROM {source.numbered} r "
                f"LEFT JOIN changes c ON c.n = r.{name(ROW)}"
            )
            types = {column: kind for column, kind in source.types.items() if column not in _CHANGED}
            self._source = dataclasses.replace(
                source, view="marked", numbered="marked", types={**types, **dict.fromkeys(_CHANGED, "VARCHAR")}
            )
            self._added = [column for column in _CHANGED if column not in source.types]
            self._order = [*source.columns, *self._added]
            database.lock()
            self._database, self._changes = database, changes
            for number, change in kept.items():
                self._set(number, change["mark"], change["text"])
            self.resumed = len(kept)
        except BaseException:
            database.__exit__(None, None, None)
            raise

    @property
    def rows(self) -> int:
        return self._source.rows

    @property
    def folder(self) -> str:
        """That relative paths of the manifest belong to."""
        return self._source.folder

    @property
    def columns(self) -> list[str]:
        """In the order of the manifest; `mark` and `text` at the end where it lacks them."""
        return self._order

    @property
    def changed(self) -> int:
        """Rows with changes that are not in the manifest yet."""
        with self._lock:
            return int(self._database.row("SELECT count(*) FROM changes")[0])

    def select(self, expression: str = "", sort: str = "", descending: bool = False) -> "np.ndarray":
        """Numbers of the rows, from 0, for which an expression of DuckDB is true, empty cells of the order last.

        Raises ConfigError when DuckDB refuses the expression, and for a column that is not there.
        """
        with self._lock:
            where = "true"
            if expression.strip():
                where = condition(self._database, self._source, expression, "filter")
            order = name(ROW)
            if sort:
                self._source.require(sort)
                order = f"{name(sort)} {'DESC' if descending else 'ASC'} NULLS LAST, {order}"
            with values_as_written(self._source), self._database.friendly_errors():
                query = f"SELECT {name(ROW)} AS n FROM marked WHERE {where} ORDER BY {order}"
                return self._database.connection.execute(query).fetchnumpy()["n"]

    def row(self, number: int) -> dict[str, Any]:
        """The cells of a row with its changes; a relative path is made absolute. Raises IndexError."""
        with self._lock:
            cells = ", ".join(name(column) for column in self._order)
            rows = self._database.rows(f"SELECT {cells} FROM marked WHERE {name(ROW)} = {int(number)}")
        if not rows:
            raise IndexError(f"row {number} of {self.rows}")
        row = dict(zip(self._order, rows[0], strict=True))
        path = os.path.expanduser(str(row["path"] or "").strip())
        return {**row, "path": os.path.normpath(os.path.join(self._source.folder, path))}

    def mark(self, number: int, mark: Mark) -> None:
        """Mark a row as good or bad; an empty mark takes the mark away."""
        with self._lock:
            row = self.row(number)
            self._change(number, mark, row["text"])

    def correct(self, number: int, text: str) -> bool:
        """Give a row another caption; False if it is the one that it has."""
        with self._lock:
            row = self.row(number)
            if text == ("" if is_missing(row["text"]) else str(row["text"])):
                return False
            self._change(number, row["mark"], text)
            return True

    def _change(self, number: int, mark: str | None, text: str | None) -> None:
        self._changes.add(number, mark or "", text)
        self._set(number, mark or "", text)

    def _set(self, number: int, mark: str, text: str | None) -> None:
        # By parameters: a caption is never part of the SQL.
        self._database.connection.execute(
            "INSERT OR REPLACE INTO changes VALUES (?, ?, ?)", [number, mark or None, text]
        )

    def _has(self, column: str) -> bool:
        """True if a row has a value of the column."""
        return self._database.row(f"SELECT count({name(column)}) FROM marked") != (0,)

    def save(self) -> int:
        """Write the changes into the manifest with a line of its history; returns the rows that were changed.

        Raises DataError when the manifest is no longer the file that was opened, and when it cannot be written.
        """
        with self._lock:
            changed = self.changed
            if not changed:
                return 0
            if not os.path.exists(self.path) or hash_input(self.path) != self._hash:
                raise DataError(
                    f"{self.path}: another program changed it since the page opened it; nothing was saved; the "
                    f"{changed} changes lie in {self._changes.path}; put the old file back, or start again with --discard"
                )
            marks = dict(self._database.rows("SELECT mark, count(*) FROM changes WHERE mark IS NOT NULL GROUP BY mark"))
            arguments = {"changed_rows": changed, **{mark: marks.get(mark, 0) for mark in MARKS}}
            history = extend_history(TOOL, arguments, [self.path], [self._hash], rows=self.rows)
            cells = ", ".join(name(column) for column in self._order if column not in self._added or self._has(column))
            self._database.write(
                f"SELECT {cells} FROM marked ORDER BY {name(ROW)}",
                self.path,
                metadata=history_metadata(self.path, history),
            )
            write_history(self.path, history)
            self._changes.remove()
            self._database.__exit__(None, None, None)
            self._open()
            return changed
