"""Measure videos: `opensora evaluate METRIC ...`; the result is one line of JSON.

quality VIDEOS REFERENCES   PSNR (dB) and SSIM of the mp4s of a folder against those of the same names in another
frechet A.npy B.npy         Frechet distance of two arrays of features, [samples, features] each. FID and FVD are this
                            distance of features of InceptionV3 and I3D, which do not come with this project
adherence VIDEOS            share of sampled MovingShapes videos that show the color, shape and direction of their prompt
prompts FILE                write the held-out prompts that `adherence` needs
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opensora.cli.run_main import run_main
from opensora.errors import DataError

METRICS = {"quality": 2, "frechet": 2, "adherence": 1, "prompts": 1}  # name -> number of paths


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="opensora evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("metric", choices=list(METRICS))
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    arguments = parser.parse_args(argv)
    if len(arguments.paths) != METRICS[arguments.metric]:
        parser.error(f"{arguments.metric}: found {len(arguments.paths)} paths; allowed: {METRICS[arguments.metric]}")
    return run_main(lambda: evaluate_command(arguments.metric, arguments.paths))


def evaluate_command(metric: str, paths: Sequence[Path]) -> int:
    """Measure and print; returns the exit code."""
    measure: dict[str, Callable[..., dict[str, Any]]] = {
        "quality": _quality,
        "frechet": _frechet,
        "adherence": _adherence,
        "prompts": _prompts,
    }
    print(json.dumps(measure[metric](*paths)))
    return 0


def _quality(videos: Path, references: Path) -> dict[str, Any]:
    from opensora.evaluation.compare_folders import compare_folders

    return asdict(compare_folders(videos, references))


def _frechet(a: Path, b: Path) -> dict[str, Any]:
    import numpy as np
    import torch

    from opensora.evaluation.frechet_distance import frechet_distance

    features = []
    for path in (a, b):
        try:
            features.append(torch.from_numpy(np.load(path, allow_pickle=False)))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: cannot be read as an array ({error}); allowed: a .npy file of numbers") from None
    try:
        distance = frechet_distance(*features)
    except ValueError as error:
        raise DataError(f"{a} and {b}: {error}") from None
    return {"frechet": distance, "samples": [len(each) for each in features]}


def _adherence(videos: Path) -> dict[str, Any]:
    from opensora.evaluation.score_adherence import score

    return asdict(score(videos))


def _prompts(path: Path) -> dict[str, Any]:
    from opensora.evaluation.score_adherence import write_prompts

    return {"prompts": write_prompts(path), "file": str(path)}
