"""Rows in, rows out: flags, bad rows, resume after a stop, workers, exit codes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from opensora.datasets.table import read_table, write_table
from tests.support.media_files import write_video
from tests.unit.tools.tool_functions import count, double, needs, needs_package
from tools.journal import Journal
from tools.runner import main, run
from tools.scene_cut.detect import PACKAGES, detect


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path


def table(folder: Path, *names: str, file: str = "in.csv") -> str:
    write_table(str(folder / file), [{"path": f"{name}.mp4", "name": name} for name in names])
    return str(folder / file)


def out(folder: Path, file: str = "out.csv") -> list[Any]:
    return [row["name"] for row in read_table(str(folder / file)).rows]


def go(folder: Path, *arguments: str, source: str | None = None) -> int:
    return main(double, [source or str(folder / "in.csv"), str(folder / "out.csv"), *arguments])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_rows_keep_their_order(work: Path, workers: str) -> None:
    names = [f"n{i}" for i in range(9)]
    table(work, *names)
    assert go(work, "--workers", workers, "--times", "3", "--word", "yo", "--half", "--kind", "b") == 0
    assert out(work) == [name for name in names for _ in range(3)]
    first = read_table(str(work / "out.csv")).rows[0]
    assert first == {"path": "n0.mp4", "name": "n0", "number": "0", "word": "yo", "half": "True", "kind": "b"}


def test_home_folder_in_paths(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(work))
    table(work, "a")
    assert main(needs, ["~/in.csv", "~/out.csv", "--folder=~"]) == 0
    assert out(work) == ["a"]


def test_parquet_keeps_types(work: Path) -> None:
    assert main(double, [table(work, "a", file="in.parquet"), str(work / "out.parquet")]) == 0
    row = read_table(str(work / "out.parquet")).rows[1]
    assert (row["path"], row["number"], row["half"]) == ("a.mp4", 1, False)


def test_paths_reach_the_function_absolute_and_leave_movable(work: Path) -> None:
    assert main(needs, [table(work, "a"), str(work / "out.csv"), "--folder", str(work)]) == 0
    assert read_table(str(work / "out.csv")).rows == [{"path": "a.txt", "name": "a"}]
    paths = []
    assert main(_record(paths), [str(work / "in.csv"), str(work / "sub" / "out.csv")]) == 0
    assert paths == [str(work / "a.mp4")]
    assert read_table(str(work / "sub" / "out.csv")).rows[0]["path"] == str(work / "a.mp4")


def _record(paths: list[str]) -> Any:
    def record(row: dict[str, Any]) -> dict[str, Any]:
        paths.append(row["path"])
        return row

    return record


def test_bad_rows_are_reported_and_left_out(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(work, "a", "bad", "b")
    with open(path, "ab") as file:
        file.write(b"caf\xe9.mp4,x\n,y\n")
    assert go(work, "--times", "1") == 0
    assert out(work) == ["a", "b"]
    stderr = capsys.readouterr().err
    assert f"skipped {path}:3: this one is bad" in stderr
    assert f"skipped {path}:5: column 'path' is not UTF-8" in stderr
    assert f"skipped {path}:6: the path is empty" in stderr
    assert "2 rows from 5, 3 bad rows skipped" in stderr


def test_all_rows_bad_writes_nothing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(work, "bad", "bad")
    assert go(work) == 1
    assert not (work / "out.csv").exists()
    assert "all 2 rows" in capsys.readouterr().err


def test_unexpected_error_prints_traceback_and_exits_1(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(work, "a", "odd", "b")
    assert go(work, "--times", "1") == 1
    assert out(work) == ["a", "b"]  # the other rows are not lost
    stderr = capsys.readouterr().err
    assert "unexpected KeyError" in stderr
    assert "Traceback" in stderr


def test_stop_and_resume(work: Path) -> None:
    log = str(work / "log")
    table(work, "a", "b", "stop", "c")
    assert go(work, "--log", log, "--times", "1") == 130
    assert not (work / "out.csv").exists()
    table(work, "a", "b", "c", "d")  # the cause is fixed, and a row was added
    assert go(work, "--log", log, "--times", "1", "--resume") == 0
    assert out(work) == ["a", "b", "c", "d"]
    assert Path(log).read_text().split() == ["a", "b", "stop", "c", "d"]


def test_another_flag_or_no_resume_begins_afresh(work: Path) -> None:
    log = str(work / "log")
    table(work, "a", "stop")
    assert go(work, "--log", log, "--times", "1") == 130
    assert go(work, "--log", log, "--times", "2", "--resume") == 130  # another flag: nothing old fits
    assert Path(log).read_text().split() == ["a", "stop"] * 2
    assert go(work, "--log", log, "--times", "2") == 130  # without --resume, from the start
    assert Path(log).read_text().split() == ["a", "stop"] * 3


def test_journal_is_gone_when_every_row_is_done(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It stays while --resume has rows to do; a command that did nothing leaves none."""
    table(work, "a", "b", "bad")
    journal = work / ".out.csv.journal"
    assert go(work, "--times", "1") == 0
    assert journal.exists()  # the bad row may be tried again
    table(work, "a", "b", "c")
    assert go(work, "--times", "1", "--limit", "2", "--resume") == 0
    assert journal.exists()
    assert go(work, "--times", "1", "--resume", "--dry-run") == 0
    assert "2 done, 1 to do" in capsys.readouterr().out
    assert go(work, "--times", "1", "--resume") == 0
    assert sorted(os.listdir(work)) == ["in.csv", "out.csv", "out.csv.history.json"]
    table(work, "bad")
    assert go(work, source=str(work / "in.csv")) == 1
    assert sorted(os.listdir(work)) == ["in.csv", "out.csv", "out.csv.errors.jsonl", "out.csv.history.json"]


