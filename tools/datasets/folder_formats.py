"""Folders of videos and pictures as rows of a manifest: plain ones, ImageFolder, UCF-101."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opensora.datasets.decode import IMAGE_SUFFIXES, VIDEO_SUFFIXES

Row = dict[str, Any]
Result = Row | str  # a row, or why there is none

MEDIA = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
CAPTION_KEYS = ("text", "caption", "cap", "prompt")  # of a sidecar file, the first that is there
_UCF = re.compile(r"v_(?P<label>[A-Za-z]+)_g(?P<group>\d+)_c(?P<clip>\d+)\.(avi|mp4)")


def media_below(folder: str, suffixes: tuple[str, ...] = MEDIA) -> Iterator[str]:
    """Paths of the media files below a folder, in the order of their names; links to folders are not followed."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield os.path.join(parent, name)


def plain_folder(source: str, videos: str | None) -> Iterator[Result]:
    """One row per file; its caption is that of a sidecar .txt or .json, where there is one."""
    for path in media_below(source):
        try:
            yield {"path": path, "text": sidecar_text(path)}
        except (OSError, ValueError) as error:
            yield f"{path}: its sidecar file cannot be read ({error}); correct or remove it"


def sidecar_text(path: str) -> str | None:
    """The caption next to a file; None without one. Raises OSError or ValueError."""
    for name in (str(Path(path).with_suffix(".txt")), f"{path}.txt"):
        if os.path.isfile(name):
            return " ".join(Path(name).read_text(encoding="utf-8-sig").split())
    for name in (str(Path(path).with_suffix(".json")), f"{path}.json"):
        if os.path.isfile(name):
            return caption_of(json.loads(Path(name).read_text(encoding="utf-8-sig")))
    return None


def caption_of(value: Any) -> str | None:
    """The caption in what a JSON file holds: a text, the first of a list, or the value of one of CAPTION_KEYS."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict):
        name = next((name for name in CAPTION_KEYS if value.get(name)), None)
        return None if name is None else caption_of(value[name])
    return " ".join(value.split()) if isinstance(value, str) else None


def image_folder(source: str, videos: str | None) -> Iterator[Result]:
    """One row per picture; the folder right below the source names its class."""
    for path in media_below(source):
        parts = os.path.relpath(path, source).split(os.sep)
        if len(parts) < 2:
            yield f"{path}: lies in no folder of a class; move it into one, or use --format folder"
            continue
        yield {"path": path, "text": words_of(parts[0]), "label": parts[0]}


def ucf101(source: str, videos: str | None) -> Iterator[Result]:
    """One row per clip; its name says class, group (clips of one group are parts of one film) and number."""
    for path in media_below(source, VIDEO_SUFFIXES):
        match = _UCF.fullmatch(os.path.basename(path))
        if match is None:
            yield f"{path}: not the name of a clip of UCF-101; allowed: v_CLASS_g01_c01.avi; rename it or use --format folder"
            continue
        label = match["label"]
        yield {
            "path": path,
            "text": words_of(label),
            "label": label,
            "video": f"{label}_g{match['group']}",
            "clip": int(match["clip"]),
        }


def words_of(label: str) -> str:
    """ApplyEyeMakeup, apply_eye_makeup and apply-eye-makeup as "apply eye makeup"."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", label)
    return " ".join(re.split(r"[\s_-]+", spaced)).strip().lower()


def guess_folder(source: str) -> str | None:
    """The format of a folder, by the names of its files."""
    flat = nested = videos = 0
    for number, path in enumerate(media_below(source)):
        if _UCF.fullmatch(os.path.basename(path)):
            return "ucf101"
        videos += not path.lower().endswith(IMAGE_SUFFIXES)
        depth = os.path.relpath(path, source).count(os.sep)
        flat, nested = flat + (depth == 0), nested + (depth == 1)
        if number == 1000:
            break
    if not flat + nested + videos:
        return None
    return "imagefolder" if nested and not flat and not videos else "folder"
