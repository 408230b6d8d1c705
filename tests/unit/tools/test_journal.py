"""A journal keeps the whole lines of an earlier run, whatever follows them."""

from pathlib import Path

import pytest

from tools.journal import Journal


@pytest.mark.parametrize(
    "tail", [b'["b", [{"path"', b"17\n", b'"text"\n', b'["b"]\n', b"\xff\xfe\n", b"{}\n", b'[["b"], []]\n']
)
def test_lines_before_a_damaged_one_are_kept(tmp_path: Path, tail: bytes) -> None:
    output = str(tmp_path / "out.csv")
    with Journal(output, keep=True) as journal:
        journal.add("a", [{"path": "a.mp4"}])
    path = tmp_path / ".out.csv.journal"
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with Journal(output, keep=True) as journal:
        assert journal.done == {"a": [{"path": "a.mp4"}]}
        assert path.read_bytes() == whole
        journal.add("b", [])
    with Journal(output, keep=True, read_only=True) as journal:
        assert journal.done == {"a": [{"path": "a.mp4"}], "b": []}
