import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from opensora import files
from opensora.errors import DataError


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_failed_write_keeps_old_file(tmp_path: Path, error: BaseException) -> None:
    def fail(part: Path) -> None:
        part.write_bytes(b"half")
        raise error

    (tmp_path / "v.mp4").write_bytes(b"old")
    with pytest.raises(type(error)):
        files.atomic_write(tmp_path / "v.mp4", fail)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("v.mp4", b"old")]


def test_names_of_the_longest_length(tmp_path: Path) -> None:
    name = "é" * 127 + "x"
    files.atomic_write(tmp_path / name, lambda part: part.write_bytes(b"x"))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_arguments_with_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    words = ["~", "~/a", "--folder=~/a", "--text=a ~", "a~", "key=~/a"]
    assert [files.expand_argument(word) for word in words] == [
        "/home/me",
        "/home/me/a",
        "--folder=/home/me/a",
        "--text=a ~",
        "a~",
        "key=~/a",
    ]


def test_file_is_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Any] = []
    replace = Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append(os.fstat(descriptor).st_size))
    monkeypatch.setattr(Path, "replace", lambda self, target: (steps.append(Path(target).name), replace(self, target)))
    files.atomic_write(tmp_path / "new" / "a.json", lambda part: files.write_json(part, {"b": (1,), "a": 2}))
    text = (tmp_path / "new" / "a.json").read_text()
    assert text == '{\n  "b": [\n    1\n  ],\n  "a": 2\n}\n'
    assert steps == [len(text), "a.json"]


def test_two_ranks_write_one_file_at_once(tmp_path: Path) -> None:
    """Their process ids may be equal: they may run on two machines."""

    def while_another_writes(part: Path) -> None:
        part.write_text("first")
        files.atomic_write(tmp_path / "about.json", lambda other: other.write_text("second"))

    files.atomic_write(tmp_path / "about.json", while_another_writes)
    assert (tmp_path / "about.json").read_text() == "first"
    assert os.listdir(tmp_path) == ["about.json"]


def test_write_errors_have_path_reason_and_advice(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(DataError, match=r"/file/x: cannot be written \(.*\); choose another$"),
        files.write_errors_as(DataError, tmp_path / "file" / "x", "choose another"),
    ):
        files.atomic_write(tmp_path / "file" / "x", lambda part: part.write_text("x"))


def test_tensors_are_readable_like_other_files(tmp_path: Path) -> None:
    files.write_tensors(tmp_path / "a.safetensors", {"x": torch.arange(6).view(2, 3).T}, {"format": "pt"})
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert load_file(tmp_path / "a.safetensors")["x"].tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(("text", "number"), [("I/O error (os error 28)", errno.ENOSPC), ("bad header", None)])
def test_failed_tensors_raise_os_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, number: int | None
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise SafetensorError(text)

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="No space left" if number else text) as caught:
        files.write_tensors(tmp_path / "a.safetensors", {})
    assert caught.value.errno == number


def test_hashes(tmp_path: Path) -> None:
    """Of "abc": FIPS 180-2, appendix B.1, and RFC 7693, appendix A, shortened by its own parameter."""
    (tmp_path / "a").write_bytes(b"abc")
    assert files.hash_file(tmp_path / "a").startswith("ba7816bf8f01cfea")
    assert files.hash_file(tmp_path / "a", "blake2b").startswith("ba80a53f981c4d0d")
    assert files.hash_text("abc", 64).startswith("ba80a53f981c4d0d")
    assert len(files.hash_text("\udcff", 8)) == 16


def test_list_files(tmp_path: Path) -> None:
    for name in ("b", "a/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert files.list_files(tmp_path) == ["a/c", "b"]
