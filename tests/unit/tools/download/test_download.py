"""Downloads from a server in this process: resumed, checked, limited, and never from where a list must not reach."""

import hashlib
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from opensora.datasets.table import read_table, write_table
from opensora.errors import BadClip, ConfigError, DataError
from tools.download import fetch, public_address
from tools.download.download import PACKAGES, check_names, download, file_name, mapped
from tools.runner import main

pytest.importorskip("httpx")

DATA = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


class Server:
    """Answers by path; remembers (path, Range) of each request.

    cuts: connections that end early, each after 100,000 bytes. etag: of the one file that there is.
    """

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.requests: list[tuple[str, str | None]] = []
        self.cuts, self.etag, self.busy, self.data, self.ranges = 0, '"v1"', 0, DATA, True
        self.redirect = ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.requests.append((self.path, self.headers.get("Range")))
                answer: Callable[[], None] = getattr(
                    outer, "_" + self.path.strip("/").partition("/")[0].partition(".")[0]
                )
                answer(self)  # type: ignore[call-arg]

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer((address, 0), Handler)
        self.url = f"http://{address}:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _file(self, request: BaseHTTPRequestHandler) -> None:
        if self.busy:
            self.busy -= 1
            request.send_response(503)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        wanted, start = request.headers.get("Range"), 0
        if wanted and self.ranges and request.headers.get("If-Range") == self.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}")
        if self.etag:
            request.send_header("ETag", self.etag)
        request.send_header("Content-Type", "video/mp4")
        request.send_header("Content-Length", str(len(self.data) - start))
        request.end_headers()
        if self.cuts:
            self.cuts -= 1
            request.wfile.write(self.data[start : start + 100_000])
            request.close_connection = True
            return
        request.wfile.write(self.data[start:])

    def _page(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "text/html; charset=utf-8")
        request.send_header("Content-Length", "6")
        request.end_headers()
        request.wfile.write(b"<html>")

    def _endless(self, request: BaseHTTPRequestHandler) -> None:
        """A body whose size is not said before."""
        request.send_response(200)
        request.send_header("Connection", "close")
        request.end_headers()
        request.close_connection = True
        try:
            for _ in range(1000):
                request.wfile.write(bytes(10_000))
        except OSError:
            pass

    def _away(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", self.redirect)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _gone(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(404)
        request.send_header("Content-Length", "0")
        request.end_headers()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of the pauses, none of which is made."""
    seconds: list[float] = []
    monkeypatch.setattr(fetch, "sleep", seconds.append)
    return seconds


def get(row: dict[str, Any], folder: Path, **flags: Any) -> dict[str, Any]:
    return download(row, folder=str(folder), **{"allow_private": True, **flags})


def left(folder: Path) -> list[str]:
    """Names of all files, hidden ones too."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_with_its_facts(server: Server, tmp_path: Path) -> None:
    row = {"url": f"{server.url}/file.MP4?v=1", "text": "kept", "sha256": SHA256.upper(), "md5": ""}
    done = get(row, tmp_path)
    path = Path(done["path"])
    assert path.read_bytes() == DATA
    assert (done["bytes"], done["sha256"], done["text"]) == (len(DATA), SHA256, "kept")
    assert path.name.startswith("file-")
    assert path.suffix == ".mp4"
    assert get(row, tmp_path) == done
    assert len(server.requests) == 1
    assert left(tmp_path) == [path.name]


def test_a_cut_connection_is_continued(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    """The same bytes, each of which is sent once."""
    server.cuts = 2
    done = get({"url": f"{server.url}/file", "path": "a/b.mp4"}, tmp_path)
    assert done["path"] == str(tmp_path / "a" / "b.mp4")
    assert Path(done["path"]).read_bytes() == DATA
    assert server.requests == [("/file", None), ("/file", "bytes=100000-"), ("/file", "bytes=200000-")]
    assert pauses == [0.5, 0.5]
    assert left(tmp_path) == ["b.mp4"]


@pytest.mark.parametrize(("etag", "data"), [('"v1"', DATA), ('"v2"', DATA[::-1])])
def test_a_stopped_command_goes_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, etag: str, data: bytes
) -> None:
    """And begins again where another version is on the server."""
    row = {"url": f"{server.url}/file", "path": "a.mp4"}
    server.cuts = 1
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            get(row, tmp_path)
    assert len(left(tmp_path)) == 2
    server.etag, server.data = etag, data
    assert Path(get(row, tmp_path)["path"]).read_bytes() == data
    assert server.requests[1:] == [("/file", "bytes=100000-")]
    assert left(tmp_path) == ["a.mp4"]


def interrupt(seconds: float) -> None:
    raise KeyboardInterrupt


def test_without_a_version_the_whole_file_is_sent_again(server: Server, tmp_path: Path) -> None:
    server.cuts, server.etag = 1, ""
    assert get({"url": f"{server.url}/file"}, tmp_path)["sha256"] == SHA256
    assert server.requests == [("/file", None), ("/file", None)]


def test_a_server_that_ignores_ranges(server: Server, tmp_path: Path) -> None:
    server.cuts, server.ranges = 1, False
    assert get({"url": f"{server.url}/file"}, tmp_path)["sha256"] == SHA256
    assert server.requests == [("/file", None), ("/file", "bytes=100000-")]


def test_a_busy_server_is_tried_again_with_growing_pauses(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    server.busy = 3
    assert get({"url": f"{server.url}/file"}, tmp_path)["sha256"] == SHA256
    assert pauses == [0.5, 1.0, 2.0]
    server.busy = 9
    with pytest.raises(BadClip, match="the server answered 503; 3 tries failed"):
        get({"url": f"{server.url}/file", "path": "b.mp4"}, tmp_path, retries=2)
    assert "b.mp4" not in left(tmp_path)


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_wrong_checksum_is_refused(server: Server, tmp_path: Path, algorithm: str) -> None:
    row = {"url": f"{server.url}/file", "path": "a.mp4", algorithm: "0" * 32}
    with pytest.raises(BadClip, match=f"its {algorithm} is .*, the list says 0000"):
        get(row, tmp_path)
    assert left(tmp_path) == []
    (tmp_path / "a.mp4").write_bytes(b"another")
    with pytest.raises(BadClip, match="is there already, and its"):
        get(row, tmp_path)
    assert (tmp_path / "a.mp4").read_bytes() == b"another"


def test_too_large_files_are_refused(server: Server, tmp_path: Path) -> None:
    """By their announced size, or as soon as more has come."""
    with pytest.raises(BadClip, match=r"larger than 0\.2 megabytes"):
        get({"url": f"{server.url}/file"}, tmp_path, max_megabytes=0.2)
    with pytest.raises(BadClip, match=r"larger than 0\.2 megabytes"):
        get({"url": f"{server.url}/endless"}, tmp_path, max_megabytes=0.2)
    assert left(tmp_path) == []
    assert get({"url": f"{server.url}/file"}, tmp_path, max_megabytes=0.3)["bytes"] == 300_000


def test_time_is_limited(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 7))
    monkeypatch.setattr(fetch, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(BadClip, match="not complete after 10 seconds"):
        get({"url": f"{server.url}/endless"}, tmp_path, max_seconds=10.0)


def test_pages_and_missing_files_are_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(BadClip, match=r"is a web page, not a file; pip install yt-dlp"):
        get({"url": f"{server.url}/page"}, tmp_path)
    with pytest.raises(BadClip, match="the server answered 404"):
        get({"url": f"{server.url}/gone"}, tmp_path)
    assert left(tmp_path) == []


def test_private_addresses_are_refused_before_anything_is_sent(server: Server, tmp_path: Path) -> None:
    for url in (
        server.url,
        server.url.replace("127.0.0.1", "localhost"),
        server.url.replace("127.0.0.1", "2130706433"),
    ):
        with pytest.raises(BadClip, match="an address of a private network"):
            get({"url": f"{url}/file"}, tmp_path, allow_private=False)
    assert server.requests == []


def test_a_redirect_to_a_private_address_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Server("127.0.0.2")
    monkeypatch.setattr(public_address, "is_public", lambda host: host == "127.0.0.2")
    other.redirect = f"{server.url}/file"
    with pytest.raises(BadClip, match=r"/away: 127\.0\.0\.1 is an address of a private network"):
        get({"url": f"{other.url}/away"}, tmp_path, allow_private=False)
    assert server.requests == []
    assert get({"url": f"{other.url}/file"}, tmp_path, allow_private=False)["sha256"] == SHA256
    other.redirect = "file:///etc/passwd"
    with pytest.raises(BadClip, match="only http and https are possible"):
        get({"url": f"{other.url}/away"}, tmp_path, allow_private=False)
    other.redirect = f"{other.url}/away"
    with pytest.raises(BadClip, match="redirects"):
        get({"url": f"{other.url}/away"}, tmp_path, allow_private=False)
    other.close()


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
        ("ff02::1", False),
    ],
)
def test_public_addresses(host: str, public: bool) -> None:
    assert public_address.is_public(host) == public


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b", "a.mp4", "gopher://a", "javascript:x", "//a/b"])
def test_only_http(tmp_path: Path, url: str) -> None:
    with pytest.raises(BadClip, match="http and https are allowed"):
        get({"url": url}, tmp_path)


