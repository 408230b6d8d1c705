"""Sample videos of a few prompts while a run is training."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import cast

from opensora.errors import OpenSoraError
from opensora.interfaces import Denoiser
from opensora.log import logger
from opensora.registry import SCHEDULERS, build
from opensora.sampling.generate import Sampler, check_size, generate
from opensora.sampling.metadata import generation_settings, hash_config
from opensora.sampling.prompt_check import check_cleaning, warn_of_cut_prompts
from opensora.sampling.requests import collect_requests
from opensora.sampling.video_writer import prepare_folder, write_sample
from opensora.training.diffusion_task import DiffusionTask
from opensora.training.isolation import evaluation_mode
from opensora.training.loop import TrainState
from opensora.types import SampleRequest


class Previews:
    """Called after a step, by all ranks: RUN_DIR/previews/step-NNNNNNNN/*.mp4, one for each of `preview_prompts`.

    Raises ConfigError, when it is made, where a prompt or the sizes cannot be sampled.
    """

    def __init__(self, state: TrainState):
        assert isinstance(state.task, DiffusionTask)
        self.state = state
        run, record = state.run, state.task.run_record
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
        check_cleaning(self.requests, run.text_encoder or {})
        warn_of_cut_prompts(self.requests, state.task.codec.text_encoder)
        self.sampler = Sampler(
            cast(Denoiser, state.engine.module),
            build(SCHEDULERS, scheduler),
            state.task.codec,
            forward=state.engine.model,
        )
        for request in self.requests:
            check_size((request.num_frames, request.height, request.width), self.sampler)
        config = {**state.task.config(), "sampling": scheduler}
        self._settings = partial(
            generation_settings, self.sampler.scheduler, dtype=run.dtype, config_hash=hash_config(config)
        )

    def __call__(self, step: int) -> None:
        """Write the videos; training goes on as without them, bit for bit. A video that fails is logged and left out.

        An unexpected error of the model is raised where several ranks train: the others may wait for this one in it.
        """
        state = self.state
        ema = state.ema if state.run.preview_ema else None
        settings = self._settings(weights=f"{'average' if ema is not None else 'weights'} after step {step}")
        folder = Path(state.run.run_dir) / "previews" / f"step-{step:08d}"
        with (
            evaluation_mode(state.task.trained, state.world.device),
            ema.applied() if ema is not None else nullcontext(),
        ):
            for first in range(0, len(self.requests), state.world.data_size):
                index = first + state.world.data_rank
                # A rank without a request left repeats the last: sharded weights need all ranks in every forward.
                request = self.requests[min(index, len(self.requests) - 1)]
                try:
                    video_CTHW = generate([request], self.sampler, settings.guidance_scale)[0]
                except Exception as error:
                    if state.world.size > 1 and not isinstance(error, OpenSoraError):
                        raise
                    _leave_out(request, step, error)
                    continue
                if index < len(self.requests) and state.world.is_group_leader:
                    try:
                        write_sample(video_CTHW, request, settings, prepare_folder(folder))
                    except Exception as error:
                        _leave_out(request, step, error)
        logger().info("step %d previews: %s", step, folder)


def _leave_out(request: SampleRequest, step: int, error: Exception) -> None:
    """Log why a video is not made: NaN pixels or a full disk are no reason to stop training."""
    unexpected = not isinstance(error, OpenSoraError)
    message = "preview of %r after step %d left out: %s"
    logger().warning(message, request.prompt, step, error, exc_info=unexpected)


def build_previews(state: TrainState) -> Previews | None:
    """The previews of a run; None where `preview_every` is 0."""
    return Previews(state) if state.run.preview_every else None
