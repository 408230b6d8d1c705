"""Ranks that share the tokens of each sample: outputs and all gradients are those of one rank."""

import copy
from dataclasses import dataclass, field
from typing import Any, get_args
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn

from opensora.errors import ConfigError
from opensora.models.layers.seam import Seam
from opensora.parallel import collectives, sequence_parallel
from opensora.parallel.activation_checkpointing import checkpoint_activations
from opensora.parallel.sequence_parallel import Mode, bytes_sent, shard_sequence
from opensora.planning.communication import sequence_bytes
from opensora.registry import MODELS, build
from tests.dist import run_ranks
from tests.support.small_models import architectures, inputs, one_of, open_gates, small

MODES = get_args(Mode)


@dataclass(frozen=True)
class Case:
    """A registered model, its arguments that differ from `SMALL`, and the inputs of its call."""

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    given_frames: bool = False
    call: dict[str, Any] = field(default_factory=dict)
    images: int = 0  # LatteT2V: number of frames that are images with their own captions
    padded_patches: bool = False  # LatteT2V
    checkpointed: bool = False


# 4 frames, 8 patches, 2 heads.
EVEN = {"input_size": (4, 4, 8)}
# 3 frames, 9 patches, 3 heads: nothing that a group of 2 divides, and of 4 ranks the last has no patch at all.
ODD = {"input_size": (3, 6, 6), "num_heads": 3, "hidden_size": 72, "num_attention_heads": 3}

SPECIAL = {
    "windows smaller than the grid": Case("STDiT3-XL/2-v1.3", ODD | {"kernel_size": (2, 2, 2)}),
    "every frame given": Case("STDiT3-XL/2-v1.3", ODD, call={"mask_index": [0, 1, 2]}),
    "frames given by sample": Case("STDiT3-XL/2-v1.3", ODD, call={"mask_index": [[0], [1, 2]]}),
    "joined keys": Case("LatteT2V", ODD | {"compress_kv_factor": 2}, padded_patches=True, checkpointed=True),
    "images ride along": Case("LatteT2V", ODD, images=1, padded_patches=True),
    "rotated": Case("LatteT2V", ODD | {"use_rope": True}),
}


def make(case: Case) -> Any:
    torch.manual_seed(0)
    return open_gates(build(MODELS, small(case.name, **case.model)))


def arguments(model: Any, case: Case) -> dict[str, Any]:
    kwargs = inputs(model) | case.call
    rng = Generator().manual_seed(4)
    frames = model.input_size[0]
    if case.given_frames and model.takes_x_mask:
        kwargs["x_mask"] = torch.stack([torch.arange(frames) > 0, torch.arange(frames) != 1])
    if case.images:
        kwargs["use_image_num"] = case.images
        kwargs["y"] = torch.randn(2, 1 + case.images, *kwargs["y"].shape[2:], generator=rng)
        kwargs["mask"] = kwargs["mask"][:, None].repeat(1, 1 + case.images, 1)
    if case.padded_patches:  # two columns, and one frame altogether
        kwargs["attention_mask"] = torch.ones(2, *model.input_size)
        kwargs["attention_mask"][..., -2:] = 0
        kwargs["attention_mask"][1, 1] = 0
    return kwargs


def loss_of(out: Tensor) -> Tensor:
    """A weighted sum of the output with a random weight for each element; gradients are near 1."""
    return (out * torch.randn(out.shape, generator=Generator().manual_seed(5))).sum() / out.numel() ** 0.5


def assert_same(actual: Tensor, expected: Tensor, what: str) -> None:
    limit = 1e-5 * max(1.0, expected.abs().max().item())
    worst = (actual - expected).abs().max().item()
    assert actual.shape == expected.shape, f"{what}: {list(actual.shape)} against {list(expected.shape)}"
    assert worst <= limit, f"{what}: off by {worst:.2e}, allowed {limit:.2e}"


