"""The figures of a folder of videos, or of two next to each other, written as metrics.json and report.html."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from opensora.errors import ConfigError, DataError
from opensora.evaluation.evaluated_video import EvaluatedVideo, read_folder, read_references
from opensora.evaluation.metric import Curve, Figure, Measurement
from opensora.files import write_json
from opensora.log import logger
from opensora.registry import METRICS, build, class_of
from opensora.schema import EvaluateRun

Named = TypeVar("Named", Figure, Curve)
RESULTS, REPORT = "metrics.json", "report.html"


@dataclass(frozen=True)
class Evaluated:
    """A folder of videos with its figures by the names of their metrics."""

    folder: str  # as the config writes it; empty where runs are measured, not videos
    videos: Sequence[EvaluatedVideo]
    measured: dict[str, Measurement]

    def figures(self) -> list[tuple[str, Figure]]:
        """(name, figure): the name is the figure's own, behind its metric's name where two share it."""
        return _with_names([(metric, each) for metric, result in self.measured.items() for each in result.figures])

    def curves(self) -> list[tuple[str, Curve]]:
        """(name, curve), as for figures."""
        return _with_names([(metric, each) for metric, result in self.measured.items() for each in result.curves])


def _with_names(pairs: Sequence[tuple[str, Named]]) -> list[tuple[str, Named]]:
    """The own name in place of the metric's, behind it where two share one."""
    own = [each.name for _, each in pairs]
    return [(f"{metric}.{each.name}" if own.count(each.name) > 1 else each.name, each) for metric, each in pairs]


def evaluate(run: EvaluateRun, where: str, device: torch.device) -> list[Evaluated]:
    """Measure `videos`, and `compare` where there is one. Raises ConfigError for keys that contradict each other.

    where: the config, for messages.
    """
    needs = {name: class_of(METRICS, config["type"]).needs for name, config in run.metrics.items()}
    _check(run, needs, where)
    metrics = {name: build(METRICS, config) for name, config in run.metrics.items()}
    references = [] if run.references is None else read_references(Path(run.references), run.max_videos)
    evaluated = []
    for folder in dict.fromkeys(each for each in (run.videos, run.compare) if each is not None) or [None]:
        videos = [] if folder is None else read_folder(Path(folder), run.max_videos)
        measured = {}
        for name, metric in metrics.items():
            logger().info("evaluate: %s of %s", name, folder or "the run")
            own = pairs_of(videos, references, name) if needs[name] == "pairs" else references
            measured[name] = _finite(metric.measure(videos, own, device), f"metric '{name}'")
        evaluated.append(Evaluated(folder or "", videos, measured))
    return evaluated


def _check(run: EvaluateRun, needs: dict[str, str], where: str) -> None:
    if not run.metrics:
        raise ConfigError(
            f"{where}: key 'metrics': empty; allowed: one or more, such as metrics = dict(motion=dict(type='Motion')); add one"
        )
    for name, need in needs.items():
        if need != "nothing" and run.videos is None:
            raise ConfigError(
                f"{where}: key 'videos': missing, and metric '{name}' measures videos; add videos=FOLDER or remove it"
            )
        if need in ("pairs", "references") and run.references is None:
            kind = "videos of the same names" if need == "pairs" else "videos or a manifest of training clips"
            raise ConfigError(
                f"{where}: key 'references': missing, and metric '{name}' compares with {kind}; add references=PATH or remove it"
            )
    if run.compare is not None and run.compare == run.videos:
        raise ConfigError(f"{where}: keys 'videos', 'compare': the same folder; name another one or remove 'compare'")
    if run.compare is not None and run.videos is None:
        raise ConfigError(f"{where}: key 'videos': missing; 'compare' is shown next to it; add videos=FOLDER")


def pairs_of(
    videos: Sequence[EvaluatedVideo], references: Sequence[EvaluatedVideo], metric: str
) -> list[EvaluatedVideo]:
    """The reference of each video: of the same file name. DataError where one is missing."""
    by_name = {reference.path.name: reference for reference in references}
    for video in videos:
        if video.path.name not in by_name:
            raise DataError(
                f"{video.path}: no reference of this name, which metric '{metric}' needs; add it to the references, or remove "
                "the metric"
            )
    return [by_name[video.path.name] for video in videos]


def _finite(measurement: Measurement, where: str) -> Measurement:
    """DataError for a figure that is not a number: a table must not show one."""
    for figure in measurement.figures:
        if not math.isfinite(figure.value) or not all(map(math.isfinite, figure.per_video)):
            raise DataError(
                f"{where}: {figure.name} is {figure.value}; its videos are damaged, or it cannot be measured on them"
            )
    return measurement


def results(run: EvaluateRun, evaluated: Sequence[Evaluated]) -> dict[str, Any]:
    """The content of metrics.json."""
    return {
        "config": json.loads(json.dumps(dataclasses.asdict(run), default=list)),
        "folders": [
            {
                "videos": each.folder,
                "count": len(each.videos),
                "weights": sorted(
                    {str(video.settings["weights"]) for video in each.videos if "weights" in video.settings}
                ),
                "figures": {
                    name: {"value": figure.value, "unit": figure.unit, "better": figure.better, "note": figure.note}
                    for name, figure in each.figures()
                },
                "per_video": [
                    {"file": video.name, "prompt": video.prompt}
                    | {name: figure.per_video[number] for name, figure in each.figures() if figure.per_video}
                    for number, video in enumerate(each.videos)
                ],
                "curves": [{**dataclasses.asdict(curve), "name": name} for name, curve in each.curves()],
            }
            for each in evaluated
        ],
    }


def write_evaluation(run: EvaluateRun, evaluated: Sequence[Evaluated]) -> tuple[Path, Path]:
    """Write metrics.json and report.html below `report_dir`; returns their paths. Raises DataError where it refuses."""
    from opensora.evaluation.report import report_page

    folder = Path(run.report_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RESULTS, results(run, evaluated))
        (folder / REPORT).write_text(report_page(run, evaluated), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); choose another report_dir") from error
    return folder / RESULTS, folder / REPORT
