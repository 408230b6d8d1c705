from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from opensora.datasets.moving_shapes import TEMPLATES, combinations
from opensora.errors import ConfigError, DataError
from opensora.models.text.classes import ClassLabels

ROOT = Path(__file__).resolve().parents[4]
NAMES = ["Archery", "Baby Crawling", "7"]


def test_names_and_numbers() -> None:
    encoder = ClassLabels(NAMES).to("cpu", torch.bfloat16).load()
    condition = encoder.encode(["baby crawling", " Archery ", "2", "7", "1"])
    assert condition.mask_BL is None
    assert condition.text_B1LC.dtype == torch.int64
    assert condition.text_B1LC.tolist() == [1, 0, 2, 2, 1]  # a name that is a number is a name
    assert encoder.denoiser_args == {"condition": "label_3"}


def test_a_file_of_names(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("\ufeffArchery\r\nBaby Crawling\n\n", encoding="utf-8")
    assert ClassLabels(str(file)).names == ["Archery", "Baby Crawling"]


def test_debug_configs_name_every_caption_of_the_drawn_clips() -> None:
    config = Config.fromfile(str(ROOT / "configs/_base_/moving_shapes_classes.py"))
    encoder = ClassLabels(**{key: value for key, value in config.text_encoder.items() if key != "type"})
    every = [
        what.caption(template)
        for split in ("train", "holdout")
        for what in combinations(split)
        for template in TEMPLATES
    ]
    assert sorted(encoder.encode(every).text_B1LC.tolist()) == list(range(encoder.num_classes))


def test_numbers_alone() -> None:
    encoder = ClassLabels(num_classes=101)
    assert encoder.encode(["100", "0"]).text_B1LC.tolist() == [100, 0]
    with pytest.raises(DataError, match=r"'101'.*0 to 100"):
        encoder.encode(["101"])


@pytest.mark.parametrize("caption", ["archer", "3", "-1", "1.0", ""])
def test_what_is_no_class(caption: str) -> None:
    with pytest.raises(DataError, match=r"0 to 2.*3 names \(Archery, Baby Crawling, 7\)"):
        ClassLabels(NAMES).encode(["Archery", caption])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no class"),
        (["a", "b", "A"], "class 0.*'a'"),
        (["a", " "], "class 1"),
        (None, "names.*num_classes"),
        ("no/such/file.txt", "no/such/file.txt"),
    ],
)
def test_lists_that_cannot_be_used(names: list[str] | str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassLabels(names)


def test_names_and_a_number_of_classes_contradict() -> None:
    with pytest.raises(ConfigError, match="one of"):
        ClassLabels(NAMES, num_classes=3)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "classes.bin"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        ClassLabels(str(file))
