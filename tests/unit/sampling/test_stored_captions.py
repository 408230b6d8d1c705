"""Captions kept on the disk: what is read again, what is not, and a text encoder that is not loaded."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from opensora.datasets.feature_store import FeatureStore
from opensora.errors import ConfigError, DataError
from opensora.models.text.t5 import T5Encoder
from opensora.sampling.build import SamplerBuilder, plan_sampling
from opensora.sampling.stored_captions import StoredCaptions, captions_of
from opensora.schema import SampleRun
from opensora.types import EncodedText, VideoConditioning
from tests.support.command import ROOT
from tests.support.fake_sampler import FakeDenoiser, request
from tests.support.text_models import tiny_t5

CPU = torch.device("cpu")
A_CAPTION = EncodedText(torch.arange(6.0).view(1, 1, 3, 2), torch.tensor([[1, 1, 0]]))


def opened(folder: Path, dtype: torch.dtype = torch.float32) -> StoredCaptions:
    return StoredCaptions(FeatureStore(folder), lambda caption: caption.strip().rjust(32, "0"), dtype)


def equal(one: EncodedText | None, other: EncodedText) -> bool:
    assert one is not None
    assert one.mask_BL is not None
    assert other.mask_BL is not None
    return torch.equal(one.text_B1LC, other.text_B1LC) and torch.equal(one.mask_BL, other.mask_BL)


def test_another_process_reads_what_one_encoded(tmp_path: Path) -> None:
    opened(tmp_path).put("a cat", A_CAPTION)
    later = opened(tmp_path)
    assert equal(later.get("a cat"), A_CAPTION)
    assert equal(later.get(" a cat "), A_CAPTION)  # the key is the cleaned caption
    assert later.get("a dog") is None
    assert (later.has_all(["a cat"]), later.has_all(["a cat", "a dog"])) == (True, False)


@pytest.mark.parametrize("damage", ["a bit", "cut", "empty", "dtype"])
def test_a_damaged_file_is_named_and_counts_as_missing(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened(tmp_path).put("a cat", A_CAPTION)
    [file] = tmp_path.rglob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes({"a bit": bytes(data), "cut": bytes(data[:-9]), "empty": b"", "dtype": file.read_bytes()}[damage])
    with caplog.at_level(logging.WARNING):
        assert opened(tmp_path, torch.bfloat16 if damage == "dtype" else torch.float32).get("a cat") is None
    assert f"caption_cache: {file} is damaged; its caption is encoded again" in caplog.text
    opened(tmp_path).put("a cat", A_CAPTION)
    assert equal(opened(tmp_path).get("a cat"), A_CAPTION)


def test_a_full_disk_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DataError(f"{tmp_path}: cannot be written (No space left on device)")

    captions = opened(tmp_path)
    monkeypatch.setattr(FeatureStore, "write", refuse)
    with caplog.at_level(logging.WARNING):
        captions.put("a cat", A_CAPTION)
        captions.put("a dog", A_CAPTION)
    assert caplog.text.count("No space left") == 1
    assert equal(captions.get("a dog"), A_CAPTION)


def test_the_captions_are_those_that_sampling_encodes() -> None:
    two = VideoConditioning(loop=2)
    requests = [
        request("|0|a|1|b", conditioning=two, negative_prompt="bad"),
        request("a"),
    ]
    model = FakeDenoiser()
    assert captions_of(requests, model, 3.0) == ["a", "b", "bad"]
    assert captions_of(requests, model, 1.0) == ["a", "b"]
    model.null_text = lambda n: None  # type: ignore[assignment]
    assert captions_of(requests, model, 3.0) == ["a", "b", "", "bad"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A sampling run of a tiny T5, a tiny autoencoder and a tiny denoiser."""
    vae = Config.fromfile(str(ROOT / "configs/_base_/tiny_vae.py")).vae.to_dict()
    return dict(
        vae=vae,
        model={"type": "STDiT", "hidden_size": 24, "depth": 1, "num_heads": 2},
        text_encoder={
            "type": "t5",
            "from_pretrained": str(tiny_t5(tmp_path_factory.mktemp("t5"))),
            "model_max_length": 9,
        },
        scheduler={"type": "rflow", "num_sampling_steps": 2, "cfg_scale": 3.0},
        num_frames=5,
        image_size=(16, 16),
        fps=8.0,
        dtype="fp32",
    )


def encoded(builder: SamplerBuilder, run: SampleRun) -> EncodedText:
    """The captions of a run, encoded as sampling does it."""
    plan = plan_sampling(run, "sample.py")
    sampler, _ = builder.build(plan)
    return sampler.codec.encode_text(captions_of(plan.requests, sampler.model, 3.0))


def test_a_run_whose_captions_are_there_loads_no_text_encoder(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loads: list[str] = []
    load = T5Encoder.load
    monkeypatch.setattr(T5Encoder, "load", lambda self: loads.append(self.from_pretrained) or load(self))
    folder = tmp_path / "captions"
    run = SampleRun(**keys, prompt=["a red circle"], negative_prompt="dark", caption_cache=str(folder))
    expected = encoded(SamplerBuilder(CPU), replace(run, caption_cache=None))
    assert equal(encoded(SamplerBuilder(CPU), run), expected)
    assert len(loads) == 2  # without and with the folder
    later = SamplerBuilder(CPU)
    with caplog.at_level(logging.INFO):
        assert equal(encoded(later, run), expected)
    assert len(loads) == 2
    assert "all captions are in" in caplog.text
    encoded(later, replace(run, prompt=["a red circle", "a blue one"]))  # a page that stays: now it is needed
    assert len(loads) == 3
    # another length of captions, or other weights, is another encoder
    other = replace(run, text_encoder={**keys["text_encoder"], "model_max_length": 10})
    assert encoded(SamplerBuilder(CPU), other).text_B1LC.shape[2] == 10
    assert len(loads) == 4
    assert len(list(folder.glob("text-*"))) == 2


def test_a_folder_that_cannot_be_made(keys: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = SampleRun(**keys, prompt=["a"], caption_cache=str(tmp_path / "file" / "captions"))
    with pytest.raises(
        ConfigError, match=r"key 'caption_cache': .*cannot be written.*choose a folder in a writable place"
    ):
        SamplerBuilder(CPU).build(plan_sampling(run, "sample.py"))


def test_networks_wait_on_the_host_where_the_run_says_so(
    keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr("opensora.sampling.build.select", lambda name: SimpleNamespace(release_memory=lambda: None))
    run = SampleRun(**keys, prompt=["a"], model_cpu_offload=True)
    sampler, _ = SamplerBuilder(torch.device("meta")).build(plan_sampling(run, "sample.py"))
    assert {p.device for net in (sampler.model, sampler.codec.vae) for p in net.parameters()} == {CPU}
    assert sampler.codec.text_encoder.device == CPU  # type: ignore[attr-defined]
    assert sampler.codec.device == torch.device("meta") == sampler.offload.device  # type: ignore[union-attr]
    assert sampler.encodes_ahead
    with caplog.at_level(logging.WARNING):
        on_host, _ = SamplerBuilder(CPU).build(plan_sampling(run, "sample.py"))
    assert on_host.offload is None
    assert "computed on the host, so there is nothing to move" in caplog.text
