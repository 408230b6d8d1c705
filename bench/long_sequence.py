"""`opensora bench tokens`: a training step of one sample of a million tokens, on one rank and shared by two.

Every rank is a process with one thread (`torchrun ... -m bench.long_sequence CASE RANKS`), so two ranks have what two
machines of one core would have. Activations are recomputed; sp_mode "dsp" shares the tokens.
"""

import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from bench.peak_memory import PeakMemory, return_freed_memory
from bench.subprocesses import heading, machine, run_module, send_result
from opensora.models.stdit.stdit import STDiT
from opensora.parallel import world as worlds
from opensora.parallel.activation_checkpointing import checkpoint_activations
from opensora.parallel.collectives import gather_objects
from opensora.parallel.engine import EngineOptions
from opensora.parallel.sequence_parallel import bytes_sent, shard_sequence
from opensora.parallel.watchdog.process_exit import exit_process
from opensora.planning.communication import sequence_bytes
from opensora.platforms import Platform, select
from opensora.registry import OPTIMIZERS, PLUGINS, build
from opensora.rng import generator

RANKS = (1, 2)
TEXT_TOKENS, TEXT_CHANNELS = 16, 64
TIMEOUT_SECONDS = 3600


@dataclass(frozen=True)
class Case:
    """Latents of frames x rows x columns and 4 channels, in patches of 1 x 2 x 2, and the size of the model.

    Attention costs frames * patches * (frames + patches), so a million tokens cost least with equal numbers of both.
    """

    frames: int
    rows: int
    columns: int
    width: int = 32
    heads: int = 2
    depth: int = 2

    @property
    def patches(self) -> int:
        return self.rows // 2 * (self.columns // 2)

    @property
    def tokens(self) -> int:
        return self.frames * self.patches


CASES = {"full": Case(1024, 64, 64), "quick": Case(64, 32, 32)}


def make_model(case: Case) -> STDiT:
    """A model whose zero-initialized weights are random, as after some training; small, so that activations dominate."""
    model = STDiT(
        input_size=(case.frames, case.rows, case.columns),
        hidden_size=case.width,
        depth=case.depth,
        num_heads=case.heads,
        caption_channels=TEXT_CHANNELS,
        model_max_length=TEXT_TOKENS,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.any():
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator(0, name)))
    return model


def step_on_rank(case: Case, platform: Platform, world: worlds.World) -> dict[str, Any]:
    """Forward, backward and update of one sample that all ranks share; returns the cost on this rank."""
    torch.manual_seed(0)
    model = make_model(case)
    checkpoint_activations(model.checkpoint_blocks())
    if world.sequence_size > 1:
        shard_sequence(model, world.sequence_group, "dsp")
    engine = build(PLUGINS, {"type": "zero2"}).apply(
        model.train(),
        EngineOptions(
            lambda parameters: build(OPTIMIZERS, {"type": "AdamW", "lr": 1e-4}, params=parameters),
            dtype="fp32",
            grad_clip=1.0,
            world=world,
        ),
    )
    x = torch.randn(1, 4, case.frames, case.rows, case.columns, generator=generator(0, "latents"))
    y = torch.randn(1, 1, TEXT_TOKENS, TEXT_CHANNELS, generator=generator(0, "text"))
    x, y, t = x.to(world.device), y.to(world.device), torch.tensor([500.0], device=world.device)
    before = bytes_sent(model)
    peak = PeakMemory(platform)  # it counts weights and gradients too, which are small here
    start = time.perf_counter()
    with engine.accumulating(last=True):
        loss = _loss(engine.model(x, t, y), x)
        engine.backward(loss)
    norm = engine.grad_norm()
    engine.update()
    platform.synchronize()
    return {
        "seconds": time.perf_counter() - start,
        "activation_bytes": peak.added_bytes(),
        "peak_bytes": platform.peak_memory_bytes(),
        "sent_bytes": bytes_sent(model) - before,
        "formula_bytes": formula(case, world.sequence_size),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": loss.item(),
        "grad_norm": norm,
    }


def _loss(out: Tensor, x: Tensor) -> Tensor:
    """Mean squared error of the prediction, without the half of the channels that hold the variance."""
    return (out[:, : x.shape[1]] - x).square().mean()


def formula(case: Case, ranks: int) -> int:
    """Bytes that a rank sends by the formula of docs/planning.md."""
    return sequence_bytes(
        ranks=ranks,
        mode="dsp",
        batch=1,
        frames=case.frames,
        patches=case.patches,
        width=case.width,
        heads=case.heads,
        depth=case.depth,
        out_features=2 * 2 * 8,
        recomputed=True,
    )


def run(platform: Platform, quick: bool) -> dict[str, Any]:
    """Measure one rank, then two, never at the same time: their memory would add up."""
    name = "quick" if quick else "full"
    case = CASES[name]
    rows = [{"ranks": ranks, **measured(name, ranks)} for ranks in RANKS]
    one, two = rows
    return {
        "machine": machine(platform),
        "case": {**case.__dict__, "patches": case.patches, "tokens": case.tokens},
        "steps": rows,
        "memory_ratio": two["activation_bytes"] / one["activation_bytes"],
        "loss_difference": abs(two["loss"] - one["loss"]) / abs(one["loss"]),
        "grad_norm_difference": abs(two["grad_norm"] - one["grad_norm"]) / one["grad_norm"],
    }


def measured(name: str, ranks: int) -> dict[str, Any]:
    """Run the step in new processes; returns the largest value over the ranks for each figure."""
    return run_module("bench.long_sequence", name, str(ranks), ranks=ranks)


def tables(results: dict[str, Any]) -> list[Table | str]:
    """The results for people."""
    case = results["case"]
    shape = (
        f"{case['tokens']:,} tokens ({case['frames']:,} frames of {case['patches']:,} patches) of one sample; STDiT of "
        f"width {case['width']}, {case['heads']} heads, {case['depth']} blocks, {results['steps'][0]['parameters']:,} "
        "parameters; fp32, activations recomputed, zero2, one thread per rank"
    )
    steps = Table(
        "ranks",
        "tokens",
        "seconds",
        "peak",
        "activations",
        "share",
        "sent",
        "formula",
        title="One training step; memory and bytes in MiB, of each rank; share: of one rank's activations",
    )
    baseline = results["steps"][0]["activation_bytes"]
    for row in results["steps"]:
        sizes = [f"{row[key] / 2**20:,.1f}" for key in ("sent_bytes", "formula_bytes")]
        memory = [f"{row[key] / 2**20:,.0f}" for key in ("peak_bytes", "activation_bytes")]
        share = f"{row['activation_bytes'] / baseline:.2f}"
        steps.add_row(str(row["ranks"]), f"{case['tokens']:,}", f"{row['seconds']:.1f}", *memory, share, *sizes)
    agreement = (
        f"2 ranks against 1: loss differs by {results['loss_difference']:.1e} of itself, the gradient norm by "
        f"{results['grad_norm_difference']:.1e}"
    )
    return [heading(results), shape, steps, agreement]


def main(argv: list[str]) -> int:
    """Run one rank."""
    name, ranks = argv
    platform = select()
    world = worlds.init(platform, TIMEOUT_SECONDS, sp_size=int(ranks))
    torch.set_num_threads(1)
    return_freed_memory()
    figures = step_on_rank(CASES[name], platform, world)
    per_rank = gather_objects(figures)
    if world.is_main:
        send_result({key: max(rank[key] for rank in per_rank) for key in figures})
    worlds.shutdown()
    return 0


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))
