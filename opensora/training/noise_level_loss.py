"""LossPerNoiseLevel: the loss of a trained denoiser at each noise level, for each size of clips."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from opensora.config import check_component, load
from opensora.errors import ConfigError, DataError
from opensora.evaluation.evaluated_video import EvaluatedVideo
from opensora.evaluation.metric import Curve, Figure, Measurement, Needs
from opensora.models.weights import load_weights, require_kind
from opensora.parallel.world import World
from opensora.registry import DATASETS, METRICS, MODELS, build
from opensora.rng import key_seed
from opensora.run_paths import run_of_weights
from opensora.schema import TrainRun
from opensora.training.build import build_diffusion_task
from opensora.training.cached_features import stored_clips
from opensora.training.checkpoint import resolve_weights
from opensora.training.clip_plan import ClipPlan, make_clip_plan, single_clip_batches
from opensora.training.diffusion_task import DiffusionTask
from opensora.training.step_stats import BINS, bin_name
from opensora.types import Batch

Totals = dict[str, tuple[float, int]]  # name -> (sum, number of values in it)


@METRICS.register_module()
class LossPerNoiseLevel:
    """The training loss of a run's model without dropped captions and given frames, at every tenth of the noise scale.

    Each clip is measured once in each tenth, with noise and level fixed by the seed and the clip, in float32; so two checkpoints,
    and two runs with one data set, are measured alike. Open-Sora 1.2 compares its checkpoints so.

    load: run folder, or a checkpoint or weights in one. dataset: held-out clips; None: the run's validation_dataset, or else the
    clips that it trained on. bucket_config: sizes of the clips; None: the run's, where dataset is None. clips: of each size.
    ema: the averaged weights where there are some.
    """

    needs: ClassVar[Needs] = "nothing"

    def __init__(
        self,
        load: str,
        dataset: dict[str, Any] | None = None,
        bucket_config: dict[str, Any] | None = None,
        clips: int = 64,
        ema: bool = True,
        seed: int = 0,
    ) -> None:
        if clips < 1:
            raise ConfigError(f"LossPerNoiseLevel: clips={clips}; allowed: 1 or more; correct it")
        if dataset is not None:
            check_component(DATASETS, dataset, "dataset", lambda key: "LossPerNoiseLevel")
        self.load, self.dataset, self.bucket_config = load, dataset, bucket_config
        self.clips, self.ema, self.seed = clips, ema, seed

    def measure(
        self, videos: Sequence[EvaluatedVideo], references: Sequence[EvaluatedVideo], device: torch.device
    ) -> Measurement:
        weights = resolve_weights(self.load, ema=self.ema)
        where = f"LossPerNoiseLevel: load={self.load!r}"
        require_kind(weights, MODELS, where)
        run, source = self._run(weights, where)
        clips = make_clip_plan(run, build(DATASETS, run.dataset), where)
        clips = replace(clips, dataset=stored_clips(run, clips.dataset, clips.sizes, where))
        alone = World(0, 1, data_rank=0, data_size=1, local_rank=0, device=device)
        task = build_diffusion_task(run, alone, clips, None, where)
        load_weights(task.trained, weights)
        task.trained.eval()
        return _measurement({size: self._totals(task, clips, size) for size in clips.sizes}, source)

    def _run(self, weights: Path, where: str) -> tuple[TrainRun, str]:
        """The run that trained these weights, with the clips to measure on, and where those come from."""
        folder = run_of_weights(weights)
        if folder is None or not (folder / "config.json").is_file():
            raise ConfigError(
                f"{where}: weights outside a run folder, whose config.json names scheduler, autoencoder and text encoder; "
                "allowed: RUN or RUN/checkpoints/STEP; name the run"
            )
        run = load(str(folder / "config.json"), [], TrainRun).run
        if run.task == "autoencoder":
            raise ConfigError(f"{where}: trains an autoencoder, which has no noise levels; name a run of a denoiser")
        changes: dict[str, Any] = dict(
            seed=self.seed, plugin="ddp", plugin_config={}, dtype="fp32", sp_size=1, load=None
        )
        changes |= dict(mask_ratios=None, text_encoder_parallel=None, validation_levels=BINS, micro_batches=1)
        if self.dataset is not None:
            return replace(
                run, **changes, dataset=self.dataset, bucket_config=self.bucket_config
            ), "the clips of dataset"
        if run.validation_dataset is not None and self.bucket_config is None:
            changes |= dict(dataset=run.validation_dataset, bucket_config=None)
            return replace(run, **changes), "the run's validation clips"
        buckets = run.bucket_config if self.bucket_config is None else self.bucket_config
        return replace(run, **changes, bucket_config=buckets), "clips that the run trained on"

    def _totals(self, task: DiffusionTask, clips: ClipPlan, size: tuple[int, int, int]) -> Totals:
        seed = key_seed(self.seed, "loss per noise level")
        batches = single_clip_batches(clips, seed=seed, micro_batches=self.clips, size=size)
        return added(task.validate(task.trained, [batch]) for batch in _distinct(batches))


def _distinct(batches: Iterable[Batch]) -> Iterable[Batch]:
    """Each clip once: an epoch of few clips begins again."""
    rows: set[int] = set()
    for batch in batches:
        if not rows & set(batch.rows):
            rows |= set(batch.rows)
            yield batch


def added(parts: Iterable[Totals]) -> Totals:
    """The sums of all parts."""
    totals: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for part in parts:
        for name, (value, count) in part.items():
            totals[name] = (totals[name][0] + value, totals[name][1] + count)
    return totals


def _measurement(by_size: dict[tuple[int, int, int], Totals], source: str) -> Measurement:
    lines: dict[str, tuple[float, ...]] = {}
    figures = []
    for size, totals in by_size.items():
        name = "x".join(map(str, size))
        if not totals or totals["loss"][1] == 0:
            raise DataError(f"LossPerNoiseLevel: no clip of {name} could be read; see to the data set")
        bins = [totals[f"loss_bin/{bin_name(index)}"] for index in range(BINS)]
        lines[name] = tuple(value / count for value, count in bins)
        if len(by_size) > 1:
            figures.append(Figure(f"loss {name}", totals["loss"][0] / totals["loss"][1], "", "lower"))
    every = added(by_size.values())["loss"]
    note = f"mean over noise levels and {every[1] // BINS} clips: {source}"
    figures.insert(0, Figure("loss", every[0] / every[1], "", "lower", note=note))
    middles = tuple((index + 0.5) / BINS for index in range(BINS))
    curve = Curve("loss per noise level", "noise level, from 0 (data) to 1 (noise)", "loss", middles, lines)
    return Measurement(figures, [curve])
