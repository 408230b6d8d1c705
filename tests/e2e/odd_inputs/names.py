"""Names of files and folders, and paths that are read or written."""

import os
from pathlib import Path

import torch

from opensora.config import load
from opensora.datasets.decode import Video
from opensora.errors import ConfigError
from opensora.models.build import build_autoencoder
from opensora.models.weights import save_weights
from opensora.sampling.video_writer import write_video
from opensora.schema import TrainRun
from tests.e2e.odd_inputs.case import OddInput, Workbench
from tests.support.command import ROOT, SAMPLE, TRAIN

NAMES = ("10:30", "http:", "img%03d", "-v", "[a]*", "a 'b'\n", "é" * 100, os.fsdecode(b"caf\xe9"))
TRAINED = ["steps=1", "plugin=ddp", "ema_decay=none", "preview_every=1", "preview_prompts=['a red circle']"]


def read_back(bench: Workbench) -> dict[str, int]:
    """Frames of a video in a folder and a file of each name, by a relative path."""
    bench.inside(bench.folder)
    frames = {}
    for name in NAMES:
        path = Path(name, f"{name}.mp4")
        write_video(torch.zeros(3, 2, 16, 16), path, 8)
        with Video(str(path)) as video:
            frames[name] = len(list(video.frames([0, 1])))
    return frames


def moved_run(bench: Workbench) -> dict[str, object]:
    """A run with previews in a folder with a colon; moved with its autoencoder, sampled and replayed from another one."""
    bench.inside(bench.folder)
    vae = build_autoencoder(load(str(ROOT / TRAIN), ["run_dir=x"], TrainRun).run.vae)
    save_weights("parts/vae", vae.state_dict(), vae.config)
    named = "vae={'_delete_': True, 'type': 'CausalVAEModel', 'from_pretrained': 'parts/vae'}"
    trained = bench.opensora("train", str(ROOT / TRAIN), "run_dir=10:30 [a]/run", named, *TRAINED)
    previews = len(list(Path("10:30 [a]/run/previews").rglob("*.mp4")))
    os.makedirs("moved")
    for name in ("10:30 [a]", "parts"):
        os.rename(name, f"moved/{name}")
    os.makedirs("elsewhere")
    bench.inside(bench.folder / "elsewhere")
    words = ["load=../moved/10:30 [a]/run", "save_dir=2026-01-02T10:11:12/videos", "--prompt", "a red circle"]
    sampled = bench.opensora("sample", str(ROOT / SAMPLE), *words)
    replayed = bench.opensora("replay", "../moved/10:30 [a]/run", "step=1")
    return {
        "train": trained.has(),
        "previews": previews,
        "sample": sampled.has(),
        "videos": len(list(Path("2026-01-02T10:11:12/videos").glob("*.mp4"))),
        "replay": replayed.has("10:30 [a]/run", "bit for bit"),
    }


def home_folder(bench: Workbench) -> list[str]:
    """Paths with ~ in a config, below the home folder."""
    bench.environment("HOME", str(bench.folder))
    words = ["run_dir=~/run", "load=~/weights", "vae.from_pretrained=~/vae"]
    run = load(str(ROOT / TRAIN), words, TrainRun).run
    return [os.path.relpath(path, bench.folder) for path in (run.run_dir, str(run.load), run.vae["from_pretrained"])]


def empty_path(bench: Workbench) -> str:
    """The answer to run_dir=''."""
    try:
        load(str(ROOT / TRAIN), ["run_dir="], TrainRun)
    except ConfigError as error:
        return str(error).partition(": ")[2]
    return "taken"


CASES = [
    OddInput("videos of odd names: frames", dict.fromkeys(NAMES, 2), read_back),
    OddInput(
        "run in a folder with a colon, then moved",
        {"train": "exit 0", "previews": 1, "sample": "exit 0", "videos": 1, "replay": "exit 0"},
        moved_run,
    ),
    OddInput("~ in a config", ["run", "weights", "vae"], home_folder),
    OddInput(
        "empty run_dir",
        "key 'run_dir': found an empty path; allowed: the path of a file or folder; correct it",
        empty_path,
    ),
]
