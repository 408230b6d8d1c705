"""Scratch folders next to an output: those of living programs stay, those of killed ones go."""

import os
import subprocess
import sys
from pathlib import Path

from tools.datasets.scratch_folder import ScratchFolder

HOLD = """
import sys
from tools.datasets.scratch_folder import ScratchFolder
scratch = ScratchFolder(sys.argv[1])
print(scratch.path, flush=True)
sys.stdin.read()
"""


def test_the_folder_of_a_killed_program_goes(tmp_path: Path) -> None:
    output = str(tmp_path / "new" / "*[a]\n.csv")
    command = [sys.executable, "-c", HOLD, output]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        first = Path(program.stdout.readline().rstrip("\n") + "\n" + program.stdout.readline().rstrip("\n"))
        (first / "spilled").write_text("a large file")
        second = ScratchFolder(output)
        assert {first.name, Path(second.path).name} == set(os.listdir(tmp_path / "new"))  # both are alive
        program.kill()
    third = ScratchFolder(output)
    assert set(os.listdir(tmp_path / "new")) == {Path(each.path).name for each in (second, third)}
    for each in (second, third):
        each.close()
    assert os.listdir(tmp_path / "new") == []


def test_nothing_else_goes(tmp_path: Path) -> None:
    """Neither folders of other outputs nor files of users; a folder without a lock is not known to be stale."""
    digits = "0123456789abcdef" * 2
    for name in (f".b.csv.{digits}.tmp", ".a.csv.1234.tmp", f".a.csv.{digits}.part", f"a.csv.{digits}.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
    (tmp_path / f".a.csv.{digits}.tmp").mkdir()
    before = set(os.listdir(tmp_path))
    ScratchFolder(str(tmp_path / "a.csv")).close()
    assert set(os.listdir(tmp_path)) == before
    (tmp_path / f".a.csv.{digits}.tmp" / "lock").touch()
    ScratchFolder(str(tmp_path / "a.csv")).close()
    assert set(os.listdir(tmp_path)) == before - {f".a.csv.{digits}.tmp"}


def test_without_an_output_it_lies_among_temporary_files() -> None:
    scratch = ScratchFolder(None)
    assert os.stat(scratch.path).st_mode & 0o777 == 0o700
    scratch.close()
    assert not os.path.exists(scratch.path)
