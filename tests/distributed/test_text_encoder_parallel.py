"""A text encoder that the ranks hold together gives what a whole one gives, and takes its share of memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.errors import ConfigError
from opensora.models.codec import Codec
from opensora.parallel import collectives, world
from opensora.parallel.colossal.t5_policy import shard_t5
from opensora.parallel.frozen_shard import shard_frozen
from opensora.registry import TEXT_ENCODERS, build
from opensora.training.distributed_codec import distributed_codec
from tests.dist import run_ranks
from tests.text_models import CAPTIONS, tiny_bert, tiny_clip, tiny_t5

FOLDERS = {"t5": tiny_t5, "hf": tiny_bert, "clip": tiny_clip}


@pytest.fixture(scope="module", params=FOLDERS)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(registered name, folder)."""
    return request.param, str(FOLDERS[request.param](tmp_path_factory.mktemp(request.param)))


def load(kind: str, folder: str) -> Any:
    options = {"model_max_length": 40} if kind == "hf" else {}
    return build(TEXT_ENCODERS, {"type": kind, "from_pretrained": folder, **options}).load()


def held(model: torch.nn.Module) -> int:
    """Bytes that this rank keeps of a model."""
    return sum(
        tensor.nbytes for tensor in {id(each): each for each in [*model.parameters(), *model.buffers()]}.values()
    )


def shard(kind: str, folder: str, dtype: str) -> tuple[int, int]:
    """(bytes of the whole, bytes kept); captions differ between ranks, the number of calls does not."""
    whole, cut = load(kind, folder), load(kind, folder)
    before = held(cut.model)
    shard_frozen(cut.model)
    for encoder in (whole, cut):
        encoder.to("cpu", getattr(torch, dtype))
    mine = CAPTIONS[collectives.rank() :] + CAPTIONS[: collectives.rank()]
    for caption in mine:
        found, expected = cut.encode([caption]), whole.encode([caption])
        assert torch.equal(found.text_B1LC, expected.text_B1LC)
        assert found.mask_BL is expected.mask_BL or torch.equal(found.mask_BL, expected.mask_BL)
    assert cut.model.dtype is whole.model.dtype
    return before * getattr(torch, dtype).itemsize // 4, held(cut.model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pieces_of_blocks_give_the_same_bits_and_halve_the_memory(encoder: tuple[str, str], dtype: str) -> None:
    for whole, kept in run_ranks(shard, 2, *encoder, dtype):
        assert 0.5 * whole <= kept < (0.53 if encoder[0] == "t5" else 0.6) * whole
    if encoder[0] == "t5":
        for whole, kept in run_ranks(shard, 4, *encoder, dtype):
            assert 0.25 * whole <= kept < 0.29 * whole


def tensor(folder: str) -> tuple[int, int]:
    whole, cut = load("t5", folder), load("t5", folder)
    before = held(cut.model)
    cut.model = shard_t5(cut.model, None, torch.device("cpu"))
    for caption in CAPTIONS:
        torch.testing.assert_close(
            cut.encode([caption]).text_B1LC, whole.encode([caption]).text_B1LC, rtol=1e-5, atol=1e-5
        )
    return before, held(cut.model)


def test_heads_and_hidden_units_over_ranks(tmp_path: Path) -> None:
    folder = str(tiny_t5(tmp_path))
    for whole, kept in run_ranks(tensor, 2, folder):
        assert 0.5 * whole <= kept < 0.53 * whole


def refused(kind: str, folder: str) -> str:
    try:
        shard_t5(load(kind, folder).model, None, torch.device("cpu"))
    except ConfigError as error:
        return str(error)
    return ""


def test_what_cannot_be_cut_by_heads_is_refused(tmp_path: Path) -> None:
    assert "BertModel cannot be cut by heads" in run_ranks(refused, 2, "hf", str(tiny_bert(tmp_path / "bert")))[0]


def test_a_network_that_trains_is_refused() -> None:
    with pytest.raises(ValueError, match="only frozen"):
        shard_frozen(torch.nn.Linear(2, 2))


def encode_together(folder: str, how: str) -> int:
    """Rounds in which the ranks (tensor: the groups of 2) miss different numbers of captions; calls of the encoder."""
    here = world.split_sequence_groups(2) if how == "tensor" else world.current()
    whole = Codec(torch.nn.Identity(), load("t5", folder), "cpu", torch.float32)
    cut = distributed_codec(torch.nn.Identity(), load("t5", folder), here, torch.float32, how, "run.py")
    calls: list[Any] = []
    cut.text_encoder.model.register_forward_hook(lambda *_: calls.append(1))
    a, b, c, d = CAPTIONS
    rounds = [[[a, a], [b, c]], [[a, a], [b, c]], [[b, d], [b, c]], [[c, c], [a, d]]]
    for batches in rounds:
        mine = batches[here.data_rank]
        found, expected = cut.encode_text(mine), whole.encode_text(mine)
        exact = {"rtol": 0, "atol": 0} if how == "shard" else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(found.text_B1LC, expected.text_B1LC, **exact)
        assert torch.equal(found.mask_BL, expected.mask_BL)
    return len(calls)


def test_ranks_encode_together_whatever_their_caches_hold(tmp_path: Path) -> None:
    folder = str(tiny_t5(tmp_path))
    assert run_ranks(encode_together, 2, folder, "shard") == [2 + 0 + 2 + 2] * 2
    assert run_ranks(encode_together, 4, folder, "tensor") == [4, 4, 4, 4]  # each group by itself: a b d c, b c a d


def without_groups(folder: str, kind: str, how: str) -> str:
    encoder = load("t5", folder) if kind == "t5" else build(TEXT_ENCODERS, {"type": kind, "num_classes": 3})
    with pytest.raises(ConfigError) as refused:
        distributed_codec(torch.nn.Identity(), encoder, world.current(), torch.float32, how, "run.py")
    return str(refused.value)


def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    folder = str(tiny_t5(tmp_path))
    assert "found 'tensor' with sp_size=1" in run_ranks(without_groups, 2, folder, "t5", "tensor")[0]
    assert "holds no network" in run_ranks(without_groups, 2, folder, "classes", "shard")[0]