def test_killed_process_loses_nothing_done(work: Path) -> None:
    """kill -9 from outside, as a cluster does; then the same command with --resume."""
    log = work / "log"
    table(work, *[f"n{i}" for i in range(400)])
    code = "import sys, tools.runner, tests.unit.tools.tool_functions as t; tools.runner.main(t.double, sys.argv[1:])"
    arguments = [str(work / "in.csv"), str(work / "out.csv"), "--resume", "--log", str(log)]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.readline()  # the line that says a tenth is done
    process.kill()
    process.wait()
    process.stderr.close()
    before = log.read_text().split()
    assert len(before) >= 40
    assert go(work, "--resume", "--log", str(log)) == 0
    assert out(work) == [f"n{i}" for i in range(400) for _ in range(2)]
    assert len(log.read_text().split()) <= 401  # at most the row in hand is repeated
    resumed = (work / "out.csv").read_bytes()
    assert go(work, "--log", str(log)) == 0
    assert (work / "out.csv").read_bytes() == resumed


def test_missing_output_file_is_made_again(work: Path) -> None:
    arguments = [table(work, "a", "b"), str(work / "out.csv"), "--folder", str(work), "--resume"]
    assert main(needs, arguments) == 0
    (work / "a.txt").unlink()
    assert main(needs, arguments) == 0
    assert (work / "a.txt").exists()


