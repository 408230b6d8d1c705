"""Weights as training programs leave them."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from opensora.errors import WeightsError
from opensora.models.build import build_denoiser
from opensora.models.read_weights import read_weights
from opensora.models.weights import load_weights
from tests.e2e.odd_inputs.case import OddInput, Workbench
from tools.weights.convert import main as convert

SIZES = {"hidden_size": 8, "depth": 1, "num_heads": 2, "caption_channels": 4, "model_max_length": 3}
STDIT = {"type": "STDiT", "input_size": [1, 4, 4], **SIZES}


@functools.cache
def half() -> dict[str, Tensor]:
    """Weights of a small STDiT, all 0.5 but for its position tables."""
    weights = build_denoiser(STDIT).state_dict()
    return {name: each if "pos_embed" in name else torch.full_like(each, 0.5) for name, each in weights.items()}


def state(prefix: str = "") -> dict[str, Tensor]:
    """The weights of `half`, with `prefix` before every name."""
    return {prefix + name: each for name, each in half().items()}


def saved() -> dict[str, object]:
    """The files of the reports, by name."""
    return {
        "compiled.pth": state("_orig_mod."),
        "compiled_ddp.pth": state("module._orig_mod."),
        "lightning.ckpt": {"state_dict": state("model."), "epoch": 1},
        "deepspeed.pt": {"module": state(), "buffer_names": [], "global_steps": 3},
        "ema.pt": {"ema_state_dict": state(), "step": 4},
        "torch.pt": {"model_state_dict": state(), "optimizer_state_dict": {}},
    }


def loaded(bench: Workbench) -> dict[str, bool]:
    """For each of the files, whether it gives a model its weights."""
    right = {}
    for name, values in saved().items():
        torch.save(values, bench.folder / name)
        model = build_denoiser(STDIT)
        load_weights(model, bench.folder / name)
        right[name] = all(torch.equal(each, state()[key]) for key, each in model.state_dict().items())
    return right


def converted(bench: Workbench) -> tuple[str, bool]:
    """The outcome of tools.weights.convert, and whether it wrote the weights that went in."""
    torch.save(saved()["compiled_ddp.pth"], bench.folder / "in.pth")
    sizes = [f"{key}={value}" for key, value in STDIT.items() if key != "type"]
    words = [bench.folder / "in.pth", bench.folder / "out", "--from", "stdit", "--to", "STDiT", *sizes]
    outcome = bench.tool(convert, *words)
    written = read_weights(bench.folder / "out")
    return outcome.has("missing, freshly initialized: 0"), all(torch.equal(written[n], t) for n, t in state().items())


def refused(fill: Callable[[Workbench], object]) -> Callable[[Workbench], str]:
    """Reads `folder/weights.pt` after `fill` and returns the reason why it is refused."""

    def measure(bench: Workbench) -> str:
        fill(bench)
        path = bench.folder / "weights.pt"
        try:
            read_weights(path)
        except WeightsError as error:
            return str(error).removeprefix(f"weights: {path}: ").partition(";")[0]
        return "read"

    return measure


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

CASES = [
    OddInput("files of compile, DDP, Lightning, DeepSpeed: loaded", dict.fromkeys(saved(), True), loaded),
    OddInput("state of compile under DDP: converted", ("exit 0", True), converted),
    OddInput(
        "Git LFS pointer as weights",
        "a Git LFS pointer, not the weights themselves",
        refused(lambda bench: (bench.folder / "weights.pt").write_text(POINTER)),
    ),
    OddInput(
        "weights under keys that are not known",
        "holds no dictionary of tensors, but 'student' (1 tensors), 'teacher' (1 tensors)",
        refused(
            lambda bench: torch.save(
                {"student": {"a": torch.ones(1)}, "teacher": {"a": torch.ones(1)}}, bench.folder / "weights.pt"
            )
        ),
    ),
]
