"""What ranks and commands import, once before they are forked. Nothing is computed: no threads are to be lost."""

import gc

import av  # noqa: F401
import rich.logging  # noqa: F401
import torch.distributed.checkpoint
import torch.distributed.launcher.api
import torch.utils.tensorboard  # noqa: F401
from diffusers import AutoencoderKL  # noqa: F401
from mmengine.registry import Registry
from transformers import AutoTokenizer, BertModel, CLIPTextModel, T5EncoderModel  # noqa: F401

import opensora.parallel.watchdog.watchdog
import opensora.sampling.build
import opensora.sampling.preview
import opensora.sampling.sample
import opensora.training.build
import opensora.training.loop  # noqa: F401
from opensora import registry
from opensora.parallel.colossal.accelerator import import_colossalai

import_colossalai()
for each in [*vars(registry).values()]:
    if isinstance(each, Registry):
        registry.autoload(each)

gc.collect()
gc.freeze()  # a collection in a fork leaves alone, and so shares, what is here now
