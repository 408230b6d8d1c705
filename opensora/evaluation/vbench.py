"""Sampled videos under the names that VBench reads, so that VBench itself can measure them.

VBench takes one folder of videos called PROMPT-INDEX.mp4, with index 0 to 4 for each prompt of its lists, and 0 to 24 for
those of temporal_flickering. Source: Huang et al. 2023, arXiv:2311.17982, and the README of its prompts.
"""

import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opensora.errors import DataError
from opensora.evaluation.evaluated_video import EvaluatedVideo, read_folder
from opensora.files import path_fault

VIDEOS_PER_PROMPT = 5


@dataclass(frozen=True)
class Layout:
    """videos: files in the folder. prompts: of the lists. incomplete: prompts with fewer videos than VBench samples."""

    videos: int
    prompts: int
    incomplete: list[str]
    out: str


def read_prompts(path: Path) -> dict[str, int]:
    """Prompt -> the videos that VBench wants of it. path: one of its lists, a prompt per line, or a folder of them.

    Raises DataError for a missing or an empty list.
    """
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    wanted: dict[str, int] = {}
    try:
        for file in files:
            count = 25 if file.stem == "temporal_flickering" else VIDEOS_PER_PROMPT
            for line in file.read_text(encoding="utf-8").splitlines():
                if line.strip():
                    wanted[line.strip()] = max(count, wanted.get(line.strip(), 0))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); allowed: VBench's list of prompts, or its folder of lists"
        ) from None
    if not wanted:
        raise DataError(
            f"{path}: found no prompt; allowed: VBench's list of prompts, or its folder of lists; correct the path"
        )
    return wanted


def lay_out(videos: Path, prompts: Path, out: Path) -> Layout:
    """Link, or copy, the videos of each prompt into `out`. Videos of other prompts are left out.

    Raises DataError where no video belongs to a prompt, a name cannot be a file, or `out` holds other files.
    """
    wanted = read_prompts(prompts)
    by_prompt: dict[str, list[EvaluatedVideo]] = defaultdict(list)
    for video in read_folder(videos):
        if video.prompt is not None and video.prompt.strip() in wanted:
            by_prompt[video.prompt.strip()].append(video)
    if not by_prompt:
        raise DataError(
            f"{videos}: holds no video of a prompt in {prompts}; sample them with `opensora sample CONFIG --prompt-path "
            f"{prompts} --num-sample {VIDEOS_PER_PROMPT}`"
        )
    files = {name: video for prompt in by_prompt for name, video in _named(prompt, by_prompt[prompt], wanted[prompt])}
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: holds files already; VBench would measure them too; name a new folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, video in files.items():
            try:
                os.link(video.path, out / name)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(video.path, out / name)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}); choose another folder") from error
    incomplete = [prompt for prompt, count in wanted.items() if len(by_prompt.get(prompt, ())) < count]
    return Layout(len(files), len(wanted), incomplete, str(out))


def _named(prompt: str, videos: Sequence[EvaluatedVideo], count: int) -> list[tuple[str, EvaluatedVideo]]:
    """(file name, video), in the order in which they were sampled."""
    ordered = sorted(videos, key=lambda video: (video.settings.get("repeat", 0), video.path.name))[:count]
    named = []
    for index, video in enumerate(ordered):
        name = f"{prompt}-{index}{video.path.suffix}"
        fault = path_fault(name)
        if fault is None and ("/" in name or name.startswith(".")):
            fault = "a name with / or a dot in front"
        if fault is not None:
            raise DataError(
                f"prompt {prompt!r}: found {fault}; VBench finds videos by names of that form; shorten or drop the prompt"
            )
        if video.path.suffix != ".mp4":
            raise DataError(f"{video.path}: VBench reads mp4 by its names; sample with --save-format mp4")
        named.append((name, video))
    return named
