"""An image autoencoder of diffusers' against the CausalVAEModel that is started from it."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.errors import WeightsError
from opensora.models.vae.causal_blocks import CausalConv3d
from opensora.models.vae.causal_vae import CausalVAEModel
from opensora.models.vae.tail_init import ldm_names, tail_init, tail_kernel
from tests.parity.golden import Golden, assert_parity, directories, released_keys

WIDTHS = {"hidden_size": 4, "hidden_size_mult": [1, 2, 2, 3], "num_res_blocks": 1, "norm_groups": 2}
FIRST_RELEASE: dict[str, Any] = {  # version 1.0: modules that change the number of frames have no weights
    **WIDTHS,
    "encoder_conv_in": "CausalConv3d",
    "encoder_attention": "AttnBlock3D",
    "decoder_attention": "AttnBlock3D",
    "encoder_resnet_blocks": ["ResnetBlock3D"] * 4,
    "encoder_spatial_downsample": ["SpatialDownsample2x"] * 3 + [""],
    "encoder_temporal_downsample": ["TimeDownsample2x"] * 2 + ["", ""],
    "decoder_temporal_upsample": ["", "", "TimeUpsample2x", "TimeUpsample2x"],
}


def image_autoencoder() -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4, 8, 8, 12),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        latent_channels=4,
    ).eval()


def causal(**layout: Any) -> CausalVAEModel:
    torch.manual_seed(1)
    return CausalVAEModel(**(layout or WIDTHS)).eval()


def fixed_branch_only(model: CausalVAEModel) -> CausalVAEModel:
    for name, parameter in model.named_parameters():
        if name.endswith("mix_factor"):
            parameter.data.fill_(1e4)  # a sigmoid of exactly 1
    return model


@pytest.mark.parametrize("layout", [WIDTHS, FIRST_RELEASE], ids=["1.1", "1.0"])
@torch.no_grad()
def test_one_frame_is_coded_as_by_the_image_autoencoder(layout: dict[str, Any]) -> None:
    image, model = image_autoencoder(), causal(**layout)
    model.load_state_dict(tail_init(image.state_dict(), model), strict=True)
    fixed_branch_only(model)
    frame = torch.rand(2, 3, 16, 24) * 2 - 1
    expected = image.encode(frame).latent_dist
    actual = model.posterior(frame.unsqueeze(2))
    torch.testing.assert_close(actual.mean.squeeze(2), expected.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.logvar.squeeze(2), expected.logvar, rtol=1e-5, atol=1e-5)
    decoded = model.decode(model.latents.normalize(actual.mean)).squeeze(2)
    torch.testing.assert_close(decoded, image.decode(expected.mean).sample, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_every_image_weight_arrives_in_the_last_tap() -> None:
    image, model = image_autoencoder(), causal()
    filled = tail_init(image.state_dict(), model)
    assert set(filled) == set(model.state_dict())
    weights = image.state_dict()
    kernel = filled["decoder.up.3.block.0.conv1.conv.weight"]  # the coarsest level, diffusers' first
    assert torch.equal(kernel[:, :, 2], weights["decoder.up_blocks.0.resnets.0.conv1.weight"])
    assert not kernel[:, :, :2].any()
    assert torch.equal(
        filled["decoder.up.1.upsample.conv.conv.weight"][:, :, 0],
        weights["decoder.up_blocks.2.upsamplers.0.conv.weight"],
    )
    assert torch.equal(
        filled["encoder.mid.attn_1.proj_out.conv.weight"].flatten(1),
        weights["encoder.mid_block.attentions.0.to_out.0.weight"],
    )
    assert torch.equal(filled["encoder.conv_in.weight"], weights["encoder.conv_in.weight"])
    temporal = {name for name in filled if "time_" in name}
    assert len(temporal) == 12
    assert all(torch.equal(filled[name], model.state_dict()[name]) for name in temporal)


def as_ldm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With 1 x 1 convolutions for attention, as latent-diffusion stores them."""
    return {name: w[:, :, None, None] if w.dim() == 2 else w for name, w in ldm_names(state).items()}


def test_both_namings_give_the_same() -> None:
    model, state = causal(), image_autoencoder().state_dict()
    expected = tail_init(state, model)
    named = as_ldm(state)
    assert "decoder.up.3.block.0.conv1.weight" in named
    assert "encoder.down.0.downsample.conv.bias" in named
    assert "encoder.mid.attn_1.q.weight" in named
    whole = {f"first_stage_model.{name}": each for name, each in named.items()}
    whole |= {"model.diffusion_model.out.weight": torch.zeros(1), "first_stage_model.loss.logvar": torch.zeros(())}
    wrapped = {f"module.{name}": each for name, each in state.items()}
    newer = [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")]
    older = dict(state)
    for new, old in newer:
        older = {name.replace(new, old): each for name, each in older.items()}
    for source in (named, whole, wrapped, older):
        torch.testing.assert_close(tail_init(source, model), expected, rtol=0, atol=0)


def test_what_does_not_fit_is_said() -> None:
    model, state = causal(), image_autoencoder().state_dict()
    less = {name: each for name, each in state.items() if name != "decoder.mid_block.attentions.0.to_k.bias"}
    with pytest.raises(WeightsError, match=r"1 missing.*decoder\.mid\.attn_1\.k\.bias"):
        tail_init(less, model)
    with pytest.raises(WeightsError, match=r"1 unexpected.* extra"):
        tail_init({**state, "extra": torch.zeros(1)}, model)
    with pytest.raises(WeightsError, match=r"quant_conv.weight.*\[9, 8, 1, 1\].*\[8, 8, 1"):
        tail_init({**state, "quant_conv.weight": torch.zeros(9, 8, 1, 1)}, model)
    with pytest.raises(WeightsError, match="image autoencoder"):
        tail_init({"blocks.0.weight": torch.zeros(1)}, model)


def is_tail(golden: Golden) -> bool:
    return golden.has("modules") and "tail.w2d" in golden.tensors("modules")


@pytest.mark.parametrize("golden", directories(is_tail, "tail initialisation"))
@torch.no_grad()
def test_tail_kernel_against_the_original(golden: Golden) -> None:
    recorded = {name.removeprefix("tail."): each for name, each in golden.tensors("modules").items()}
    image, expected, x = recorded["w2d"], recorded["w3d"], recorded["x"]
    kernel = tail_kernel(image, expected)
    assert torch.equal(kernel, expected)
    conv = CausalConv3d(image.shape[1], image.shape[0], tuple(expected.shape[2:]), padding=image.shape[-1] // 2)
    conv.load_state_dict({"conv.weight": kernel, "conv.bias": recorded["bias"]})
    assert_parity(conv(x), recorded["y"])
    for frame in range(x.shape[2]):
        still = torch.nn.functional.conv2d(x[:, :, frame], image, recorded["bias"], padding=image.shape[-1] // 2)
        assert_parity(conv(x)[:, :, frame], still, what=f"frame {frame}")


def test_released_sizes() -> None:
    """Stable Diffusion's image autoencoder into the released layout, sizes only."""
    images = released_keys("os1_2_AutoencoderKL_spatial")
    with torch.device("meta"):
        model = CausalVAEModel()
        state = {re.sub(r"^(module|spatial_vae\.module)\.", "", name): torch.empty(s) for name, s in images.items()}
        filled = tail_init(state, model)
    assert {name: list(each.shape) for name, each in filled.items()} == released_keys("causalvae_v1.1.0")