@pytest.mark.parametrize("url", ["http://", "http://[::1", "http://a b/", "https://:80"])
def test_urls_that_are_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(BadClip):
        get({"url": url}, tmp_path, retries=0)


@pytest.mark.parametrize(
    "path", ["../a.mp4", "a/../../b.mp4", "/etc/passwd", "a//b", ".hidden", "~/a", "..\\a", "a/./b", "a\0b", "x" * 300]
)
def test_paths_that_lead_elsewhere_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(BadClip, match="is not allowed"):
        get({"url": "http://a/b", "path": path}, tmp_path)
    assert left(tmp_path) == []


def test_a_link_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "out").symlink_to(tmp_path)
    with pytest.raises(BadClip, match="through a link"):
        get({"url": "http://a/b", "path": "out/a.mp4"}, tmp_path / "in")


def test_names_of_addresses() -> None:
    """Short and plain; different addresses have different names."""
    odd = "http://a/x%2F..%2F..%2Fetc/%00%0A;rm%20-rf.mp4?a=1#b"
    assert file_name({"url": odd}).startswith("rm_-rf-")
    names = {file_name({"url": f"http://a/{'x' * 300}.mp4?{number}"}) for number in range(5)}
    assert len(names) == 5
    assert max(map(len, names)) < 120
    assert file_name({"url": "http://a/"}).startswith("file-")
    assert "/" not in file_name({"url": "http://a/..%2f..%2fb"})


