"""Database: tables of any size in DuckDB, for the tools that work on whole tables.

A table is a .csv, .parquet or .jsonl file or a folder of such shards; it is never read into memory as a whole. What DuckDB
cannot keep in `memory_gb` it writes to a folder next to the output, which is removed at the end.

An expression of a user sees the columns and nothing else: `lock` shuts files, extensions and settings before it is run.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from opensora import files
from opensora.datasets.csv_rows import require_different
from opensora.datasets.table import friendly_io_errors, table_files
from opensora.datasets.table_writer import PATHS, TABLES, is_folder_name, is_json, is_parquet, table_folder
from opensora.errors import ConfigError, DataError
from tools.datasets.batch_writer import move_table, write_batches
from tools.datasets.moved_path import moved_path, name, text
from tools.datasets.scratch_folder import ScratchFolder
from tools.datasets.staged_text import EMPTY, StagedText, stage_csv, stage_json
from tools.packages import require_packages

if TYPE_CHECKING:
    import pyarrow

ROW = "number of the row"  # column of numbered rows, from 0
_BATCH = 122_880  # rows: a row group of DuckDB
_LIMIT_ADVICE = "give more with --memory-gb, or free space next to the output"


@dataclass(frozen=True)
class Source:
    """A table that was opened: `view` is its name in SQL, `numbered` that of its rows with their numbers as column ROW.

    types: column -> type of DuckDB. folder: that relative paths in it belong to. damaged: sentences about the first rows that
    cannot be read and are not in the view; damaged_rows: of all of them. empty: columns of text without a single value.
    odd_cells: column of a CSV -> the cell that makes it text, where most of its cells are numbers.
    """

    path: str
    view: str
    numbered: str
    types: dict[str, str]
    folder: str
    rows: int
    damaged: list[str] = field(default_factory=list)
    damaged_rows: int = 0
    empty: frozenset[str] = frozenset()
    odd_cells: dict[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        return list(self.types)

    def require(self, *needed: str) -> None:
        """Raise ConfigError for a column that is not there."""
        missing = [column for column in needed if column not in self.types]
        if missing:
            raise ConfigError(
                f"{self.path}: no column {', '.join(map(repr, missing))}; columns: {', '.join(self.columns) or 'none'}"
            )

    def moved(self, column: str, folder: str, alias: str = "") -> str:
        """SQL of a column for a table in `folder`. alias: of the view in the query."""
        cell = f"{alias}.{name(column)}" if alias else name(column)
        return moved_path(cell, self.folder, folder) if column in PATHS and self.types[column] == "VARCHAR" else cell

    def selection(self, folder: str, alias: str = "") -> str:
        """SQL of all columns for a table in `folder`, in their order."""
        return ", ".join(f"{self.moved(column, folder, alias)} AS {name(column)}" for column in self.columns)


class Database:
    """Use it in a `with` statement.

    output: the table to be written; temporary files lie next to it. memory_gb: DuckDB's limit, to which Arrow and Python
    add some hundred MB.
    """

    def __init__(self, output: str | None = None, *, memory_gb: float = 2.0) -> None:
        if memory_gb < 0.1:
            raise ConfigError(f"--memory-gb {memory_gb:g}; allowed: 0.1 or more; correct it")
        require_packages(["duckdb"])
        self.output, self.memory_gb = output, memory_gb
        self.folder = table_folder(output) if output is not None else ""  # that paths in the output belong to
        self.temporary = ""
        self.sources: list[Source] = []  # the tables that were opened
        self._files: dict[str, str] = {}  # Parquet under a plain name -> the table that it is

    def __enter__(self) -> "Database":
        import duckdb

        self._scratch = ScratchFolder(self.output)
        self.temporary = self._scratch.path
        self.connection = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": f"{int(self.memory_gb * 1000)}MB",
                "temp_directory": os.path.join(self.temporary, "spilled"),
                "preserve_insertion_order": "true",
                # It takes the word of a Parquet file for the largest value, which leaves NaN out, and drops tests for NaN.
                "disabled_optimizers": "statistics_propagation",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "python_enable_replacements": "false",  # an expression does not see the variables of this program
            },
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()
        self._scratch.close()

    def open(self, path: str, view: str = "manifest", *, skip_damaged: bool = False) -> Source:
        """Open a table. Raises DataError when it cannot be read, and for damaged rows unless `skip_damaged`."""
        fault = files.path_fault(path, utf8=True)
        if fault is not None:
            raise DataError(
                f"a table is {fault}; allowed: a file that ends in {', '.join(TABLES)}, or a folder of them"
            )
        parts = [self._part(part, f"{view}-{number}") for number, part in enumerate(shards(path))]
        damaged = [f"{part.path}:{message}" for part in parts for message in part.staged.damaged]
        damaged_rows = sum(part.staged.damaged_rows for part in parts)
        if damaged_rows and not skip_damaged:
            raise DataError(
                f"{damaged[0]}; {damaged_rows} row{'s' * (damaged_rows > 1)} of {path} cannot be read; correct "
                f"{'them' if damaged_rows > 1 else 'it'}, or leave {'them' if damaged_rows > 1 else 'it'} out with --skip-damaged"
            )
        with self.friendly_errors(path):
            numbered = name(f"{view} with numbers")
            self.connection.execute(f"CREATE TEMP VIEW {numbered} AS {_union(path, parts)}")
            self.connection.execute(f"CREATE TEMP VIEW {name(view)} AS SELECT * EXCLUDE ({name(ROW)}) FROM {numbered}")
            types = self.types_of(f"SELECT * FROM {name(view)}")
        rows = sum(part.rows for part in parts)
        folder = os.path.abspath(path) if os.path.isdir(path) else os.path.dirname(os.path.abspath(path))
        odd_cells = {column: cell for part in parts for column, cell in part.staged.odd_cells.items()}
        empty = frozenset(column for column in types if all(part.lacks(column) for part in parts))
        source = Source(path, name(view), numbered, types, folder, rows, damaged, damaged_rows, empty, odd_cells)
        self.sources.append(source)
        return source

    def _part(self, path: str, stem: str) -> "_Part":
        # Under a plain name: DuckDB would take * or [ in a name for a pattern, and a name may hold a line break.
        plain = os.path.join(self.temporary, f"{stem}.parquet")
        self._files[plain] = path
        with friendly_io_errors(path):
            if is_parquet(path):
                import pyarrow.parquet

                names = pyarrow.parquet.read_schema(path).names
                _require_names(path, names)
                os.symlink(os.path.abspath(path), plain)
                rows = pyarrow.parquet.read_metadata(path).num_rows
                with self.friendly_errors(path):
                    types = self.types_of(f"SELECT * FROM {_read(plain)}")
                return _Part(path, plain, StagedText(types, rows), is_text=False)
            staged = (stage_json if is_json(path) else stage_csv)(path, plain)
            _require_names(path, list(staged.types))
            return _Part(path, plain, staged, is_text=not is_json(path))

    def lock(self) -> None:
        """From here on queries reach the opened tables, and neither other files nor settings."""
        allowed = ", ".join(text(os.path.realpath(plain)) for plain in self._files)  # DuckDB follows the links
        self.connection.execute(f"SET allowed_paths = [{allowed}]")
        self.connection.execute(f"SET allowed_directories = [{text(self.temporary + os.sep)}]")
        self.connection.execute("SET enable_external_access = false")
        self.connection.execute("SET lock_configuration = true")

    def types_of(self, query: str) -> dict[str, str]:
        """Column -> type of what a query gives."""
        return {row[0]: row[1] for row in self.connection.execute(f"DESCRIBE {query}").fetchall()}

    def row(self, query: str) -> tuple[Any, ...]:
        """The only row of a query."""
        rows = self.rows(query)
        assert len(rows) == 1
        return rows[0]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """All rows of a query, in memory."""
        with self.friendly_errors():
            return self.connection.execute(query).fetchall()

    def execute(self, statement: str) -> None:
        with self.friendly_errors():
            self.connection.execute(statement)

    def write(
        self,
        query: str,
        output: str,
        *,
        metadata: Mapping[str, str] | None = None,
        shards: Sequence[int] | None = None,
    ) -> int:
        """Write the rows of a query as a table, in their order; returns their number. See write_batches."""
        written = os.path.join(self.temporary, "output.parquet")
        pairs = ", ".join(f"{text(key)}: {text(value)}" for key, value in (metadata or {}).items())
        options = f"FORMAT parquet, KV_METADATA {{{pairs}}}" if pairs else "FORMAT parquet"
        with (
            self.friendly_errors(output),
            files.write_errors_as(DataError, output, "choose a writable place with free space"),
        ):
            # To a file first: rows that DuckDB streams to Python come in any order.
            [rows] = self.row(f"COPY ({query}) TO {text(written)} ({options})")
            if shards is not None or not is_parquet(output):
                json_columns = [column for column, kind in self.types_of(query).items() if kind == "JSON"]
                batches = _batches(written)
                ending = "" if is_folder_name(output) else os.path.splitext(output)[1]
                written = os.path.join(self.temporary, f"written{ending}")
                write_batches(
                    written,
                    *batches,
                    metadata=metadata,
                    shards=shards,
                    json_columns=json_columns,
                    where=output,
                )
            move_table(written, output)
        return int(rows)

    @contextmanager
    def friendly_errors(self, where: str = "") -> Iterator[None]:
        """Raise DataError for an error of DuckDB. where: names the table; by default those that were opened."""
        import duckdb

        try:
            yield
        except duckdb.Error as error:
            words, where = reason(error), where or ", ".join(source.path for source in self.sources)
            for plain, path in self._files.items():
                words = words.replace(plain, path)
            is_full = isinstance(error, duckdb.OutOfMemoryException)
            advice = _LIMIT_ADVICE if is_full else "correct the table or the expression"
            raise DataError(f"{where}: {words}; {advice}") from error


@dataclass(frozen=True)
class _Part:
    """One file of a table. plain: its Parquet under a plain name. is_text: cells are text, whatever their type."""

    path: str
    plain: str
    staged: StagedText
    is_text: bool

    @property
    def rows(self) -> int:
        return self.staged.rows

    def lacks(self, column: str) -> bool:
        """True if the part has no value of the column, as far as its types say."""
        return self.staged.types.get(column, EMPTY) == EMPTY


def _batches(path: str) -> "tuple[pyarrow.Schema, Iterator[pyarrow.RecordBatch]]":
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)

    def batches() -> "Iterator[pyarrow.RecordBatch]":
        with file:
            yield from file.iter_batches(_BATCH)

    return file.schema_arrow, batches()


def shards(path: str) -> list[str]:
    """The files of a table: itself, or in a folder all tables in the order of their names. Raises DataError."""
    if not os.path.isdir(path) and not path.lower().endswith(TABLES):
        raise DataError(
            f"{path}: not the name of a table; allowed: a file that ends in {', '.join(TABLES)}, or a folder of them"
        )
    return table_files(path)


def _require_names(path: str, names: Sequence[str]) -> None:
    """Raise DataError for columns that have one name for DuckDB."""
    require_different(path, names)
    first = {"file_row_number": "file_row_number"}  # of DuckDB
    for column in names:
        if column == "file_row_number":
            raise DataError(f"{path}: a column is named 'file_row_number', which DuckDB has for itself; rename it")
        other = first.setdefault(column.casefold(), column)
        if other != column:
            raise DataError(
                f"{path}: columns {other!r} and {column!r} differ in upper and lower case alone; rename one of them"
            )


def _read(plain: str, numbers: bool = False) -> str:
    """SQL of a Parquet file. numbers: with a column file_row_number."""
    return f"read_parquet({text(plain)}, hive_partitioning = false, file_row_number = {str(numbers).lower()})"


def _union(path: str, parts: Sequence[_Part]) -> str:
    """SQL of all rows with the types that all shards have in common. Raises DataError where there is none."""
    types: dict[str, str] = {}
    all_text = all(part.is_text for part in parts)
    for part in parts:
        for column, kind in part.staged.types.items():
            other = types.setdefault(column, kind)
            both = common_type(other, kind) or ("VARCHAR" if all_text else None)
            if both is None:
                raise DataError(
                    f"{path}: column {column!r} holds {other}, and in {part.path} {kind}; allowed: types that fit together; "
                    "write the shards with one type"
                )
            types[column] = both
    types = {column: "VARCHAR" if kind == EMPTY else kind for column, kind in types.items()}
    selections, before = [], 0
    for part in parts:
        cells = [_typed(part, column, kind) for column, kind in types.items()]
        number = f"file_row_number + {before} AS {name(ROW)}"
        selections.append(f"SELECT {', '.join([*cells, number])} FROM {_read(part.plain, numbers=True)}")
        before += part.rows
    return " UNION ALL ".join(selections)


_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE")
_UNSIGNED = {"UTINYINT": "SMALLINT", "USMALLINT": "INTEGER", "UINTEGER": "BIGINT", "UBIGINT": "HUGEINT"}


def common_type(one: str, other: str) -> str | None:
    """The type that holds the values of two, as numbers do; None if there is none. A column of empty cells fits every type."""
    if one == other:
        return one
    if EMPTY in (one, other):
        return other if one == EMPTY else one
    pair = [_UNSIGNED.get(kind, kind) for kind in (one, other)]
    if not all(kind in _NUMBERS for kind in pair):
        return None
    wider = max(pair, key=_NUMBERS.index)
    return "DOUBLE" if wider == "FLOAT" and not {"FLOAT", "SMALLINT", "TINYINT"} >= set(pair) else wider


def _typed(part: _Part, column: str, kind: str) -> str:
    """SQL of a cell in the type of the table; NaN is an empty cell, for DuckDB would take it for the largest number."""
    stored, cell = part.staged.types.get(column), name(column)
    if stored is None:
        return f"CAST(NULL AS {kind}) AS {cell}"
    typed = cell
    if part.is_text and kind != "VARCHAR":
        typed = f"TRY_CAST(trim({cell}) AS {kind})"
    elif stored != kind or stored == "JSON":
        typed = f"CAST({cell} AS {kind})"
    if kind in ("FLOAT", "DOUBLE"):
        typed = f"CASE WHEN isnan({typed}) THEN NULL ELSE {typed} END"
    return f"{typed} AS {cell}"


def reason(error: Exception) -> str:
    """The first sentence of an error of DuckDB, without its kind."""
    first = str(error).split("\n")[0]
    return first.split("Error: ", 1)[-1].strip().rstrip(".")
