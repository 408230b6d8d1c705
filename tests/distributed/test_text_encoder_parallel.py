"""A text encoder sharded over ranks has the outputs of a whole one and needs a fraction of its memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from opensora.errors import ConfigError
from opensora.models.codec import Codec
from opensora.parallel import collectives, world
from opensora.parallel.colossal.t5_policy import shard_t5
from opensora.parallel.frozen_shard import shard_frozen
from opensora.registry import TEXT_ENCODERS, build
from opensora.training.distributed_codec import distributed_codec
from tests.dist import run_ranks
from tests.support.text_models import CAPTIONS, tiny_bert, tiny_clip, tiny_t5

FOLDERS = {"t5": tiny_t5, "hf": tiny_bert, "clip": tiny_clip}


@pytest.fixture(scope="module", params=FOLDERS)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(registered name, folder of its weights)."""
    return request.param, str(FOLDERS[request.param](tmp_path_factory.mktemp(request.param)))


def load(kind: str, folder: str) -> Any:
    options = {"model_max_length": 40} if kind == "hf" else {}
    return build(TEXT_ENCODERS, {"type": kind, "from_pretrained": folder, **options}).load()


def local_bytes(model: torch.nn.Module) -> int:
    """Bytes that this rank keeps of a model, gathered copies included."""
    tensors = {id(each): each for each in [*model.parameters(), *model.buffers()]}.values()
    local = (each.to_local() if isinstance(each, DTensor) else each for each in tensors)
    return sum(each.untyped_storage().nbytes() for each in local)


def shard(kind: str, folder: str, dtype: str) -> tuple[int, int]:
    """(bytes of the whole encoder, bytes kept); ranks encode other captions in an equal number of calls."""
    whole, cut = load(kind, folder), load(kind, folder)
    before = local_bytes(cut.model)
    shard_frozen(cut.model, None, torch.device("cpu"))
    for encoder in (whole, cut):
        encoder.to("cpu", getattr(torch, dtype))
    captions = CAPTIONS[collectives.rank() :] + CAPTIONS[: collectives.rank()]
    for caption in captions:
        condition, expected = cut.encode([caption]), whole.encode([caption])
        assert torch.equal(condition.text_B1LC, expected.text_B1LC)
        assert condition.mask_BL is expected.mask_BL or torch.equal(condition.mask_BL, expected.mask_BL)
    assert cut.model.dtype is whole.model.dtype
    return before * getattr(torch, dtype).itemsize // 4, local_bytes(cut.model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sharded_encoder_gives_same_bits_in_half_the_memory(encoder: tuple[str, str], dtype: str) -> None:
    for whole, kept in run_ranks(shard, 2, *encoder, dtype):
        assert 0.5 * whole <= kept < (0.53 if encoder[0] == "t5" else 0.6) * whole
    if encoder[0] == "t5":
        for whole, kept in run_ranks(shard, 4, *encoder, dtype):
            assert 0.25 * whole <= kept < 0.29 * whole


def tensor(folder: str) -> tuple[int, int]:
    whole, cut = load("t5", folder), load("t5", folder)
    before = local_bytes(cut.model)
    cut.model = shard_t5(cut.model, None, torch.device("cpu"))
    for caption in CAPTIONS:
        torch.testing.assert_close(
            cut.encode([caption]).text_B1LC, whole.encode([caption]).text_B1LC, rtol=1e-5, atol=1e-5
        )
    return before, local_bytes(cut.model)


def test_tensor_parallel_t5_gives_same_numbers_in_half_the_memory(tmp_path: Path) -> None:
    folder = str(tiny_t5(tmp_path))
    for whole, kept in run_ranks(tensor, 2, folder):
        assert 0.5 * whole <= kept < 0.53 * whole


def refuse(kind: str, folder: str) -> str:
    try:
        shard_t5(load(kind, folder).model, None, torch.device("cpu"))
    except ConfigError as error:
        return str(error)
    return ""


def test_tensor_parallel_refuses_other_encoders(tmp_path: Path) -> None:
    assert "BertModel cannot be cut by heads" in run_ranks(refuse, 2, "hf", str(tiny_bert(tmp_path / "bert")))[0]


def test_sharding_refuses_trained_network() -> None:
    with pytest.raises(ValueError, match="only frozen"):
        shard_frozen(torch.nn.Linear(2, 2), None, torch.device("cpu"))


def encode_together(folder: str, how: str) -> int:
    """Number of encoder calls in rounds in which ranks (tensor: groups of 2) need different numbers of new captions."""
    here = world.split_sequence_groups(2) if how == "tensor" else world.current()
    whole = Codec(torch.nn.Identity(), load("t5", folder), "cpu", torch.float32)
    cut = distributed_codec(torch.nn.Identity(), load("t5", folder), here, torch.float32, how, "run.py")
    calls: list[Any] = []
    cut.text_encoder.model.register_forward_hook(lambda *_: calls.append(1))
    a, b, c, d = CAPTIONS
    rounds = [[[a, a], [b, c]], [[a, a], [b, c]], [[b, d], [b, c]], [[c, c], [a, d]]]
    for batches in rounds:
        captions = batches[here.data_rank]
        condition, expected = cut.encode_text(captions), whole.encode_text(captions)
        exact = {"rtol": 0, "atol": 0} if how == "shard" else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(condition.text_B1LC, expected.text_B1LC, **exact)
        assert torch.equal(condition.mask_BL, expected.mask_BL)
    return len(calls)


def test_ranks_encode_together_with_different_caches(tmp_path: Path) -> None:
    folder = str(tiny_t5(tmp_path))
    assert run_ranks(encode_together, 2, folder, "shard") == [2 + 0 + 2 + 2] * 2
    assert run_ranks(encode_together, 4, folder, "tensor") == [4, 4, 4, 4]  # each group by itself: a b d c, b c a d


def without_groups(folder: str, kind: str, how: str) -> str:
    encoder = load("t5", folder) if kind == "t5" else build(TEXT_ENCODERS, {"type": kind, "num_classes": 3})
    with pytest.raises(ConfigError) as refuse:
        distributed_codec(torch.nn.Identity(), encoder, world.current(), torch.float32, how, "run.py")
    return str(refuse.value)


def test_codec_refuses_what_ranks_cannot_share(tmp_path: Path) -> None:
    folder = str(tiny_t5(tmp_path))
    assert "sp_size=1" in run_ranks(without_groups, 2, folder, "t5", "tensor")[0]
    assert "holds no network" in run_ranks(without_groups, 2, folder, "classes", "shard")[0]
