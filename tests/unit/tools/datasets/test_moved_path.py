"""Paths of a table that moves to another folder."""

import os

import pytest

from tools.datasets.moved_path import moved_path, text

duckdb = pytest.importorskip("duckdb")


@pytest.mark.parametrize(
    ("path", "source", "target", "expected"),
    [
        ("clips/a.mp4", "/d/in", "/d/in", "clips/a.mp4"),
        ("clips/a.mp4", "/d/in", "/d/out", "/d/in/clips/a.mp4"),
        ("clips/a.mp4", "/d/in", "/d", "in/clips/a.mp4"),
        ("clips/a.mp4", "/d/in", "/", "d/in/clips/a.mp4"),
        ("clips/a.mp4", "/", "/d", "/clips/a.mp4"),
        ("d/a.mp4", "/", "/d", "a.mp4"),
        ("out/a.mp4", "/d", "/d/out", "a.mp4"),
        ("outer/a.mp4", "/d", "/d/out", "/d/outer/a.mp4"),
        ("/d/in/a.mp4", "/x", "/d/in", "a.mp4"),
        ("/d/input/a.mp4", "/x", "/d/in", "/d/input/a.mp4"),
        ("/e/a.mp4", "/d/in", "/d/out", "/e/a.mp4"),
        ("./a.mp4", "/d/in", "/d/in", "a.mp4"),
        ("../b/a.mp4", "/d/in", "/d/out", "/d/b/a.mp4"),
        ("../../a.mp4", "/d/in", "/d", "/a.mp4"),
        ("../../../../a.mp4", "/d/in", "/d", "/../../a.mp4"),
        ("../out/a.mp4", "/d/in", "/d/out", "a.mp4"),
        (" a b.mp4", "/d/in", "/d/in", "a b.mp4"),
        ("\n/d/in/a.mp4\t", "/e", "/d/in", "a.mp4"),
        ("~/a.mp4", "/d/in", "/d/in", os.path.expanduser("~/a.mp4")),
        ("~ab.mp4", "/d/in", "/d", "in/~ab.mp4"),
        ("https://host/a.mp4", "/d/in", "/d", "https://host/a.mp4"),
        ("-x 'y\"\n😀;rm.mp4", "/d/i'n", "/d", "i'n/-x 'y\"\n😀;rm.mp4"),
        ("", "/d/in", "/d", ""),
        (None, "/d/in", "/d", None),
    ],
)
def test_moved_path(path: str | None, source: str, target: str, expected: str | None) -> None:
    cell = "CAST(NULL AS VARCHAR)" if path is None else text(path)
    assert duckdb.sql(f"SELECT {moved_path(cell, source, target)}").fetchall() == [(expected,)]
