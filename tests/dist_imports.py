"""Imports of ranks and commands, made once before they fork. Nothing is computed: a fork would lose its threads."""

import gc

import av  # noqa: F401
import pytest  # noqa: F401
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
gc.freeze()  # collections in a fork skip the objects that exist now, so their memory stays shared
