"""Damaged CSV: the row is named, the rows around it are kept; other encodings and delimiters are read."""

from pathlib import Path

import pytest

from opensora.datasets import csv_rows as module
from opensora.datasets.csv_rows import csv_rows
from opensora.errors import DataError

HEAD = "path,text,seconds\n"
BEHIND = "text behind a quote"
OPEN = "quote not closed"


def read(folder: Path, content: str | bytes) -> tuple[list[tuple[int, list[str]]], dict[int, tuple[str, str]]]:
    """(line, cells) of the sound rows; line -> reason and sentence of the others."""
    path = folder / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    _, rows = csv_rows(str(path))
    sound, errors = [], {}
    for line, cells, error in rows:
        if error is None:
            sound.append((line, cells))
        else:
            errors[line] = (error.reason, str(error))
    return sound, errors


def lines(sound: list[tuple[int, list[str]]]) -> list[int]:
    return [line for line, _ in sound]


@pytest.mark.parametrize(
    ("bad", "reason", "kept"),
    [
        ('c.mp4,"a 5 inch screen,1\n', OPEN, "ade"),
        ('c.mp4,"a 5" screen,1\n', BEHIND, "ade"),
        ('c.mp4,"",5\n"x"y,z,1\n', BEHIND, "acde"),
        ('"c.mp4,a 5 inch screen,1\n', OPEN, "ade"),
    ],
)
@pytest.mark.parametrize("tail", ["", 'f.mp4,"good, and quoted",4\n', 'f.mp4,a 10" screen,4\n', "f.mp4,x,4"])
def test_damaged_row_is_named_and_the_others_are_kept(
    tmp_path: Path, bad: str, reason: str, kept: str, tail: str
) -> None:
    sound, errors = read(tmp_path, HEAD + "a.mp4,x,1\n" + bad + "d.mp4,x,2\ne.mp4,x,3\n" + tail)
    damaged = 2 + bad.count("\n")
    assert {line: reason for line, (reason, _) in errors.items()} == {damaged: reason}
    assert [cells[0] for _, cells in sound] == [f"{name}.mp4" for name in kept + tail[:1]]
    assert lines(sound)[-1] == damaged + 2 + bool(tail)


def test_sound_cells_of_several_lines(tmp_path: Path) -> None:
    texts = ["two\nlines", "a man, 3\na dog, 4\nb", 'he said "x"\r\nand left', "\n\n"]
    rows = "".join(f'{n}.mp4,"{text.replace(chr(34), chr(34) * 2)}",{n}\n' for n, text in enumerate(texts))
    sound, errors = read(tmp_path, HEAD + rows)
    assert [cells[1] for _, cells in sound] == texts
    assert not errors


@pytest.mark.parametrize("header", ["text,path", "text,seconds", "seconds,text"])
def test_last_line_of_a_cell_has_the_other_cells_of_the_row(tmp_path: Path, header: str) -> None:
    cells = {"text": '"two\nlines"', "path": "a.mp4", "seconds": "1"}
    sound, errors = read(tmp_path, f"{header}\n" + ",".join(cells[name] for name in header.split(",")) + "\n")
    assert not errors
    assert "two\nlines" in sound[0][1]


def test_two_lines_with_one_quote_each(tmp_path: Path) -> None:
    sound, errors = read(tmp_path, HEAD + 'a.mp4,"a 5 inch screen,1\nb.mp4,a 10" screen,2\nc.mp4,"x,1\nd.mp4,12",1\n')
    assert lines(sound) == [3, 5]
    assert {line: reason for line, (reason, _) in errors.items()} == {2: OPEN, 4: OPEN}


def test_lines_of_an_open_caption_that_look_like_no_row_go_with_it(tmp_path: Path) -> None:
    sound, errors = read(tmp_path, HEAD + 'a.mp4,"one\ntwo, three\nfour\nb.mp4,x,2\n')
    assert lines(sound) == [5]
    [(line, (_, sentence))] = errors.items()
    assert (line, sentence.split("; ")[-1]) == (2, "skipped with it: lines 3-4")


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_rows_reach_over_the_blocks_that_are_read(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LINES", block)
    content = HEAD + 'a.mp4,"1\n2\n3\n4",1\nb.mp4,"open,1\nc.mp4,x,1\nd.mp4,"y",1\n\ne.mp4,z,2\n'
    sound, errors = read(tmp_path, content)
    assert lines(sound) == [2, 7, 8, 10]
    assert {line: reason for line, (reason, _) in errors.items()} == {6: OPEN}


def test_blanks_around_quotes(tmp_path: Path) -> None:
    sound, errors = read(tmp_path, HEAD + 'a.mp4, "a cat, a dog" , 1\n')
    assert sound == [(2, ["a.mp4", "a cat, a dog", "1"])]
    assert not errors


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_delimiters_and_line_ends(tmp_path: Path, encoding: str, delimiter: str, end: str) -> None:
    rows = [["path", "text", "seconds"], ["a.mp4", "ein Käfer 😀", "1"], ["b.mp4", "红", "2"]]
    content = "".join(delimiter.join(cells) + end for cells in rows).encode(encoding)
    sound, errors = read(tmp_path, content)
    assert sound == [(2, rows[1]), (3, rows[2])]
    assert not errors


def test_separator_line_and_blank_lines_before_the_header(tmp_path: Path) -> None:
    assert read(tmp_path, "\r\nsep=;\r\npath;text, long\r\na.mp4;x\r\n")[0] == [(4, ["a.mp4", "x"])]


def test_empty_cells_behind_the_last_column(tmp_path: Path) -> None:
    sound, errors = read(tmp_path, HEAD + "a.mp4,x,1,,\nb.mp4,x,1,,y\n ,,,,\n   \n")
    assert sound == [(2, ["a.mp4", "x", "1"]), (4, ["", "", ""])]
    assert errors[3][1].startswith("2 more cells than the header")


def test_a_long_cell_of_another_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(tmp_path, HEAD + f"a.mp4,{'x' * 200_000},1\n")[0][0][1][1] == "x" * 200_000
    monkeypatch.setattr(module, "LONGEST", 1000)
    sound, errors = read(tmp_path, HEAD + f"a.mp4,{'x' * 2000},1\nb.mp4,x,1\n" + 'c.mp4,"y,1\n' * 200 + "d.mp4,x,1\n")
    assert lines(sound) == [3, 204]
    assert (errors[2][0], errors[4][0], len(errors)) == ("cell too long", OPEN, 201)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"path,text,path\n", "column 'path' comes 2 times"),
        (b'path,"text\na.mp4,x\n', ":1: the header cannot be read"),
        (b"PK\x03\x04rest", "zip archive.*Excel"),
        (b"PAR1rest", "Parquet"),
        (b"\x1f\x8brest", "gzip"),
        ("path,text\na.mp4,x\n".encode("utf-16")[:-1], "cannot be decoded"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(DataError, match=rf"table\.csv.*{says}"):
        read(tmp_path, content)
