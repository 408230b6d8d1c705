"""Download the files of a list: one row with a url in, one row with the file's path out.

Run: python -m tools.download list.csv videos.csv --folder videos
     python -m tools.download webvid.csv videos.csv --folder videos --recipe webvid --workers 8

The list has the column url, and may have path (the file's name below FOLDER), sha256 and md5. Recipes map the columns
of published lists. What was stopped goes on at its last byte where the server can do that.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from opensora import files
from opensora.datasets.decode import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from opensora.datasets.missing_values import is_missing
from opensora.errors import BadClip, ConfigError, DataError
from tools.download.fetch import Limits, fetch, forget
from tools.download.page import INSTALL, fetch_page, is_known_page
from tools.download.recipes import RECIPES
from tools.runner import Row

PACKAGES = ("httpx",)
Recipe = Literal["plain", "webvid", "panda70m", "vidprom", "open_sora_plan"]

_CHECKSUMS = ("sha256", "md5")
_STEM = 80  # characters of an address's last part in a file's name
_PAGES = ("text/html", "application/xhtml+xml")


def download(
    row: Row,
    *,
    folder: str,
    recipe: Recipe = "plain",
    base_url: str = "",
    max_megabytes: float = 2000.0,
    max_seconds: float = 1800.0,
    retries: int = 4,
    allow_private: bool = False,
) -> Row:
    """Fetch `row["url"]` into `folder`; the row gets the file's path, its bytes and its sha256. A file that is there stays.

    folder: where the files go
    recipe: columns of the list: plain (url, path, sha256, md5) or those of a published list
    base_url: address of the folder of the files, for lists without addresses
    max_megabytes: larger files are refused
    max_seconds: for one file, all tries together
    retries: tries in a row that bring nothing, after the first
    allow_private: reach loopback and private networks too, and use the proxies of the environment
    """
    if not max_megabytes > 0 or not max_seconds > 0 or retries < 0:
        raise ConfigError(
            f"download: --max-megabytes {max_megabytes} --max-seconds {max_seconds} --retries {retries}; "
            "the first two are above 0, the last not negative"
        )
    row = mapped(row, recipe, base_url)
    url, name = str(row["url"]), file_name(row)
    target = Path(folder).absolute() / name
    if not target.parent.resolve().is_relative_to(Path(folder).resolve()):
        raise BadClip(f"{url}: the path {name} leads out of {folder} through a link; remove the link")
    limits = Limits(int(max_megabytes * 1e6), max_seconds, retries, allow_private)
    with files.write_errors_as(DataError, target, "choose a writable folder with free space"):
        if not target.exists():
            _write(url, target, row, limits)
        elif wrong := _wrong_checksum(target, row):
            raise BadClip(f"{target}: is there already, and {wrong}; remove the file or correct the list")
        facts = {"bytes": target.stat().st_size, "sha256": files.hash_file(target)}
    return {**row, "path": str(target), **facts}


def _write(url: str, target: Path, row: Row, limits: Limits) -> None:
    """Fetch into a hidden file, check it, and give it its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{hashlib.blake2b(f'{target.name} {url}'.encode(), digest_size=16).hexdigest()}.part")
    if is_known_page(url):
        fetch_page(url, part, limits)
    elif fetch(url, part, limits) in _PAGES:
        forget(part)
        raise BadClip(
            f"{url}: is a web page, not a file; {INSTALL} fetches the videos of pages it knows, or remove the row"
        )
    if wrong := _wrong_checksum(part, row):
        forget(part)
        raise BadClip(f"{url}: {wrong}; the file is another or damaged; correct the list or remove the row")
    files.flush(part)
    part.replace(target)
    forget(part)


def _wrong_checksum(path: Path, row: Row) -> str:
    for algorithm in _CHECKSUMS:
        if not is_missing(row.get(algorithm)):
            wanted, actual = str(row[algorithm]).strip().lower(), files.hash_file(path, algorithm)
            if wanted != actual:
                return f"its {algorithm} is {actual}, the list says {wanted}"
    return ""


def mapped(row: Row, recipe: Recipe, base_url: str) -> Row:
    """The row with the columns url, path and text; BadClip for one without an address of http or https."""
    if recipe != "plain":
        row = RECIPES[recipe](row, base_url)
    if is_missing(row.get("url")):
        raise BadClip("no url; a column url is needed; fill it in, or choose the list's --recipe")
    url = str(row["url"]).strip()
    scheme = url.partition(":")[0].lower() if ":" in url else "none"
    if scheme not in ("http", "https"):
        raise BadClip(f"{url}: its scheme is {scheme}; http and https are allowed; correct the url or remove the row")
    try:
        host = urlsplit(url).hostname
    except ValueError as error:
        raise BadClip(f"{url}: is no address ({error}); correct it or remove the row") from error
    if not host:
        raise BadClip(f"{url}: has no host; an address like https://host/file is needed; correct it or remove the row")
    return {**row, "url": url}


def file_name(row: Row) -> str:
    """The path below the folder: that of the list, or one made of the address, which no other address shares."""
    url, path = str(row["url"]), row.get("path")
    if is_missing(path):
        last = unquote(urlsplit(url).path).rpartition("/")[2]
        stem, dot, suffix = last.rpartition(".")
        known = f".{suffix}".lower() in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
        clean = re.sub(r"[^\w-]+", "_", stem if known and dot else last)[:_STEM].strip("_") or "file"
        mark = hashlib.blake2b(url.encode(), digest_size=6).hexdigest()
        return f"{clean}-{mark}.{suffix.lower() if known else 'mp4'}"
    name = str(path).strip()
    parts = re.split(r"[/\\]", name)
    if files.path_fault(name) or any(part in ("", "..", ".") or part.startswith((".", "~")) for part in parts):
        raise BadClip(
            f"{url}: the path {name!r} is not allowed; names and folders below --folder are, none of which begins with a "
            "dot; correct the list"
        )
    return "/".join(parts)


def check_names(rows: Iterable[Row], *, recipe: Recipe = "plain", base_url: str = "", **flags: object) -> None:
    """Raise DataError where two addresses of the list would be written to one file; letter case does not count."""
    urls: dict[int, int] = {}  # hashes, for lists of millions
    for row in rows:
        try:
            row = mapped(row, recipe, base_url)
            name = file_name(row)
        except BadClip:  # reported with its line later
            continue
        if is_missing(row.get("path")):  # made of the address
            continue
        if urls.setdefault(hash(name.casefold()), hash(row["url"])) != hash(row["url"]):
            raise DataError(
                f"the path {name!r} occurs twice with different addresses, the second is {row['url']}; each file needs a "
                "path of its own; correct the list"
            )
