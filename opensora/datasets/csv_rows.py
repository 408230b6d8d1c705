"""Rows of a CSV file with their lines; a damaged row is an error of its own, and the rows behind it are kept.

UTF-8, with or without a byte order mark, or UTF-16; cells separated by commas, or by semicolons or tabs where the header
line has no comma; lines that end in LF, CR LF or CR.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import IO, Any

from opensora.errors import DataError

Row = tuple[int, list[str], "RowError | None"]  # first line, cells, and why the row cannot be used

LONGEST = 1 << 24  # characters of a cell
_LINES = 1 << 14  # lines that are cut into cells at a time
_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_OTHER_KINDS = {
    b"PK\x03\x04": "a zip archive, as workbooks of Excel are; save the table as CSV (UTF-8)",
    b"PAR1": "a Parquet table; name it .parquet",
    b"\x1f\x8b": "compressed by gzip; unpack it",
}
_FILES = ("path", "video", "reference_path")  # columns of file names: by their endings a row is known
_ENDING = re.compile(r"\.\w{2,5}$")
_BLANKS_BEHIND_QUOTE = re.compile(r'"[ \t]+(?=[,;\t\r\n]|$)')


class RowError(Exception):
    """Says why a row is not used; `reason` is a few words that rows share."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


def csv_rows(path: str) -> tuple[list[str], Iterator[Row]]:
    """Return the names in the header, and an iterator over the rows that are not blank.

    Bytes that are not UTF-8 become lone surrogates, so that one bad row does not hide the others. Rows without an error
    have no more cells than the header. Raises DataError when the file is no text, and where two columns have one
    name.
    """
    rows = _rows(path)
    return next(rows)[1], rows


def _rows(path: str) -> Iterator[Row]:
    """The header, then the rows."""
    try:
        with open(path, encoding=encoding_of(path), errors="surrogateescape", newline="") as file:
            line, dialect, header = _header(path, file)
            yield line, header, None
            yield from _Body(file, line, dialect, header).rows()
    except UnicodeError as error:  # of UTF-16 and UTF-32 alone
        raise DataError(
            f"{path}: cannot be decoded ({error}); the file is damaged or cut off; save it again as CSV (UTF-8)"
        ) from error


def encoding_of(path: str) -> str:
    """The encoding that the first bytes show. Raises DataError for files that are no text."""
    with open(path, "rb") as file:
        head = file.read(64)
    for mark, kind in _OTHER_KINDS.items():
        if head.startswith(mark):
            raise DataError(f"{path}: not text but {kind}")
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    for half, encoding in enumerate(("utf-16-be", "utf-16-le")):  # of Latin letters one half of the bytes is zero
        if len(head) > 7 and not any(head[half::2]):
            return encoding
    return "utf-8-sig"


def _header(path: str, file: IO[str]) -> tuple[int, dict[str, Any], list[str]]:
    """The number of the line behind the header, the arguments of csv.reader, and the names of the columns."""
    csv.field_size_limit(LONGEST)
    line, first = 1, file.readline()
    while first and not first.strip():
        line, first = line + 1, file.readline()
    separator = re.match(r'"?sep=(.)"?\s*$', first)  # a line that Excel writes and reads
    if separator is not None:
        line, first = line + 1, file.readline()
    delimiter = separator[1] if separator else next((each for each in ",;\t" if each in first), ",")
    dialect = dict(strict=True, skipinitialspace=True, delimiter=delimiter)
    reader = csv.reader(chain([first], file), **dialect)  # type: ignore[arg-type]
    try:
        names = [name.strip("\ufeff").strip() for name in next(reader, [])]
    except csv.Error as error:
        raise DataError(
            f"{path}:{line}: the header cannot be read ({error}); it holds the names of the columns; correct its quotes"
        ) from error
    require_different(path, names)
    return line + reader.line_num, dialect, names


def require_different(path: str, names: Sequence[str]) -> None:
    """Raise DataError when two columns have one name: of their cells only one could be used."""
    repeated = [name for number, name in enumerate(names) if name and name in names[:number]]
    if repeated:
        raise DataError(
            f"{path}: column {repeated[0]!r} comes {names.count(repeated[0])} times; allowed: once; rename or remove the others"
        )