def assert_same_gradients(split: nn.Module, alone: nn.Module, what: str) -> None:
    """Assert that the mean of the gradients over ranks equals the gradients on one rank."""
    expected = {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
    own_grads = {name: p.grad for name, p in split.named_parameters() if p.grad is not None}
    assert list(own_grads) == list(expected)
    together = torch.cat([grad.flatten() for grad in own_grads.values()])  # one exchange instead of a hundred
    mean = collectives.sum_over_ranks(together) / collectives.world_size()
    for (name, grad), part in zip(
        expected.items(), mean.split([grad.numel() for grad in own_grads.values()]), strict=True
    ):
        assert_same(part.view(grad.shape), grad, f"{what}: gradient of {name}")


def count_tokens(model: Any) -> list[int]:
    """A list to which each block appends the number of tokens per frame of its output."""
    result: list[int] = []
    for block in model.checkpoint_blocks():
        block.register_forward_hook(lambda block, args, x: result.append(x.shape[2]))
    return result


def compare(case: Case) -> None:
    alone = make(case)
    models: list[Any] = [shard_sequence(copy.deepcopy(alone), mode=mode) for mode in MODES]
    kwargs = arguments(alone, case)
    whole = count_tokens(alone)
    expected = alone(**kwargs)
    loss_of(expected).backward()
    for mode, split in zip(MODES, models, strict=True):
        assert list(split.state_dict()) == list(alone.state_dict())
        parts = count_tokens(split)
        if case.checkpointed:
            checkpoint_activations(split.checkpoint_blocks())
        out = split(**kwargs)
        assert parts == [-(-tokens // collectives.world_size()) for tokens in whole]
        assert_same(out, expected, f"{case} {mode}: output")
        loss_of(out).backward()
        assert_same_gradients(split, alone, f"{case} {mode}")


def compare_all(cases: list[Case]) -> None:
    for case in cases:
        compare(case)


@pytest.mark.parametrize("name", architectures())
def test_two_ranks_equal_one(name: str) -> None:
    run_ranks(compare_all, 2, [Case(name, EVEN), Case(name, ODD, given_frames=True, checkpointed=True)])


def test_four_ranks_equal_one() -> None:
    """There are more ranks than frames or heads, and the last rank has no tokens."""
    run_ranks(compare_all, 4, [Case(name, ODD, given_frames=True, checkpointed=True) for name in architectures()])


@pytest.mark.parametrize("special", SPECIAL)
def test_special_cases_on_two_ranks_equal_one(special: str) -> None:
    run_ranks(compare_all, 2, [SPECIAL[special]])


def compare_two_sizes() -> None:
    """Two forward passes before one backward; each rank has 5 of 9 and 5 of 10 patches, so that shapes are equal."""
    alone = make(Case("STDiT2", ODD))
    split: Any = shard_sequence(copy.deepcopy(alone))
    checkpoint_activations(split.checkpoint_blocks())
    kwargs = arguments(alone, Case("STDiT2"))
    for model in (alone, split):
        first = loss_of(model(**kwargs))
        second = loss_of(model(**kwargs | {"x": kwargs["x"].repeat(1, 1, 2, 1, 2)[:, :, :5, :4, :10]}))
        (first + second).backward()
    assert_same_gradients(split, alone, "two sizes")


def test_recomputed_blocks_restore_lengths() -> None:
    run_ranks(compare_two_sizes, 2)


def compare_unscaled(function: str) -> str:
    """The error of `compare` if the backward of `function` does not scale its gradient."""
    backward = getattr(sequence_parallel, function).backward
    factor = {"SplitTokens": 2.0, "GatherTokens": 0.5}[function]

    def unscaled(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled, *others = backward(ctx, grad)
        return scaled * factor, *others

    patched = mock.patch.object(getattr(sequence_parallel, function), "backward", staticmethod(unscaled))
    with patched, pytest.raises(AssertionError) as failed:
        compare(Case("STDiT", EVEN))
    return str(failed.value)


@pytest.mark.parametrize("function", ["SplitTokens", "GatherTokens"])
def test_gradients_need_their_scaling(function: str) -> None:
    for message in run_ranks(compare_unscaled, 2, function):
        assert "gradient of " in message


def exchange(mode: Mode) -> tuple[list[str], list[str]]:
    """Names of the seams in use: in a block with both kinds of switches, and in one with only head switches."""
    result = []
    for name, block in (("STDiT", "blocks.0."), ("PixArt", "blocks.0.")):
        model = shard_sequence(make(Case(name)), mode=mode)
        filled = [key for key, module in model.named_modules() if isinstance(module, Seam) and module.op]
        assert {"split_seq", "gather_seq"} <= set(filled)
        result.append([key.removeprefix(block) for key in filled if key.startswith(block)])
    return result[0], result[1]


def test_mode_selects_switches() -> None:
    heads = ["attn.a2a_to_heads", "attn.a2a_to_tokens"]
    assert run_ranks(exchange, 2, "dsp") == [(["attn.a2a_to_frames", "attn.a2a_to_patches"], heads)] * 2
    assert run_ranks(exchange, 2, "ulysses") == [(heads, heads)] * 2


def copy_sharded_model() -> tuple[bool, str]:
    """(True if the output of a copy is equal, error of a second `shard_sequence`)."""
    model = shard_sequence(make(Case("STDiT")))
    twin = copy.deepcopy(model)
    kwargs = arguments(model, Case("STDiT"))
    with pytest.raises(ConfigError) as caught:
        shard_sequence(twin)
    return torch.equal(model(**kwargs), twin(**kwargs)), str(caught.value)


def test_deep_copy_keeps_seams() -> None:
    for same, message in run_ranks(copy_sharded_model, 2):
        assert same
        assert "seams of STDiT are in use already" in message


def one_half_after_the_other() -> None:
    """Compare gradients of two groups of two ranks, each with half of the batch."""
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    half = collectives.rank() // 2
    alone = make(Case("STDiT", ODD))
    split = shard_sequence(copy.deepcopy(alone), halves[half])
    kwargs = arguments(alone, Case("STDiT"))
    loss_of_each = [loss_of(alone(**one_of(kwargs, i))) for i in range(2)]
    torch.stack(loss_of_each).mean().backward()
    loss_of(split(**one_of(kwargs, half))).backward()
    assert_same_gradients(split, alone, "two groups")


def test_gradients_average_over_groups() -> None:
    """The mean over all ranks averages over samples and tokens."""
    run_ranks(one_half_after_the_other, 4)


def count_bytes(case: Case, mode: Mode) -> tuple[int, int]:
    """(bytes counted at the seams in a forward and a backward pass, bytes of the formula)."""
    alone = make(case)
    assert bytes_sent(alone) == 0
    model: Any = shard_sequence(alone, mode=mode)
    if case.checkpointed:
        checkpoint_activations(model.checkpoint_blocks())
    kwargs = arguments(model, case)
    loss_of(model(**kwargs)).backward()
    frames, rows, columns = model.grid
    expected = sequence_bytes(
        ranks=collectives.world_size(),
        mode=mode,
        batch=len(kwargs["x"]),
        frames=frames,
        patches=rows * columns,
        width=model.hidden_size,
        heads=model.num_heads,
        depth=len(model.blocks),
        out_features=model.patch_features,
        recomputed=case.checkpointed,
    )
    return bytes_sent(model), expected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_bytes_sent_match_formula(ranks: int, mode: Mode) -> None:
    """This holds for sizes that the ranks do not divide too: padding is sent as well."""
    for case in (Case("STDiT", EVEN), Case("STDiT", ODD, checkpointed=True)):
        for counted, expected in run_ranks(count_bytes, ranks, case, mode):
            assert counted == expected
            assert (counted > 0) == (ranks > 1)
