"""Steps of a config: commands, what is repeated when, and errors in the user's words."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from opensora.datasets.table import read_table, write_table
from tools import pipeline
from tools.pipeline import main, read_steps


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(*steps: dict[str, Any], **keys: Any) -> str:
    text = "".join(f"{key} = {value!r}\n" for key, value in {"out": "made", **keys, "steps": list(steps)}.items())
    Path("config.py").write_text(text)
    return "config.py"


def test_commands(work: Path) -> None:
    path = config(
        {"tool": "datasets.probe", "inputs": "films", "output": "videos.csv", "decode": True},
        {"tool": "scene_cut.cut", "output": "clips.csv", "folder": "{out}/clips", "crf": 20, "height": None},
        {
            "tool": "tools.datasets.filter",
            "inputs": ["videos.csv", "other.csv"],
            "output": "b.csv",
            "keep": ["a > 1", "b"],
        },
        {"tool": "datasets.probe", "inputs": [], "output": "c.csv", "demo": False},
    )
    first, second, third, fourth = read_steps(path, [])
    assert first.words == ["films", "made/videos.csv", "--decode"]
    assert second.words == ["made/videos.csv", "made/clips.csv", "--folder=made/clips", "--crf=20"]
    assert third.tool == "tools.datasets.filter"
    assert third.words == ["made/videos.csv", "other.csv", "made/b.csv", "--keep=a > 1", "--keep=b"]
    assert fourth.words == ["made/c.csv", "--no-demo"]
    assert second.command() == [sys.executable, "-m", "tools.scene_cut.cut", *second.words, "--resume"]
    assert "--resume" not in third.command()  # a table tool, which has none
    assert read_steps(path, ["out=other"])[0].output == "other/videos.csv"


def test_a_step_is_repeated_when_what_it_reads_changes(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table("in.csv", [{"path": "a.mp4", "video": "a.mp4", "shot": 0}])
    write_table("captions.csv", [{"video": "a.mp4", "shot": 0, "text": "one"}])
    first = {"tool": "datasets.caption_table", "inputs": "in.csv", "output": "one.csv", "captions": "captions.csv"}
    second = {"tool": "datasets.caption_table", "output": "two.csv", "captions": "captions.csv"}
    path = config(first, second)
    calls: list[str] = []

    def call(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
        from tools.datasets.caption_table import caption, caption_table
        from tools.runner import main as run_tool

        calls.append(command[4])
        caption_table.cache_clear()
        return subprocess.CompletedProcess(command, run_tool(caption, command[3:]))

    monkeypatch.setattr(pipeline.subprocess, "run", call)
    assert main([path]) == 0
    assert main([path]) == 0
    assert calls == ["made/one.csv", "made/two.csv"]
    write_table("captions.csv", [{"video": "a.mp4", "shot": 0, "text": "two"}])
    assert main([path]) == 0
    assert calls[2:] == ["made/one.csv", "made/two.csv"]
    assert read_table("made/two.csv").rows[0]["text"] == "two"
    Path("made/two.csv").unlink()
    assert main([path, "--dry-run"]) == 0
    assert main([path]) == 0
    assert calls[4:] == ["made/two.csv"]


def test_files_that_are_gone_are_made_again(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that a step itself made; the steps behind it have nothing to do, for its table is the same."""
    write_table("scenes.csv", [{"path": "film.mp4"}])
    clips = [work / "made/clips/a.mp4", work / "made/clips/b.mp4"]
    calls: list[str] = []

    def call(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
        calls.append(command[2])
        if command[2] == "tools.scene_cut.cut":
            clips[0].parent.mkdir(parents=True, exist_ok=True)
            for clip in clips:
                clip.touch()
        write_table(command[4], [{"path": str(path)} for path in (*clips, "/elsewhere/film.mp4")])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(pipeline.subprocess, "run", call)
    path = config(
        {"tool": "scene_cut.cut", "inputs": "scenes.csv", "output": "clips.csv", "folder": "{out}/clips"},
        {"tool": "score.motion", "output": "motion.csv"},
    )
    assert main([path]) == 0
    assert main([path]) == 0
    assert calls == ["tools.scene_cut.cut", "tools.score.motion"]
    clips[1].unlink()
    capsys.readouterr()
    assert main([path, "--dry-run"]) == 0
    assert f"made/clips.csv names 1 files that are gone, the first: {clips[1]}; made again" in capsys.readouterr().out
    assert main([path]) == 0
    assert calls[2:] == ["tools.scene_cut.cut"]
    Path("made/clips.csv").write_text("damaged")
    assert main([path]) == 0
    assert calls[3:] == ["tools.score.motion"]


def test_a_failed_step_ends_the_pipeline(
    work: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    path = config(
        {"tool": "datasets.probe", "inputs": "none.csv", "output": "a.csv"}, {"tool": "datasets.probe", "output": "b"}
    )
    assert main([path]) == 1
    stderr = capfd.readouterr().err
    assert "none.csv: no such manifest" in stderr
    assert "tools.datasets.probe ended with exit code 1" in stderr
    assert not Path("made/b").exists()


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ({"output": "a.csv"}, "steps[0]: tool is None"),
        ({"tool": "datasets.probe"}, "steps[0]: output is None"),
        ({"tool": "datasets.nothing", "output": "a.csv"}, "no tool 'datasets.nothing'"),
        ({"tool": "nothing.at.all", "output": "a.csv"}, "no tool 'nothing.at.all'"),
        ({"tool": "datasets.probe", "output": "a.csv", "x": {"y": 1}}, "x is {'y': 1}; allowed: text, numbers"),
    ],
)
def test_wrong_steps(work: Path, step: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([config(step)]) == 2
    assert says in capsys.readouterr().err


def test_no_steps_and_two_outputs_of_one_name(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([config()]) == 2
    assert "key 'steps': empty" in capsys.readouterr().err
    step = {"tool": "datasets.probe", "inputs": "x", "output": "a.csv"}
    assert main([config(step, step)]) == 2
    assert "output 'a.csv' is that of an earlier step" in capsys.readouterr().err
    assert main([config(step), "stepz=1"]) == 2
    assert "stepz" in capsys.readouterr().err
