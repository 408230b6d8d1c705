"""Marks and captions of rows: what a filter sees, what is kept after a kill, what is written into the manifest."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from opensora.datasets.table import read_table, write_table
from opensora.errors import ConfigError, DataError
from tools.browse.marked_manifest import MarkedManifest
from tools.history import read_history

pytest.importorskip("duckdb")

ODD = 'he said "don\'t"; DROP TABLE changes; -- {{x}} ${y} 😀\nsecond line'
Open = Callable[..., MarkedManifest]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Open manifests, and close them at the end without saving."""
    open_ones: list[MarkedManifest] = []

    def open_manifest(path: Path, **settings: Any) -> MarkedManifest:
        open_ones.append(MarkedManifest(str(path), **settings).__enter__())
        return open_ones[-1]

    yield open_manifest
    for manifest in open_ones:
        manifest.__exit__(None, None, None)


def write(path: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    default = [
        {"path": "a.mp4", "text": "a dog", "aes": 5.5, "id": "007"},
        {"path": "b.mp4", "text": "a cat", "aes": None, "id": "008"},
        {"path": "/far/c.mp4", "text": "", "aes": 7.25, "id": "009"},
    ]
    write_table(str(path), default if rows is None else rows)
    return path


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_marks_and_captions_reach_the_manifest(tmp_path: Path, opened: Open, ending: str) -> None:
    path = write(tmp_path / f"clips{ending}")
    manifest = opened(path)
    manifest.mark(2, "good")
    manifest.mark(0, "bad")
    assert manifest.correct(0, ODD)
    assert not manifest.correct(1, "a cat")
    assert manifest.changed == 2
    assert manifest.save() == 2
    rows = read_table(str(path)).rows
    cells = [(Path(str(row["path"])).name, str(row["id"]), row["text"] or "", row["mark"] or "") for row in rows]
    assert cells == [("a.mp4", "007", ODD, "bad"), ("b.mp4", "008", "a cat", ""), ("c.mp4", "009", "", "good")]
    assert [str(row["aes"] or "") for row in rows] == ["5.5", "", "7.25"]
    [step] = read_history(str(path))
    assert (step["tool"], step["rows"]) == ("tools.browse", 3)
    assert step["arguments"] == {"changed_rows": 2, "good": 1, "bad": 1}
    assert (manifest.changed, manifest.save()) == (0, 0)
    assert list(tmp_path.glob(".*.changes.jsonl")) == []
    manifest.mark(0, "")  # after the file was opened again
    assert manifest.save() == 1
    assert [row["mark"] or "" for row in read_table(str(path)).rows] == ["", "", "good"]
    assert [step["tool"] for step in read_history(str(path))] == ["tools.browse"] * 2


def test_only_columns_with_values_are_added(tmp_path: Path, opened: Open) -> None:
    path = write(tmp_path / "clips.csv", [{"path": "a.mp4"}, {"path": "b.mp4"}])
    manifest = opened(path)
    assert manifest.columns == ["path", "mark", "text"]
    manifest.mark(1, "good")
    manifest.save()
    assert path.read_text() == "path,mark\na.mp4,\nb.mp4,good\n"


def test_filters_and_orders_see_changes(tmp_path: Path, opened: Open) -> None:
    manifest = opened(write(tmp_path / "clips.csv"))
    assert manifest.select().tolist() == [0, 1, 2]
    assert manifest.select("aes > 5", "aes", descending=True).tolist() == [2, 0]
    assert manifest.select(sort="aes").tolist() == [0, 2, 1]  # an empty cell comes last
    manifest.mark(1, "bad")
    manifest.correct(2, "a bird")
    assert manifest.select("mark IS NULL").tolist() == [0, 2]
    assert manifest.select("text LIKE '%bird%'").tolist() == [2]
    assert manifest.row(2)["path"] == "/far/c.mp4"
    assert manifest.row(1)["path"] == str(tmp_path / "b.mp4")
    with pytest.raises(IndexError):
        manifest.row(3)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("aes >", "syntax error"),
        ("nothing = 1", "nothing"),
        ("aes", "not true or false"),
        ("true) FROM manifest --", "syntax error"),
    ],
)
def test_a_wrong_filter_is_a_sentence(tmp_path: Path, opened: Open, expression: str, reason: str) -> None:
    manifest = opened(write(tmp_path / "clips.csv"))
    with pytest.raises(ConfigError, match=reason):
        manifest.select(expression)
    with pytest.raises(ConfigError, match="no column 'length'"):
        manifest.select(sort="length")


def test_a_filter_reaches_no_file(tmp_path: Path, opened: Open) -> None:
    manifest = opened(write(tmp_path / "clips.csv"))
    (tmp_path / "secret.csv").write_text("word\nhidden\n")
    with pytest.raises((ConfigError, DataError)):
        manifest.select(f"(SELECT count(*) FROM read_csv('{tmp_path}/secret.csv')) > 0")


def test_changes_survive_a_kill(tmp_path: Path, opened: Open) -> None:
    """The hidden file holds each change at once; a line that was cut off is left out, and the next one is whole."""
    path = write(tmp_path / "clips.csv")
    first = opened(path)
    first.mark(0, "good")
    first.correct(1, "kept")
    journal = tmp_path / ".clips.csv.changes.jsonl"
    with open(journal, "a") as file:
        file.write('\n{"row": 2, "mark": "go')
    second = opened(path)
    assert second.resumed == 2
    assert [second.row(number)["mark"] for number in range(3)] == ["good", None, None]
    second.mark(2, "bad")
    third = opened(path)
    assert [third.row(number)["mark"] for number in range(3)] == ["good", None, "bad"]
    assert third.row(1)["text"] == "kept"
    fourth = opened(path, discard=True)
    assert (fourth.resumed, fourth.changed, journal.exists()) == (0, 0, False)


def test_changes_of_another_state_are_not_mixed_in(tmp_path: Path, opened: Open) -> None:
    path = write(tmp_path / "clips.csv")
    manifest = opened(path)
    manifest.mark(0, "good")
    before = path.read_bytes()
    write(path, [{"path": "other.mp4", "text": ""}])
    with pytest.raises(DataError, match="another program changed it"):
        manifest.save()
    with pytest.raises(ConfigError, match=r"for another state of the manifest.*--discard"):
        opened(path)
    path.write_bytes(before)
    assert opened(path).resumed == 1


def test_a_kill_between_saving_and_forgetting(tmp_path: Path, opened: Open) -> None:
    """The changes are in the manifest; the hidden file that is left is not a second set of changes."""
    path = write(tmp_path / "clips.csv")
    manifest = opened(path)
    manifest.mark(0, "good")
    journal = tmp_path / ".clips.csv.changes.jsonl"
    kept = journal.read_bytes()
    manifest.save()
    journal.write_bytes(kept)
    assert (opened(path).resumed, journal.exists()) == (0, False)


def test_refused_tables(tmp_path: Path, opened: Open) -> None:
    (tmp_path / "shards").mkdir()
    with pytest.raises(ConfigError, match=r"tools\.datasets\.merge"):
        opened(tmp_path / "shards")
    with pytest.raises(ConfigError, match="no column 'path'"):
        opened(write(tmp_path / "clips.csv", [{"file": "a.mp4"}]))
    with pytest.raises(DataError, match=r"gone\.csv"):
        opened(tmp_path / "gone.csv")
    assert json.dumps(sorted(each.name for each in tmp_path.iterdir())) == '["clips.csv", "shards"]'
