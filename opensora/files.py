"""Files that appear complete or not at all, and hashes of their bytes.

Callers write `files.atomic_write(...)`, so that a test can replace a function here by one that meets a full disk.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opensora.errors import OpenSoraError

if TYPE_CHECKING:  # the import takes seconds
    from torch import Tensor

NAME_BYTES = 255  # of a file or folder, on common file systems
PATH_BYTES = 4095
_PART_BYTES = NAME_BYTES - 39  # of a name, so that the hidden file's dots, hexadecimal digits and ending fit as well


def expand_home(path: str | Path) -> str:
    """`path` with ~ or ~USER at its beginning replaced by the home folder, as shells do it."""
    return os.path.expanduser(path)


def expand_argument(word: str) -> str:
    """A word of a command line with ~ expanded at its start, or behind the = of a flag, where shells leave it."""
    flag, equals, value = word.partition("=")
    return f"{flag}={expand_home(value)}" if equals and word.startswith("--") else expand_home(word)


def path_fault(path: str, utf8: bool = False) -> str | None:
    """Why no file or folder can have this path, in words; None for a path that is possible.

    utf8: names of other bytes, which Python carries as lone surrogates, are a fault as well.
    """
    if not path.strip():
        return "an empty path"
    if "\0" in path:
        return "a path with a zero byte"
    if utf8 and not is_utf8(path):
        return f"{path!r}, which is not UTF-8"
    if len(os.fsencode(path)) > PATH_BYTES:
        return f"a path of {len(os.fsencode(path))} bytes, and systems take {PATH_BYTES}"
    longest = max(os.fsencode(path).split(os.sep.encode()), key=len)
    if len(longest) > NAME_BYTES:
        return f"a name of {len(longest)} bytes, and file systems take {NAME_BYTES}"
    return None


def is_utf8(path: str | Path) -> bool:
    """False for a path with bytes that are not UTF-8, which Python carries as lone surrogates."""
    return not re.search("[\ud800-\udfff]", str(path))


def ffmpeg_path(path: str | Path) -> str:
    """`path` as FFmpeg opens it, which takes what is before a colon for a protocol."""
    return f"file:{os.path.abspath(path)}"


def atomic_write(path: str | Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a hidden file next to `path`, flush it to the disk and rename it.

    Folders above `path` are made. Whatever is raised, `path` is as it was before and the hidden file is gone.
    """
    path = Path(path)
    # Ranks on several machines may write one file at once, and in containers even their process ids may be equal.
    start = os.fsencode(path.name)[:_PART_BYTES].decode(errors="ignore")
    part = path.with_name(f".{start}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fill(part)
        flush(part)  # if the rename reached the disk before the bytes, a crash would leave an empty file
        part.replace(path)
    except BaseException:  # an interrupt too must not leave half a file
        part.unlink(missing_ok=True)
        raise


def atomic_folder(path: str | Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` make a hidden folder next to `path` and rename it; an older folder of that name goes.

    Whatever is raised, the hidden folder is gone.
    """
    path = Path(path)
    part = path.with_name(f".{os.fsencode(path.name)[:_PART_BYTES].decode(errors='ignore')}.{uuid.uuid4().hex}.part")
    try:
        fill(part)
        shutil.rmtree(path, ignore_errors=True)
        part.replace(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return path.stat().st_size if not path.is_dir() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


@contextmanager
def write_errors_as(error: type[OpenSoraError], where: str | Path, advice: str) -> Iterator[None]:
    """Turn OSError inside the context into `error`: "WHERE: cannot be written (REASON); ADVICE"."""
    try:
        yield
    except OSError as found:  # PyAV's errors for input and output are OSErrors as well
        raise error(f"{where}: cannot be written ({found.strerror or found}); {advice}") from found


def write_text(path: Path, text: str) -> None:
    """Write UTF-8."""
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, values: object, sort_keys: bool = False) -> None:
    """Write indented JSON with a final newline; iterables that JSON does not know become lists."""
    write_text(path, json.dumps(values, indent=2, sort_keys=sort_keys, default=list) + "\n")


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that everyone may read who may read other new files of this user. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    try:
        save_file({name: each.contiguous() for name, each in tensors.items()}, path, metadata=dict(metadata or {}))
    except SafetensorError as error:  # it names the system's error in its text only
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise OSError(str(error)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    path.chmod(mode)  # safetensors may make files that only their owner can read


def flush(path: Path) -> None:
    """Return once the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_files(folder: Path) -> list[str]:
    """Sorted paths of all files below `folder`, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def hash_file(path: str | Path, algorithm: str | Callable[[], Any] = "sha256") -> str:
    """Hex digest of the bytes of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def hash_text(text: str, size: int) -> str:
    """Hex digest of `size` bytes (BLAKE2b). Paths that are not UTF-8, as os.fsdecode gives them, are allowed."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=size).hexdigest()
