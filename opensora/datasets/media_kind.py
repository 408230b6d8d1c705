"""The kind of a file by its first bytes, whatever its name says, and words for a file that cannot be read."""

import os
from typing import TYPE_CHECKING, Any, BinaryIO

from opensora.errors import BadClip

if TYPE_CHECKING:
    from av.container import InputContainer

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".gif")

_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_DRAWN_TEXT = ("tty",)  # FFmpeg's readers that draw text
_TEXT = "is a text file, not a video; correct the path or remove the row"
_MOTION_JPEG = (".mjpeg", ".mjpg")  # JPEGs one after the other


def open_file(path: str) -> BinaryIO:
    """Open by ourselves rather than by FFmpeg, which would take names with % or : for patterns and protocols."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (the caller closes it)
        if os.fstat(file.fileno()).st_size == 0:
            file.close()
            raise BadClip(f"{path}: the file is empty (0 bytes); copy it again or remove the row")
        return file
    except FileNotFoundError:
        raise BadClip(f"{path}: no such file; paths are relative to the manifest's folder; correct the path") from None
    except IsADirectoryError:
        raise BadClip(f"{path}: is a folder; a video or image file is needed; correct the path") from None
    except OSError as error:
        raise BadClip(f"{path}: cannot be opened ({error.strerror}); check its permissions") from error


def open_container(file: BinaryIO, **settings: Any) -> "InputContainer":
    """FFmpeg on an open file, and on that file alone: playlists (HLS, DASH, concat) would have it open files and
    addresses that they name. settings: of av.open. Raises av.FFmpegError, and BadClip for text with control bytes, which
    FFmpeg would draw as a film.
    """
    import av

    container = av.open(file, mode="r", container_options={"protocol_whitelist": "none"}, **settings)
    if container.format.name in _DRAWN_TEXT:
        container.close()
        raise BadClip(f"{file.name}: {_TEXT}")
    return container


def is_picture(path: str, file: BinaryIO) -> bool:
    """True for the picture formats that Pillow reads; BadClip for HEIC, of which FFmpeg would show a corner."""
    file.seek(0)
    head = file.read(64)
    if head[4:8] == b"ftyp":
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, min(len(head), _number(head[:4])), 4))}
        if brands & {b"avif", b"avis"}:
            return True
        if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
            raise BadClip(f"{path}: is a HEIC picture, which is not read; convert it to jpg or png, or remove the row")
        return False
    if path.lower().endswith(_MOTION_JPEG):
        return False
    is_bmp = head[:2] == b"BM" and head[6:10] == bytes(4)  # the reserved field
    return head.startswith(_PICTURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or is_bmp


def has_fragments(file: BinaryIO) -> bool:
    """True for an mp4 whose frames are in fragments (moof boxes): its header counts at most those of the first."""
    descriptor, position = file.fileno(), 0
    end = os.fstat(descriptor).st_size
    while position + 8 <= end:
        head = os.pread(descriptor, 16, position)  # FFmpeg reads the same file, and counts on where it left it
        size, kind = _number(head[:4]), head[4:8]
        if kind == b"moof":
            return True
        size = _number(head[8:16]) if size == 1 else size or end - position  # 0: up to the end of the file
        if size < 8:
            return False  # no box; FFmpeg has the word
        position += size
    return False


def _number(big_endian: bytes) -> int:
    return int.from_bytes(big_endian, "big")


def unreadable(file: BinaryIO, error: Exception) -> str:
    """Why FFmpeg could not open it, in words that help."""
    file.seek(0)
    head = file.read(512)
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the video itself; run `git lfs pull`"
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        return _TEXT
    reason = getattr(error, "strerror", None) or str(error)
    return f"is not a readable video ({reason}); it is truncated or of another kind; copy it again or remove the row"
