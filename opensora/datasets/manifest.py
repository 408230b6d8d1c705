"""Manifests: tables of clips as CSV, Parquet, JSON lines or a folder of such shards, one row per clip.

Columns (Open-Sora's words): path, text; optional num_frames, height, width (pixels), fps; optional start, end (seconds
from the first frame) when a row is one shot of a longer video. Other columns are kept for tools and ignored by training.
Paths are absolute or relative to the manifest's folder.

All formats are read block by block into Arrow columns, and one set of rules checks the columns. A row becomes a Python
object when it is read. Checking costs no Python per row: only refused rows are looked at one by one, and of those
the first `MAX_MESSAGES` of each reason.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from opensora.datasets.duplicate_rows import first_of_equals
from opensora.datasets.missing_values import blank_mask, is_missing, word_mask
from opensora.datasets.row_blocks import RowBlock, misspelled_columns, read_blocks
from opensora.datasets.row_places import RowPlaces
from opensora.datasets.row_report import Dropped, DroppedRows
from opensora.datasets.table import friendly_io_errors, table_files
from opensora.datasets.table_writer import is_parquet, relative_path
from opensora.errors import DataError
from opensora.files import expand_home

if TYPE_CHECKING:
    import pyarrow

Mask = NDArray[np.bool_]
TEXTS = ("path", "text")
LOWEST = {"start": 0.0, "end": 0.0, "num_frames": 1.0, "height": 1.0, "width": 1.0, "fps": 1e-3}  # in checking order
WHOLE = ("num_frames", "height", "width")
MAX_INT32 = 2**31 - 1  # frames or pixels
EMPTY = {
    "path": "the path is empty; every row needs a file; fill it in or remove the row",
    "text": "the caption is empty; every row needs one; fill it in or remove the row",
}
NULL_BYTE = "the path holds a null byte, which no file name does; correct it or remove the row"
WORDS = {"path": "path", "text": "caption"}  # column -> its name in messages
# A path that os.path.normpath changes: it begins with ./ or ../, or has an empty, . or .. part, or a / at its end.
_NOT_NORMAL = r"(^\.{1,2}(/|$))|(/\.{0,2}(/|$))"


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One clip that a manifest lists. None: the manifest leaves the value out."""

    index: int  # among all rows of the manifest, from 0
    location: str  # "train.csv:7", for messages
    path: str  # absolute
    text: str
    num_frames: int | None
    fps: float | None
    height: int | None  # pixels
    width: int | None  # pixels
    start: float | None  # seconds from the first frame of the file
    end: float | None  # seconds, exclusive


@dataclass(frozen=True)
class Columns:
    """The numbers of rows, an array [n] each. 0 and NaN: the manifest leaves the value out."""

    index: NDArray[np.int64]  # among all rows of the manifest, from 0
    num_frames: NDArray[np.int32]
    height: NDArray[np.int32]  # pixels
    width: NDArray[np.int32]  # pixels
    fps: NDArray[np.float64]
    start: NDArray[np.float64]  # seconds
    end: NDArray[np.float64]  # seconds

    def take(self, positions: NDArray[np.integer]) -> "Columns":
        return Columns(*(getattr(self, field.name)[positions] for field in fields(self)))


