from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from opensora.config import load
from opensora.interfaces import Autoencoder
from opensora.models.build import build_autoencoder
from opensora.models.codec import CaptionCache, Codec, draw_latents
from opensora.models.text.classes import ClassLabels
from opensora.rng import generator
from opensora.schema import TrainRun
from opensora.types import EncodedText
from tests.support.command import ROOT

LENGTH, WIDTH = 5, 3
CAPTION_BYTES = LENGTH * WIDTH * 4 + LENGTH * 8  # float32 states and an int64 mask


class Halves(Autoencoder):
    """An autoencoder that halves on the way in and doubles on the way out."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def encode(self, x: Tensor, rngs: Sequence[Generator] | None = None) -> Tensor:
        self.recorded = x.dtype
        noise = 0 if rngs is None else torch.stack([torch.randn(x.shape[1:], generator=rng) for rng in rngs])
        return x * self.factor + noise

    def decode(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        return (z / self.factor)[:, :, :num_frames]


class Counting:
    """A text encoder whose states are the caption's length; it records its calls."""

    def __init__(self, mask: bool = True) -> None:
        self.mask = mask
        self.denoiser_args = {"condition": "text", "caption_channels": WIDTH, "model_max_length": LENGTH}
        self.requests: list[list[str]] = []
        self.dtype = torch.float32

    def load(self) -> "Counting":
        return self

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Counting":
        self.dtype = dtype or self.dtype
        return self

    def encode(self, captions: Sequence[str]) -> EncodedText:
        self.requests.append(list(captions))
        states = torch.tensor([float(len(caption)) for caption in captions]).view(-1, 1, 1, 1)
        mask = torch.tensor([[int(i < len(caption)) for i in range(LENGTH)] for caption in captions])
        return EncodedText(states.expand(-1, 1, LENGTH, WIDTH).to(self.dtype), mask if self.mask else None)


def codec(text: Counting, dtype: torch.dtype = torch.float32, cache_bytes: int = 10 * CAPTION_BYTES) -> Codec:
    return Codec(Halves(), text, "cpu", dtype, cache_bytes)


def test_video_there_and_back_in_the_compute_type() -> None:
    made = codec(Counting(), torch.bfloat16)
    video = torch.full((2, 3, 4, 2, 2), 0.5)
    z = made.encode_video(video)
    assert made.vae.recorded == torch.bfloat16
    assert (z.dtype, z.requires_grad) == (torch.float32, False)
    assert torch.equal(made.decode_video(z, 3), video[:, :, :3])
    assert not any(parameter.requires_grad for parameter in made.vae.parameters())


VAE_CONFIGS = sorted(path.stem for path in (ROOT / "configs/vae/train").glob("debug*.py"))


@pytest.mark.parametrize("name", VAE_CONFIGS)
def test_latents_drawn_from_stored_moments_are_those_of_encoding(name: str) -> None:
    """OpenSoraVAE_V1_2 draws its spatial latents while the moments are made; the others only afterwards."""
    run = load(str(ROOT / f"configs/vae/train/{name}.py"), [], TrainRun).run
    vae = build_autoencoder(run.vae, seed=3)
    made = Codec(vae, nn.Identity(), "cpu", torch.float32)  # type: ignore[arg-type]
    size = (run.dataset["num_frames"], *run.dataset["image_size"])
    video = torch.rand(2, vae.in_channels, *size, generator=generator(1)) * 2 - 1
    seeds = (5, 6)
    moments = made.encode_moments(video, [generator(seed) for seed in seeds])
    if name == "debug_1_2":
        with torch.no_grad():
            posterior = vae.posterior(video, [generator(seed) for seed in seeds])
            expected = vae.normalize(posterior.draw([generator(seed) for seed in seeds]))
    else:
        expected = made.encode_video(video, [generator(seed) for seed in seeds])
        torch.testing.assert_close(draw_latents(moments, None), made.encode_video(video))
    assert moments.dtype == torch.float32
    torch.testing.assert_close(
        draw_latents(moments, [generator(seed) for seed in seeds]), expected, rtol=1e-5, atol=2e-6
    )


def test_windows_are_joined_as_they_come() -> None:
    class Windows(Halves):
        def decode_windows(self, z: Tensor, num_frames: int | None = None) -> Iterator[Tensor]:
            yield from self.decode(z, num_frames).split(2, dim=2)

    made = Codec(Windows(), Counting(), "cpu", torch.float32)
    z = torch.randn(1, 3, 5, 2, 2)
    assert torch.equal(made.decode_video(z, 5), z * 2)


