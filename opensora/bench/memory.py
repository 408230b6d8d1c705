"""Peak memory of one piece of work in a process of its own: `python -m opensora.bench.memory NAME key=value ...`.

A process keeps its high-water mark for good, so every case needs a fresh one. What counts is what the case adds to the
memory held before it starts.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from opensora.bench.launch import answer_of, tell
from opensora.bench.peak import Peak, return_freed_memory
from opensora.errors import OpenSoraError
from opensora.parallel.activation_checkpointing import checkpoint_activations

TRAINING = {"hidden_size": 256, "num_heads": 4, "depth": 8, "input_size": (16, 32, 32)}
# CausalVAEModel as released, narrower, so that 257 frames are decoded in seconds.
DECODING = {"hidden_size": 16, "norm_groups": 16}
DECODED_PIXELS = 64  # rows and columns: less than a tile, so that only time is cut


def training(checkpointed: int) -> Callable[[], object]:
    """Forward and backward of an STDiT; its weights and inputs are made before the measurement."""
    from opensora.models.stdit.stdit import STDiT

    torch.manual_seed(0)
    model = STDiT(**TRAINING, caption_channels=64, model_max_length=16)  # type: ignore[arg-type]
    if checkpointed:
        checkpoint_activations(model.checkpoint_blocks())
    x, y = torch.randn(1, 4, *TRAINING["input_size"]), torch.randn(1, 1, 16, 64)  # type: ignore[misc]
    return lambda: model(x, torch.tensor([500.0]), y).square().mean().backward()


def decoding(frames: int, tiled: int, whole: int = 0) -> Callable[[], object]:
    """CausalVAEModel's decoder; a window is let go before the next is made, as a writer of files does.

    whole: join all windows into one tensor, as a caller that needs the clip at once.
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
        seen = sum(window.shape[2] for window in model.decode_windows(z))
        if seen != frames:
            raise OpenSoraError(f"bench: {seen} frames decoded instead of {frames}; report this as a bug")

    return decode


CASES: dict[str, Callable[..., Callable[[], object]]] = {"training": training, "decoding": decoding}


def activation_bytes(checkpointed: bool) -> int:
    """The most that `opensora check` expects activations to take in the training case."""
    from opensora.models.stdit.stdit import STDiT
    from opensora.training.plan import activation_bytes as estimate

    with torch.device("meta"):
        model = STDiT(**TRAINING, caption_channels=64, model_max_length=16)  # type: ignore[arg-type]
        x, t, y = torch.empty(1, 4, *TRAINING["input_size"]), torch.empty(1), torch.empty(1, 1, 16, 64)  # type: ignore[misc]
    return estimate(model, lambda module: module(x, t, y), checkpointed)


def added_bytes(work: Callable[[], object]) -> int:
    """Peak memory while `work` runs, less what was held before."""
    peak = Peak()
    work()
    return peak.added_bytes()


def measured(name: str, **arguments: int) -> int:
    """Bytes that the case adds, measured in a new process."""
    given = [f"{key}={value}" for key, value in arguments.items()]
    return answer_of("opensora.bench.memory", name, *given)["bytes"]


def training_rows() -> list[dict[str, Any]]:
    """A training step with and without recomputed activations; the expected ratio is that of the kept activations."""
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
    """Decoding with and without temporal rollback tiling; tiled memory should not grow, untiled grows with the frames."""
    rows: list[dict[str, Any]] = []
    for tiled in (1, 0):
        first = None
        for count in frames:
            found = measured("decoding", frames=count, tiled=tiled)
            first = first or found
            rows.append(
                {
                    "work": f"decoding {count} frames" + (", in windows" if tiled else ", at once"),
                    "bytes": found,
                    "ratio": found / first,
                    "expected": 1.0 if tiled else count / frames[0],
                }
            )
    return rows


def main(argv: list[str]) -> int:
    return_freed_memory()
    given: Mapping[str, str] = dict(argument.split("=", 1) for argument in argv[1:])
    work = CASES[argv[0]](**{key: int(value) for key, value in given.items()})
    tell({"bytes": added_bytes(work)})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