class _Body:
    """The lines behind the header: some of them in memory, cut into rows by the csv module.

    Line numbers inside are those in `lines`.
    """

    def __init__(self, file: IO[str], line: int, dialect: dict[str, Any], header: Sequence[str]) -> None:
        self.file, self.line, self.dialect, self.header = file, line, dialect, header  # line: of lines[0]
        self.lines: list[str] = []
        self.file_columns = [number for number, name in enumerate(header) if name in _FILES]

    def rows(self) -> Iterator[Row]:
        while self._read_more(_LINES):
            while self.lines:
                yield from self._rows()

    def _read_more(self, lines: int) -> bool:
        more = list(islice(self.file, lines))
        self.lines += more
        return bool(more)

    def _drop(self, lines: int) -> None:
        self.line, self.lines = self.line + lines, self.lines[lines:]

    def _rows(self) -> Iterator[Row]:
        """The rows in memory up to a damaged one, and that one; they are dropped from memory."""
        reader, width, unicode = csv.reader(self.lines, **self.dialect), len(self.header), _is_unicode(self.lines)
        end, cells, damage = 0, [""], None
        try:
            for cells in reader:
                begin, end = end, reader.line_num
                if end - begin > 1 and self._row_inside(cells, begin, end):
                    break
                if len(cells) < 2 and not self.lines[begin].strip():
                    continue
                error = None
                if len(cells) > width:
                    error = _cut(cells, width)
                if not unicode:
                    error = error or _not_utf8(self.header, cells)
                yield self.line + begin, cells, error
            else:
                return self._drop(end)
        except csv.Error as caught:
            begin, end, damage = end, max(reader.line_num, end + 1), str(caught)
        if damage == "unexpected end of data" and self._read_more(max(_LINES, end - begin)):
            return self._drop(begin)  # the row may go on in the lines that are read only now
        repaired = self._without_blanks_behind_quotes(begin)
        if repaired is not None:
            yield self.line + begin, repaired, None if unicode else _not_utf8(self.header, repaired)
            return self._drop(begin + 1)
        following = self._next_row(begin, end, cells)
        skipped = (self.line + begin + 1, self.line + following - 1)
        yield self.line + begin, self._cells(self.lines[begin])[:width], _damage(damage, end - begin, skipped)
        self._drop(following)

    def _cells(self, line: str) -> list[str]:
        """Cells of one line, whatever its quotes are like."""
        try:
            return next(csv.reader([line], **{**self.dialect, "strict": False}), [])
        except csv.Error:
            return []

    def _row_inside(self, cells: Sequence[str], begin: int, end: int) -> bool:
        """True if a row of several lines holds a line that looks like a row, so that its quote was not closed."""
        if any(self._is_row(self.lines[line], cells) for line in range(begin + 1, end - 1)):
            return True
        # The last line has the row's own cells behind that of several lines: only those before it prove anything.
        first = next((column for column, cell in enumerate(cells) if "\n" in cell or "\r" in cell), 0)
        return any(column < first for column in self.file_columns) and self._is_row(self.lines[end - 1], cells)

    def _next_row(self, begin: int, end: int, cells: Sequence[str]) -> int:
        """The line at which a row begins behind a damaged one; cells: of a row before, to compare with."""
        own = self._cells(self.lines[begin])
        for line in range(begin + 1, end):
            if self._is_row(self.lines[line], own) or self._is_row(self.lines[line], cells):
                return line
            whole = self._cells(self.lines[line])
            if len(whole) == len(self.header) and all(_ENDING.search(whole[n]) for n in self.file_columns):
                return line
        return end

    def _is_row(self, line: str, other: Sequence[str]) -> bool:
        """True if the line has file names and numbers where the cells of `other` have them, and at least one."""
        if line.count(self.dialect["delimiter"]) < min(1, len(self.header) - 1):
            return False
        cells = self._cells(line)
        if len(cells) > len(self.header):
            return False
        pairs = list(zip(cells, other))
        files = [bool(_ENDING.search(cell)) for n, (cell, like) in enumerate(pairs) if _is_file(n, like, self)]
        numbers = [_is_number(cell) for cell, like in pairs if cell and _is_number(like)]
        known = files if self.file_columns else numbers and len(cells) == len(self.header)
        return all(files + numbers) and bool(known)

    def _without_blanks_behind_quotes(self, begin: int) -> list[str] | None:
        """The cells of a line where blanks stand behind a closing quote; None if that is not all that is wrong."""
        line, changes = _BLANKS_BEHIND_QUOTE.subn('"', self.lines[begin])
        try:
            cells = next(csv.reader([line], **self.dialect)) if changes else None
        except csv.Error:
            return None
        return cells if cells is not None and len(cells) <= len(self.header) else None


def _is_file(column: int, cell: str, body: _Body) -> bool:
    return column in body.file_columns and bool(_ENDING.search(cell))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_unicode(lines: Sequence[str]) -> bool:
    """False if a line holds a lone surrogate, which stands for a byte that could not be decoded."""
    try:
        "".join(lines).encode()
    except UnicodeEncodeError:
        return False
    return True


def _cut(cells: list[str], width: int) -> RowError | None:
    """Take empty cells behind the last column off; the error of a row where one of them is not empty."""
    if any(cell.strip() for cell in cells[width:]):  # the caption has a comma and no quotes
        sentence = f"{len(cells) - width} more cells than the header; put quotes around text that holds a comma"
        return RowError("too many cells", sentence)
    del cells[width:]
    return None


def _not_utf8(header: Sequence[str], cells: Sequence[str]) -> RowError | None:
    """The error of a row that holds bytes that are not UTF-8."""
    for name, cell in zip(header, cells):
        try:
            cell.encode()
        except UnicodeEncodeError:
            sentence = f"column {name!r} is not UTF-8; manifests are UTF-8; save the file as UTF-8"
            return RowError("not UTF-8", sentence)
    return None


def _damage(error: str | None, lines: int, skipped: tuple[int, int]) -> RowError:
    """The error of a row with wrong quotes; lines: how far the csv module read for it."""
    also = ""
    if skipped[0] <= skipped[1]:
        also = f"; skipped with it: line{'s' * (skipped[0] < skipped[1])} {'-'.join(map(str, sorted(set(skipped))))}"
    if lines > 1 or error == "unexpected end of data":
        return RowError("quote not closed", f"a quote opens and is not closed; close it, or write it twice{also}")
    if error is not None and error.startswith("field larger"):
        return RowError("cell too long", f"a cell has more than {LONGEST:,} characters; shorten it{also}")
    sentence = f"text follows a closing quote; put quotes around the whole cell, and write those inside it twice{also}"
    return RowError("text behind a quote", sentence)
