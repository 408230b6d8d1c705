"""The models that `opensora bench sample` samples: three trained on MovingShapes, and blocks of XL width with random weights."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.subprocesses import CHECKOUT
from opensora.datasets.moving_shapes import combinations
from opensora.errors import OpenSoraError
from opensora.models.codec import CaptionCache
from opensora.models.stdit.stdit import STDiT
from opensora.platforms import Platform
from opensora.registry import SCHEDULERS, build
from opensora.sampling.build import build_sampler, plan_sampling
from opensora.sampling.generate import Sampler
from opensora.schema import Precision, SampleRun
from opensora.types import SampleRequest

FOLDER = Path("outputs/bench-sample")  # of the trained models, below the working folder; they are trained once
STEPS = 700  # of each denoiser: about four minutes on 2 cores
# Run -> config and overrides. Every run trains STDiT; "masked" learns conditioning frames as well.
DENOISERS: dict[str, tuple[str, list[str]]] = {
    "rflow": ("shapes", []),
    "iddpm": ("shapes", ["scheduler={'_delete_': True, 'type': 'iddpm', 'learn_sigma': False}"]),
    "masked": ("shapes_masked", []),
}
# Without training: a tiny model of the same kind, for a look.
QUICK = ["model.hidden_size=32", "model.depth=2", "dataset.clips=64", "steps=1", "batch_size=2"]
XL = {"hidden_size": 1152, "num_heads": 16, "depth": 4}
QUICK_XL = {"hidden_size": 96, "num_heads": 4, "depth": 2}
XL_SIZE = (9, 64, 64)  # frames, rows, columns in pixels: 192 tokens


def train(quick: bool, platform: Platform) -> dict[str, Path]:
    """Train the autoencoder and the denoisers where they are not there yet; returns the runs of `DENOISERS`."""
    folder = FOLDER / ("quick" if quick else "trained")
    vae = str(
        CHECKOUT / "assets/vae-small"
    )  # the configs name it below the checkout, which need not be the working folder
    if not quick:
        _train("configs/vae/train/shapes.py", folder / "vae", [f"vae.from_pretrained={vae}"], platform)
        vae = str(folder / "vae")
    runs = {}
    for name, (config, overrides) in DENOISERS.items():
        runs[name] = folder / name
        length = QUICK if quick else [f"steps={STEPS}"]
        changes = [f"vae.from_pretrained={vae}", *overrides, *length]
        _train(f"configs/stdit/train/{config}.py", runs[name], changes, platform)
    return runs


def _train(config: str, run: Path, overrides: list[str], platform: Platform) -> None:
    """Run the training command, which goes on where it stopped and ends at once where it is done."""
    ranks = min(2, os.cpu_count() or 1) if platform.name == "cpu" else 1
    command = ["-m", "opensora.cli.main", "train", "--ranks", str(ranks), str(CHECKOUT / config)]
    command += [f"run_dir={run}", *overrides]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        reason = errors[0] if errors else (done.stderr.strip() or "no message").splitlines()[-1]
        raise OpenSoraError(f"bench: {reason}; to see more, run `python {' '.join(command)}`")


def trained_sampler(run: Path, platform: Platform) -> tuple[Sampler, list[SampleRequest], Any]:
    """The sampler of a run, a request for each held-out combination, and the settings. Captions are encoded each time."""
    prompts = [attributes.caption() for attributes in combinations("holdout")]
    dtype: Precision = "bf16" if platform.multiplies_bf16() else "fp32"
    plan = plan_sampling(SampleRun(load=str(run), prompt=prompts, dtype=dtype), str(run))
    sampler, settings = build_sampler(plan, platform.device())
    sampler.codec.captions = CaptionCache(0)
    return sampler, plan.requests, settings


def with_scheduler(sampler: Sampler, name: str, steps: int) -> Sampler:
    """The same model with another scheduler."""
    learned = {} if name == "rflow" else {"learn_sigma": False}
    config = {"type": name, "num_sampling_steps": steps, "cfg_scale": sampler.scheduler.cfg_scale, **learned}
    return replace(sampler, scheduler=build(SCHEDULERS, config))


def xl_sampler(like: Sampler, requests: list[SampleRequest], quick: bool) -> tuple[Sampler, list[SampleRequest]]:
    """STDiT blocks of XL width with random weights on larger clips; autoencoder and captions are those of `like`."""
    frames, height, width = XL_SIZE
    codec = like.codec
    torch.manual_seed(0)
    model = STDiT(
        input_size=codec.vae.latent_size(XL_SIZE),
        in_channels=codec.vae.latent_channels,
        patch_size=(1, 1, 1),
        caption_channels=like.model.caption_channels,
        model_max_length=like.model.model_max_length,
        pred_sigma=False,
        **(QUICK_XL if quick else XL),  # type: ignore[arg-type]
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    changed = [replace(request, num_frames=frames, height=height, width=width) for request in requests]
    return replace(like, model=model.to(codec.device, codec.dtype)), changed
