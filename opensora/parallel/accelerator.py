"""ColossalAI's idea of the device. Its CPU accelerator raises where ZeRO asks for a stream; ours answers with none."""

import logging
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from opensora.errors import ConfigError


def import_colossalai() -> None:
    """Import the booster: seconds, nearly all for packages it does not use here, whose advice is kept quiet.

    Raises ConfigError with the command that installs it.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import colossalai.booster  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"plugin: colossalai cannot be imported ({error}); allowed without it: ddp; "
                "install it with `pip install --no-deps -r requirements/colossalai.txt`"
            ) from error


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
