"""Folders and published lists as manifests."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from opensora.datasets.table import read_table
from tests.support.media_files import write_video
from tools.datasets.convert import FORMATS, guess, main
from tools.datasets.folder_formats import words_of
from tools.datasets.list_formats import clock_seconds

pytest.importorskip("duckdb")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def convert(source: Path, *words: str, code: int = 0, name: str = "out.parquet") -> list[dict[str, Any]]:
    """Rows of the output, which lies next to the source."""
    out = source.parent / name
    assert main([str(source), str(out), *words]) == code
    return pyarrow.parquet.read_table(out).to_pylist() if code == 0 and out.suffix == ".parquet" else []


def test_folder_with_captions_next_to_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "clips"
    odd = "-x 'q\" \n😀;rm -rf.mp4"
    touch(source, "b/c.webm", "a.mp4", "d.png", odd, "e.mkv", ".hidden.mp4", "notes.doc")
    (source / "a.txt").write_text("\ufeffa dog,\n on a beach \n")
    (source / "b/c.json").write_text(json.dumps({"id": 5, "caption": ["a cat", "another"]}))
    (source / "d.png.txt").write_text("a picture")
    (source / "e.json").write_text("{")
    os.symlink(".", source / "b/loop")
    os.symlink("round.mp4", source / "round.mp4")
    rows = convert(source)
    assert [(row["path"], row["text"]) for row in rows] == [
        (f"clips/{odd}", None),
        ("clips/a.mp4", "a dog, on a beach"),
        ("clips/d.png", "a picture"),
        ("clips/b/c.webm", "a cat"),
    ]
    error = capsys.readouterr().err
    assert "e.mkv: its sidecar file cannot be read" in error
    assert "4 rows of 6 (folder); 1 files are not there" in error
    assert "round.mp4; 1 cannot be read; 1 have no caption" in error


def test_image_folder_and_ucf101(tmp_path: Path) -> None:
    touch(tmp_path / "pictures", "golden_retriever/1.jpg", "golden_retriever/2.png", "Cat/deep/3.jpg")
    assert [(row["text"], row["label"]) for row in convert(tmp_path / "pictures")] == [
        ("cat", "Cat"), ("golden retriever", "golden_retriever"), ("golden retriever", "golden_retriever")
    ]  # fmt: skip
    touch(tmp_path / "ucf", "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c02.avi", "YoYo/v_YoYo_g25_c03.avi")
    assert convert(tmp_path / "ucf") == [
        {
            "path": f"ucf/{label}/v_{label}_g{group}_c0{clip}.avi",
            "text": text,
            "label": label,
            "video": f"{label}_g{group}",
            "clip": clip,
        }
        for label, group, clip, text in (("ApplyEyeMakeup", "01", 2, "apply eye makeup"), ("YoYo", "25", 3, "yo yo"))
    ]


def test_webvid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path / "videos", "001_050/007.mp4", "8.mp4")
    (tmp_path / "list.csv").write_text(
        "videoid,contentUrl,duration,page_dir,name\n"
        '007,https://h/7.mp4,PT00H01M02S,001_050,"A dog, on a beach"\n'
        "8,https://h/8.mp4,PT00H00M20S,001_050,Cat\n9,https://h/9.mp4,,001_050,Gone\n"
    )
    rows = convert(tmp_path / "list.csv", "--videos", str(tmp_path / "videos"))
    assert rows == [
        {
            "path": "videos/001_050/007.mp4",
            "text": "A dog, on a beach",
            "id": "007",
            "url": "https://h/7.mp4",
            "seconds": 62.0,
        },
        {"path": "videos/8.mp4", "text": "Cat", "id": "8", "url": "https://h/8.mp4", "seconds": 20.0},
    ]
    assert f"1 files are not there, the first: {tmp_path}/videos/001_050/9.mp4" in capsys.readouterr().err
    assert len(convert(tmp_path / "list.csv", "--keep-missing")) == 3


def test_panda70m(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One row per shot; lists of different lengths, and cells that are no lists, are named."""
    touch(tmp_path, "-ab1.mp4")
    (tmp_path / "panda.csv").write_text(
        "videoID,url,timestamp,caption,matching_score\n"
        "-ab1,https://y/watch?v=-ab1,\"[['0:00:00.500', '0:00:04.004'], ['1:01:00.000', '1:01:02.5']]\","
        "\"['A dog\\'s ball', 'b']\",\"[0.43, 0.5]\"\n"
        "-ab1,u,\"[['0:00:00', '0:00:01']]\",\"['a', 'b']\",[0.1]\n"
        "-ab1,u,__import__('os').system('true'),['a'],[0.1]\n"
    )
    rows = convert(tmp_path / "panda.csv")
    assert [(row["start"], row["end"], row["text"], row["shot"], row["matching_score"]) for row in rows] == [
        (0.5, 4.004, "A dog's ball", 0, 0.43), (3660.0, 3662.5, "b", 1, 0.5)
    ]  # fmt: skip
    assert {row["path"] for row in rows} == {"-ab1.mp4"}
    error = capsys.readouterr().err
    assert "panda.csv:3: found 1 of timestamp, 2 of caption, 1 of matching_score; allowed: one of each" in error
    assert "panda.csv:4: timestamp, caption or matching_score is no list of shots" in error