class Rows(Sequence[ManifestRow]):
    """Usable rows of a manifest, kept as columns; an item is made when it is read.

    texts: path (relative to the manifest's folder where it lies below it) and text, of all rows of the manifest.
    places: of all rows.
    """

    def __init__(
        self, path: str, texts: dict[str, "pyarrow.ChunkedArray"], places: RowPlaces, columns: Columns
    ) -> None:
        self.path = path
        self.folder = os.path.abspath(path) if os.path.isdir(path) else os.path.dirname(os.path.abspath(path))
        self.columns = columns
        self._texts = texts
        self._places = places

    def __len__(self) -> int:
        return len(self.columns.index)

    @overload
    def __getitem__(self, position: int) -> ManifestRow: ...

    @overload
    def __getitem__(self, position: slice) -> list[ManifestRow]: ...

    def __getitem__(self, position: int | slice) -> ManifestRow | list[ManifestRow]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        columns, index = self.columns, int(self.columns.index[position])
        return ManifestRow(
            index,
            self._places.location(index),
            os.path.normpath(os.path.join(self.folder, self._text("path", index))),
            self._text("text", index),
            int(columns.num_frames[position]) or None,
            _number_or_none(columns.fps[position]),
            int(columns.height[position]) or None,
            int(columns.width[position]) or None,
            _number_or_none(columns.start[position]),
            _number_or_none(columns.end[position]),
        )

    def take(self, positions: NDArray[np.integer]) -> "Rows":
        """The rows at these positions only."""
        return Rows(self.path, self._texts, self._places, self.columns.take(positions))

    def texts(self) -> "pyarrow.LargeStringArray":
        """The captions of these rows."""
        import pyarrow

        if "text" not in self._texts:
            return pyarrow.array([""] * len(self), pyarrow.large_string())
        return self._texts["text"].take(pyarrow.array(self.columns.index)).combine_chunks()

    def ending_with(self, suffixes: Sequence[str]) -> Mask:
        """True for each row whose path ends with one of the suffixes, in upper or lower case."""
        import pyarrow.compute

        paths, matches = self._texts["path"], np.zeros(len(self._texts["path"]), dtype=np.bool_)
        for suffix in suffixes:
            matches |= pyarrow.compute.ends_with(paths, pattern=suffix, ignore_case=True).to_numpy()
        return matches[self.columns.index]

    def _text(self, name: str, index: int) -> str:
        return self._texts[name][index].as_py() if name in self._texts else ""


@dataclass(frozen=True)
class Manifest:
    path: str
    rows: Rows
    dropped: list[Dropped]
    notes: list[str]  # about columns that are not read


def read_manifest(path: str, captions: bool = True, block_rows: int | None = None) -> Manifest:
    """Read the rows fit for training, and list the others with their line and the reason.

    captions: False makes the text column optional, as for an autoencoder; captions are then empty.
    block_rows: rows read at a time; by default a number that keeps memory flat.
    Raises DataError when a file cannot be read or a column is missing.
    """
    import pyarrow

    names = TEXTS if captions else TEXTS[:1]
    dropped, places, notes = DroppedRows(), RowPlaces(), list[str]()
    parts: list[_Checked] = []
    for file in table_files(path):
        with friendly_io_errors(file):
            notes = notes or misspelled_columns(file, tuple(LOWEST))  # shards have one header
            blocks = read_blocks(file, names, tuple(LOWEST), block_rows)
            checked = [_check(file, block, names, dropped) for block in blocks]
        lines = None if is_parquet(file) else np.concatenate([np.zeros(0, np.int64), *(each.lines for each in checked)])
        places.add(file, sum(len(each.usable) for each in checked), lines)
        parts += checked
    texts = {
        name: pyarrow.chunked_array([part.texts[name] for part in parts], pyarrow.large_string()) for name in names
    }
    usable = np.concatenate([np.zeros(0, dtype=np.bool_), *(part.usable for part in parts)])
    numbers = {name: _joined(name, parts, len(usable)) for name in LOWEST}
    first = first_of_equals(texts["path"], numbers["start"], numbers["end"], usable)
    repeats = np.flatnonzero(first != np.arange(len(first)))

    def message(index: int) -> str:
        other = places.location_from(int(first[index]), index)
        return f"{places.location(index)}: repeats the path, start and end of {other}; remove one of them"

    dropped.add("duplicate row", repeats, message)
    usable[repeats] = False
    rows = Rows(path, texts, places, Columns(np.arange(len(usable)), **numbers))
    return Manifest(path, rows if usable.all() else rows.take(np.flatnonzero(usable)), dropped.rows, notes)


class _Checked(NamedTuple):
    """A block after the rules: the values that training needs, and the usable rows."""

    texts: dict[str, "pyarrow.LargeStringArray"]
    numbers: dict[str, NDArray[Any]]  # of the columns that the file has
    lines: Sequence[int] | NDArray[np.int64]
    usable: Mask


