"""Peak memory of one task in a process of its own: `python -m bench.memory NAME key=value ...`.

A process never lowers its high-water mark, so every case needs a fresh one. The result is the memory that the case
adds to what the process holds before.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch

from bench.peak_memory import PeakMemory, return_freed_memory
from bench.subprocesses import run_module, send_result
from opensora.errors import OpenSoraError
from opensora.parallel.activation_checkpointing import checkpoint_activations

TRAINING = {"hidden_size": 256, "num_heads": 4, "depth": 8, "input_size": (16, 32, 32)}
# CausalVAEModel as released, narrower, so that 257 frames are decoded in seconds.
DECODING = {"hidden_size": 16, "norm_groups": 16}
DECODED_PIXELS = 64  # rows and columns: less than a tile, so that only time is cut


def training(checkpointed: int) -> Callable[[], object]:
    """Forward and backward of an STDiT; its weights and inputs exist before the measurement."""
    from opensora.models.stdit.stdit import STDiT

    torch.manual_seed(0)
    model = STDiT(**TRAINING, caption_channels=64, model_max_length=16)  # type: ignore[arg-type]
    if checkpointed:
        checkpoint_activations(model.checkpoint_blocks())
    x, y = torch.randn(1, 4, *TRAINING["input_size"]), torch.randn(1, 1, 16, 64)  # type: ignore[misc]
    return lambda: model(x, torch.tensor([500.0]), y).square().mean().backward()


def decoding(frames: int, tiled: int, whole: int = 0) -> Callable[[], object]:
    """CausalVAEModel's decoder; each window is freed before the next is decoded, as when a file is written.

    whole: join all windows into one tensor.
    """
    from opensora.models.vae.causal_vae import CausalVAEModel

    torch.manual_seed(0)
    model = CausalVAEModel(use_tiling=bool(tiled), **DECODING).eval()  # type: ignore[arg-type]
    z = torch.randn(1, model.latent_channels, *model.latent_size((frames, DECODED_PIXELS, DECODED_PIXELS)))

    @torch.no_grad()
    def decode() -> None:
        if whole:
            model.decode(z)
            return
        decoded = sum(window.shape[2] for window in model.decode_windows(z))
        if decoded != frames:
            raise OpenSoraError(f"bench: {decoded} frames decoded instead of {frames}; report this as a bug")

    return decode


def encoding(**case: int) -> Callable[[], object]:
    """The encoder of `bench.encoder`."""
    from bench.encoder import encoding

    return encoding(**case)


CASES: dict[str, Callable[..., Callable[[], object]]] = {
    "training": training,
    "decoding": decoding,
    "encoding": encoding,
}


def activation_bytes(checkpointed: bool) -> int:
    """Peak activation bytes that `opensora check` expects in the training case."""
    from opensora.models.stdit.stdit import STDiT
    from opensora.planning.meta_profile import profile_step

    with torch.device("meta"):
        model = STDiT(**TRAINING, caption_channels=64, model_max_length=16)  # type: ignore[arg-type]
        x, t, y = torch.empty(1, 4, *TRAINING["input_size"]), torch.empty(1), torch.empty(1, 1, 16, 64)  # type: ignore[misc]
    return profile_step(model, lambda module: module(x, t, y), checkpointed=checkpointed).peak


def added_bytes(work: Callable[[], object]) -> int:
    """Peak memory while `work` runs less the memory before."""
    peak = PeakMemory()
    work()
    return peak.added_bytes()


def measured(name: str, **arguments: int) -> int:
    """Bytes that the case adds, measured in a new process."""
    pairs = [f"{key}={value}" for key, value in arguments.items()]
    return run_module("bench.memory", name, *pairs)["bytes"]


def training_rows() -> list[dict[str, Any]]:
    """A training step with and without activation recomputation; the expected ratio is that of the estimated activations."""
    plain, recomputed = (measured("training", checkpointed=flag) for flag in (0, 1))
    expected = activation_bytes(True) / activation_bytes(False)
    return [
        {"work": "training step", "bytes": plain, "ratio": 1.0, "expected": 1.0},
        {
            "work": "training step, activations recomputed",
            "bytes": recomputed,
            "ratio": recomputed / plain,
            "expected": expected,
        },
    ]


def decoding_rows(frames: tuple[int, ...] = (65, 129, 257)) -> list[dict[str, Any]]:
    """Decoding with and without temporal rollback tiling: tiled memory should stay, untiled grow with the frames."""
    rows: list[dict[str, Any]] = []
    for tiled in (1, 0):
        first = None
        for count in frames:
            measured_bytes = measured("decoding", frames=count, tiled=tiled)
            first = first or measured_bytes
            rows.append(
                {
                    "work": f"decoding {count} frames" + (", in windows" if tiled else ", at once"),
                    "bytes": measured_bytes,
                    "ratio": measured_bytes / first,
                    "expected": 1.0 if tiled else count / frames[0],
                }
            )
    return rows


def main(argv: list[str]) -> int:
    return_freed_memory()
    pairs = (argument.split("=", 1) for argument in argv[1:])
    work = CASES[argv[0]](**{key: int(value) for key, value in pairs})
    send_result({"bytes": added_bytes(work)})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
