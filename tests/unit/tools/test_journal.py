"""A journal keeps what an earlier run finished, and begins afresh over a file that is none."""

from datetime import date
from pathlib import Path

import numpy as np
import pytest

from opensora.errors import DataError
from tools.journal import Journal


def test_kept_until_it_is_complete(tmp_path: Path) -> None:
    output = str(tmp_path / "out.csv")
    with Journal(output, keep=True) as journal:
        journal.add_state("a", {"frames": 3})
        assert journal.state("a") == {"frames": 3}
        journal.add("a", [{"path": "a.mp4"}])
        journal.add("b", [])
        journal.add_unused("c", "it is damaged", False)
    with Journal(output, keep=True, read_only=True) as journal:
        assert [journal.rows(key) for key in "abc"] == [[{"path": "a.mp4"}], [], None]
        assert [journal.state(key) for key in "abc"] == [None] * 3
        assert journal.unused("c") == ("it is damaged", False)
        assert journal.unused("a") is None
    with Journal(output, keep=True) as journal:
        journal.add_unused("a", "its clip was removed", False)
        assert journal.rows("a") is None
        journal.complete = True
    assert list(tmp_path.iterdir()) == []


def test_values_that_json_does_not_know(tmp_path: Path) -> None:
    row = {"faces": np.int64(2), "flow": np.float32(0.5), "embedding": np.zeros(2), "day": date(2026, 1, 2)}
    with Journal(str(tmp_path / "out.csv"), keep=True) as journal:
        journal.add("a", [row])
        assert journal.rows("a") == [{"faces": 2, "flow": 0.5, "embedding": [0.0, 0.0], "day": "2026-01-02"}]


def test_afresh_without_keep(tmp_path: Path) -> None:
    output = str(tmp_path / "out.csv")
    with Journal(output, keep=False) as journal:
        journal.add("a", [])
    with Journal(output, keep=False) as journal:
        assert journal.rows("a") is None


@pytest.mark.parametrize("text", [b'["a", []]\n', b"SQLite format 3\0" + bytes(5000)])
def test_a_file_that_is_no_journal(tmp_path: Path, text: bytes) -> None:
    output, path = str(tmp_path / "out.csv"), tmp_path / ".out.csv.journal"
    path.write_bytes(text)
    with pytest.raises(DataError, match=r"\.out\.csv\.journal: not the journal .*remove it, or run without --resume"):
        Journal(output, keep=True).__enter__()
    with Journal(output, keep=False) as journal:
        journal.add("a", [{"x": 1}])
        assert journal.rows("a") == [{"x": 1}]
