"""The names that VBench reads."""

import json
from pathlib import Path

import pytest

from opensora.errors import DataError
from opensora.evaluation.vbench import lay_out, read_prompts
from tests.support.media_files import write_video


def sampled(folder: Path, prompt: str, repeats: int, stem: str) -> None:
    folder.mkdir(exist_ok=True)
    for repeat in range(repeats):
        name = f"{stem}-{9 - repeat}.mp4"  # names sort the other way around
        Path(write_video(folder / name, 2 + repeat)).with_suffix(".json").write_text(
            json.dumps({"file": name, "prompt": prompt, "repeat": repeat})
        )


def test_names_are_prompt_and_index(tmp_path: Path) -> None:
    sampled(tmp_path / "videos", "a red car.", 6, "a")
    sampled(tmp_path / "videos", "a cat, in the style of Ukiyo", 2, "b")
    sampled(tmp_path / "videos", "a prompt of no list", 1, "c")
    (tmp_path / "all.txt").write_text("a red car.\n\na cat, in the style of Ukiyo\na dog\n")
    layout = lay_out(tmp_path / "videos", tmp_path / "all.txt", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a cat, in the style of Ukiyo-0.mp4",
        "a cat, in the style of Ukiyo-1.mp4",
        *(f"a red car.-{index}.mp4" for index in range(5)),
    ]
    assert (layout.videos, layout.prompts) == (7, 3)
    assert layout.incomplete == ["a cat, in the style of Ukiyo", "a dog"]
    sources = {each.name: each.read_bytes() for each in (tmp_path / "videos").glob("*.mp4")}
    assert (tmp_path / "out" / "a red car.-3.mp4").read_bytes() == sources["a-6.mp4"]


def test_a_folder_of_lists_wants_25_of_temporal_flickering(tmp_path: Path) -> None:
    (tmp_path / "temporal_flickering.txt").write_text("a still lake\n")
    (tmp_path / "color.txt").write_text("a red car\na still lake\n")
    assert read_prompts(tmp_path) == {"a red car": 5, "a still lake": 25}


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("a/b", "a name with /"),
        ("../x", "a name with /"),
        (".hidden", "a dot in front"),
        ("x" * 300, "a name of 306 bytes"),
    ],
)
def test_prompts_that_cannot_be_names_are_refused(tmp_path: Path, prompt: str, sentence: str) -> None:
    sampled(tmp_path / "videos", prompt, 1, "a")
    (tmp_path / "all.txt").write_text(prompt + "\n")
    with pytest.raises(DataError, match=sentence):
        lay_out(tmp_path / "videos", tmp_path / "all.txt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    sampled(tmp_path / "videos", "a cat", 1, "a")
    (tmp_path / "all.txt").write_text("a dog\n")
    with pytest.raises(DataError, match=r"holds no video of a prompt in .*--num-sample 5"):
        lay_out(tmp_path / "videos", tmp_path / "all.txt", tmp_path / "out")
    (tmp_path / "all.txt").write_text("a cat\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other.mp4").touch()
    with pytest.raises(DataError, match="holds files already"):
        lay_out(tmp_path / "videos", tmp_path / "all.txt", tmp_path / "out")
    for text in (None, ""):
        (tmp_path / "all.txt").unlink() if text is None else (tmp_path / "all.txt").write_text(text)
        with pytest.raises(DataError, match="allowed: VBench's list of prompts"):
            read_prompts(tmp_path / "all.txt")
