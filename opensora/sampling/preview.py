"""Sample videos while a run is training: what the weights of the moment make of a few prompts."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

from opensora.errors import OpenSoraError
from opensora.log import logger
from opensora.registry import SCHEDULERS, build
from opensora.sampling.generate import Sampler, check_size, generate
from opensora.sampling.metadata import hash_config
from opensora.sampling.requests import collect_requests
from opensora.sampling.sample import generation_settings
from opensora.sampling.video_writer import prepare_folder, write_sample
from opensora.training.diffusion_task import DiffusionTask
from opensora.training.isolation import evaluation_mode
from opensora.training.loop import TrainState
from opensora.types import SampleRequest


class Previews:
    """Called after a step, by all ranks: RUN_DIR/previews/step-NNNNNNNN/*.mp4, one for each of `preview_prompts`.

    Raises ConfigError, when it is made, where a prompt or the sizes cannot be sampled.
    """

    def __init__(self, t: TrainState):
        assert isinstance(t.task, DiffusionTask)
        self.t = t
        run, record = t.run, t.task.run_record
        scheduler = dict(run.scheduler or {})
        if run.preview_steps is not None:
            scheduler["num_sampling_steps"] = run.preview_steps
        self.requests: list[SampleRequest] = collect_requests(
            run.preview_prompts,
            None,
            num_frames=record["num_frames"],
            image_size=record["image_size"],
            fps=record["fps"],
            seed=run.seed,
        )
        self.sampler = Sampler(t.engine.module, build(SCHEDULERS, scheduler), t.task.codec, forward=t.engine.model)
        for request in self.requests:
            check_size((request.num_frames, request.height, request.width), self.sampler)
        config = {**t.task.config(), "sampling": scheduler}
        self._settings = partial(generation_settings, self.sampler, dtype=run.dtype, config_hash=hash_config(config))

    def __call__(self, step: int) -> None:
        """Training is as before afterwards, bit for bit. A video that fails is told and left out."""
        t = self.t
        ema = t.ema if t.run.preview_ema else None
        settings = self._settings(weights=f"{'average' if ema is not None else 'weights'} after step {step}")
        folder = Path(t.run.run_dir) / "previews" / f"step-{step:08d}"
        with evaluation_mode(t.task.trained, t.world.device), ema.applied() if ema is not None else nullcontext():
            for first in range(0, len(self.requests), t.world.data_size):
                place = first + t.world.data_rank
                # a rank that has none left makes the last once more: sharded weights need all ranks in every forward
                request = self.requests[min(place, len(self.requests) - 1)]
                try:
                    video_CTHW = generate([request], self.sampler)[0]
                    if place < len(self.requests) and t.world.is_group_leader:
                        write_sample(video_CTHW, request, settings, prepare_folder(folder))
                except (
                    OpenSoraError
                ) as error:  # pixels without numbers, or a disk that refuses: no reason to stop training
                    logger().warning("preview of %r after step %d: %s", request.prompt, step, error)
        logger().info("step %d previews: %s", step, folder)


def build_previews(t: TrainState) -> Previews | None:
    """What the run's `preview_every` asks for; None where it asks for nothing."""
    return Previews(t) if t.run.preview_every else None
