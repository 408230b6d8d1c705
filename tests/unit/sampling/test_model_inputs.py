"""The inputs of each copy of the batch: captions under guidance, and reference frames of a conditioned model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.errors import ConfigError, DataError
from opensora.models.stdit.stdit3 import STDiT3
from opensora.models.text.classes import ClassLabels
from opensora.rng import generator
from opensora.sampling.generate import Sampler, generate, initial_noise
from opensora.sampling.mask_strategy import read_reference
from opensora.sampling.model_inputs import encode_guided
from opensora.sampling.reference_frames import ReferenceKeys
from opensora.sampling.requests import collect_requests
from opensora.schedulers.rectified_flow import RectifiedFlow
from opensora.types import SampleRequest
from tests.support.fake_sampler import TOKENS, WIDTH, FakeCodec, FakeDenoiser, fake_sampler
from tests.support.media_files import write_picture, write_video

SHAPE = (4, 4, 4, 4)
PROMPTS = ["a cat", "a very small dog"]


class Conditioned(FakeDenoiser):
    """Adds the clean latents to the answer; records its inputs."""

    conditioned = True
    takes_x_mask = False

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[dict[str, Any]] = []

    def forward(
        self, x: Tensor, timestep: Tensor, y: Tensor, mask: Any = None, x_mask: Any = None, **inputs: Any
    ) -> Any:
        self.inputs.append({"x": x, "y": y, "mask": mask, "x_mask": x_mask, **inputs})
        return super().forward(x, timestep, y, mask) + inputs["cond"]


def sampler(steps: int = 1, **scheduler: Any) -> Sampler:
    options = {"cfg_scale": 3.0, "image_cfg_scale": 5.0, **scheduler}
    return Sampler(Conditioned(), RectifiedFlow(num_sampling_steps=steps, release="1.3", **options), FakeCodec())


def collect(prompts: list[str], **keys: Any) -> list[SampleRequest]:
    run = dict(num_frames=4, image_size=(16, 16), fps=8.0, seed=42)
    return collect_requests(prompts, None, reference_keys=ReferenceKeys(**keys), **run)


def latents_of(requests: list[SampleRequest], made: Sampler, guidance_scale: float = 3.0) -> list[Tensor]:
    """The latents that sampling hands to the decoder, loop by loop."""
    latents: list[Tensor] = []
    decode = made.codec.decode_video

    def keep(z: Tensor, num_frames: int) -> Tensor:
        latents.append(z)
        return decode(z, num_frames)

    made.codec.decode_video = keep
    generate(requests, made, guidance_scale)
    made.codec.decode_video = decode
    return latents


def encoded(path: str) -> Tensor:
    return FakeCodec().encode_video(read_reference(path, 16, 16)[None])[0]


def test_the_three_copies(tmp_path: Path) -> None:
    path, made = write_picture(tmp_path / "a.png", 0b1011), sampler()
    one, two = collect(["a cat", "a small dog"], reference_path=path)
    latents_of([one, two], made)
    [call] = made.model.inputs
    noise = torch.stack([initial_noise(request, SHAPE) for request in (one, two)])
    assert torch.equal(call["x"], noise.repeat(3, 1, 1, 1, 1))  # given frames start from noise like the others
    assert call["x_mask"] is None

    captions, null = FakeCodec().encode_text(["a cat", "a small dog"]), made.model.null_text(2)
    assert torch.equal(call["y"], torch.cat([captions.text_B1LC, null, null]))
    assert torch.equal(call["mask"], captions.mask_BL.repeat(3, 1))
    assert torch.equal(call["y_null"], null.repeat(3, 1, 1, 1))

    only = torch.zeros(SHAPE)
    only[:, 0] = encoded(path)[:, 0]
    assert only.any()
    assert torch.equal(call["cond"], torch.stack([only] * 4 + [torch.zeros(SHAPE)] * 2))
    assert call["cond_mask"][:, :, :, 0, 0].tolist() == [[[1, 0, 0, 0]] * 4] * 6
    assert call["mask_index"] == [[0]] * 6


def test_guidance_by_hand(tmp_path: Path) -> None:
    """One Euler step over the whole way: z = noise + v, where the given latents count image_cfg_scale times."""
    [one] = collect(["a cat"], reference_path=write_picture(tmp_path / "a.png", 0b1011))
    made = sampler()
    [z] = latents_of([one], made)
    call, noise = made.model.inputs[0], initial_noise(one, SHAPE)
    lean = [(y[0] * mask[:, None]).sum() / mask.sum() for y, mask in zip(call["y"], call["mask"], strict=True)]
    velocity = 1 - 0.1 * noise + lean[2] + 5.0 * call["cond"][0] + 3.0 * (lean[0] - lean[1])
    torch.testing.assert_close(z[0], noise + velocity, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("strategy", "frames"),
    [("0", [0]), ("0,0,0,-1", [3]), ("0;0,1,-1,-1", [0, 3]), ("0,1,0,0,2", [0, 1]), ("0,1,-2,2,9", [2, 3]), ("0,0,0,0,1,1", [])],
)  # fmt: skip
def test_strategies_name_the_conditions_of_1_3(tmp_path: Path, strategy: str, frames: list[int]) -> None:
    picture, video = write_picture(tmp_path / "a.png", 0b1011), write_video(tmp_path / "b.mp4", 6)
    [one] = collect(["a cat"], reference_path=f"{picture};{video}", mask_strategy=strategy)
    made = sampler()
    latents_of([one], made)
    call, copies = made.model.inputs[0], 3 if frames else 2
    assert call["mask_index"] == [frames] * copies
    first, film = encoded(picture), encoded(video)
    wanted = {"0": first, "0,0,0,-1": first, "0;0,1,-1,-1": torch.cat([first, film[:, -1:]], 1)}
    wanted |= {"0,1,0,0,2": film[:, :2], "0,1,-2,2,9": film[:, -2:], "0,0,0,0,1,1": film[:, :0]}
    assert torch.equal(call["cond"][0][:, frames], wanted[strategy])
    assert call["cond"][0].abs().sum((0, 2, 3)).nonzero().flatten().tolist() == frames


def test_text_alone_needs_two_copies_in_any_batch(tmp_path: Path) -> None:
    """In a batch with a request of given frames there is a third, whose answers cancel out."""
    path = write_picture(tmp_path / "a.png", 0b1011)
    with_frames, plain = collect(["a cat", "a dog"], reference_path=[path, ""], mask_strategy=["0", ""])
    alone, together = sampler(3), sampler(3)
    [z] = latents_of([plain], alone)
    [both] = latents_of([with_frames, plain], together)
    assert [len(call["x"]) for call in alone.model.inputs] == [2] * 3
    assert not any(call["cond"].any() or any(call["mask_index"]) for call in alone.model.inputs)
    assert together.model.inputs[0]["mask_index"] == [[0], []] * 3
    torch.testing.assert_close(both[1:], z, rtol=1e-4, atol=1e-4)
    velocity = fake_sampler()
    velocity.scheduler.num_sampling_steps = 3
    torch.testing.assert_close(z, latents_of([plain], velocity)[0])


def test_scales_of_one_ask_one_copy(tmp_path: Path) -> None:
    [one] = collect(["a cat"], reference_path=write_picture(tmp_path / "a.png", 0b1011))
    bare, tripled = sampler(3, image_cfg_scale=1.0), sampler(3, image_cfg_scale=1.0 + 1e-6)
    [z], [same] = (latents_of([one], made, guidance_scale=1.0) for made in (bare, tripled))
    assert [len(made.model.inputs[0]["mask_index"]) for made in (bare, tripled)] == [1, 3]
    torch.testing.assert_close(z, same, rtol=1e-4, atol=1e-4)
    assert bare.model.inputs[0]["cond"].any()


def test_conditions_are_embedded_once_per_sample(tmp_path: Path) -> None:
    model = STDiT3(
        hidden_size=24, depth=2, num_heads=2, caption_channels=WIDTH, model_max_length=TOKENS, conditioned=True
    )
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator(0, name))
    embeddings: list[int] = []
    model.y_embedder.register_forward_hook(lambda *_: embeddings.append(1))
    scheduler = RectifiedFlow(num_sampling_steps=3, cfg_scale=3.0, release="1.3")
    made = []
    for number in (1, 200):
        embeddings.clear()
        [one] = collect(["a cat"], reference_path=write_picture(tmp_path / f"{number}.png", number))
        made += latents_of([one], Sampler(model, scheduler, FakeCodec()))
        assert len(embeddings) == 2  # the copies' texts and the null caption of given frames
    assert (made[0][:, :, 1:] - made[1][:, :, 1:]).abs().max() > 1e-3


def test_loops_continue_from_the_end_of_the_clip_before() -> None:
    [one] = collect(["a cat"], loop=2, condition_frame_length=1)
    made = sampler()
    first, second = latents_of([one], made)
    again = FakeCodec().encode_video(FakeCodec().decode_video(first, 4))
    calls = made.model.inputs
    assert [each["mask_index"] for each in calls] == [[[]] * 2, [[0]] * 3]
    assert torch.equal(calls[1]["cond"][0, :, 0], again[0, :, -1])
    assert not torch.allclose(first, second)


def test_frames_cannot_be_kept_in_part(tmp_path: Path) -> None:
    [one] = collect(["a cat"], reference_path=write_picture(tmp_path / "a.png"), mask_strategy="0,0,0,0,1,0.5")
    assert one.conditioning is not None
    with pytest.raises(ConfigError, match=r"edit ratio 0\.5; allowed: 0 \(given\) or 1 \(made anew\)"):
        generate([one], sampler(), 3.0)
    looped = replace(
        one,
        conditioning=replace(
            one.conditioning, mask_strategy="", loop=2, condition_frame_length=1, condition_frame_edit=0.25
        ),
    )
    with pytest.raises(ConfigError, match=r"edit ratio 0\.25"):
        generate([looped], sampler(), 3.0)


def test_null_captions_take_the_prompts_mask_and_written_ones_their_own() -> None:
    model, codec = FakeDenoiser(), FakeCodec()
    pair = encode_guided(PROMPTS, ["", "dark blurry low quality"], model, codec, "cond,null")
    prompts, negative = codec.encode_text(PROMPTS), codec.encode_text(["dark blurry low quality"])
    assert torch.equal(pair.text_B1LC[:2], prompts.text_B1LC)
    assert torch.equal(pair.text_B1LC[2], torch.full((1, TOKENS, WIDTH), 0.5))
    assert torch.equal(pair.text_B1LC[3], negative.text_B1LC[0])
    assert pair.mask_BL.sum(1).tolist() == [2, 4, 2, 4]
    short = encode_guided(PROMPTS, ["", "dark"], model, codec, "cond,null")
    assert short.mask_BL.sum(1).tolist() == [2, 4, 2, 1]


def test_a_model_without_a_null_caption_takes_the_encoded_empty_prompt() -> None:
    """Cut to the prompt's length like a learned one; a written negative prompt keeps its own."""
    model, codec = FakeDenoiser(), FakeCodec()
    model.null_text = lambda n: None
    pair = encode_guided(PROMPTS, ["", "dark"], model, codec, "null,cond")
    empty, dark = codec.encode_text([""]), codec.encode_text(["dark"])
    assert torch.equal(pair.text_B1LC[0], empty.text_B1LC[0])
    assert torch.equal(pair.text_B1LC[1], dark.text_B1LC[0])
    assert torch.equal(pair.text_B1LC[2:], codec.encode_text(PROMPTS).text_B1LC)
    assert pair.mask_BL.sum(1).tolist() == [2, 1, 2, 4]


