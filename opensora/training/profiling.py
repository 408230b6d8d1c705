"""A profiler trace of a few optimizer steps on host and device."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from torch.profiler import record_function

from opensora.log import logger
from opensora.platforms import Platform


class StepTrace:
    """Records `count` steps and writes the trace to `folder` under `name`.

    The first step of a start is left out, because it also makes buffers and compiles kernels; a run of one step is recorded.
    """

    def __init__(self, count: int, platform: Platform, folder: Path, name: str):
        self.count, self.platform, self.folder, self.name = count, platform, folder, name

    def __call__(self, steps: range) -> Iterator[int]:
        """Yield the steps. Leaving the loop early writes the steps recorded until then."""
        first = min(1, len(steps) - 1) if self.count else -1
        with ExitStack() as recording:
            for number, step in enumerate(steps):
                if number == first:
                    recording.callback(logger().info, "trace of the steps from %d on: %s", step + 1, self.folder)
                    recording.enter_context(self.platform.profile(self.folder, self.name))
                    recording.callback(self.platform.synchronize)
                with record_function(f"optimizer step {step + 1}"):
                    yield step
                if number + 1 == first + self.count:
                    recording.close()
