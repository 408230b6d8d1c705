"""Columns of published lists of videos, mapped to those of a download: url, path below the folder, text.

All other columns stay, so that tools.datasets.convert can read the times and captions of parts.
"""

from collections.abc import Callable
from typing import Any

from opensora.errors import BadClip

Row = dict[str, Any]


def webvid(row: Row, base_url: str) -> Row:
    """WebVid: videoid, contentUrl, page_dir, name (the caption)."""
    folder = str(row.get("page_dir") or "").strip("/")
    name = f"{_cell(row, 'videoid')}.mp4"
    return {
        **row,
        "url": _cell(row, "contentUrl"),
        "path": f"{folder}/{name}" if folder else name,
        "text": row.get("name"),
    }


def panda70m(row: Row, base_url: str) -> Row:
    """Panda-70M: videoID, url (a page), timestamp and caption of all parts."""
    return {**row, "url": _cell(row, "url"), "path": f"{_cell(row, 'videoID')}.mp4"}


def vidprom(row: Row, base_url: str) -> Row:
    """VidProM: uuid, prompt; the address is in a column url, or BASE_URL/UUID.mp4."""
    name = f"{_cell(row, 'uuid')}.mp4"
    return {**row, "url": row.get("url") or _below(base_url, name), "path": name, "text": row.get("prompt")}


def open_sora_plan(row: Row, base_url: str) -> Row:
    """Open-Sora-Plan: path, cap (one caption or several); the files are below BASE_URL."""
    path, captions = _cell(row, "path"), row.get("cap")
    text = captions[0] if isinstance(captions, list) and captions else captions
    return {**row, "url": row.get("url") or _below(base_url, path), "path": path, "text": text}


RECIPES: dict[str, Callable[[Row, str], Row]] = {
    "webvid": webvid,
    "panda70m": panda70m,
    "vidprom": vidprom,
    "open_sora_plan": open_sora_plan,
}


def _cell(row: Row, name: str) -> str:
    cell = row.get(name)
    if cell is None or not str(cell).strip():
        raise BadClip(f"column {name} is empty or missing; the recipe needs it; choose another --recipe")
    return str(cell).strip()


def _below(base_url: str, name: str) -> str:
    from urllib.parse import quote

    if not base_url:
        raise BadClip(f"{name}: the list has no addresses; give the folder of its files with --base-url")
    return f"{base_url.rstrip('/')}/{quote(name)}"
