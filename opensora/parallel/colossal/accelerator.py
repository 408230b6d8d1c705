"""ColossalAI's import and its accelerator. Its own CPU accelerator raises when ZeRO needs a stream; ours has dummy ones."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch

from opensora.errors import ConfigError

# Names that the booster imports from packages for adapters, low-rank gradients and 8-bit optimizers. Nothing here uses
# them; importing the packages takes longer than all the rest, and bitsandbytes starts every device it finds.
_UNUSED: dict[str, tuple[str, ...]] = {
    "peft": ("PeftModel", "PeftType"),
    "peft.utils.other": ("EMBEDDING_LAYER_NAMES", "check_file_exists_on_hf_hub"),
    "peft.utils.save_and_load": ("get_embedding_layer_name", "has_valid_embedding_base_layer"),
    "galore_torch": ("GaLoreAdafactor", "GaLoreAdamW"),
    "bitsandbytes": (),
    "bitsandbytes.optim.optimizer": ("Optimizer2State",),
}


def import_colossalai() -> None:
    """Import the booster. Call it before any other import of colossalai, which by itself requires optional packages.

    Raises ConfigError with the command that installs it.
    """
    with warnings.catch_warnings(), _stand_ins(), _nothing_compiled():
        warnings.simplefilter("ignore")
        try:
            import colossalai.booster  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"plugin: colossalai cannot be imported ({error}); allowed without it: ddp and fsdp; "
                "install it with `pip install --no-deps -r requirements/colossalai.txt`"
            ) from error


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Put modules of empty classes in the place of _UNUSED while the context is open; imported packages stay."""
    stand_ins: dict[str, ModuleType] = {}
    for name, classes in _UNUSED.items():
        if name.partition(".")[0] not in sys.modules:
            stand_ins[name] = ModuleType(name)
            stand_ins[name].__spec__ = ModuleSpec(name, None)  # importlib.util.find_spec raises without one
            vars(stand_ins[name]).update({each: type(each, (), {}) for each in classes})
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """Make torch.compile return functions as they are. ColossalAI compiles some for fp8 and ring attention, which nothing
    here uses, and that would import torch's compiler."""
    compiler = torch.compile
    torch.compile = lambda model=None, **_: model or (lambda function: function)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiler


class NoStream:
    """A stream or event of a device without streams."""

    def wait_stream(self, stream: object) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def record_event(self, event: object = None) -> "NoStream":
        return self

    def record(self, stream: object = None) -> None: ...

    def wait(self, stream: object = None) -> None: ...

    def synchronize(self) -> None: ...


def set_accelerator(device: torch.device) -> None:
    """Set the device that colossalai uses; call it before anything of colossalai is built."""
    import_colossalai()
    from colossalai.accelerator import api
    from colossalai.accelerator.cpu_accelerator import CpuAccelerator

    if device.type != "cpu":
        api.set_accelerator(device.type)
        return

    class HostAccelerator(CpuAccelerator):
        """Shim S1: streams and events that do nothing, no current device to set, one random generator."""

        def get_rng_state(self, device: object = "cpu") -> torch.Tensor:
            return torch.get_rng_state()

        def manual_seed(self, seed: int) -> None:
            torch.manual_seed(seed)

        def Stream(self, *args: object, **kwargs: object) -> NoStream:
            return NoStream()

        def Event(self, *args: object, **kwargs: object) -> NoStream:
            return NoStream()

        def current_stream(self, device: object = None) -> NoStream:
            return NoStream()

        def default_stream(self, device: object = None) -> NoStream:
            return NoStream()

        def set_stream(self, stream_: object) -> None: ...

        def stream(self, stream_: object) -> AbstractContextManager[None]:
            return nullcontext()

        def synchronize(self, device: object = None) -> None: ...

        def empty_cache(self) -> None: ...

    api.set_accelerator(HostAccelerator())
