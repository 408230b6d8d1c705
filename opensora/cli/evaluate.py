"""Measure videos: `opensora evaluate CONFIG [key=value ...]` writes a report; `opensora evaluate METRIC PATHS` prints one
result as a line of JSON. A CONFIG is a file that ends in .py or .json.

quality VIDEOS REFERENCES   PSNR (dB) and SSIM of the mp4s of a folder against those of the same names in another
frechet A.npy B.npy         Frechet distance of two arrays of features, [samples, features] each. FID and FVD are this
                            distance of features of InceptionV3 and I3D, which do not come with this project
adherence VIDEOS            share of sampled MovingShapes videos that show the color, shape and direction of their prompt
prompts FILE                write the held-out prompts that `adherence` needs
object-prompts FILE         write a prompt for each held-out pair of MovingObjects, for the metric ObjectAdherence of a config
vbench VIDEOS PROMPTS OUT   give sampled videos the names that VBench reads: PROMPTS is its list, or its folder of lists
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opensora.cli.run_main import run_main
from opensora.errors import ConfigError, DataError

METRICS = {
    "quality": 2,
    "frechet": 2,
    "adherence": 1,
    "prompts": 1,
    "object-prompts": 1,
    "vbench": 3,
}  # name -> number of paths


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="opensora evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", metavar="CONFIG|METRIC", help=f"a config, or one of {', '.join(METRICS)}")
    parser.add_argument("rest", nargs="*", metavar="key=value|PATH", help="keys of the config, or paths of the metric")
    arguments = parser.parse_args(argv)
    what, rest = arguments.what, arguments.rest
    if what not in METRICS:
        return run_main(lambda: evaluate_config(what, rest))
    if len(rest) != METRICS[what]:
        parser.error(f"{what}: found {len(rest)} paths; allowed: {METRICS[what]}")
    return run_main(lambda: evaluate_command(what, [Path(path) for path in rest]))


def evaluate_config(config: str, overrides: Sequence[str]) -> int:
    """Measure what a config names, write the report, print the figures; returns the exit code."""
    from opensora.config import load
    from opensora.schema import EvaluateRun

    if not config.endswith((".py", ".json")):
        raise ConfigError(
            f"opensora evaluate: found {config!r}; allowed: a config ending in .py or .json, or {', '.join(METRICS)}; see --help"
        )
    loaded = load(config, overrides, EvaluateRun)

    from opensora.evaluation.evaluate import evaluate, write_evaluation
    from opensora.platforms import select

    with loaded.naming_origins():
        evaluated = evaluate(loaded.run, config, select().device())
    for each in evaluated:
        for name, figure in each.figures():
            note = f"   ({figure.note})" if figure.note else ""
            print(
                f"{each.folder + ': ' if len(evaluated) > 1 else ''}{name} {figure.value:.4g} {figure.unit}{note}".rstrip()
            )
    for path in write_evaluation(loaded.run, evaluated):
        print(path)
    return 0


def evaluate_command(metric: str, paths: Sequence[Path]) -> int:
    """Measure and print; returns the exit code."""
    measure: dict[str, Callable[..., dict[str, Any]]] = {
        "quality": _quality,
        "frechet": _frechet,
        "adherence": _adherence,
        "prompts": _prompts,
        "object-prompts": _object_prompts,
        "vbench": _vbench,
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
    from opensora.evaluation.score_adherence import held_out_prompts, write_prompts

    return {"prompts": write_prompts(path, held_out_prompts()), "file": str(path)}


def _object_prompts(path: Path) -> dict[str, Any]:
    from opensora.datasets.moving_objects import prompts_of_unseen_pairs
    from opensora.evaluation.score_adherence import write_prompts

    return {"prompts": write_prompts(path, prompts_of_unseen_pairs()), "file": str(path)}


def _vbench(videos: Path, prompts: Path, out: Path) -> dict[str, Any]:
    from opensora.evaluation.vbench import lay_out

    return asdict(lay_out(videos, prompts, out))