def _check(path: str, block: RowBlock, names: Sequence[str], dropped: DroppedRows) -> _Checked:
    """Apply the rules of a manifest to a block: this is the one place that has them."""
    table, n = block.table, block.table.num_rows
    texts, numbers, wrong = {}, {}, {}
    undecodable = {}
    for name in names:
        texts[name], undecodable[name] = _as_text(path, name, table.column(name))
    for name, lowest in LOWEST.items():
        if name in table.column_names:
            numbers[name], wrong[name] = _numbers(table.column(name), lowest)

    def cell(name: str, position: int) -> object:
        return table.column(name)[position].as_py()

    def bad_number(name: str) -> Callable[[int], str]:
        return lambda position: (
            f"{name} is {cell(name, position)!r}; a number of at least {LOWEST[name]:g} is allowed, with a decimal point; "
            "correct it or leave it empty"
        )

    def not_utf8(name: str) -> Callable[[int], str]:
        return lambda _: f"column {name!r} is not UTF-8; manifests are UTF-8; write the table again"

    def empty(name: str) -> Callable[[int], str]:
        return lambda _: EMPTY[name]

    def a_word(name: str) -> Callable[[int], str]:
        return lambda position: (
            f"the {WORDS[name]} is {texts[name][position].as_py()!r}, which programs write for an empty cell; fill it in or "
            "remove the row"
        )

    def bad_end(position: int) -> str:
        start = numbers["start"][position] if "start" in numbers else 0.0
        return f"end is {numbers['end'][position]:g} and start {np.nan_to_num(start):g}; end must be later, in seconds"

    # Of several faults in a row, the first rule in this order names it.
    rules: list[tuple[str, Mask, Callable[[int], str]]] = []
    for reason in dict.fromkeys(error.reason for error in block.errors.values()):
        mask = np.zeros(n, dtype=np.bool_)
        mask[[position for position, error in block.errors.items() if error.reason == reason]] = True
        rules.append((reason, mask, lambda position: str(block.errors[position])))
    for name in names:
        rules.append(("not UTF-8", undecodable[name], not_utf8(name)))
        rules.append((f"empty {WORDS[name]}", blank_mask(texts[name]), empty(name)))
        rules.append((f"empty {WORDS[name]}", word_mask(texts[name]), a_word(name)))
    rules.append(("bad path", _holds_null_byte(texts["path"]), lambda _: NULL_BYTE))
    for name in numbers:
        rules.append(("bad number", wrong[name], bad_number(name)))
        if name == "end":
            rules.append(("bad number", numbers["end"] <= np.nan_to_num(numbers.get("start", np.zeros(n))), bad_end))
    broken = np.full(n, -1, dtype=np.int8)  # the first rule that each row breaks
    for rule, (_, mask, _) in enumerate(rules):
        broken[mask & (broken < 0)] = rule

    def message(position: int) -> str:
        return f"{path}:{block.lines[position]}: {rules[broken[position]][2](position)}"

    for reason in dict.fromkeys(reason for reason, _, _ in rules):
        mask = np.isin(broken, [rule for rule, (name, _, _) in enumerate(rules) if name == reason])
        dropped.add(reason, np.flatnonzero(mask), message)
    for name in WHOLE:
        if name in numbers:
            numbers[name] = np.clip(np.nan_to_num(numbers[name]), 0, MAX_INT32).astype(np.int32)
    texts["path"] = _relative_paths(texts["path"], os.path.dirname(os.path.abspath(path)))
    return _Checked(texts, numbers, block.lines, broken < 0)


def _as_text(path: str, name: str, column: "pyarrow.ChunkedArray") -> tuple["pyarrow.LargeStringArray", Mask]:
    """The column as strings without outer spaces, "" for an empty cell, and a mask of the cells that are not UTF-8."""
    import pyarrow
    import pyarrow.compute as compute

    undecodable = np.zeros(len(column), dtype=np.bool_)
    if pyarrow.types.is_floating(column.type):  # whole numbers, where an empty cell made the column one of floats
        values = column.to_numpy()
        column = pyarrow.array([None if np.isnan(v) else f"{v:.0f}" if v == np.floor(v) else str(v) for v in values])
    try:
        text = compute.cast(column, pyarrow.large_string())
        text = text.combine_chunks() if isinstance(text, pyarrow.ChunkedArray) else text
        text.validate(full=True)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        kinds = pyarrow.types
        if not any(is_kind(column.type) for is_kind in (kinds.is_binary, kinds.is_large_binary, kinds.is_unicode)):
            raise DataError(
                f"{path}: column {name!r} holds {column.type}, which is no text ({error}); strings are needed; write it again"
            ) from error
        cells = [_decoded(cell) for cell in compute.cast(column, pyarrow.large_binary()).to_pylist()]
        undecodable[[position for position, cell in enumerate(cells) if cell is None]] = True
        text = pyarrow.array(cells, pyarrow.large_string())
    return compute.fill_null(compute.utf8_trim_whitespace(text), ""), undecodable


