"""Prompt adherence on MovingShapes: write the held-out prompts, and score the clips sampled from them.

Run: opensora evaluate prompts outputs/shapes/prompts.txt
     opensora sample configs/stdit/sample/shapes.py
     opensora evaluate adherence outputs/shapes/videos

`python -m opensora.evaluation.score_adherence prompts PATH` and `... score PATH` do the same.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from opensora.datasets.decode import read_frames
from opensora.datasets.moving_shapes import combinations
from opensora.errors import DataError, OpenSoraError
from opensora.evaluation.shape_adherence import Accuracy, accuracy


def held_out_prompts() -> list[str]:
    """One caption per combination that training never draws."""
    return [attributes.caption() for attributes in combinations("holdout")]


def write_prompts(path: Path, prompts: Sequence[str]) -> int:
    """Write one prompt per line; returns the number of prompts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    return len(prompts)


def score(folder: Path) -> Accuracy:
    """Read every sampled mp4 of `folder` back and compare it with the prompt in the json next to it."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not records:
        raise DataError(
            f"{folder}: no sampled videos; `opensora sample` writes an mp4 and a json for each; sample first"
        )
    return accuracy([read_sample(folder, record) for record in records], [record["prompt"] for record in records])


def read_sample(folder: Path, record: dict) -> Tensor:
    """A sampled mp4 back as [3, T, H, W] in [-1, 1], without the rows or columns that H.264 needed."""
    frames_THWC = torch.from_numpy(read_frames(str(folder / record["file"]), range(record["num_frames"])))
    return frames_THWC[:, : record["height"], : record["width"]].permute(3, 0, 1, 2).float() / 127.5 - 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["prompts", "score"])
    parser.add_argument("path", type=Path, help="the prompt file to write, or the folder of sampled videos")
    arguments = parser.parse_args(argv)
    try:
        if arguments.action == "prompts":
            print(f"{arguments.path}: {write_prompts(arguments.path, held_out_prompts())} held-out prompts")
        else:
            print(json.dumps(asdict(score(arguments.path))))
    except OpenSoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
