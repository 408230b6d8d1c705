"""ColossalAI's idea of the device. Its CPU accelerator raises where ZeRO asks for a stream; ours answers with none."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from opensora.errors import ConfigError

# What the booster takes from adapters, low-rank gradients and 8-bit optimizers when it is imported. Nothing here uses
# them; the packages would take longer than all the rest, and bitsandbytes starts every device it finds.
_UNUSED: dict[str, tuple[str, ...]] = {
    "peft": ("PeftModel", "PeftType"),
    "peft.utils.other": ("EMBEDDING_LAYER_NAMES", "check_file_exists_on_hf_hub"),
    "peft.utils.save_and_load": ("get_embedding_layer_name", "has_valid_embedding_base_layer"),
    "galore_torch": ("GaLoreAdafactor", "GaLoreAdamW"),
    "bitsandbytes": (),
    "bitsandbytes.optim.optimizer": ("Optimizer2State",),
}


def import_colossalai() -> None:
    """Import the booster. Every use of colossalai comes after this: by itself it asks for packages that need not be here.

    Raises ConfigError with the command that installs it.
    """
    with warnings.catch_warnings(), _stand_ins(), _nothing_compiled():
        warnings.simplefilter("ignore")
        try:
            import colossalai.booster  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"plugin: colossalai cannot be imported ({error}); allowed without it: ddp; "
                "install it with `pip install --no-deps -r requirements/colossalai.txt`"
            ) from error


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Modules of empty classes in place of _UNUSED while the context is open; packages that are imported already stay."""
    made: dict[str, ModuleType] = {}
    for name, wanted in _UNUSED.items():
        if name.partition(".")[0] not in sys.modules:
            made[name] = ModuleType(name)
            made[name].__spec__ = ModuleSpec(name, None)  # by it others ask what is installed
            vars(made[name]).update({each: type(each, (), {}) for each in wanted})
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """torch.compile leaves functions as they are: it decorates some for fp8 and ring attention, which nothing here uses,
    and brings torch's compiler for them."""
    compiler = torch.compile
    torch.compile = lambda model=None, **_: model or (lambda function: function)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiler


class NoStream:
    """A stream or event of a device that does everything at once."""

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: Any = None) -> "NoStream":
        return self

    def record(self, stream: Any = None) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...


def set_accelerator(device: torch.device) -> None:
    """Tell colossalai which device the ranks use; call before anything of it is built."""
    import_colossalai()
    from colossalai.accelerator import api
    from colossalai.accelerator.cpu_accelerator import CpuAccelerator

    if device.type != "cpu":
        api.set_accelerator(device.type)
        return

    class HostAccelerator(CpuAccelerator):
        """Shim S1: streams and events that do nothing, a device that needs no setting; one random generator."""

        def get_rng_state(self, device: Any = "cpu") -> torch.Tensor:
            return torch.get_rng_state()

        def manual_seed(self, seed: int) -> None:
            torch.manual_seed(seed)

        def Stream(self, *args: Any, **kwargs: Any) -> NoStream:
            return NoStream()

        def Event(self, *args: Any, **kwargs: Any) -> NoStream:
            return NoStream()

        def current_stream(self, device: Any = None) -> NoStream:
            return NoStream()

        def default_stream(self, device: Any = None) -> NoStream:
            return NoStream()

        def set_stream(self, stream_: Any) -> None: ...

        def stream(self, stream_: Any) -> AbstractContextManager[None]:
            return nullcontext()

        def synchronize(self, device: Any = None) -> None: ...

        def empty_cache(self) -> None: ...

    api.set_accelerator(HostAccelerator())
