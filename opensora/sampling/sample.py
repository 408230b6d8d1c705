"""Generate a list of requests on all ranks: finished videos are skipped, and a failing one does not stop the others.

The ranks of a sequence group make each of their videos together, and its first rank writes it.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from torch import Tensor

from opensora.errors import BadClip, ConfigError, OpenSoraError
from opensora.files import hash_text
from opensora.log import logger
from opensora.parallel.collectives import broadcast_object, gather_objects
from opensora.parallel.group_leader import run_on_leader
from opensora.parallel.sequence_parallel import Mode, shard_sequence
from opensora.parallel.tile_parallel import shard_tiles
from opensora.parallel.world import World
from opensora.progress_bar import ProgressBar
from opensora.sampling.generate import Sampler, check_size, generate, shape_key
from opensora.sampling.grid import make_grid, read_frames_of
from opensora.sampling.metadata import GenerationSettings, is_done, output_path
from opensora.sampling.reference_frames import overlap_frames, with_condition_frame_length
from opensora.sampling.stored_captions import captions_of
from opensora.sampling.video_writer import WriteError, prepare_folder, write_rgb, write_sample
from opensora.types import SampleRequest

LINES = 4  # plain progress lines per batch of videos
Write = Callable[[Tensor, SampleRequest], Path]  # writes a video, returns its path
RequestBatch = list[SampleRequest]  # requests of one size that go through the model together


def apply_sequence_parallel(sampler: Sampler, world: World, mode: Mode = "dsp") -> Sampler:
    """Have the ranks of a sequence group share each video: the denoiser's tokens and the autoencoder's tiles."""
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
    run_command: Sequence[str] = (),
    grid: bool = False,
) -> list[Path]:
    """Write every request's video below `save_dir`, a folder all ranks see; the main rank prints the paths.

    step: called after each of this rank's denoising steps. run_command: kept in the files, see `write_sample`.
    grid: write all videos side by side as one more file, once none is missing.
    Returns the paths in the order of `requests`, on every rank. A failing batch is logged and the others go on; a disk
    that refuses ends this rank's share. Raises ConfigError before any work when a size does not fit the model or the
    folder cannot be used, OpenSoraError at the end when a video is missing.
    """
    requests = [with_condition_frame_length(request, sampler.codec.vae) for request in requests]
    for size in {(request.num_frames, request.height, request.width) for request in requests}:
        check_size(size, sampler)
    for request in requests:
        overlap_frames(request, sampler.codec.vae)
    folder = prepare_folder(save_dir)
    paths = [output_path(folder, request) for request in requests]
    # The main rank alone looks at the folder: ranks that looked for themselves would see each other's videos appear.
    todo = broadcast_object(pending_batches(make_batches(requests, settings.batch_size), folder, settings))
    missing = sum(map(len, todo))
    if missing < len(requests):
        logger().info("sampling: %d of %d videos are there already", len(requests) - missing, len(requests))
    if 0 < len(todo) < world.data_size and world.is_main:
        idle = world.size - len(todo) * world.sequence_size
        logger().warning(
            "sampling: %d of %d ranks have no video to make; with sp_size=N, N ranks make each together",
            idle,
            world.size,
        )
    share = todo[world.data_rank :: world.data_size]

    def write(video_CTHW: Tensor, request: SampleRequest) -> Path:
        return write_sample(video_CTHW, request, settings, folder, run_command)

    messages = gather_objects(_generate_share(share, sampler, folder, settings, world, step, write))
    failed = [message for of_rank in messages[:: world.sequence_size] for message in of_rank]  # one rank per group
    if world.is_main:
        for path, request in zip(paths, requests, strict=True):
            if is_done(path, request, settings):
                print(path)
    if failed:
        raise OpenSoraError(
            f"sampling: {len(failed)} of {len(requests)} videos are missing; "
            f"{'; '.join(dict.fromkeys(failed[:3]))}; fix the cause and run again, finished videos are skipped"
        )
    if grid and world.is_main:
        print(write_grid(paths, requests[0], folder))
    return paths


def write_grid(paths: Sequence[Path], first: SampleRequest, folder: Path) -> Path:
    """Write the videos side by side, in the format and at the rate of the first one; returns the path."""
    frames_THWC = make_grid([read_frames_of(path) for path in paths])
    name = f"grid-{hash_text(' '.join(path.name for path in paths), 4)}{paths[0].suffix}"
    write_rgb(frames_THWC, folder / name, first.save_fps or first.fps, first.save_format)
    return folder / name


def make_batches(requests: Sequence[SampleRequest], batch_size: int) -> list[RequestBatch]:
    """Requests of equal size in batches of `batch_size`, in list order; the ranks play no part in it."""
    by_size: dict[tuple[int, ...], RequestBatch] = {}
    for request in requests:
        by_size.setdefault(shape_key(request), []).append(request)
    return [same[start : start + batch_size] for same in by_size.values() for start in range(0, len(same), batch_size)]


def pending_batches(batches: Sequence[RequestBatch], folder: Path, settings: GenerationSettings) -> list[RequestBatch]:
    """The batches that lack a video. Each stays whole, so that a run that was stopped repeats the very same batches."""
    return [
        batch
        for batch in batches
        if not all(is_done(output_path(folder, request), request, settings) for request in batch)
    ]


def _generate_share(
    batches: Sequence[RequestBatch],
    sampler: Sampler,
    folder: Path,
    settings: GenerationSettings,
    world: World,
    step: Callable[[], object],
    write: Write,
) -> list[str]:
    """Generate this rank's batches, with the others of its group; returns one message per missing video."""
    failed: list[str] = []
    if sampler.encodes_ahead:
        with suppress(Exception):  # the batch of a caption that fails reports it
            requests = [request for batch in batches for request in batch]
            sampler.codec.encode_ahead(captions_of(requests, sampler.model, settings.guidance_scale))
    lines = LINES * len(batches)
    with ProgressBar("sampling", len(batches), visible=world.is_main, lines=lines, log=logger().info) as bar:
        for number, batch in enumerate(batches):
            progress = partial(report_step, bar, step, number)
            message, fatal = _generate_batch(batch, sampler, folder, settings, world, progress, write)
            if message is not None and fatal:
                return failed + [message] * sum(map(len, batches[number:]))
            if message is not None:
                failed += [f"prompt {request.prompt!r}: {message}" for request in batch]
    return failed