def test_names_that_occur_twice() -> None:
    rows = [{"url": "http://a/1", "path": "a.mp4"}, {"url": "http://a/1", "path": "a.mp4"}, {"url": "http://a/2"}]
    check_names(rows)
    with pytest.raises(DataError, match=r"'A\.mp4' occurs twice with different addresses, the second is http://a/3"):
        check_names([*rows, {"url": "http://a/3", "path": "A.mp4"}])


@pytest.mark.parametrize(
    ("recipe", "row", "url", "path", "text"),
    [
        (
            "webvid",
            {"videoid": 12, "contentUrl": "https://w/12.mp4", "page_dir": "000/", "name": "a dog"},
            "https://w/12.mp4",
            "000/12.mp4",
            "a dog",
        ),
        ("panda70m", {"videoID": "-x_Y", "url": "https://y/watch?v=-x_Y"}, "https://y/watch?v=-x_Y", "-x_Y.mp4", None),
        ("vidprom", {"uuid": "u1", "prompt": "a cat"}, "https://base/u1.mp4", "u1.mp4", "a cat"),
        ("vidprom", {"uuid": "u1", "prompt": "a cat", "url": "https://v/1"}, "https://v/1", "u1.mp4", "a cat"),
        ("open_sora_plan", {"path": "a b/1.mp4", "cap": ["x", "y"]}, "https://base/a%20b/1.mp4", "a b/1.mp4", "x"),
        ("open_sora_plan", {"path": "1.mp4", "cap": "x"}, "https://base/1.mp4", "1.mp4", "x"),
    ],
)
def test_recipes(recipe: Any, row: dict[str, Any], url: str, path: str, text: str | None) -> None:
    done = mapped(row, recipe, "https://base/")
    assert (done["url"], file_name(done), done.get("text")) == (url, path, text)
    assert done.items() >= row.items()


