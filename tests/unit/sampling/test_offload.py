"""Sampling with networks that wait on the host."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Generator, Tensor, nn

from opensora.interfaces import Autoencoder
from opensora.models.codec import Codec
from opensora.models.offload import Offload
from opensora.parallel.world import World
from opensora.sampling.generate import Sampler, generate
from opensora.sampling.sample import sample
from opensora.types import EncodedText, SampleRequest, VideoConditioning
from tests.support.fake_sampler import SETTINGS, TOKENS, WIDTH, FakeCodec, request, stdit_sampler

DEVICE = torch.device("meta")  # a label: the networks only note that they were moved there
ALONE = World(0, 1, data_rank=0, data_size=1, local_rank=0, device=torch.device("cpu"))


class Means(Autoencoder):
    """FakeCodec's autoencoder as a module."""

    latent_channels, compression = 4, (1, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.latent_size = FakeCodec().vae.latent_size

    def encode(self, x_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Tensor:
        self.works()
        return FakeCodec().encode_video(x_BCTHW) * self.weight

    def decode(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        self.works()
        return FakeCodec().decode_video(z, num_frames or 0) * self.weight


class Texts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.denoiser_args = {"condition": "text", "caption_channels": WIDTH, "model_max_length": TOKENS}
        self.weight = nn.Parameter(torch.ones(()), requires_grad=False)

    def load(self) -> "Texts":
        return self

    def encode(self, captions: Sequence[str]) -> EncodedText:
        self.works()
        return FakeCodec().encode_text(list(captions))


def placed_sampler(offload: bool) -> tuple[Sampler, list[str]]:
    """A sampler, and the log of the networks that came to the device or worked; one that works is there, and alone."""
    log: list[str] = []
    places: dict[str, bool] = {}
    networks = {"text": Texts(), "model": stdit_sampler().model, "vae": Means()}
    networks["model"].y_embedder.y_embedding.fill_(0.5)  # it is drawn anew for each model

    def follow(name: str, network: nn.Module) -> None:
        def works(*_: object) -> None:
            assert not offload or [each for each, there in places.items() if there] == [name]
            log.append(f"{name} works")

        def move(device: torch.device | None = None, dtype: torch.dtype | None = None) -> nn.Module:
            places[name] = torch.device(device or "cpu") == DEVICE
            if places[name]:
                log.append(f"{name} in")
            return network

        network.works, network.to = works, move  # type: ignore[assignment]
        network.register_forward_pre_hook(works)

    for name, network in networks.items():
        follow(name, network)
    moves = Offload(DEVICE) if offload else None
    codec = Codec(networks["vae"], networks["text"], "cpu", torch.float32, offload=moves)  # type: ignore[arg-type]
    scheduler = stdit_sampler().scheduler
    return Sampler(networks["model"], scheduler, codec, offload=moves, encodes_ahead=offload), log  # type: ignore[arg-type]


def short(log: list[str]) -> list[str]:
    """The log without repetitions."""
    return [line for before, line in zip(["", *log], log, strict=False) if line != before]


def all_conditions(tmp_path: Path) -> list[SampleRequest]:
    """Two requests with a reference and two loops, one of them with a negative prompt."""
    Image.new("RGB", (16, 16), (200, 40, 40)).save(tmp_path / "first.png")
    conditioning = VideoConditioning((str(tmp_path / "first.png"),), "c", "0", loop=2, condition_frame_length=1)
    return [
        request("|0|a red circle|1|a blue one", conditioning=conditioning),
        request("a cat", negative_prompt="noise", index=1, conditioning=conditioning),
    ]


def test_videos_are_bit_equal_and_each_stage_has_the_device_alone(tmp_path: Path) -> None:
    requests = all_conditions(tmp_path)
    (resident, _), (offloaded, log) = placed_sampler(False), placed_sampler(True)
    expected = generate(requests, resident, 3.0)
    assert all(map(torch.equal, generate(requests, offloaded, 3.0), expected))
    stages = [
        each
        for stage in ("vae", "text", "model", "vae", "text", "model", "vae")
        for each in (f"{stage} in", f"{stage} works")
    ]
    assert short(log) == stages  # the reference, then two loops; between them the end of the first clip


@pytest.mark.parametrize("offload", [False, True])
def test_all_prompts_are_encoded_before_the_first_video(offload: bool, tmp_path: Path) -> None:
    sampler, log = placed_sampler(offload)
    sample([request(prompt, index=n) for n, prompt in enumerate(("a", "b", "a"))], sampler, ALONE, tmp_path, SETTINGS)
    assert log.count("text works") == 2
    if offload:
        stages = ["text", *("model", "vae") * 3]
        assert short(log) == [each for stage in stages for each in (f"{stage} in", f"{stage} works")]
