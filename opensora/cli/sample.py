"""Generate videos: `opensora sample CONFIG --prompt "..."`, or on N devices
`opensora sample --ranks N CONFIG --prompt "..."`.

Videos that are there already are skipped; the same prompt and seed give the same video on any number of ranks.
With sp_size=N, N ranks make one video together.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

from opensora.cli.command_parser import CommandParser, run_on_ranks
from opensora.cli.run_main import report_on_main_rank_only, run_main
from opensora.config import load
from opensora.errors import CheckpointError, ConfigError, WeightsError
from opensora.parallel.watchdog.process_exit import exit_process
from opensora.sampling.conditions import Conditions
from opensora.sampling.remake import run_command
from opensora.sampling.size_words import check_words
from opensora.schema import SampleRun

NO_TIMEOUT = timedelta(days=365)

# flag -> config key; the flags are the config's keys for people who type
FLAGS: dict[str, tuple[str, str]] = {
    "--load": ("load", "run folder, checkpoint or weights folder of the denoiser"),
    "--prompt-path": ("prompt_path", "text file with a prompt per line, or a CSV / Parquet with a column `text`"),
    "--negative-prompt": ("negative_prompt", "what to steer away from"),
    "--refine": (
        "refine.url",
        "chat server that rewrites prompts, such as http://127.0.0.1:8000/v1; see --refine-model",
    ),
    "--refine-model": ("refine.model", "model of that server"),
    "--resolution": (
        "resolution",
        "144p, 240p, 360p, 480p, 720p, 1080p, 2K, 4K, 256, 512 or 1024: pixels by Open-Sora's table",
    ),
    "--aspect-ratio": ("aspect_ratio", "width:height, 16:9 is wide; h9:w16 in Open-Sora's order is the same"),
    "--num-frames": ("num_frames", "frames per video, or seconds such as 4s; 1 writes a png"),
    "--fps": ("fps", "frames per second of the video"),
    "--frame-interval": ("frame_interval", "make every n-th frame of a video at --fps"),
    "--save-fps": ("save_fps", "frames per second of the file, if it is to play slower or faster"),
    "--save-format": ("save_format", "mp4 (H.264), hevc, webm (VP9), av1, gif, or png: a folder of pictures"),
    "--watermark": ("watermark", "text over the lower right corner"),
    "--seed": ("seed", "another seed, another video"),
    "--num-sample": ("num_sample", "videos per prompt"),
    "--reference-path": ("reference_path", "pictures or videos to build on, joined by ;"),
    "--mask-strategy": ("mask_strategy", "which of their latent frames go where; without one, their first begins it"),
    "--first-frame": ("first_frame", "picture that the video begins with"),
    "--last-frame": ("last_frame", "picture that the video ends with"),
    "--extend": ("extend", "clip that the video continues; with --backward, that it leads up to"),
    "--edit": ("edit", "clip that is made anew, starting from it with noise"),
    "--strength": ("strength", "how much noise an edit starts with, above 0 and up to 1; default 0.5"),
    "--keep": ("keep", "frames of the edited clip that stay, such as 0-8,24-32"),
    "--loop": ("loop", "clips that are made one after the other and joined"),
    "--steps": ("scheduler.num_sampling_steps", "denoising steps"),
    "--guidance-scale": ("scheduler.cfg_scale", "how strongly the prompt steers; 1 = no guidance"),
    "--max-memory": ("max_memory", "such as 12GB: what fits is estimated, and offload and tiles are chosen so"),
    "--caption-cache": ("caption_cache", "folder that keeps encoded captions from run to run"),
    "--save-dir": ("save_dir", "where the videos go"),
}

ONE_PER_PROMPT = ("--reference-path", "--mask-strategy")  # may be given once, or once for each prompt
TEXTS = (
    "refine.url",
    "refine.model",
    "load",
    "resolution",
    "first_frame",
    "last_frame",
    "extend",
    "edit",
    "keep",
    "aspect_ratio",
    "watermark",
    "prompt_path",
    "negative_prompt",
    "caption_cache",
    "max_memory",
    "save_dir",
    "reference_path",
    "mask_strategy",
)  # never read as numbers


def main(argv: Sequence[str] | None = None) -> int:
    code = run_on_ranks("opensora.cli.sample", argv)
    if code is not None:
        return code
    parser = CommandParser(prog="opensora sample", description=__doc__)
    parser.add_ranks()
    parser.add_argument("config", help="a sampling config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--prompt", action="append", default=[], help="what to show; may be given several times")
    parser.add_argument("--size", metavar="HEIGHTxWIDTH", help="pixels, for example 64x96")
    parser.add_argument("--grid", action="store_true", help="write all videos side by side as one more file")
    parser.add_argument("--backward", action="store_true", help="--extend a clip by what came before it")
    parser.add_argument(
        "--model-cpu-offload", action="store_true", help="keep networks on the host, each on the device for its stage"
    )
    parser.add_argument("--enable-tiling", action="store_true", help="decode in tiles: vae.use_tiling=True")
    parser.add_argument("--connect", nargs=2, metavar=("FROM", "TO"), help="two pictures or clips to lead from and to")
    for flag, (_, purpose) in FLAGS.items():
        parser.add_argument(flag, help=purpose, action="append" if flag in ONE_PER_PROMPT else "store")
    arguments = parser.read(join_dashed(sys.argv[1:] if argv is None else argv))
    return run_main(
        lambda: sample_command(arguments.config, overrides_of(arguments), arguments.prompt),
        interrupted=": finished videos are kept; the same command makes the others",
    )


def join_dashed(argv: Sequence[str]) -> list[str]:
    """The arguments with `--prompt=-rain` for `--prompt -rain`, whose text argparse would take for an option."""
    joined: list[str] = []
    for argument in argv:
        is_text = re.match(r"-[^-]|--.*\s", argument) and argument != "-h"
        if is_text and joined and joined[-1] in ("--prompt", *FLAGS):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """The flags as key=value overrides; key=value arguments come last and win. ConfigError for a size of other form."""
    overrides = []
    for flag, (key, _) in FLAGS.items():
        value = getattr(arguments, flag.removeprefix("--").replace("-", "_"))
        if isinstance(value, list) and len(value) == 1:
            value = value[0]  # of every prompt
        if value is not None:
            quoted = repr(value) if key in TEXTS else value
            overrides.append(f"{key}={quoted}")
    overrides += [f"{name}=True" for name in ("backward", "grid", "model_cpu_offload") if getattr(arguments, name)]
    if arguments.refine is not None:
        overrides.append("refine.type=ChatRefiner")
    if arguments.enable_tiling:
        overrides.append("vae.use_tiling=True")
    if arguments.connect is not None:
        overrides.append(f"connect={arguments.connect!r}")
    if arguments.size is not None:
        size = re.fullmatch(r"(\d+)[xX×](\d+)", arguments.size)
        if size is None:
            with report_on_main_rank_only():
                raise ConfigError(
                    f"command line: --size: found {arguments.size!r}; allowed: HEIGHTxWIDTH in pixels, such as 64x96; "
                    "change it"
                )
        overrides.append(f"image_size=({int(size[1])}, {int(size[2])})")
    return overrides + arguments.overrides


def sample_command(config: str, overrides: Sequence[str], prompts: Sequence[str]) -> int:
    """Check, build, sample; returns the exit code."""
    if prompts:
        overrides = [*overrides, f"prompt={list(prompts)!r}"]
    with report_on_main_rank_only():
        loaded = load(config, overrides, SampleRun)
    with loaded.naming_origins():
        with report_on_main_rank_only():  # before torch is imported
            check_words(loaded.run)
            Conditions.of(loaded.run, config)
        return _sample(loaded.run, config, run_command(config, overrides, loaded.written))


@contextmanager
def _named_by_user() -> Iterator[None]:
    """Weights that are missing, damaged or of another model were named by config or command line: exit code 2."""
    try:
        yield
    except (WeightsError, CheckpointError) as error:
        raise ConfigError(str(error)) from error


def _sample(run: SampleRun, config: str, command: Sequence[str]) -> int:
    # These imports take seconds; a typo in the config is reported before them.
    from opensora.cli.session import session, set_up_rank
    from opensora.parallel.collectives import broadcast_object
    from opensora.parallel.world import check_sequence_size, set_timeout
    from opensora.sampling.build import build_sampler, plan_sampling
    from opensora.sampling.sample import apply_sequence_parallel, sample

    def sequence_size(size: int) -> int:
        check_sequence_size(run.sp_size, size, config)
        return run.sp_size

    setup = set_up_rank(run, sequence_size)
    run = setup.run
    with report_on_main_rank_only(), _named_by_user():
        plan = plan_sampling(run, config)
    with session(setup) as ranks:
        if run.refine is not None:  # the words that the main rank alone got
            plan = replace(plan, requests=broadcast_object(plan.requests))
        with _named_by_user():
            sampler, settings = build_sampler(plan, ranks.world.device)
        # Groups finish at different times, however far apart: the watchdog sees which of them still make progress.
        set_timeout(NO_TIMEOUT)
        sampler = apply_sequence_parallel(sampler, ranks.world, run.sp_mode)
        sample(
            plan.requests,
            sampler,
            ranks.world,
            run.save_dir,
            settings,
            step=ranks.watch.count_step,
            run_command=command,
            grid=run.grid,
        )
    return 0


if __name__ == "__main__":
    exit_process(main())
