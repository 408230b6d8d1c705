"""Videos of pages, such as those of YouTube, by yt-dlp where it is installed."""

import os
import time
from pathlib import Path
from typing import Any

from opensora.errors import BadClip
from tools.download.fetch import Limits

INSTALL = "pip install yt-dlp"


def is_known_page(url: str) -> bool:
    """True if yt-dlp is installed and knows the site of the page; it would try any other page as well."""
    try:
        from yt_dlp.extractor import gen_extractor_classes
    except ImportError:
        return False
    return any(each.suitable(url) and each.IE_NAME != "generic" for each in gen_extractor_classes())


def fetch_page(url: str, part: Path, limits: Limits) -> None:
    """Write the video of a page, as one mp4 where the site has one, to `part`. Raises BadClip."""
    import yt_dlp

    deadline = time.monotonic() + limits.seconds

    def watch(progress: dict[str, Any]) -> None:
        """Called by yt-dlp every moment; sites do not always say the size before."""
        if (progress.get("downloaded_bytes") or 0) > limits.bytes:
            raise BadClip(
                f"{url}: is larger than {limits.bytes / 1e6:g} megabytes; raise --max-megabytes or remove the row"
            )
        if time.monotonic() > deadline:
            raise BadClip(f"{url}: not complete after {limits.seconds:g} seconds; see --max-seconds; --resume goes on")

    options: dict[str, Any] = {
        "outtmpl": {"default": str(part).replace("%", "%%")},
        "format": "best[ext=mp4]/best",  # one file with sound: joining two needs the program ffmpeg
        "noplaylist": True,
        "max_filesize": limits.bytes,
        "retries": limits.retries,
        "socket_timeout": min(30.0, limits.seconds),
        "continuedl": True,
        "nopart": True,
        "quiet": True,
        "no_warnings": True,
        "progress_hooks": [watch],
    }
    try:
        with yt_dlp.YoutubeDL(options) as program:
            program.download([url])
    except yt_dlp.utils.DownloadError as error:
        raise BadClip(f"{url}: yt-dlp says: {error}") from error
    if not part.exists() or os.path.getsize(part) > limits.bytes:
        part.unlink(missing_ok=True)
        raise BadClip(f"{url}: yt-dlp wrote no file; it may be larger than --max-megabytes, or not there anymore")
