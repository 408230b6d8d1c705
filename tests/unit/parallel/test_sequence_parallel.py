import copy
from typing import Any

import pytest
import torch
from torch import nn

from opensora.errors import ConfigError
from opensora.models.layers.seam import Seam
from opensora.parallel.sequence_parallel import shard_sequence
from tests.dist import one_rank
from tests.support.small_models import denoiser, inputs


@pytest.mark.parametrize("mode", ["dsp", "ulysses"])
def test_one_rank_changes_nothing(mode: Any) -> None:
    plain = denoiser("STDiT")
    model = copy.deepcopy(plain)
    assert shard_sequence(model, mode=mode) is model
    with one_rank():
        assert shard_sequence(model, mode=mode) is model
    assert all(module.op is None for module in model.modules() if isinstance(module, Seam))
    assert torch.equal(model(**inputs(plain)), plain(**inputs(plain)))


def test_model_without_seams_is_refused() -> None:
    with pytest.raises(ConfigError, match="Linear has no Seam of kind gather or split"):
        shard_sequence(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"Sequential.*gather"):
        shard_sequence(nn.Sequential(Seam("split", dim=2)))


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="mode 'ring'; allowed: 'dsp', 'ulysses'"):
        shard_sequence(denoiser("STDiT"), mode="ring")  # type: ignore[arg-type]
