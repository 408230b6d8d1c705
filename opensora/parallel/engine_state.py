"""The state that an engine saves and loads: float32 masters, the optimizer's moments, buffers and frozen parameters.

Every checkpoint stores masters and moments as flat tensors cut evenly over the ranks, as torch.chunk cuts. That layout
knows neither plugin nor world size, so a run may resume under others.
Keys: `master/NAME`, `optimizer/MOMENT/NAME`, `optimizer/step/NAME`, `fixed/NAME` (buffers and frozen parameters).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from opensora.parallel import collectives
from opensora.parallel.world import World


class EngineState(ABC):
    """The state half of an engine. A plugin says where the master of a parameter is and how the ranks cut it."""

    optimizer: Optimizer

    def __init__(self, module: nn.Module, world: World):
        self.module = module
        self.world = world
        self.trainable = {name: each for name, each in module.named_parameters() if each.requires_grad}
        # kept, because a plugin may leave a parameter with the shape of its shard, and wrap modules so that names change
        self.shapes = {name: each.shape for name, each in self.trainable.items()}
        self._fixed_owners = dict(_fixed_owners(module))
        self._saved_names = _saved_names(module)
        # what the optimizer never touches; float32 copies, because a plugin may run the model in bfloat16
        self._fixed = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._buffers_and_frozen()}
        self._meshes: dict[str, DeviceMesh] = {}

    @abstractmethod
    def _master(self, name: str) -> Tensor:
        """The tensor the optimizer updates for parameter `name`, in float32."""

    @abstractmethod
    def _local_shard(self, name: str, tensor: Tensor) -> Tensor:
        """This rank's flat shard, as a view, of a master or of a moment that is laid out like it."""

    @abstractmethod
    def _sync_from_masters(self) -> None:
        """Masters and moments were overwritten shard by shard: update whatever is derived from them."""

    def to_even_shards(self, shards: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Shards cut like `master_shards()` -> cut by torch.chunk, as checkpoints are. All ranks call.

        They share memory unless the plugin cuts in another way; then it overrides this and `from_even_shards`.
        """
        return dict(shards)

    def from_even_shards(self, shards: Mapping[str, Tensor], even: Mapping[str, Tensor]) -> None:
        """Write even shards, as `to_even_shards` returns them, into `shards`. All ranks call."""
        for name, shard in shards.items():
            shard.copy_(even[name])

    def master_shards(self) -> Iterator[tuple[str, Tensor]]:
        """(name, this rank's flat float32 shard) of every trained parameter: live views, some may be empty."""
        for name in self.trainable:
            yield name, self._local_shard(name, self._master(name))

    @torch.no_grad()
    def state_entries(self, shards: Mapping[str, Tensor], prefix: str) -> dict[str, DTensor]:
        """Shards cut like `master_shards()`, as `prefix/NAME` entries of a checkpoint. All ranks call."""
        return {
            f"{prefix}/{name}": DTensor.from_local(
                shard,
                self._mesh(shard.device.type),
                [Shard(0)],
                run_check=False,
                shape=torch.Size([self.shapes[name].numel()]),
                stride=(1,),
            )
            for name, shard in self.to_even_shards(shards).items()
        }

    @torch.no_grad()
    def load_entries(self, shards: Mapping[str, Tensor], prefix: str, state: Mapping[str, Any]) -> None:
        """Write the entries that `state_entries` names into the shards. All ranks call."""
        self.from_even_shards(shards, {name: state[f"{prefix}/{name}"].to_local() for name in shards})

    def state(self) -> dict[str, Any]:
        """Everything to save: reading a checkpoint into these tensors, then `load_state`, resumes a run. All ranks call."""
        self._init_optimizer_state()
        state: dict[str, Any] = {**self.state_entries(dict(self.master_shards()), "master")}
        for key, shards in self._moments().items():
            state |= self.state_entries(shards, f"optimizer/{key}")
        for name in self.trainable:
            for key, value in self.optimizer.state[self._master(name)].items():
                if not _is_moment(value):
                    state[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
        return state | {f"fixed/{name}": tensor for name, tensor in self._current_fixed().items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Load a state of the same keys, usually the one from `state()` with a checkpoint read into it. All ranks call."""
        self._init_optimizer_state()
        self.load_entries(dict(self.master_shards()), "master", state)
        for key, shards in self._moments().items():
            self.load_entries(shards, f"optimizer/{key}", state)
        for name in self.trainable:
            values = self.optimizer.state[self._master(name)]
            for key, value in values.items():
                if not isinstance(value, Tensor):
                    values[key] = type(value)(state[f"optimizer/{key}/{name}"].item())
                elif not _is_moment(value):
                    value.copy_(state[f"optimizer/{key}/{name}"])
        for name, tensor in self._buffers_and_frozen():
            self._fixed[name] = state[f"fixed/{name}"].detach().to("cpu", copy=True)
            tensor.copy_(self._fixed[name])
        self._sync_from_masters()

    @torch.no_grad()
    def gather_state_dict(self, shards: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """A state_dict of whole float32 tensors on the CPU, on the main rank; {} elsewhere. All ranks must call.

        shards: flat shards cut like `master_shards()`, for example an average of them; default the masters themselves.
        """
        even = self.to_even_shards(dict(self.master_shards()) if shards is None else shards)
        whole: dict[str, Tensor] = {}
        for name, shape in self.shapes.items():
            flat = collectives.gather_shards(even[name], shape.numel())
            if self.world.is_main:
                whole[name] = flat.view(shape).to("cpu", torch.float32, copy=True)
        if not self.world.is_main:
            return {}
        whole |= self._current_fixed()
        return {
            name: whole[first] if name == first else whole[first].clone()  # tied: two names, two copies
            for name, first in self._saved_names.items()
        }

    @contextmanager
    def swapped_weights(self, shards: Mapping[str, Tensor]) -> Iterator[None]:
        """The model runs on `shards`, cut like `master_shards()`, while the context is open; then on its own, bit for bit."""
        own = {name: shard.clone() for name, shard in self.master_shards()}
        try:
            self._overwrite_masters(shards)
            yield
        finally:
            self._overwrite_masters(own)

    @torch.no_grad()
    def _overwrite_masters(self, shards: Mapping[str, Tensor]) -> None:
        for name, shard in self.master_shards():
            shard.copy_(shards[name])
        self._sync_from_masters()

    def _gather_replicas(self, names: Iterable[str]) -> None:
        """Every rank holds these parameters and their moments whole, and has overwritten its even shard of them."""
        for name in names:
            parameter = self.trainable[name]
            moments = [each for each in self.optimizer.state[parameter].values() if _is_moment(each)]
            for whole in (parameter, *moments):
                flat = whole.detach().view(-1)
                flat.copy_(collectives.gather_shards(self._local_shard(name, whole), flat.numel()))

    def _moments(self) -> dict[str, dict[str, Tensor]]:
        """The optimizer's tensors in the shape of the parameters: key -> name -> this rank's shard, a live view."""
        moments: dict[str, dict[str, Tensor]] = {}
        for name in self.trainable:
            for key, value in self.optimizer.state[self._master(name)].items():
                if _is_moment(value):
                    moments.setdefault(key, {})[name] = self._local_shard(name, value)
        return moments

    def _buffers_and_frozen(self) -> Iterator[tuple[str, Tensor]]:
        """The live tensors that the optimizer never touches, by name."""
        yield from ((name, getattr(owner, attribute)) for name, (owner, attribute) in self._fixed_owners.items())

    def _current_fixed(self) -> dict[str, Tensor]:
        """The float32 copies, except where the model itself has changed a buffer since."""
        current = {}
        for name, live in self._buffers_and_frozen():
            saved = self._fixed[name]
            unchanged = torch.equal(live.detach().cpu(), saved.to(live.dtype))
            current[name] = (saved if unchanged else live.detach().cpu().to(saved.dtype)).clone()
        return current

    def _init_optimizer_state(self) -> None:
        """Give every parameter the moments the optimizer would otherwise make at its first gradient."""
        fresh = [self._master(name) for name in self.trainable if not self.optimizer.state[self._master(name)]]
        if not fresh:
            return
        gradients = {id(each): each.grad for group in self.optimizer.param_groups for each in group["params"]}
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
                each.grad = gradients[id(each)]

    def _mesh(self, device_type: str) -> DeviceMesh:
        """Shards may lie elsewhere than the model (offloaded to the host), and a DTensor must not move them."""
        if device_type not in self._meshes:
            self._meshes[device_type] = init_device_mesh(device_type, (self.world.size,))
        return self._meshes[device_type]


def _fixed_owners(module: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """The owners of the frozen parameters and the saved buffers: name -> (module, attribute)."""
    saved = module.state_dict(keep_vars=True)
    frozen = [name for name, each in module.named_parameters() if not each.requires_grad]
    for name in [*frozen, *(name for name, _ in module.named_buffers() if name in saved)]:
        owner, _, attribute = name.rpartition(".")
        yield name, (module.get_submodule(owner), attribute)


def _saved_names(module: nn.Module) -> dict[str, str]:
    """Every name in the state_dict -> the one name under which an engine keeps that tensor."""
    first = {id(each): name for name, each in [*module.named_buffers(), *module.named_parameters()]}
    return {name: first[id(each)] for name, each in module.state_dict(keep_vars=True).items()}


def _is_moment(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0
