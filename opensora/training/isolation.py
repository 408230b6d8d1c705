"""Validation and sample videos during training, without an effect on it."""

import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from opensora.platforms import select


@contextmanager
def evaluation_mode(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put the model in evaluation mode; afterwards restore each module's mode and all random state.

    Random state is that of torch (host and device), NumPy and Python. Cached device memory is freed before and after.
    """
    platform = select(device.type)
    modes = [(module, module.training) for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    gc.collect()
    platform.release_memory()
    model.eval()
    try:
        with torch.random.fork_rng([] if device.index is None else [device.index], device_type=device.type):
            yield
    finally:
        for module, training in modes:
            module.training = training
        random.setstate(python)
        np.random.set_state(numpy)
        gc.collect()
        platform.release_memory()
