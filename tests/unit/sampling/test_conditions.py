import pytest
import torch

from opensora.errors import ConfigError
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


def test_the_scheduler_decides_which_half_is_first() -> None:
    pair = encode_pairs(PROMPTS, ["", ""], FakeDenoiser(), FakeCodec(), "null,cond")
    assert torch.equal(pair.text_B1LC[2:], FakeCodec().encode_text(PROMPTS).text_B1LC)


def test_an_encoder_of_another_width_is_a_sentence() -> None:
    model = FakeDenoiser()
    model.null_text = lambda n: torch.zeros(n, 1, TOKENS, 7)
    with pytest.raises(ConfigError, match="6 tokens of 5 channels but the model's null caption has 6 tokens of 7"):
        encode_pairs(PROMPTS, ["", ""], model, FakeCodec(), "cond,null")