def test_video_posterior_is_drawn_per_sample() -> None:
    video = torch.zeros(2, 3, 4, 2, 2)
    both = codec(Counting()).encode_video(video, [generator(0, "a"), generator(0, "b")])
    alone = codec(Counting()).encode_video(video[1:], [generator(0, "b")])
    assert torch.equal(both[1:], alone)
    assert not torch.equal(both[0], both[1])


def test_captions_come_in_order_and_are_encoded_once() -> None:
    text = Counting()
    made = codec(text)
    condition = made.encode_text(["abc", "a", "abc"])
    assert condition.text_B1LC.shape == (3, 1, LENGTH, WIDTH)
    assert condition.text_B1LC[:, 0, 0, 0].tolist() == [3, 1, 3]
    assert condition.mask_BL.sum(1).tolist() == [3, 1, 3]
    assert torch.equal(made.encode_text(["a"]).text_B1LC, condition.text_B1LC[1:2])
    assert text.requests == [["abc"], ["a"]]


def test_encoder_without_a_mask_stays_without() -> None:
    assert codec(Counting(mask=False)).encode_text(["a", "b"]).mask_BL is None


def test_class_labels_stay_whole_numbers() -> None:
    made = codec(Counting(), torch.bfloat16)
    assert made.encode_text(["a"]).text_B1LC.dtype == torch.bfloat16
    made.text_encoder = ClassLabels(num_classes=1000)
    condition = made.encode_text(["999", "257", "999"])
    assert condition.text_B1LC.dtype == torch.int64
    assert condition.text_B1LC.tolist() == [999, 257, 999]  # bf16 knows neither
    assert condition.mask_BL is None


def test_least_recently_used_caption_goes_first() -> None:
    text = Counting()
    made = codec(text, cache_bytes=2 * CAPTION_BYTES)
    for caption in ["a", "b", "a", "c", "a", "b"]:
        made.encode_text([caption])
    assert text.requests == [["a"], ["b"], ["c"], ["b"]]
    assert made.captions.size == 2 * CAPTION_BYTES
    assert len(made.captions) == 2


def test_batch_larger_than_the_cache_is_still_whole() -> None:
    made = codec(Counting(), cache_bytes=CAPTION_BYTES)
    assert made.encode_text(["a", "ab", "abc"]).text_B1LC[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert made.captions.size == CAPTION_BYTES


def test_no_cache() -> None:
    text = Counting()
    made = codec(text, cache_bytes=0)
    made.encode_text(["a"])
    made.encode_text(["a"])
    made.encode_text(["a", "a"])  # within a batch once is enough even so
    assert text.requests == [["a"]] * 3
    assert len(made.captions) == 0


def test_replacing_a_caption_keeps_count() -> None:
    cache = CaptionCache(1000)
    cache.put("a", EncodedText(torch.zeros(1, 1, 2, 2), None))
    cache.put("a", EncodedText(torch.zeros(1, 1, 4, 2), None))
    assert cache.size == 32
    assert len(cache) == 1


def test_group_encodes_on_its_leader_and_decodes_on_each_rank() -> None:
    calls: list[str] = []

    def on_leader(encode: Callable[[], Any]) -> Any:
        calls.append("leader")
        return encode()

    text = Counting()
    group = Codec(Halves(), text, "cpu", torch.float32, run_on_leader=on_leader)
    latents = group.encode_video(torch.ones(1, 3, 2, 4, 4))
    assert group.encode_text(["ab", "ab"]).text_B1LC[:, 0, 0, 0].tolist() == [2, 2]
    assert calls == ["leader"] * 2
    assert torch.equal(group.decode_video(latents), torch.ones(1, 3, 2, 4, 4))
    assert calls == ["leader"] * 2


def test_ranks_that_share_a_text_encoder_run_it_equally_often() -> None:
    """Another rank misses three captions in its cache, this one two, then none."""

    def never(encode: Callable[[], Any]) -> Any:
        raise AssertionError("the captions of this rank are its own")

    text, missing = Counting(), []
    shared = Codec(
        Halves(), text, "cpu", torch.float32, run_on_leader=never, max_over_text_ranks=lambda n: missing.append(n) or 3
    )
    for _ in range(2):
        assert shared.encode_text(["a", "bc", "a"]).text_B1LC[:, 0, 0, 0].tolist() == [1, 2, 1]
    assert missing == [2, 0]
    assert text.requests == [["a"], ["bc"], [""], [""], [""], [""]]