def test_vidprom(tmp_path: Path) -> None:
    uuids = [f"0000000{n}-0000-4000-8000-000000000000" for n in range(3)]
    touch(tmp_path / "v", f"pika/pika-{uuids[0]}.mp4", f"ms/ms-{uuids[0]}.mp4", f"{uuids[1]}.mp4", "other.mp4")
    lines = [f"{uuid},prompt {n},2023-01-01,0.{n},0,0,0,0," for n, uuid in enumerate(uuids)]
    (tmp_path / "p.csv").write_text(
        "\n".join(["uuid,prompt,time,toxicity,obscene,identity_attack,insult,threat,sexual_explicit", *lines])
    )
    rows = convert(tmp_path / "p.csv", "--videos", str(tmp_path / "v"))
    assert [(row["path"].split("/")[1], row["generator"], row["text"], row["toxicity"]) for row in rows] == [
        ("ms", "ms", "prompt 0", 0.0), ("pika", "pika", "prompt 0", 0.0), (f"{uuids[1]}.mp4", None, "prompt 1", 0.1)
    ]  # fmt: skip
    assert rows[0]["sexual_explicit"] is None


def test_open_sora_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Frames become seconds by the rate of the item, or of the file."""
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v/a.mp4", frames=24, fps=8)
    touch(tmp_path / "v", "b.mp4", "c.jpg")
    items: list[Any] = [
        {"path": "a.mp4", "frame_idx": "4:20", "cap": "a dog"},
        {"path": "b.mp4", "cut": [25, 50], "fps": 25, "cap": ["a cat", "a pet"]},
        {"path": "c.jpg", "cap": "a picture"},
        {"path": "a.mp4", "frame_idx": "4-20", "cap": "a dog"},
        {"cap": "no path"},
    ]
    (tmp_path / "notes.json").write_text(json.dumps(items))
    rows = convert(tmp_path / "notes.json", "--videos", str(tmp_path / "v"))
    assert [(row["path"], row["text"], row["start"], row["end"], row["start_frame"]) for row in rows] == [
        ("v/a.mp4", "a dog", 0.5, 2.5, 4), ("v/b.mp4", "a cat", 1.0, 2.0, 25), ("v/c.jpg", "a picture", None, None, None)
    ]  # fmt: skip
    error = capsys.readouterr().err
    assert "notes.json: item 4: frame_idx is '4-20'" in error
    assert "notes.json: item 5: has no path" in error
    (tmp_path / "list.txt").write_text("v,notes.json\n\nv\n")
    assert convert(tmp_path / "list.txt") == rows
    assert "list.txt:3: 1 parts; allowed: folder,annotations.json" in capsys.readouterr().err
    (tmp_path / "cut.json").write_text('[{"path": "a.mp4", "cap"')
    convert(tmp_path / "cut.json", code=1)
    assert "cut.json: not JSON" in capsys.readouterr().err


def test_open_sora(tmp_path: Path) -> None:
    """Columns keep their names and get types; paths belong to the folder of the videos."""
    touch(tmp_path / "v", "a.mp4", "b, c.mp4")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/meta.csv").write_bytes(
        '\ufeffpath,text,num_frames,aes,id\na.mp4,"a ""dog""\non a beach",51,5.5,007\n"b, c.mp4",b,60,,008\n'.encode()
    )
    rows = convert(tmp_path / "in/meta.csv", "--videos", str(tmp_path / "v"), name="../out.parquet")
    assert rows == [
        {"path": "v/a.mp4", "text": 'a "dog"\non a beach', "num_frames": 51, "aes": 5.5, "id": "007"},
        {"path": "v/b, c.mp4", "text": "b", "num_frames": 60, "aes": None, "id": "008"},
    ]
    (tmp_path / "old.csv").write_text(f'{tmp_path}/v/a.mp4, "a dog, sitting", 16\n{tmp_path}/v/gone.mp4, x, 3\n')
    assert convert(tmp_path / "old.csv") == [{"path": "v/a.mp4", "text": "a dog, sitting", "num_frames": 16}]


def test_csv_output(tmp_path: Path) -> None:
    touch(tmp_path / "clips", "a.mp4")
    convert(tmp_path / "clips", name="sub/out.csv")
    assert read_table(str(tmp_path / "sub/out.csv")).rows == [{"path": f"{tmp_path}/clips/a.mp4", "text": ""}]
    history = json.loads((tmp_path / "sub/out.csv.history.json").read_text())
    assert (history[0]["tool"], history[0]["inputs"][0]["path"]) == ("tools.datasets.convert", str(tmp_path / "clips"))


@pytest.mark.parametrize(
    ("name", "content", "code", "says"),
    [
        (
            "a.csv",
            "film,words\n1,2\n",
            2,
            "of no format that is known, columns film, words; allowed: folder, imagefolder",
        ),
        ("a.json", "[1]", 2, "of no format that is known, JSON without cap"),
        ("a.json", "{}", 1, "holds a JSON dict; allowed: a list of objects"),
        ("a.xlsx", "PK", 2, "of no format that is known, a file that ends in .xlsx"),
        ("a.csv", "path,text\ngone.mp4,x\n", 1, "of 1 the file is not there (first"),
        ("dir/a.doc", "x", 2, "of no format that is known, a folder with 1 x .doc"),
        ("none", None, 1, "no such file or folder"),
    ],
)
def test_what_is_not_recognized(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None, code: int, says: str
) -> None:
    if content is not None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    convert(tmp_path / name.split("/")[0], code=code)
    assert says in capsys.readouterr().err


def test_every_format_can_be_named(tmp_path: Path) -> None:
    touch(tmp_path / "clips", "a.mp4")
    assert guess(str(tmp_path / "clips")) == "folder"
    assert convert(tmp_path / "clips", "--format", "ucf101", code=1) == []
    assert set(FORMATS) >= {
        "folder",
        "imagefolder",
        "ucf101",
        "webvid",
        "panda70m",
        "vidprom",
        "open_sora_plan",
        "open_sora",
    }


def test_words_and_times() -> None:
    labels = ("ApplyEyeMakeup", "TaiChi", "golden_retriever", "HTMLPage", "a-b  c")
    assert [words_of(label) for label in labels] == [
        "apply eye makeup",
        "tai chi",
        "golden retriever",
        "html page",
        "a b c",
    ]
    assert [clock_seconds(text) for text in ("0:00:04.004", "1:02:03", "02:03.5")] == [4.004, 3723.0, 123.5]
    with pytest.raises(ValueError, match="no time such as"):
        clock_seconds("4 s")
