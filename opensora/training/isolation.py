"""Work beside training, such as validation and sample videos, that leaves no trace in it."""

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
    """Memory that nobody uses is given back first; the model evaluates; afterwards all is as it was before.

    That is each module's own mode, and the random numbers of torch (host and device), NumPy and Python.
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
