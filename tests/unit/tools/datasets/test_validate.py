"""The gate before training."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from opensora.datasets.table import write_table
from tests.support.media_files import write_video
from tools.datasets.validate import main, validate

ODD_NAMES = ["-x.png", "a b.png", 'it\'s "q".png', "line\nbreak.png", "😀;rm -rf.png"]


def picture(path: Path, height: int = 16, width: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path)


def check(folder: Path, rows: list[dict[str, Any]], **options: Any) -> tuple[dict[str, int], list[str]]:
    """Problems by reason, and their sentences."""
    write_table(str(folder / "train.csv"), [{"text": "a dog", **row} for row in rows], ["path", "text", *_more(rows)])
    problems, usable = validate(str(folder / "train.csv"), **options)
    assert usable == len(rows) - sum(problems.counts.values())
    return dict(problems.counts), [message for each in problems.first.values() for message in each]


def _more(rows: list[dict[str, Any]]) -> list[str]:
    return sorted({name for row in rows for name in row} - {"path", "text"})


def test_sound_manifest(tmp_path: Path) -> None:
    for name in ODD_NAMES:
        picture(tmp_path / "clips" / name)
    rows = [{"path": f"clips/{name}", "num_frames": 1, "height": 16, "width": 16} for name in ODD_NAMES]
    assert check(tmp_path, rows, decode=True, workers=3) == ({}, [])


def test_problems_of_rows_and_files(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    os.symlink("loop.mp4", tmp_path / "loop.mp4")
    rows = [
        {"path": "a.png", "height": 16, "width": 16},
        {"path": "b.png"},
        {"path": "a.png", "text": " ", "start": 1},
        {"path": "text.mp4"},
        {"path": "empty.mp4"},
        {"path": "loop.mp4"},
        {"path": "a.png", "start": 2, "height": 160, "width": 16},
        {"path": "a.png", "height": 16, "width": 16},
        {"path": "a.png", "start": -1},
    ]
    counts, sentences = check(tmp_path, rows)
    assert counts == {
        "empty caption": 1,
        "bad number": 1,
        "duplicate row": 1,
        "file cannot be opened": 2,
        "file cannot be decoded": 2,
        "manifest contradicts the file": 1,
    }
    assert any(
        "train.csv:3: " in each and "b.png: No such file or directory; correct the path" in each for each in sentences
    )
    assert any("train.csv:7: " in each and "its links lead in a circle" in each for each in sentences)
    assert any("the manifest says 16x160 pixels, the file has 16x16" in each for each in sentences)
    counts, _ = check(tmp_path, rows, headers=False)
    assert "file cannot be decoded" not in counts
    assert counts["file cannot be opened"] == 2


def test_files_outside_the_root_are_refused(tmp_path: Path) -> None:
    """By .., by an absolute path, by a link to a file and by a link to a folder."""
    root, outside = tmp_path / "data", tmp_path / "secret"
    for path in (root / "a.png", root / "sub/b.png", outside / "c.png", outside / "e.png", tmp_path / "database/d.png"):
        picture(path)
    os.symlink(outside / "c.png", root / "link.png")
    os.symlink(outside, root / "folder")
    os.symlink(root / "sub", root / "inner")
    inside = [{"path": path} for path in ("a.png", "sub/b.png", "inner/b.png", f"{root}/sub/../sub/b.png")]
    leading = ["../secret/c.png", str(outside / "e.png"), "link.png", "folder/c.png", "../database/d.png"]
    rows = [*inside[:3], *({"path": path} for path in leading)]
    counts, sentences = check(root, rows)
    assert counts == {"path outside the root": 5}
    assert f"train.csv:7: {root}/link.png, which is {outside}/c.png: not below {root}; allowed" in sentences[2]
    assert check(root, rows[3:], allow_outside=True) == ({}, [])
    assert check(root, rows, root=str(tmp_path)) == ({}, [])


def test_decoding_finds_damage_in_the_middle(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=40)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[middle : middle + 300] = bytes(300)
    (tmp_path / "b.mp4").write_bytes(data)
    rows = [{"path": "a.mp4"}, {"path": "b.mp4"}]
    assert check(tmp_path, rows)[0] == {}
    assert check(tmp_path, rows, decode=True)[0] == {"file cannot be decoded": 1}


@pytest.mark.parametrize("name", ["train.csv", "train.parquet", "train.jsonl", "shards"])
def test_every_form_of_a_table(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Files lie below the folder of the table, which of shards is their own."""
    picture(tmp_path / "shards" / "a.png")
    rows = [{"path": str(tmp_path / "shards" / "a.png"), "text": "dog"}, {"path": str(tmp_path / "b.png"), "text": " "}]
    write_table(str(tmp_path / name / "part-00000.parquet" if name == "shards" else tmp_path / name), rows)
    assert main([str(tmp_path / name)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"{tmp_path / name}: 1 rows can be used, 1 problems", "1 x empty caption"]
    place = {"train.csv": "train.csv:3", "shards": "shards/part-00000.parquet:2"}.get(name, f"{name}:2")
    assert lines[2].startswith(f"    {tmp_path}/{place}: the caption is empty")


def test_bucket_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = Path("configs/stdit2/train/debug_buckets.py").resolve()
    rows = []
    for number, (height, width) in enumerate([(144, 256)] * 8 + [(20, 20)] * 2):
        picture(tmp_path / f"{number}.png", height, width)
        row = {"path": f"{number}.png", "text": "dog", "num_frames": 1, "height": height, "width": width, "fps": ""}
        rows.append(row)
    write_table(str(tmp_path / "train.csv"), rows)
    config = tmp_path / "run.py"
    config.write_text(
        f'_base_ = ["{base}"]\ndataset = dict(_delete_=True, type="VideoTextDataset", data_path="other.csv")\n'
        'bucket_config = dict(_delete_=True, **{"144p": {1: (1.0, 4)}})\nmicro_batches = 1\nimage_ratio = None\n'
    )
    code = main([str(tmp_path / "train.csv"), str(tmp_path / "p.jsonl"), "--config", str(config)])
    lines = capsys.readouterr().out.splitlines()
    assert code == 1
    assert any("batch 4: 8 rows, 2 steps, 0 left over" in line for line in lines)
    assert "2 x smaller than 0.8 of every resolution that takes its length" in lines
    assert (tmp_path / "p.jsonl").read_text() == ""
    write_table(str(tmp_path / "train.csv"), rows[:8])
    assert main([str(tmp_path / "train.csv"), "--config", str(config)]) == 0
    assert main([str(tmp_path / "train.csv"), "--config", str(config), "--set", "micro_batches=64"]) == 1
    assert "1 x no optimizer step" in capsys.readouterr().out


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(str(tmp_path / "train.csv"), [{"path": f"{n}.mp4", "text": "dog"} for n in range(5)])
    assert main([str(tmp_path / "train.csv"), str(tmp_path / "p.jsonl")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}/train.csv: 0 rows can be used, 5 problems"
    assert lines[1] == "5 x file cannot be opened"
    assert lines[-1] == "    ... and 2 more"
    problems = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [each["reason"] for each in problems] == ["file cannot be opened"] * 5
    (tmp_path / "none.csv").write_text("path,text\n")
    assert main([str(tmp_path / "none.csv")]) == 1
    assert "1 x no row" in capsys.readouterr().out
    assert main([str(tmp_path / "a.txt")]) == 2
    assert "MANIFEST is" in capsys.readouterr().err
    assert main([str(tmp_path / "train.csv"), str(tmp_path / "p.csv")]) == 2
    assert main([str(tmp_path / "missing.csv")]) == 1
