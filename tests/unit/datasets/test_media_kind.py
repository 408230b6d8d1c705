from pathlib import Path

import numpy as np
import pytest

from opensora.datasets.decode import probe
from opensora.errors import BadClip
from tests.support.media_files import write_video


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_heic_is_not_called_damaged(tmp_path: Path, brand: bytes) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(4) + b"mif1heic" + bytes(200))
    with pytest.raises(BadClip, match=r"a\.heic: is a HEIC picture, which is not read; convert it to jpg or png"):
        probe(str(path))


def test_a_file_opens_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Playlists under the name of a video: FFmpeg would read a film next to the place where the program was started."""
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "secret.mp4", [np.zeros((32, 32, 3), np.uint8)] * 4)
    for number, text in enumerate(
        (
            "ffconcat version 1.0\nfile secret.mp4\n",
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9.0,\nfile://{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n",
            "ffconcat version 1.0\nfile secret.mp4\n" + "\x00" * 600,
        )
    ):
        path = tmp_path / f"list{number}.mp4"
        path.write_text(text)
        with pytest.raises(BadClip, match=rf"list{number}\.mp4: is "):
            probe(str(path))


def test_text_is_not_drawn_as_a_film(tmp_path: Path) -> None:
    """FFmpeg takes text with escapes of a terminal for a film of it."""
    (tmp_path / "text.mp4").write_bytes(b"\x1b[1mhello\x1b[0m\x01\x02 world\r\n" * 200)
    with pytest.raises(BadClip, match=r"text\.mp4: is "):
        probe(str(tmp_path / "text.mp4"))
    (tmp_path / "art.ans").write_bytes(b"\x1b[31mhello\x1b[0m\r\n" * 200)
    with pytest.raises(BadClip, match=r"art\.ans: is a text file"):
        probe(str(tmp_path / "art.ans"))