def _decoded(cell: bytes | None) -> str | None:
    """The text of bytes, "" for an empty cell, None if they are not UTF-8."""
    try:
        return (cell or b"").decode()
    except UnicodeDecodeError:
        return None


def _holds_null_byte(text: "pyarrow.LargeStringArray") -> Mask:
    import pyarrow.compute

    data = text.buffers()[2]
    if data is None or not (np.frombuffer(data, dtype=np.uint8) == 0).any():
        return np.zeros(len(text), dtype=np.bool_)
    return pyarrow.compute.match_substring(text, "\0").to_numpy(zero_copy_only=False)


def _numbers(column: "pyarrow.ChunkedArray", lowest: float) -> tuple[NDArray[np.float64], Mask]:
    """Values, NaN for empty cells, and a mask of the cells that are no number of at least `lowest`."""
    import pyarrow
    import pyarrow.compute

    if pyarrow.types.is_dictionary(column.type):
        column = pyarrow.compute.cast(column, column.type.value_type)
    if pyarrow.types.is_large_string(column.type):
        column = pyarrow.compute.if_else(pyarrow.compute.equal(column, ""), None, column)
    try:
        if pyarrow.types.is_boolean(column.type):
            raise pyarrow.ArrowInvalid("true is no number")
        # Integers beyond 2**53 may round. Text is parsed whole, and only if every cell is a plain number.
        values = np.array(pyarrow.compute.cast(column, pyarrow.float64(), safe=False).to_numpy(), dtype=np.float64)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
        values = np.array([_float(cell) for cell in column.to_pylist()], dtype=np.float64)
    return values, (values < lowest) | (values == np.inf)


def _float(cell: object) -> float:
    """The cell as a number; NaN when it is empty, and -inf when it is no number."""
    if is_missing(cell):
        return np.nan
    try:
        return -np.inf if isinstance(cell, bool) else float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return -np.inf


def _joined(name: str, parts: Sequence[_Checked], rows: int) -> NDArray[Any]:
    """The column over all blocks; one that no file has takes no memory."""
    none = np.array(0, dtype=np.int32) if name in WHOLE else np.array(np.nan)
    if not any(name in part.numbers for part in parts):
        return np.broadcast_to(none, rows)
    return np.concatenate([part.numbers.get(name, np.broadcast_to(none, len(part.usable))) for part in parts])


def _relative_paths(paths: "pyarrow.LargeStringArray", folder: str) -> "pyarrow.LargeStringArray":
    """Paths relative to `folder` where they lie below it, normalized, so that equal files have equal paths."""
    import pyarrow
    import pyarrow.compute as compute

    home = compute.starts_with(paths, "~")  # before ./~ becomes ~
    if compute.any(home).as_py():
        expanded = [expand_home(path) for path in paths.filter(home).to_pylist()]
        paths = compute.replace_with_mask(paths, home, pyarrow.array(expanded, pyarrow.large_string()))
    prefix = folder.rstrip(os.sep) + os.sep
    # The regular expression below takes folder//a.mp4, which would become /a.mp4 here, and folder/, which would be empty.
    absolute = compute.and_not(compute.starts_with(paths, prefix), compute.starts_with(paths, prefix + os.sep))
    absolute = compute.and_not(absolute, compute.equal(paths, prefix))
    if compute.any(absolute).as_py():
        paths = compute.if_else(absolute, compute.utf8_slice_codeunits(paths, len(prefix)), paths)
    # Most manifests need nothing more: two bytes in a row say so faster than a regular expression over each path.
    data = np.frombuffer(paths.buffers()[2] or b"", dtype=np.uint8)
    slash, dot = data == ord("/"), data == ord(".")
    inner = (slash[:-1] & (slash | dot)[1:]).any() or (dot[:-1] & slash[1:]).any()
    if not inner and not compute.any(compute.or_(compute.ends_with(paths, "/"), compute.equal(paths, "."))).as_py():
        return paths
    odd = compute.match_substring_regex(paths, _NOT_NORMAL)
    normal = [
        relative_path(os.path.normpath(os.path.join(folder, path)), folder) for path in paths.filter(odd).to_pylist()
    ]
    return compute.replace_with_mask(paths, odd, pyarrow.array(normal, pyarrow.large_string()))


def _number_or_none(value: np.floating[Any]) -> float | None:
    return None if np.isnan(value) else float(value)
