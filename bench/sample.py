"""`opensora bench sample`: the cost of a video by stage and batch, shortcuts next to their error, few steps next to
many, negative prompts, conditioning frames.

The first run trains an autoencoder and three denoisers on MovingShapes, in outputs/bench-sample below the working folder; later
runs find them there. --quick trains nothing to speak of: its errors and adherence mean nothing, only that all of it runs.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from bench.sample_conditions import frame_rows, negative_rows
from bench.sample_figures import STAGES, adherence, errors, sample, sample_each, stage_shares
from bench.sample_models import train, trained_sampler, with_scheduler, xl_sampler
from bench.subprocesses import heading, machine
from opensora.platforms import Platform
from opensora.registry import CACHES, build
from opensora.sampling.generate import Sampler
from opensora.sampling.shortcuts import Shortcuts
from opensora.types import SampleRequest

STEPS = 30
SPANS = {"type": "PyramidAttentionBroadcast"}
SHORTCUTS: tuple[dict[str, Any], ...] = (
    {"guidance_interval": (0.2, 0.9)},
    {"guidance_interval": (0.5, 1.0)},
    {"null_every": 2},
    {"null_every": 4},
    *({"cache": {"type": "FirstBlockCache", "threshold": threshold}} for threshold in (0.1, 0.2, 0.3)),
    *({"cache": {"type": "TeaCache", "threshold": threshold}} for threshold in (0.1, 0.2, 0.4)),
    {"cache": {**SPANS, "spatial": 2, "temporal": 2, "cross": 2}},
    {"cache": {**SPANS, "spatial": 2, "temporal": 4, "cross": 6}},
    {"null_every": 4, "cache": {"type": "FirstBlockCache", "threshold": 0.2}},
    {"null_every": 4, "cache": {"type": "TeaCache", "threshold": 0.2}},
)
FEW_STEPS = {"rflow": (4, 8, 12, STEPS), "dpm-solver": (4, 8, 12, 20)}
MANY_STEPS = 100
BATCHES = (1, 4, 16)
GOAL = {"speedup": 2.0, "psnr": 30.0}


def run(platform: Platform, quick: bool) -> dict[str, Any]:
    """Train what is missing and measure everything."""
    runs = train(quick, platform)
    sampler, requests, settings = trained_sampler(runs["rflow"], platform)
    sampler = with_scheduler(sampler, "rflow", 4 if quick else STEPS)
    few = requests[: 2 if quick else 8]
    sample(sampler, requests[:1], platform)  # first calls are slower than all others
    with tempfile.TemporaryDirectory() as folder:
        stages = stage_shares(sampler, few, settings, platform, Path(folder))
    twice = [*requests, *(replace(request, repeat=1) for request in requests)]
    xl, xl_requests = xl_sampler(sampler, few[:1], quick)
    return {
        "machine": machine(platform),
        "quick": quick,
        "steps": sampler.scheduler.num_sampling_steps,
        "stages": stages,
        "shortcuts": {
            "MovingShapes": shortcut_rows(sampler, few, platform),
            _blocks(xl): shortcut_rows(xl, xl_requests, platform),
        },
        "few_steps": few_step_rows(runs, requests[:2] if quick else twice, platform, quick),
        "batches": batch_rows(sampler, requests, platform, quick),
        "negative_prompts": negative_rows(sampler, few if quick else twice, platform),
        "conditioning_frames": frame_rows(
            masked_sampler(runs["masked"], platform, quick), few if quick else twice, platform
        ),
    }


def masked_sampler(run: Path, platform: Platform, quick: bool) -> Sampler:
    """The sampler of the model that was trained with frame masks."""
    sampler, _, _ = trained_sampler(run, platform)
    return with_scheduler(sampler, "rflow", 4 if quick else STEPS)


def shortcut_rows(sampler: Sampler, requests: Sequence[SampleRequest], platform: Platform) -> list[dict[str, Any]]:
    """Each shortcut's seconds per video and its distance to exact ones, which are made before and after all of them.

    The first row is the exact ones'; the faster of the two counts.
    """
    exact = sample_each(sampler, requests, platform)
    fast = [sample_each(replace(sampler, shortcuts=shortcuts_of(keys)), requests, platform) for keys in SHORTCUTS]
    exact = min(exact, sample_each(sampler, requests, platform), key=lambda sampled: sampled.seconds)
    return [
        {
            "shortcut": name,
            "seconds": sampled.seconds / len(requests),
            "speedup": exact.seconds / sampled.seconds,
            "denoiser_speedup": exact.stages["denoiser"] / sampled.stages["denoiser"],
            "copies_left_out": 1 - sampled.model_rows / exact.model_rows,
            "last_blocks_skipped": 1 - sampled.block_work / sampled.model_rows / (exact.block_work / exact.model_rows),
            **errors(sampled, exact),
        }
        for name, sampled in zip(["none", *map(describe, SHORTCUTS)], [exact, *fast], strict=True)
    ]


def shortcuts_of(keys: dict[str, Any]) -> Shortcuts:
    """The shortcuts that a config with these keys has."""
    return Shortcuts(**{**keys, "cache": build(CACHES, keys["cache"]) if "cache" in keys else None})


def few_step_rows(
    runs: dict[str, Path], requests: Sequence[SampleRequest], platform: Platform, quick: bool
) -> list[dict[str, Any]]:
    """Adherence of few steps, and their distance to many of the same scheduler from the same noise."""
    rows = []
    for name, counts in FEW_STEPS.items():
        trained, _, _ = trained_sampler(runs["rflow" if name == "rflow" else "iddpm"], platform)
        most = 6 if quick else MANY_STEPS
        exact = sample(with_scheduler(trained, name, most), requests, platform)
        for steps in [*(counts[:1] if quick else counts), most]:
            few = exact if steps == most else sample(with_scheduler(trained, name, steps), requests, platform)
            row = {"scheduler": name, "steps": steps, "seconds": few.seconds / len(requests)}
            rows.append(row | {"adherence": adherence(few, requests), **errors(few, exact)})
    return rows


def batch_rows(
    sampler: Sampler, requests: Sequence[SampleRequest], platform: Platform, quick: bool
) -> list[dict[str, Any]]:
    """Seconds per video in batches of several prompts."""
    rows = []
    for size in BATCHES[:2] if quick else BATCHES:
        first = sample(sampler, requests[:size], platform)
        again = sample(sampler, requests[:size], platform)
        rows.append({"batch": size, "seconds": min(first.seconds, again.seconds) / size})
    return rows


def describe(keys: dict[str, Any]) -> str:
    """The keys as a config has them."""
    return ", ".join(f"{key}={_value(value)}" for key, value in keys.items())


def _value(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return f"{value['type']}({', '.join(f'{key}={number}' for key, number in value.items() if key != 'type')})"


def _blocks(sampler: Sampler) -> str:
    model = sampler.model
    tokens = model.input_size[0] * model.input_size[1] * model.input_size[2]
    width, depth = model.hidden_size, len(model.checkpoint_blocks())
    return f"{depth} STDiT blocks of width {width}, random weights, {tokens} tokens"


def tables(results: dict[str, Any]) -> list[Table | str]:
    """The results for people."""
    stages = results["stages"]
    shares = ", ".join(f"{stage} {stages['stages'][stage] / stages['seconds']:.0%}" for stage in STAGES)
    shown: list[Table | str] = [heading(results)]
    if results["quick"]:
        shown.append("quick: models without training; errors and adherence mean nothing")
    shown.append(f"{stages['seconds']:.2f} s per MovingShapes video of {results['steps']} steps: {shares}")
    for model, rows in results["shortcuts"].items():
        shown.append(_shortcut_table(model, results["steps"], rows))
    steps = Table(
        "scheduler", "steps", "s per video", "adherence", "relative L2", "PSNR, dB",
        title=f"Few steps; distance to {results['few_steps'][-1]['steps']} of the same scheduler",
    )  # fmt: skip
    for row in results["few_steps"]:
        distance = (f"{row['relative_l2']:.3f}", f"{row['psnr']:.1f}")
        steps.add_row(
            row["scheduler"], str(row["steps"]), f"{row['seconds']:.2f}", f"{row['adherence']:.2f}", *distance
        )
    batches = Table("batch", "s per video", title="Prompts in one batch")
    for row in results["batches"]:
        batches.add_row(str(row["batch"]), f"{row['seconds']:.2f}")
    return [*shown, steps, batches, *_condition_tables(results)]


def _condition_tables(results: dict[str, Any]) -> list[Table]:
    drawing = "PSNR to the drawing, dB"
    negative = Table("guidance scale", "negative prompt", "adherence", drawing, title="Negative prompts")
    for row in results["negative_prompts"]:
        scale, text = f"{row['guidance_scale']:g}", row["negative_prompt"]
        negative.add_row(scale, text, f"{row['adherence']:.2f}", f"{row['drawing_psnr']:.1f}")
    frames = Table(
        "conditioning frames", "their PSNR, dB", "worst", "by the autoencoder alone", "direction", "adherence", drawing,
        title="Conditioning frames, a model trained with mask_ratios",
    )  # fmt: skip
    for row in results["conditioning_frames"]:
        decibels = [f"{row[key]:.1f}" if key in row else "" for key in ("psnr", "worst_psnr", "codec_psnr")]
        shares = [f"{row[key]:.2f}" if key in row else "" for key in ("direction", "adherence")]
        frames.add_row(row["given"], *decibels, *shares, f"{row['drawing_psnr']:.1f}" if "drawing_psnr" in row else "")
    return [negative, frames]


def _shortcut_table(model: str, steps: int, rows: list[dict[str, Any]]) -> Table:
    table = Table(
        Column("shortcut", no_wrap=True), "s", "speed-up", "of the denoiser", "copies left out", "blocks skipped",
        "relative L2", "PSNR, dB", "worst", "goal",
        title=f"{model}, {steps} steps; goal: {GOAL['speedup']:g} times at {GOAL['psnr']:g} dB",
    )  # fmt: skip
    for row in rows:
        met = row["speedup"] >= GOAL["speedup"] and row["psnr"] >= GOAL["psnr"]
        table.add_row(
            row["shortcut"],
            f"{row['seconds']:.2f}",
            f"{row['speedup']:.2f}",
            f"{row['denoiser_speedup']:.2f}",
            f"{row['copies_left_out']:.0%}",
            f"{row['last_blocks_skipped']:.0%}",
            f"{row['relative_l2']:.4f}",
            f"{row['psnr']:.1f}",
            f"{row['worst_psnr']:.1f}",
            "met" if met else "",
        )
    return table
