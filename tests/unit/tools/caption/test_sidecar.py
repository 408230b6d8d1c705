import json
from pathlib import Path

import pytest

from opensora.chat_client import Answer
from opensora.errors import BadClip, ConfigError
from tools.caption.sidecar import SidecarCaptioner

TEXT = "Zwei Männer in einem Café \u2013 \u201cgut\u201d."


def read(folder: Path, name: str, data: bytes, **arguments: object) -> Answer | BadClip:
    (folder / name).write_bytes(data)
    return SidecarCaptioner(**arguments).caption([{"path": str(folder / "clip.mp4")}])[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["clip.txt", "clip.mp4.txt"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_text_files_of_any_encoding(tmp_path: Path, name: str, encoding: str) -> None:
    assert read(tmp_path, name, TEXT.encode(encoding)) == Answer(TEXT)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"caption": TEXT}, ""),
        ({"id": 3, "text": TEXT}, ""),
        ({"caption": [TEXT, "more"]}, ""),
        ([{"caption": TEXT}], ""),
        (TEXT, ""),
        ({"meta": {"long": TEXT}, "caption": "short"}, "meta.long"),
    ],
)
def test_json(tmp_path: Path, value: object, key: str) -> None:
    assert read(tmp_path, "clip.json", json.dumps(value).encode(), key=key) == Answer(TEXT)


def test_lines_are_joined_and_the_first_file_counts(tmp_path: Path) -> None:
    (tmp_path / "clip.json").write_text('{"caption": "from json"}')
    assert read(tmp_path, "clip.txt", b"A dog\r\nruns.\n") == Answer("A dog runs.")
    captioner = SidecarCaptioner(suffixes=[".json"])
    assert captioner.caption([{"path": str(tmp_path / "clip.mp4")}]) == [Answer("from json")]


def test_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "clip.txt").write_text("A dog runs.")
    assert SidecarCaptioner(folder=str(tmp_path)).caption([{"path": "/videos/clip.mp4"}]) == [Answer("A dog runs.")]
    with pytest.raises(ConfigError, match="folder '/no/such' is not there"):
        SidecarCaptioner(folder="/no/such")


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("clip.txt", b" \n", "holds no caption"),
        ("clip.txt", b"\x1f\x8b\x08\x00", "compressed by gzip"),
        ("clip.txt", b"\xff\xfeA\0\xdc", "damaged utf-16 text"),
        ("clip.txt", b"a" * ((1 << 20) + 1), "has 1,048,577 bytes"),
        ("clip.json", b'{"caption": ', "not JSON"),
        ("clip.json", b'{"title": "a"}', "none of caption, text, description, prompt, cap; it has title"),
        ("clip.json", b'{"caption": 3}', "the caption is 3; a text is needed"),
        ("clip.json", b'{"caption": null}', "holds no caption"),
        ("clip.json", b'{"caption": []}', "holds no caption"),
    ],
)
def test_files_that_hold_no_caption(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    result = read(tmp_path, name, data)
    assert isinstance(result, BadClip)
    assert expected in str(result)
    assert str(tmp_path / name) in str(result)


def test_no_file(tmp_path: Path) -> None:
    (result,) = SidecarCaptioner().caption([{"path": str(tmp_path / "clip.mp4")}])
    assert "looked for clip.txt, clip.mp4.txt, clip.json, clip.mp4.json" in str(result)
    (tmp_path / "clip.txt").mkdir()
    (result,) = SidecarCaptioner().caption([{"path": str(tmp_path / "clip.mp4")}])
    assert isinstance(result, BadClip)