def test_limit_and_dry_run(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(work, "a", "b", "c")
    assert go(work, "--limit", "2", "--times", "1", "--dry-run") == 0
    assert "2 rows to" in capsys.readouterr().out
    assert os.listdir(work) == ["in.csv"]
    assert go(work, "--limit", "2", "--times", "1") == 0
    assert out(work) == ["a", "b"]
    assert go(work, "--times", "1", "--resume", "--dry-run") == 0
    assert "3 rows to" in (stdout := capsys.readouterr().out)
    assert "2 done, 1 to do" in stdout


def test_folder_and_files_as_input(work: Path) -> None:
    (work / "clips" / "deep").mkdir(parents=True)
    for name in ("b.mp4", "a.mp4", "deep/c.mp4", "notes.txt", ".hidden.mp4"):
        (work / "clips" / name).touch()
    paths: list[str] = []
    assert main(_record(paths), [str(work / "clips"), str(work / "clips/b.mp4"), str(work / "out.csv")]) == 0
    assert paths == [str(work / "clips" / name) for name in ("a.mp4", "b.mp4", "deep/c.mp4", "b.mp4")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.csv", "out.csv"], "none.csv: no such manifest"),
        (["empty", "out.csv"], "empty: found no video below this folder"),
        (["nopath.csv", "out.csv"], "nopath.csv: no column 'path'; found columns 'file'"),
        (["header.csv", "out.csv"], "header.csv: found no rows"),
        (["in.csv", "file/out.csv"], "file/out.csv: cannot be written"),
    ],
)
def test_errors_are_sentences(
    work: Path, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work)
    table(work, "a")
    (work / "empty").mkdir()
    (work / "file").touch()
    (work / "nopath.csv").write_text("file\na.mp4\n")
    (work / "header.csv").write_text("path\n")
    assert main(double, arguments) == 1
    assert says in (stderr := capsys.readouterr().err)
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["in.csv"],
        ["in.csv", "out.txt"],
        ["in.csv", "out.csv", "--nope"],
        ["in.csv", "out.csv", "--times", "x"],
        ["in.csv", "out.csv", "--workers", "0"],
        ["in.csv", "out.csv", "--kind", "c"],
    ],
)
def test_wrong_flags_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(double, arguments)
    assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_flag_value_that_the_function_refuses_exits_2(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(work, "a", "b")
    assert go(work, "--times", "-1") == 2
    assert capsys.readouterr().err.strip().endswith("double: --times must not be negative")


def test_required_flag_and_help(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(needs, [table(work, "a"), str(work / "out.csv")])
    assert stopped.value.code == 2
    assert "--folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(double, ["--help"])
    assert stopped.value.code == 0
    assert "how many rows come out of one (default: 2)" in " ".join(capsys.readouterr().out.split())


def test_second_run_on_one_output_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(work, "a")
    with Journal(str(work / "out.csv"), keep=True):
        assert go(work) == 1
    assert "another run" in capsys.readouterr().err
    assert go(work) == 0


def test_dead_worker_names_the_rows(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(work, "a", "die")
    assert go(work, "--workers", "2") == 1
    assert (
        f"a worker process died (out of memory, or killed by a decoder crash) at one of: {path}:"
        in capsys.readouterr().err
    )


def test_full_disk_keeps_what_was_done(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = str(work / "log")
    table(work, "a", "b", "c")
    kept = Journal.add

    def add(self: Journal, key: str, rows: list[dict[str, Any]]) -> None:
        if rows[0]["name"] == "c":
            self._database.execute("PRAGMA max_page_count = 1")  # SQLite's words for a full disk
            rows = rows * 1000
        kept(self, key, rows)

    monkeypatch.setattr(Journal, "add", add)
    assert go(work, "--log", log) == 1
    assert "database or disk is full" in capsys.readouterr().err
    monkeypatch.undo()
    assert go(work, "--log", log, "--resume") == 0
    assert Path(log).read_text().split() == ["a", "b", "c", "c"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_one_long_row_goes_on_where_it_stopped(work: Path, workers: str, capsys: pytest.CaptureFixture[str]) -> None:
    table(work, "film")
    log = str(work / "log")
    arguments = [str(work / "in.csv"), str(work / "out.csv"), "--log", log, "--workers", workers, "--resume"]
    assert main(count, [*arguments, "--stop", str(work / "stop")]) == (130 if workers == "1" else 1)
    stderr = capsys.readouterr().err
    assert "count: film.mp4, frame 2 of 6" in stderr
    assert "count: film.mp4, frame 4 of 6" in stderr
    assert (work / ".out.csv.journal").exists()
    assert main(count, [*arguments, "--dry-run"]) == 0
    assert "0 done, 1 to do" in capsys.readouterr().out  # --stop is another flag
    assert main(count, [*arguments, "--stop", str(work / "stop"), "--dry-run"]) == 0
    assert "0 done, 1 to do, 1 of them begun" in capsys.readouterr().out
    (work / "stop").touch()
    assert main(count, [*arguments, "--stop", str(work / "stop")]) == 0
    assert [row["sum"] for row in read_table(str(work / "out.csv")).rows] == ["15"]
    assert Path(log).read_text().split() == ["0", "1", "2", "3", "4", "4", "5"]  # frame 4 alone is repeated
    assert not (work / ".out.csv.journal").exists()


def test_missing_package_is_named_with_its_install_line(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A command that names the package ends before it reads a row, any other with the first row."""
    table(work, "a", "b")
    assert main(needs_package, [str(work / "in.csv"), str(work / "out.csv")]) == 2
    stderr = capsys.readouterr().err
    assert stderr == "no_such_package is not installed; this command needs it; run pip install -e .\n"
    assert main(needs, ["none.csv", str(work / "out.csv"), "--folder", "x"], packages=["no_such_package"]) == 2
    assert capsys.readouterr().err == stderr
    assert os.listdir(work) == ["in.csv"]


def test_scene_detection_says_what_it_needs(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr(sys, "argv", ["detect", table(work, "a"), str(work / "out.csv")])
    with pytest.raises(SystemExit) as stopped:
        run(detect, packages=PACKAGES)
    assert stopped.value.code == 2
    expected = "cv2 is not installed; this command needs it; run pip install -e '.[tools]'\n"
    assert capsys.readouterr().err == expected
    assert os.listdir(work) == ["in.csv"]


def test_workers_end_with_a_command_that_is_killed(work: Path) -> None:
    """The two workers hold the write end of a pipe that this process reads to its end."""
    table(work, "a", "b", "c")
    code = "import sys, tools.runner, tests.unit.tools.tool_functions as t; tools.runner.main(t.wait, sys.argv[1:])"
    arguments = [str(work / "in.csv"), str(work / "out.csv"), "--workers", "2"]
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.kill()
        process.stdout.read()  # ends when the last worker has
    assert first == "at work\n"


def test_as_a_command(work: Path) -> None:
    """Exit codes as a shell sees them."""
    write_video(work / "a.mp4")
    (work / "b.mp4").write_text("not a video")
    command = [sys.executable, "-m", "tools.datasets.probe", str(work), str(work / "out.csv"), "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "b.mp4: is a text file, not a video" in done.stderr
    [row] = read_table(str(work / "out.csv")).rows
    known = {"path": "a.mp4", "num_frames": "12", "fps": "8.0", "height": "32", "width": "64"}
    assert {name: row[name] for name in known} == known
    assert subprocess.run([*command[:-2], "--typo"], capture_output=True).returncode == 2
