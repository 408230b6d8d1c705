"""Fetch one file by HTTP: a cut connection is resumed, sizes and times are limited, private addresses refused."""

import functools
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opensora import files
from opensora.errors import BadClip
from tools.download import public_address

if TYPE_CHECKING:
    from httpx import Client, Response

_REDIRECTS = 10
_CONNECT_SECONDS, _SILENT_SECONDS = 10.0, 30.0  # without a connection, or without a byte
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds between two tries
_BUSY = (408, 425, 429, 500, 502, 503, 504)

sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Limits:
    """Bounds on the fetching of one file."""

    bytes: int
    seconds: float  # for all tries together
    retries: int  # in a row that bring no new byte
    allow_private: bool = False


@dataclass(frozen=True)
class _State:
    """Facts about a file that is partly there."""

    url: str
    validator: str  # ETag or date of the version; "" = the server names none, so the file cannot be resumed


class _Private(Exception):
    """A connection leads into a private network."""


class _Again(Exception):
    """The try failed for a reason that may pass. pause: seconds that the server wants to wait."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


def fetch(url: str, part: Path, limits: Limits) -> str:
    """Write the file at `url` to `part` and return its content type; what is there of it is kept and continued.

    Raises BadClip when it cannot be had. A `part` of a version that is still on the server stays for the next time.
    """
    deadline, failures = time.monotonic() + limits.seconds, 0
    while True:
        size = _size(part)
        try:
            return _try(url, part, limits, deadline)
        except _Again as error:
            failures = 0 if _size(part) > size else failures + 1
            pause = max(error.pause, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** max(0, failures - 1)))
            if failures > limits.retries:
                raise BadClip(f"{url}: {error}; {failures} tries failed; try again later or remove the row") from error
            if time.monotonic() + pause > deadline:
                raise BadClip(f"{url}: {error}; {limits.seconds:g} seconds are over; see --max-seconds") from error
            sleep(pause)


def forget(part: Path) -> None:
    """Remove what is there of a file."""
    part.unlink(missing_ok=True)
    _state_file(part).unlink(missing_ok=True)


def _try(url: str, part: Path, limits: Limits, deadline: float) -> str:
    import httpx

    have, validator = _kept(url, part)
    headers = {"Range": f"bytes={have}-", "If-Range": validator} if have else {}
    extensions = {} if limits.allow_private else {"trace": _refuse_private}
    client = _client(limits.allow_private)
    try:
        with client.stream("GET", url, headers=headers, extensions=extensions) as response:
            return _receive(response, url, part, have, limits, deadline)
    except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
        raise BadClip(f"{url}: {error}; only http and https are possible; correct the url or remove the row") from error
    except _Private as error:
        raise BadClip(f"{url}: {error}") from error
    except httpx.HTTPError as error:
        raise _Again(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error


def _receive(response: "Response", url: str, part: Path, have: int, limits: Limits, deadline: float) -> str:
    """Write the body behind the first `have` bytes of `part`, or from its start where the server sends all."""
    if response.status_code == 206:
        start, total = _content_range(response)
        if start != have:
            forget(part)
            raise _Again(f"the server sent the bytes from {start} instead of {have}")
    elif response.status_code == 200:
        have, total = 0, int(response.headers.get("Content-Length", -1))
    elif response.status_code == 416:  # nothing behind the bytes that are there
        forget(part)
        raise _Again("the server has no bytes behind those that are there")
    elif response.status_code in _BUSY:
        wait = response.headers.get("Retry-After", "")
        raise _Again(f"the server answered {response.status_code}", float(wait) if wait.isdigit() else 0.0)
    else:
        raise BadClip(f"{url}: the server answered {response.status_code}; correct the url or remove the row")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise BadClip(f"{url}: the server packs the file, which was not wanted; remove the row")
    too_large = f"{url}: is larger than {limits.bytes / 1e6:g} megabytes; raise --max-megabytes or remove the row"
    if total > limits.bytes:
        forget(part)
        raise BadClip(too_large)
    files.write_json(_state_file(part), asdict(_State(url, _validator(response))))
    with open(part, "ab" if have else "wb") as file:
        for chunk in response.iter_raw():
            have += len(chunk)
            if have > limits.bytes:
                file.close()
                forget(part)
                raise BadClip(too_large)
            file.write(chunk)
            if time.monotonic() > deadline:
                raise BadClip(
                    f"{url}: not complete after {limits.seconds:g} seconds; see --max-seconds; --resume goes on"
                )
    if total >= 0 and have != total:
        raise _Again(f"the connection ended after {have} of {total} bytes")
    return str(response.headers.get("Content-Type", "")).partition(";")[0].strip().lower()


def _refuse_private(event: str, info: dict[str, Any]) -> None:
    """Called by httpx; raises _Private once a connection stands and before anything is sent through it."""
    if event != "connection.connect_tcp.complete":
        return
    stream = info["return_value"]
    host = str(stream.get_extra_info("server_addr")[0])
    if not public_address.is_public(host):
        stream.close()
        raise _Private(f"{host} is an address of a private network; only the internet is reached; see --allow-private")


@functools.lru_cache(maxsize=2)
def _client(allow_private: bool) -> "Client":
    """One for all files, so that connections are used again."""
    import httpx

    return httpx.Client(
        follow_redirects=True,
        max_redirects=_REDIRECTS,
        timeout=httpx.Timeout(_SILENT_SECONDS, connect=_CONNECT_SECONDS),
        headers={"User-Agent": "opensora", "Accept-Encoding": "identity"},
        trust_env=allow_private,  # a proxy would make the connection, whose address nothing here would see
    )


def _kept(url: str, part: Path) -> tuple[int, str]:
    """Bytes that are there of this address, and the version they are of; 0 where they cannot be continued."""
    try:
        state = _State(**json.loads(_state_file(part).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return 0, ""
    return (_size(part), state.validator) if state.url == url and state.validator else (0, "")


def _validator(response: "Response") -> str:
    """The name of this version for If-Range: a strong ETag, or the date of the last change."""
    tag = str(response.headers.get("ETag", ""))
    return tag if tag and not tag.startswith("W/") else str(response.headers.get("Last-Modified", ""))


def _content_range(response: "Response") -> tuple[int, int]:
    """First byte and size of the whole file; -1 where it is not known."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if match is None:
        return -1, -1
    return int(match[1]), -1 if match[2] == "*" else int(match[2])


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _state_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")
