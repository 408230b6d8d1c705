"""Named numbers of one block, one optimizer step and one exchange on a fake CUDA device."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_map

from opensora.models.layers.text_context import TextContext
from opensora.parallel import world
from opensora.parallel.engine import Engine, EngineOptions
from opensora.parallel.group_leader import broadcast_batches
from opensora.parallel.sequence_parallel import shard_sequence
from opensora.parallel.tensor_parallel import sequence_subgroup
from opensora.registry import MODELS, OPTIMIZERS, PLUGINS, SCHEDULERS, VAES, build
from opensora.training.diffusion_task import DiffusionTask
from opensora.training.distributed_codec import distributed_codec
from opensora.training.ema import Ema
from opensora.training.loop import TrainState, train_step
from opensora.training.signals import StopRequest
from opensora.types import Batch, EncodedText
from tests.support.fake_device import Op, Recorder, fake_cuda
from tests.support.small_models import SMALL_VAES, inputs, small

Counts = dict[str, int | str]
# 4 frames of 8 x 8 latents; heads as wide as the released models'. Latte's blocks are DiT's.
SIZES: dict[str, Any] = {"input_size": (4, 8, 8), "num_heads": 2, "num_attention_heads": 2, "num_layers": 1, "depth": 1}
SIZES |= {"hidden_size": 144, "attention_head_dim": 72}
FAMILIES: dict[str, dict[str, Any]] = {
    "STDiT": {},
    "STDiT2": {},
    "STDiT3": {"qk_norm": True},
    "PixArt": {},
    "DiT": {},
    "LatteT2V": {},
}
ONE_FAMILY = "STDiT3"  # also with other batches, and under ddp: the others have the same parts


def block_counts() -> Counts:
    """Of every kind of block of every family: kernels, bytes kept for the backward, wide tensors of token size."""
    counts: Counts = {}
    with fake_cuda() as recorder:
        for family, more in FAMILIES.items():
            one = family == ONE_FAMILY
            for plugin, batches in [("zero2", (1, 4, 8) if one else (4,)), *([("ddp", (4,))] if one else [])]:
                model = build(MODELS, small(family, **{**SIZES, **more}))
                engine = make_engine(model, plugin)
                for batch in batches:
                    for name, numbers in _of_blocks(engine, _inputs(model, batch), recorder).items():
                        prefix = f"{family}.{name}, {plugin}, batch {batch}"
                        counts |= {f"{prefix}: {key}": number for key, number in numbers.items()}
    return counts


def make_engine(model: nn.Module, plugin: str, **config: Any) -> Engine:
    """The model under a plugin as bf16 runs have it."""
    options = EngineOptions(
        lambda parameters: build(OPTIMIZERS, {"type": "AdamW", "lr": 1e-3}, params=parameters),
        "bf16",
        1.0,
        world.current(),
    )
    return build(PLUGINS, {"type": plugin, **config}).apply(model, options)


def _inputs(model: Any, batch: int) -> dict[str, Any]:
    two = inputs(model)
    return {
        name: torch.cat([value] * 4)[:batch].cuda() if isinstance(value, Tensor) and len(value) == 2 else value
        for name, value in two.items()
    }


def _of_blocks(engine: Engine, arguments: dict[str, Any], recorder: Recorder) -> dict[str, dict[str, int]]:
    """One forward of the model; then of each block the backward from its outputs to its inputs and weights."""
    names = {id(module): name for name, module in engine.module.named_modules()}
    watches = {names[id(each)]: BlockWatch(each, recorder) for each in engine.module.checkpoint_blocks()}  # type: ignore[operator]
    with ExitStack() as stack:
        for watch in watches.values():
            stack.enter_context(watch.installed())
        engine.model(**arguments)
    return {name: watch.numbers() for name, watch in watches.items()}


class BlockWatch:
    """Counts what a block does in a forward, and in the backward of that."""

    def __init__(self, block: nn.Module, recorder: Recorder):
        self._block, self._recorder = block, recorder
        self._kept: dict[int, Tensor] = {}  # by storage
        self._stack = ExitStack()

    @contextmanager
    def installed(self) -> Iterator[None]:
        handles = [
            self._block.register_forward_pre_hook(self._enter, with_kwargs=True),
            self._block.register_forward_hook(self._leave),
        ]
        yield
        for handle in handles:
            handle.remove()

    def _enter(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        self._inputs: list[Tensor] = []
        args, kwargs = tree_map(self._cut, (args, kwargs))
        self._recorder.take()
        self._recorder.keep_outputs = True
        self._stack.enter_context(saved_tensors_hooks(self._keep, lambda tensor: tensor))
        return args, kwargs

    def _cut(self, value: Any) -> Any:
        """Inputs of the block are where its backward ends; the text is one, inside of an object."""
        if isinstance(value, Tensor) and value.requires_grad:
            self._inputs.append(value.detach().requires_grad_())
            return self._inputs[-1]
        for each in (value, getattr(value, "caption", None)):
            if isinstance(each, TextContext):
                each.y_BLD = self._cut(each.y_BLD)
        return value

    def _leave(self, block: nn.Module, args: tuple, outputs: Any) -> None:
        self._stack.close()
        self._recorder.keep_outputs = False
        self._forward, self._output = self._recorder.take(), outputs

    def _keep(self, tensor: Tensor) -> Tensor:
        self._kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    def numbers(self) -> dict[str, int]:
        weights = {each.untyped_storage()._cdata for each in self._block.parameters()}
        kept = [each for key, each in self._kept.items() if key not in weights]
        wanted = [*self._inputs, *(each for each in self._block.parameters() if each.requires_grad)]
        self._recorder.take()
        self._recorder.keep_outputs = True
        torch.autograd.grad(self._output, wanted, torch.ones_like(self._output), allow_unused=True)
        self._recorder.keep_outputs = False
        backward = self._recorder.take()[1:]  # without the gradient to begin with
        return {
            "forward kernels": kernels(self._forward),
            "backward kernels": kernels(backward),
            "bytes kept": sum(each.untyped_storage().nbytes() for each in kept),
            "bytes kept in float32": sum(
                each.untyped_storage().nbytes() for each in kept if each.dtype is torch.float32
            ),
            "float32 tensors of token size": self._wide(self._forward + backward),
        }

    def _wide(self, ops: list[Op]) -> int:
        tensors = [each for op in ops if op.kind == "kernel" for each in op.outputs]
        return sum(each.dtype is torch.float32 and each.numel() >= self._output.numel() for each in tensors)


def kernels(ops: list[Op]) -> int:
    return Counter(op.kind for op in ops)["kernel"]


# One optimizer step.


@dataclass(frozen=True)
class Layout:
    """One way to share a step between ranks."""

    plugin: str
    ranks: int = 2
    sequence_ranks: int = 1  # that share a sample
    micro_batches: int = 1
    config: dict[str, Any] = field(default_factory=dict)


LAYOUTS = {
    "ddp": Layout("ddp"),
    "zero1": Layout("zero1"),
    "zero2": Layout("zero2", micro_batches=2),
    "fsdp": Layout("fsdp"),
    "hybrid, pairs share heads": Layout("hybrid", 4, 2, config={"tp_size": 2}),
    "ddp, pairs share tokens": Layout("ddp", 4, 2),
}


class StubText:
    """A text encoder of one layer: states of 5 tokens on the device."""

    denoiser_args: ClassVar[dict[str, Any]] = {}

    def load(self) -> Self:
        return self

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        self.device = torch.device(device)
        return self

    def encode(self, captions: Sequence[str]) -> EncodedText:
        ids = torch.ones(len(captions), 5, dtype=torch.int64).to(self.device)
        return EncodedText(ids[:, None, :, None].expand(-1, -1, -1, 12) * 0.5, ids)


def train_state(layout: Layout) -> TrainState:
    """STDiT of one block on a rank of the current world, micro-batches of 2 clips; dtype bf16."""
    here = world.current()
    torch.manual_seed(0)
    model = build(MODELS, small("STDiT", depth=1))
    tensor_size = layout.config.get("tp_size", 1)
    if here.sequence_size > tensor_size:
        shard_sequence(model, sequence_subgroup(here.sequence_group, tensor_size, here.timeout))
    vae = build(VAES, {"type": "CausalVAEModel", **SMALL_VAES["CausalVAEModel"]})
    task = DiffusionTask(
        trained=model,
        codec=distributed_codec(vae, StubText(), here, torch.bfloat16, None, "counts"),
        scheduler=build(SCHEDULERS, {"type": "rflow"}),
        seed=1,
        model_config={},
        run_record={},
    )
    engine = make_engine(model.train(), layout.plugin, **layout.config)
    return TrainState(
        run=SimpleNamespace(seed=1, micro_batches=layout.micro_batches * here.data_size),  # type: ignore[arg-type]
        world=here,
        task=task,
        engine=engine,
        ema=Ema(engine, 0.9),
        schedule=lambda step: 1.0,
        batches=broadcast_batches(_batches, here),
        validation=None,
        metrics=None,  # type: ignore[arg-type]
        checkpointer=None,  # type: ignore[arg-type]
        stop=StopRequest(),
    )


def _batches() -> Iterator[Batch]:
    for micro in range(2):
        yield Batch(
            video_BCTHW=torch.zeros(2, 3, 9, 32, 48),
            captions=[f"{micro} {sample}" for sample in range(2)],
            fps_B=torch.full((2,), 8.0),
            step=0,
            sample_ids=[2 * micro, 2 * micro + 1],
            rows=[0, 0],
        )


def step_counts() -> Counts:
    """Of one `train_step` under every plugin: kernels, copies that wait for the device, collectives in their order."""
    counts: Counts = {}
    for name, layout in LAYOUTS.items():
        with fake_cuda(size=layout.ranks, sp_size=layout.sequence_ranks) as recorder:
            state = train_state(layout)
            recorder.take()
            train_step(state, 0)
            ops = recorder.take()
        counts[f"step, {name}: kernels"] = kernels(ops)
        exchanges = [op for op in ops if op.kind in ("to host", "to device")]
        counts |= _counted(f"step, {name}", (f"{op.name} {op.kind}" for op in exchanges))
        if name == "zero2":
            counts |= _counted(f"step, {name}", (f"{op.name} {op.kind}, {op.numel} {op.dtype}" for op in exchanges))
        for place, op in enumerate((op for op in ops if op.kind == "collective"), 1):
            text = f"{op.name} of {op.numel} {op.dtype} on {op.device}, ranks {op.group}"
            counts[f"step, {name}: collective {place}"] = text
    return counts


def _counted(name: str, what: Iterable[str]) -> Counts:
    return {f"{name}: {each}": count for each, count in sorted(Counter(what).items())}


def world_size_counts() -> Counts:
    """Operations that the host hands out in the exchange and the update of one parameter under ZeRO."""
    counts: Counts = {}
    for size in (2, 8, 64):
        with fake_cuda(size=size) as recorder:
            engine = make_engine(nn.Linear(8, 8, bias=False), "zero2")
            with engine.accumulating(last=True):
                loss = engine.model(torch.ones(2, 8, device=world.current().device)).float().mean()
                recorder.take()
                engine.backward(loss)
            backward = recorder.take()
            engine.grad_norm()
            engine.update()
            update = recorder.take()
        counts[f"zero2 on {size} ranks, one parameter: operations of the backward"] = len(backward)
        counts[f"zero2 on {size} ranks, one parameter: operations of the update"] = len(update)
    return counts
