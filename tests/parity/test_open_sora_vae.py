"""Open-Sora's own autoencoders, 1.2 and 1.3, and Stable Video Diffusion's, against the originals' numbers."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.models.vae.autoencoder_kl import VideoAutoencoderKLTemporalDecoder
from opensora.models.vae.gaussian import Gaussian
from opensora.models.vae.open_sora_1_2 import OpenSoraVAE_V1_2
from opensora.models.vae.open_sora_1_3 import OpenSoraVAE_V1_3
from opensora.models.vae.temporal_vae import VAE_Temporal
from opensora.registry import VAES, build
from tests.parity.golden import Case, Golden, assert_parity, cases, directories, released_keys

ILL_CONDITIONED = 1e-4  # of the 1.3 cases: norms of one channel on 2x2 maps
NO_NUMBERS = ("micro_batch_size_2d",)  # how many frames the original's plain convolutions take at a time
NOT_NORMALISED: dict[str, None] = {"latent_shift": None, "latent_scale": None}


def recorded_sizes(golden: Golden) -> dict[tuple[int, ...], tuple[int, ...]]:
    """(frames, rows, columns) -> the same of the latents, where all are known; keys read "(17, 64, 64)"."""
    listed = golden.config["latent_sizes"].items()
    return {tuple(map(int, k.strip("()").split(","))): tuple(v) for k, v in listed if "None" not in k}


def recorded_noise(case: Case) -> list[Tensor]:
    """Draws in the order in which they were made."""
    return [case.inputs[key] for key in sorted(case.inputs) if key.startswith("noise.")]


def sample_or_mode(posterior: Gaussian, noise: Tensor | None) -> Tensor:
    return posterior.mode() if noise is None else posterior.sample(noise)


def is_temporal(golden: Golden) -> bool:
    return golden.config.get("cls") == "VAE_Temporal" and golden.has("state")


def temporal(golden: Golden) -> VAE_Temporal:
    model = VAE_Temporal(**golden.config["kwargs"])
    model.load_state_dict(golden.state(), strict=True)
    return model.eval()


@pytest.mark.parametrize("named", cases(is_temporal, "VAE_Temporal"))
@torch.no_grad()
def test_temporal(named: tuple[Golden, str]) -> None:
    golden, name = named
    model, case = temporal(golden), golden.case(name)
    x, outputs = case.inputs["x"], {}
    inner = {
        "encoder.conv_in": model.encoder.conv_in,
        "encoder.out": model.encoder,
        "post_quant": model.post_quant_conv,
    }
    for path, module in inner.items():
        module.register_forward_hook(lambda _m, _i, out, path=path: outputs.update({path: out}))
    posterior = model.posterior(x)
    mean, logvar = case.outputs["moments"].chunk(2, dim=1)
    assert_parity(posterior.mean, mean, what="mean")
    assert_parity(posterior.logvar, logvar.clamp(-30, 20), what="logvar")
    assert_parity(posterior.kl(), case.outputs["kl"], what="KL divergence")
    z = posterior.sample(case.inputs["noise"])
    assert_parity(z, case.outputs["z_sample"], what="sample")
    assert_parity(model.decode(case.outputs["z_sample"], x.shape[2]), case.outputs["rec_sample"], what="of a sample")
    assert_parity(model.decode(mean, x.shape[2]), case.outputs["rec_mode"], what="of the mode")
    for path, expected in case.inner.items():
        assert_parity(outputs[path], expected, what=path)


def is_pipeline(golden: Golden) -> bool:
    return golden.config.get("cls") == "VideoAutoencoderPipeline" and golden.has("state")


def pipeline(golden: Golden) -> OpenSoraVAE_V1_2:
    config = golden.config
    model = OpenSoraVAE_V1_2(
        spatial={"config": config["autoencoder_kl"], "scaling_factor": config["spatial_factor"]},
        temporal=config["vae_temporal"],
        **{key: config[key] for key in ("micro_frame_size", "micro_batch_size", "shift", "scale")},
    )
    model.load_state_dict(golden.state(), strict=True)
    return model.eval()


@pytest.mark.parametrize("named", cases(is_pipeline, "OpenSoraVAE_V1_2"))
@torch.no_grad()
def test_pipeline(named: tuple[Golden, str]) -> None:
    """The original draws for each group of frames and then for each clip; here that is one draw per part."""
    golden, name = named
    model, case = pipeline(golden), golden.case(name)
    x, noise = case.inputs["x"], recorded_noise(case)
    frames = [draw for draw in noise if draw.dim() == 4]
    clips = [draw for draw in noise if draw.dim() == 5]
    of_frames = torch.cat(frames).unflatten(0, (len(x), -1)).transpose(1, 2) if frames else None
    of_clips = torch.cat(clips, dim=2) if clips else None
    x_z = model.spatial_vae.latents.normalize(sample_or_mode(model.spatial_vae.posterior(x), of_frames))
    z = model.normalize(sample_or_mode(model.temporal_posterior(x_z), of_clips))
    assert_parity(z, case.outputs["z"], what="latents")
    if not noise:
        assert_parity(model.encode(x), case.outputs["z"], what="latents without noise")
    assert_parity(model.decode(case.outputs["z"], x.shape[2]), case.outputs["rec"], what="reconstruction")


def is_v1_3(golden: Golden) -> bool:
    return "pipeline_kwargs" in golden.config and "temporal_up_layers" in golden.config.get("decoder", {})


def v1_3(golden: Golden, stats: Mapping[str, Any]) -> OpenSoraVAE_V1_3:
    encoder, decoder = golden.config["encoder"], golden.config["decoder"]
    pieces = {k: v for k, v in golden.config["pipeline_kwargs"].items() if k not in ("normalization", *NO_NUMBERS)}
    model = OpenSoraVAE_V1_3(
        hidden_size=encoder["ch"],
        hidden_size_mult=encoder["ch_mult"],
        num_res_blocks=encoder["num_res_blocks"],
        z_channels=encoder["z_channels"],
        down_sampling_layer=encoder["down_sampling_layer"],
        temporal_up_layers=decoder["temporal_up_layers"],
        **pieces,
        **stats,
    )
    model.load_state_dict(golden.state(), strict=True)
    return model.eval()


@pytest.mark.parametrize("named", cases(is_v1_3, "OpenSoraVAE_V1_3"))
@torch.no_grad()
def test_v1_3(named: tuple[Golden, str]) -> None:
    golden, name = named
    video = golden.config["pipeline_kwargs"].get("normalization") == "video"
    model, case = v1_3(golden, {} if video else NOT_NORMALISED), golden.case(name)
    x, noise = case.inputs["x"], case.inputs.get("noise")
    posterior = model.posterior(x)
    mean, logvar = case.outputs["moments"].chunk(2, dim=1)
    assert_parity(posterior.mean, mean, ILL_CONDITIONED, what="mean")
    assert_parity(posterior.logvar, logvar.clamp(-30, 20), ILL_CONDITIONED, what="logvar")
    z = model.latents.normalize(sample_or_mode(posterior, noise))
    assert_parity(z, case.outputs["z"], ILL_CONDITIONED, what="latents")
    decoded = model.decode(case.outputs["z"], x.shape[2])
    assert_parity(decoded, case.outputs["rec"], ILL_CONDITIONED, what="reconstruction")


def has_sizes(golden: Golden) -> bool:
    return "latent_sizes" in golden.config and (is_temporal(golden) or is_pipeline(golden) or is_v1_3(golden))


@pytest.mark.parametrize("golden", directories(has_sizes, "sizes of latents"))
def test_latent_sizes(golden: Golden) -> None:
    make = temporal if is_temporal(golden) else pipeline if is_pipeline(golden) else partial(v1_3, stats=NOT_NORMALISED)
    model = make(golden)
    sizes = recorded_sizes(golden)
    assert sizes
    assert {size: model.latent_size(size) for size in sizes} == sizes
    assert model.compression[0] == golden.config.get("time_downsample_factor", model.compression[0])


def is_statistics(golden: Golden) -> bool:
    return (golden.path / "latent_stats.json").is_file()


@pytest.mark.parametrize("golden", directories(is_statistics, "statistics of latents"))
def test_released_statistics(golden: Golden) -> None:
    """Of videos: those of the released autoencoder, which its fixed layout decides."""
    recorded = json.loads((golden.path / "latent_stats.json").read_text(encoding="utf-8"))["video"]
    with torch.device("meta"):
        config = OpenSoraVAE_V1_3(hidden_size=32, num_res_blocks=1).config
    assert list(config["latent_shift"]) == recorded["mean"]
    assert [1 / scale for scale in config["latent_scale"]] == pytest.approx(recorded["std"], rel=1e-12)


def keys_of(name: str) -> dict[str, list[int]]:
    with torch.device("meta"):
        model = build(VAES, {"type": name})
    return {key: list(tensor.shape) for key, tensor in model.state_dict().items()}


def test_released_temporal_keys() -> None:
    expected = released_keys("os1_2_VAE_Temporal_SD")
    assert keys_of("VAE_Temporal_SD") == expected
    assert keys_of("VAE_Temporal") == expected


def test_released_pipeline() -> None:
    expected: dict[str, list[int]] = {"shift": [1, 4, 1, 1, 1], "scale": [1, 4, 1, 1, 1]}
    for prefix, name in (("spatial_vae.module", "AutoencoderKL_spatial"), ("temporal_vae", "VAE_Temporal_SD")):
        expected |= {f"{prefix}.{key}": shape for key, shape in released_keys(f"os1_2_{name}").items()}
    assert keys_of("OpenSoraVAE_V1_2") == expected


def test_released_v1_3_keys() -> None:
    assert keys_of("OpenSoraVAE_V1_3") == released_keys("os1_3_OpenSoraVAE_V1_3")


@pytest.mark.parametrize("frames", [1, 4])
@torch.no_grad()
def test_temporal_decoder_is_diffusers(frames: int) -> None:
    from diffusers import AutoencoderKLTemporalDecoder

    config: dict[str, Any] = {
        "block_out_channels": [32, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "layers_per_block": 2,
        "latent_channels": 3,
    }
    torch.manual_seed(0)
    original = AutoencoderKLTemporalDecoder(**config).eval()
    for p in original.parameters():
        p.add_(0.05 * torch.randn(p.shape))
    model = VideoAutoencoderKLTemporalDecoder(config=config, scaling_factor=0.5).eval()
    model.load_state_dict({f"module.{key}": tensor for key, tensor in original.state_dict().items()}, strict=True)
    x = torch.rand(2, 3, frames, 16, 24) * 2 - 1
    stills = x.transpose(1, 2).flatten(0, 1)
    z = original.encode(stills).latent_dist.mode()
    assert_parity(model.encode(x).transpose(1, 2).flatten(0, 1), 0.5 * z, what="latents")
    expected = original.decode(z, num_frames=frames).sample.unflatten(0, (2, frames)).transpose(1, 2)
    assert_parity(model.decode(model.encode(x)), expected, what="reconstruction")
    assert_parity(model(x)[0], expected, what="forward")
