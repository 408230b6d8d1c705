"""What every rank of the pool needs, imported once before the ranks are forked."""

import torch.distributed.checkpoint  # noqa: F401

import opensora.parallel.engine  # noqa: F401
from opensora.parallel.accelerator import import_colossalai

import_colossalai()