def _generate_batch(
    batch: RequestBatch,
    sampler: Sampler,
    folder: Path,
    settings: GenerationSettings,
    world: World,
    progress: Callable[[int, int], None],
    write: Write,
) -> tuple[str | None, bool]:
    """Generate and write one batch; returns its error, if any, and if every later batch would fail by the same."""
    message: str | None = None
    fatal = False
    try:
        videos = generate(batch, sampler, settings.guidance_scale, progress)
        for video_CTHW, request in zip(videos, batch, strict=True) if world.is_group_leader else ():
            if not is_done(output_path(folder, request), request, settings):
                logger().info("sampling: wrote %s", write(video_CTHW, request))
    except (WriteError, ConfigError) as error:
        message, fatal = str(error), True
        logger().error("%s", error)
    except Exception as error:
        known = isinstance(error, OpenSoraError)
        if world.sequence_size > 1 and (not known or isinstance(error, BadClip)):  # each rank reads files for itself
            raise  # this rank alone may have failed, and the others wait for its tokens: the job must end
        message = str(error)
        logger().error("prompt %r: %s", batch[0].prompt, error, exc_info=not known)
    # Only the first rank of a group writes, so its errors must reach the others.
    return run_on_leader(lambda: (message, fatal), world)


def report_step(bar: ProgressBar, each: Callable[[], object], batch: int, done: int, steps: int) -> None:
    """Count one denoising step of this rank's batch number `batch`."""
    each()
    text, completed = f"batch {batch + 1} of {bar.total}, step {done} of {steps}", batch + done / steps
    bar.update(completed, text, f"sampling: {text}, {bar.time_left(completed)} left")
