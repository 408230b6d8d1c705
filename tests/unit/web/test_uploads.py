"""Files of visitors: refused by their header, before anything is decoded."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opensora.errors import BadClip
from opensora.web.uploads import UploadLimits, check_upload
from tests.support.media_files import write_video

LIMITS = UploadLimits(megabytes=0.5, pixels=64 * 64, frames=20, seconds=2.0)


def picture(path: Path, width: int, height: int) -> str:
    Image.new("RGB", (width, height)).save(path)
    return str(path)


def video(path: Path, frames: int, side: int = 32) -> str:
    return write_video(path, [np.zeros((side, side, 3), np.uint8)] * frames)  # 8 frames per second


def test_what_fits_is_taken(tmp_path: Path) -> None:
    for path in (picture(tmp_path / "a.png", 64, 64), video(tmp_path / "b.mp4", 16)):
        assert check_upload(path, str(tmp_path), LIMITS) == path


def test_what_does_not_fit_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(b"\x89PNG" + bytes(600_000))
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile b.mp4\n")
    (tmp_path / "page.html").write_text("<script>")
    cases = {
        str(tmp_path / "large.png"): "has 1 MB; at most 0 are allowed",
        str(tmp_path / "text.mp4"): "no video that can be read",
        str(tmp_path / "list.mp4"): "no video that can be read",
        str(tmp_path / "text.png"): "no picture that can be read",
        str(tmp_path / "page.html"): "not the name of a picture or video",
        picture(tmp_path / "wide.png", 4097, 1): "has 4097x1 pixels; at most 4,096",
        video(tmp_path / "tall.mp4", 2, 66): "has 66x66 pixels",
        video(tmp_path / "long.mp4", 24): "has 24 frames and 3 seconds",
    }
    for path, words in cases.items():
        with pytest.raises(BadClip, match=words) as caught:
            check_upload(path, str(tmp_path), LIMITS)
        assert str(tmp_path) not in str(caught.value)  # a visitor learns no folder of the server


def test_a_header_of_a_huge_picture_allocates_nothing(tmp_path: Path) -> None:
    """A PNG that says 60,000 x 60,000 in 60 bytes."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    with pytest.raises(BadClip, match=r"huge\.png"):
        check_upload(str(tmp_path / "huge.png"), str(tmp_path))


def test_only_files_that_were_sent(tmp_path: Path) -> None:
    """A path of the server in a request, a way out of the folder, a link out of it, a file that is not there."""
    sent = tmp_path / "sent"
    sent.mkdir()
    secret = picture(tmp_path / "secret.png", 8, 8)
    (sent / "link.png").symlink_to(secret)
    for path in (
        secret,
        f"{sent}/../secret.png",
        str(sent / "link.png"),
        str(sent / "none.png"),
        f"{tmp_path}/sent2/a.png",
    ):
        with pytest.raises(BadClip, match="is no file that was sent"):
            check_upload(path, str(sent))
