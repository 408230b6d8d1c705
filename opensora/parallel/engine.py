"""Engine: a model and its optimizer under one plugin; the only thing the training loop talks to.

Every plugin keeps float32 masters, and every checkpoint stores them, with the optimizer's moments, as flat tensors
cut evenly over the ranks: the layout knows neither plugin nor world size, so a run may resume under others.
Keys: `master/NAME`, `optimizer/MOMENT/NAME`, `optimizer/step/NAME`, `fixed/NAME` (buffers and frozen parameters).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from opensora.parallel import collectives
from opensora.parallel.world import World

Precision = Literal["bf16", "fp32"]
OptimizerFactory = Callable[[Sequence[nn.Parameter]], Optimizer]


class Plugin(Protocol):
    """What PLUGINS holds: built from `plugin_config`, then applied once."""

    def check(self, world: World) -> None:
        """Raise ConfigError when it cannot run here with its options; called before weights are read."""
        ...

    def apply(
        self, model: nn.Module, optimizer_factory: OptimizerFactory, dtype: Precision, grad_clip: float, world: World
    ) -> "Engine":
        """Move `model` to the rank's device, share it, and return the engine. `grad_clip` 0 means no clipping."""
        ...


def is_finite(norm: float) -> bool:
    """Whether a step with gradients of this norm may be made."""
    return math.isfinite(norm)


class Forward:
    """Calls the model: matrix products in bfloat16 when the run says so, otherwise float32 as it is.

    cast_inputs: also cast floating inputs of two and more dimensions. One number per sample (a timestep, frames per
    second) stays float32: bfloat16 cannot tell timestep 999 from 1000.
    """

    def __init__(self, module: nn.Module, dtype: Precision, device: torch.device, cast_inputs: bool):
        self._module = module
        self._bf16 = dtype == "bf16"
        self._device = device
        self._cast_inputs = cast_inputs and self._bf16

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._cast_inputs:
            args, kwargs = tree_map(_to_bf16, (args, kwargs))
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            return self._module(*args, **kwargs)


def _to_bf16(value: Any) -> Any:
    cast = isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
    return value.to(torch.bfloat16) if cast else value


