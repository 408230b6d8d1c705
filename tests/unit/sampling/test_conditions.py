import pytest
import torch

from opensora.errors import ConfigError, DataError
from opensora.models.text.classes import ClassLabels
from opensora.sampling.conditions import encode_pairs
from tests.unit.sampling.fakes import TOKENS, WIDTH, FakeCodec, FakeDenoiser

PROMPTS = ["a cat", "a very small dog"]


def test_null_captions_take_the_prompts_mask_and_written_ones_their_own() -> None:
    model, codec = FakeDenoiser(), FakeCodec()
    pair = encode_pairs(PROMPTS, ["", "dark blurry low quality"], model, codec, "cond,null")
    prompts, negative = codec.encode_text(PROMPTS), codec.encode_text(["dark blurry low quality"])
    assert torch.equal(pair.text_B1LC[:2], prompts.text_B1LC)
    assert torch.equal(pair.text_B1LC[2], torch.full((1, TOKENS, WIDTH), 0.5))
    assert torch.equal(pair.text_B1LC[3], negative.text_B1LC[0])
    assert pair.mask_BL.sum(1).tolist() == [2, 4, 2, 4]
    short = encode_pairs(PROMPTS, ["", "dark"], model, codec, "cond,null")
    assert short.mask_BL.sum(1).tolist() == [2, 4, 2, 1]


def test_a_model_without_a_null_caption_takes_the_encoded_empty_prompt() -> None:
    """Cut to the prompt's length like a learned one; a written negative prompt keeps its own."""
    model, codec = FakeDenoiser(), FakeCodec()
    model.null_text = lambda n: None
    pair = encode_pairs(PROMPTS, ["", "dark"], model, codec, "null,cond")
    empty, dark = codec.encode_text([""]), codec.encode_text(["dark"])
    assert torch.equal(pair.text_B1LC[0], empty.text_B1LC[0])
    assert torch.equal(pair.text_B1LC[1], dark.text_B1LC[0])
    assert torch.equal(pair.text_B1LC[2:], codec.encode_text(PROMPTS).text_B1LC)
    assert pair.mask_BL.sum(1).tolist() == [2, 1, 2, 4]


def test_the_scheduler_decides_which_half_is_first() -> None:
    pair = encode_pairs(PROMPTS, ["", ""], FakeDenoiser(), FakeCodec(), "null,cond")
    assert torch.equal(pair.text_B1LC[2:], FakeCodec().encode_text(PROMPTS).text_B1LC)


def test_an_encoder_of_another_width_is_a_sentence() -> None:
    model = FakeDenoiser()
    model.null_text = lambda n: torch.zeros(n, 1, TOKENS, 7)
    with pytest.raises(ConfigError, match=r"6 tokens of 5 .*null caption.*6 tokens of 7"):
        encode_pairs(PROMPTS, ["", ""], model, FakeCodec(), "cond,null")


class ByClass:
    """A codec of two classes and what stands for neither."""

    null_text = staticmethod(lambda n: torch.full((n,), 2))
    encode_text = staticmethod(ClassLabels(["walk", "run"]).encode)


def test_labels_are_paired_with_the_null_class_or_a_class_to_avoid() -> None:
    pair = encode_pairs(["run", "0", "walk"], ["", "run", ""], ByClass(), ByClass(), "cond,null")
    assert pair.text_B1LC.tolist() == [1, 0, 0, 2, 1, 2]
    assert pair.text_B1LC.dtype == torch.int64
    assert pair.mask_BL is None
    with pytest.raises(DataError, match=r"'blurry'.*class"):
        encode_pairs(["run"], ["blurry"], ByClass(), ByClass(), "cond,null")


def test_labels_for_a_model_of_captions_are_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"class number.*null caption.*6 tokens"):
        encode_pairs(["run"], [""], FakeDenoiser(), ByClass(), "cond,null")