def test_recipes_name_missing_columns() -> None:
    with pytest.raises(BadClip, match="column videoid is empty or missing"):
        mapped({"url": "http://a"}, "webvid", "")
    with pytest.raises(BadClip, match="--base-url"):
        mapped({"uuid": "u"}, "vidprom", "")
    with pytest.raises(BadClip, match="no url"):
        mapped({"path": "a"}, "plain", "")


def test_pages_of_known_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in of yt-dlp; the addresses that it does not know are fetched as files, for it would try any."""
    module: Any = ModuleType("yt_dlp")
    calls: list[dict[str, Any]] = []

    class Program:
        def __init__(self, options: dict[str, Any]) -> None:
            calls.append(options)

        def __enter__(self) -> "Program":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def download(self, urls: list[str]) -> None:
            if "gone" in urls[0]:
                raise module.utils.DownloadError("not there")
            for hook in calls[-1]["progress_hooks"]:
                hook({"status": "downloading", "downloaded_bytes": len(DATA)})
            Path(calls[-1]["outtmpl"]["default"].replace("%%", "%")).write_bytes(DATA)

    site = SimpleNamespace(IE_NAME="site", suitable=lambda url: "site" in url)
    generic = SimpleNamespace(IE_NAME="generic", suitable=lambda url: True)
    module.extractor = ModuleType("yt_dlp.extractor")
    module.extractor.gen_extractor_classes = lambda: [site, generic]
    module.utils = SimpleNamespace(DownloadError=type("DownloadError", (Exception,), {}))
    module.YoutubeDL = Program
    monkeypatch.setitem(sys.modules, "yt_dlp", module)
    monkeypatch.setitem(sys.modules, "yt_dlp.extractor", module.extractor)
    done = get({"url": "https://site/watch?v=1", "path": "1.mp4"}, tmp_path, max_megabytes=1.0)
    assert done["sha256"] == SHA256
    assert (calls[0]["noplaylist"], calls[0]["max_filesize"]) == (True, 1_000_000)
    with pytest.raises(BadClip, match=r"larger than 0\.2 megabytes"):
        get({"url": "https://site/2"}, tmp_path, max_megabytes=0.2)
    with pytest.raises(BadClip, match="yt-dlp says: not there"):
        get({"url": "https://site/gone"}, tmp_path)


@pytest.mark.parametrize("flags", [{"max_megabytes": 0.0}, {"max_seconds": -1.0}, {"retries": -1}])
def test_wrong_flags(tmp_path: Path, flags: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="download: --max-megabytes"):
        get({"url": "http://a"}, tmp_path, **flags)


def test_as_a_command(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One row out for each file; rows that cannot be had are named."""
    rows = [{"url": f"{server.url}/file", "path": "a.mp4"}, {"url": f"{server.url}/gone", "path": "b.mp4"}]
    write_table(str(tmp_path / "list.csv"), rows)
    arguments = [str(tmp_path / "list.csv"), str(tmp_path / "out.csv"), "--folder", str(tmp_path / "videos")]
    arguments += ["--allow-private"]
    assert main(download, arguments, packages=PACKAGES, check=check_names, needs_files=False) == 0
    [row] = read_table(str(tmp_path / "out.csv")).rows
    assert (row["path"], row["bytes"], row["sha256"]) == ("videos/a.mp4", "300000", SHA256)
    assert "list.csv:3: " in capsys.readouterr().err