def test_the_scheduler_decides_which_half_is_first() -> None:
    pair = encode_guided(PROMPTS, ["", ""], FakeDenoiser(), FakeCodec(), "null,cond")
    assert torch.equal(pair.text_B1LC[2:], FakeCodec().encode_text(PROMPTS).text_B1LC)


def test_encoder_of_another_width_is_error() -> None:
    model = FakeDenoiser()
    model.null_text = lambda n: torch.zeros(n, 1, TOKENS, 7)
    with pytest.raises(ConfigError, match=r"6 tokens of 5 .*null caption.*6 tokens of 7"):
        encode_guided(PROMPTS, ["", ""], model, FakeCodec(), "cond,null")


class ByClass:
    """A codec of two classes and what stands for neither."""

    null_text = staticmethod(lambda n: torch.full((n,), 2))
    encode_text = staticmethod(ClassLabels(["walk", "run"]).encode)


def test_labels_are_paired_with_the_null_class_or_a_class_to_avoid() -> None:
    pair = encode_guided(["run", "0", "walk"], ["", "run", ""], ByClass(), ByClass(), "cond,null")
    assert pair.text_B1LC.tolist() == [1, 0, 0, 2, 1, 2]
    assert pair.text_B1LC.dtype == torch.int64
    assert pair.mask_BL is None
    with pytest.raises(DataError, match=r"'blurry'.*class"):
        encode_guided(["run"], ["blurry"], ByClass(), ByClass(), "cond,null")


def test_labels_for_a_model_of_captions_are_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"class number.*null caption.*6 tokens"):
        encode_guided(["run"], [""], FakeDenoiser(), ByClass(), "cond,null")
