"""Generate a list of requests on all ranks: what is done is skipped, what fails does not take the rest with it.

The ranks of a sequence group make each of their videos together, and its first rank writes it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from opensora.errors import BadClip, ConfigError, OpenSoraError
from opensora.log import logger
from opensora.parallel.collectives import broadcast_object, gather_objects
from opensora.parallel.group_leader import run_on_leader
from opensora.parallel.sequence_parallel import Mode, shard_sequence
from opensora.parallel.tile_parallel import shard_tiles
from opensora.parallel.world import World
from opensora.progress_bar import ProgressBar
from opensora.sampling.generate import Sampler, check_size, generate, guidance, shape_key
from opensora.sampling.metadata import GenerationSettings, is_done, output_path
from opensora.sampling.reference_frames import overlap
from opensora.sampling.video_writer import WriteError, prepare_folder, write_sample
from opensora.types import SampleRequest

LINES = 4  # plain progress lines per batch of videos
Work = list[SampleRequest]  # requests of one size that go through the model together


def generation_settings(
    sampler: Sampler,
    *,
    dtype: str,
    config_hash: str,
    weights: str,
    guidance_scale: float | None = None,
    batch_size: int = 1,
) -> GenerationSettings:
    """What decides the pixels besides the request; `guidance_scale` None takes the scheduler's."""
    if batch_size < 1:
        raise ConfigError(f"batch_size: {batch_size}; it is 1 or more")
    scale = guidance(sampler.scheduler, guidance_scale)
    return GenerationSettings(scale, int(sampler.scheduler.num_sampling_steps), batch_size, dtype, config_hash, weights)


def apply_sequence_parallel(sampler: Sampler, world: World, mode: Mode = "dsp") -> Sampler:
    """Have the ranks of a sequence group share each video: the denoiser's tokens and the autoencoder's pieces."""
    if world.sequence_size > 1:
        shard_sequence(sampler.model, world.sequence_group, mode)
        shard_tiles(sampler.codec.vae, world.sequence_group)
    return sampler


def sample(
    requests: Sequence[SampleRequest],
    sampler: Sampler,
    world: World,
    save_dir: str | Path,
    settings: GenerationSettings,
    step: Callable[[], object] = lambda: None,
) -> list[Path]:
    """Write every request's video below `save_dir`, a folder all ranks see; the main rank prints the paths.

    step: called after each of this rank's denoising steps.
    Returns the paths in the order of `requests`, on every rank. A failing batch is logged and the others go on; a disk
    that refuses ends this rank's share. Raises ConfigError before any work when a size does not fit the model or the
    folder cannot be used, OpenSoraError at the end when a video is missing.
    """
    for size in {(request.num_frames, request.height, request.width) for request in requests}:
        check_size(size, sampler)
    for request in requests:
        overlap(request, sampler.codec.vae)
    folder = prepare_folder(save_dir)
    paths = [output_path(folder, request) for request in requests]
    # The main rank looks once and tells: ranks that look for themselves would see each other's work appear.
    todo = broadcast_object(unfinished(make_batches(requests, settings.batch_size), folder, settings))
    missing = sum(map(len, todo))
    if missing < len(requests):
        logger().info("sampling: %d of %d videos are there already", len(requests) - missing, len(requests))
    if 0 < len(todo) < world.data_size and world.is_main:
        idle = world.size - len(todo) * world.sequence_size
        logger().warning("sampling: %d of %d ranks have no video to make; with sp_size=N, N ranks make each together",
                         idle, world.size)  # fmt: skip
    mine = todo[world.data_rank :: world.data_size]
    found = gather_objects(_work(mine, sampler, folder, settings, world, step))
    failed = [message for rank in found[:: world.sequence_size] for message in rank]  # one rank speaks for its group
    if world.is_main:
        for path, request in zip(paths, requests, strict=True):
            if is_done(path, request, settings):
                print(path)
    if failed:
        raise OpenSoraError(
            f"sampling: {len(failed)} of {len(requests)} videos are missing; "
            f"{'; '.join(dict.fromkeys(failed[:3]))}; mend the cause and run again, finished videos are skipped"
        )
    return paths


def make_batches(requests: Sequence[SampleRequest], batch_size: int) -> list[Work]:
    """Requests of equal size in batches of `batch_size`, in list order; the ranks play no part in it."""
    by_size: dict[tuple[int, ...], Work] = {}
    for request in requests:
        by_size.setdefault(shape_key(request), []).append(request)
    return [same[start : start + batch_size] for same in by_size.values() for start in range(0, len(same), batch_size)]


def unfinished(batches: Sequence[Work], folder: Path, settings: GenerationSettings) -> list[Work]:
    """The batches that lack a video. Each stays whole, so that a run that was stopped repeats the very same batches."""
    return [
        batch
        for batch in batches
        if not all(is_done(output_path(folder, request), request, settings) for request in batch)
    ]


def _work(
    batches: Sequence[Work],
    sampler: Sampler,
    folder: Path,
    settings: GenerationSettings,
    world: World,
    step: Callable[[], object],
) -> list[str]:
    """Do this rank's batches, with the others of its group; returns one message per video that is missing."""
    failed: list[str] = []
    lines = LINES * len(batches)
    with ProgressBar("sampling", len(batches), visible=world.is_main, lines=lines, log=logger().info) as bar:
        for number, batch in enumerate(batches):
            progress = partial(report_step, bar, step, number)
            trouble: str | None = None
            hopeless = False
            try:
                videos = generate(batch, sampler, guidance_scale=settings.guidance_scale, progress=progress)
                for video_CTHW, request in zip(videos, batch, strict=True) if world.is_group_leader else ():
                    if not is_done(output_path(folder, request), request, settings):
                        logger().info("sampling: wrote %s", write_sample(video_CTHW, request, settings, folder))
            except (WriteError, ConfigError) as error:  # the next batch would meet the same
                trouble, hopeless = str(error), True
                logger().error("%s", error)
            except Exception as error:
                known = isinstance(error, OpenSoraError)
                if world.sequence_size > 1 and (not known or isinstance(error, BadClip)):  # each reads for itself
                    raise  # this rank alone may have failed, while the others wait for its part: the job must end
                trouble = str(error)
                logger().error("prompt %r: %s", batch[0].prompt, error, exc_info=not known)
            # Only the first rank of a group writes: what it met there, all of them must know.
            trouble, hopeless = run_on_leader(partial(_told, trouble, hopeless), world)
            if trouble is not None and hopeless:
                return failed + [trouble] * sum(map(len, batches[number:]))
            if trouble is not None:
                failed += [f"prompt {request.prompt!r}: {trouble}" for request in batch]
    return failed


def report_step(bar: ProgressBar, each: Callable[[], object], batch: int, done: int, steps: int) -> None:
    """Count one denoising step of this rank's batch number `batch`."""
    each()
    text = f"batch {batch + 1} of {bar.total}, step {done} of {steps}"
    bar.update(batch + done / steps, text, f"sampling: {text}")


def _told(trouble: str | None, hopeless: bool) -> tuple[str | None, bool]:
    return trouble, hopeless