class Engine(ABC):
    """See the module's docstring. `model` is called for a forward; `module` is the bare nn.Module."""

    model: Callable[..., Any]
    sees_gradients = True  # whether torch.autograd.grad for `trainable` gives this rank's gradients

    def __init__(self, module: nn.Module, world: World, grad_clip: float):
        self.module = module
        self.world = world
        self.grad_clip = grad_clip
        self.optimizer: Optimizer
        self.trainable = {name: each for name, each in module.named_parameters() if each.requires_grad}
        # kept, because a plugin may leave a parameter with the shape of its piece, and wrap modules so that names change
        self.shapes = {name: each.shape for name, each in self.trainable.items()}
        self._fixed_places = dict(_fixed_places(module))
        self._saved_names = _saved_names(module)
        # what the optimizer never touches; float32 copies, because a plugin may run the model in bfloat16
        self._fixed = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._live_fixed()}
        self._meshes: dict[str, DeviceMesh] = {}

    @abstractmethod
    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of one micro-batch; `last` ends the optimizer step's accumulation.

        `loss` is already divided by the number of this rank's micro-batches; the engine averages over data ranks,
        so every rank must bring the same number of micro-batches.
        """

    @abstractmethod
    def step(self, accept: Callable[[float], bool] = is_finite) -> float:
        """Clip, update, clear the gradients. Returns the norm over all ranks before clipping.

        accept: asked once with that norm, whatever it is. When it says no (alike on all ranks), or the norm is infinite
        or NaN, nothing is updated on any rank, moments and their step count included, and the gradients are cleared.
        """

    @abstractmethod
    def _master(self, name: str) -> Tensor:
        """The tensor the optimizer updates for parameter `name`, in float32."""

    @abstractmethod
    def _own(self, name: str, tensor: Tensor) -> Tensor:
        """This rank's flat piece, as a view, of a master or of a moment that is laid out like it."""

    @abstractmethod
    def _refresh(self) -> None:
        """Masters and moments were overwritten piece by piece: make what follows from them true again."""

    def even(self, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pieces cut like `masters()` -> cut by torch.chunk, as checkpoints are. All ranks call.

        They share memory unless the plugin cuts in another way; then it overrides this and `take`.
        """
        return dict(pieces)

    def take(self, pieces: Mapping[str, Tensor], even: Mapping[str, Tensor]) -> None:
        """The way back: write what `even` would give of them into the pieces. All ranks call."""
        for name, piece in pieces.items():
            piece.copy_(even[name])

    def set_lr(self, lr: float) -> None:
        """The learning rate of the coming steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, this rank's flat float32 piece) of every trained parameter: live views, some may be empty."""
        for name in self.trainable:
            yield name, self._own(name, self._master(name))

    @torch.no_grad()
    def sharded(self, pieces: Mapping[str, Tensor], prefix: str) -> dict[str, DTensor]:
        """Pieces cut like `masters()`, as `prefix/NAME` entries of a checkpoint. All ranks call."""
        return {
            f"{prefix}/{name}": DTensor.from_local(
                piece,
                self._mesh(piece.device.type),
                [Shard(0)],
                run_check=False,
                shape=torch.Size([self.shapes[name].numel()]),
                stride=(1,),
            )
            for name, piece in self.even(pieces).items()
        }

    @torch.no_grad()
    def load_sharded(self, pieces: Mapping[str, Tensor], prefix: str, state: Mapping[str, Any]) -> None:
        """Write the entries that `sharded` names into the pieces. All ranks call."""
        self.take(pieces, {name: state[f"{prefix}/{name}"].to_local() for name in pieces})

    def state(self) -> dict[str, Any]:
        """Everything to save: reading a checkpoint into these tensors, then `load_state`, resumes a run. All ranks call."""
        self._fill_optimizer()
        state: dict[str, Any] = {**self.sharded(dict(self.masters()), "master")}
        for key, pieces in self._moments().items():
            state |= self.sharded(pieces, f"optimizer/{key}")
        for name in self.trainable:
            for key, value in self.optimizer.state[self._master(name)].items():
                if not _is_moment(value):
                    state[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
        return state | {f"fixed/{name}": tensor for name, tensor in self._current_fixed().items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over a state of the same keys, usually the one from `state()` with a checkpoint read into it."""
        self._fill_optimizer()
        self.load_sharded(dict(self.masters()), "master", state)
        for key, pieces in self._moments().items():
            self.load_sharded(pieces, f"optimizer/{key}", state)
        for name in self.trainable:
            values = self.optimizer.state[self._master(name)]
            for key, value in values.items():
                if not isinstance(value, Tensor):
                    values[key] = type(value)(state[f"optimizer/{key}/{name}"].item())
                elif not _is_moment(value):
                    value.copy_(state[f"optimizer/{key}/{name}"])
        for name, tensor in self._live_fixed():
            self._fixed[name] = state[f"fixed/{name}"].detach().to("cpu", copy=True)
            tensor.copy_(self._fixed[name])
        self._refresh()

    @torch.no_grad()
    def full_weights(self, pieces: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """A state_dict of whole float32 tensors on the CPU, on the main rank; {} elsewhere. All ranks must call.

        pieces: flat pieces cut like `masters()`, for example an average of them; default the masters themselves.
        """
        even = self.even(dict(self.masters()) if pieces is None else pieces)
        whole: dict[str, Tensor] = {}
        for name, shape in self.shapes.items():
            flat = collectives.gather_shards(even[name], shape.numel())
            if self.world.is_main:
                whole[name] = flat.view(shape).to("cpu", torch.float32, copy=True)
        if not self.world.is_main:
            return {}
        whole |= self._current_fixed()
        return {
            name: whole[held] if name == held else whole[held].clone()  # tied: two names, two copies
            for name, held in self._saved_names.items()
        }

    def _moments(self) -> dict[str, dict[str, Tensor]]:
        """What the optimizer keeps in the shape of the parameters: key -> name -> this rank's piece, a live view."""
        moments: dict[str, dict[str, Tensor]] = {}
        for name in self.trainable:
            for key, value in self.optimizer.state[self._master(name)].items():
                if _is_moment(value):
                    moments.setdefault(key, {})[name] = self._own(name, value)
        return moments

    @contextmanager
    def replaced(self, pieces: Mapping[str, Tensor]) -> Iterator[None]:
        """The model runs on `pieces`, cut like `masters()`, while the context is open; then on its own, bit for bit."""
        kept = {name: piece.clone() for name, piece in self.masters()}
        try:
            self._overwrite(pieces)
            yield
        finally:
            self._overwrite(kept)

    @torch.no_grad()
    def _overwrite(self, pieces: Mapping[str, Tensor]) -> None:
        for name, piece in self.masters():
            piece.copy_(pieces[name])
        self._refresh()

    def _live_fixed(self) -> Iterator[tuple[str, Tensor]]:
        yield from ((name, getattr(owner, at)) for name, (owner, at) in self._fixed_places.items())

    def _current_fixed(self) -> dict[str, Tensor]:
        """The float32 copies, except where the model itself has changed a buffer since."""
        current = {}
        for name, live in self._live_fixed():
            kept = self._fixed[name]
            unchanged = torch.equal(live.detach().cpu(), kept.to(live.dtype))
            current[name] = (kept if unchanged else live.detach().cpu().to(kept.dtype)).clone()
        return current

    def _fill_optimizer(self) -> None:
        """Give every parameter the moments the optimizer would otherwise make at its first gradient."""
        fresh = [self._master(name) for name in self.trainable if not self.optimizer.state[self._master(name)]]
        if not fresh:
            return
        held = {id(each): each.grad for group in self.optimizer.param_groups for each in group["params"]}
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
            for each in group["params"]:
                each.grad = None
        for each in fresh:
            each.grad = torch.zeros_like(each)
        self.optimizer.step()  # at rate 0 nothing moves, and moments of a zero gradient are zero
        for each in fresh:
            for key, value in self.optimizer.state[each].items():
                self.optimizer.state[each][key] = torch.zeros_like(value) if isinstance(value, Tensor) else 0
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
            for each in group["params"]:
                each.grad = held[id(each)]

    def _mesh(self, device_type: str) -> DeviceMesh:
        """Pieces may lie elsewhere than the model (offloaded to the host), and a DTensor must not move them."""
        if device_type not in self._meshes:
            self._meshes[device_type] = init_device_mesh(device_type, (self.world.size,))
        return self._meshes[device_type]


def _fixed_places(module: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """Where the frozen parameters and the saved buffers are: name -> (module, attribute)."""
    saved = module.state_dict(keep_vars=True)
    frozen = [name for name, each in module.named_parameters() if not each.requires_grad]
    for name in [*frozen, *(name for name, _ in module.named_buffers() if name in saved)]:
        owner, _, attribute = name.rpartition(".")
        yield name, (module.get_submodule(owner), attribute)


def _saved_names(module: nn.Module) -> dict[str, str]:
    """Every name in the state_dict -> the one name under which an engine holds that tensor."""
    held = {id(each): name for name, each in [*module.named_buffers(), *module.named_parameters()]}
    return {name: held[id(each)] for name, each in module.state_dict(keep_vars=True).items()}


def place(model: nn.Module, device: torch.device) -> None:
    """Move `model` to the device in float32, laid out flat, with rank 0's numbers on every rank."""
    model.to(device, torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # pieces are views of the flat parameter
    collectives.broadcast_tensors([*model.parameters(), *model.buffers()])


def clip_factor(norm: float, grad_clip: float) -> float:
    """What gradients of this norm are multiplied by so that it is at most `grad_clip`; 0 switches clipping off."""
    return 1.0 if grad_clip <= 0 else min(1.0, grad_clip / (norm + 1e-6))


def squared_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The sum of squares of all elements: float32, zero-dimensional, on the CPU."""
    if not gradients:
        return torch.zeros(())
    return torch.stack(torch._foreach_norm(list(gradients))).cpu().double().square().sum().float()


def _is_moment(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0
