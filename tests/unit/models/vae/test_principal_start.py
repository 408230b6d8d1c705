"""A start from principal components reconstructs as principal components of whole blocks do."""

from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.errors import ConfigError
from opensora.models.vae.causal_vae import CausalVAEModel
from opensora.models.vae.principal_start import LOG_VARIANCE, principal_components, principal_start, regression

LAYOUT: dict[str, Any] = {
    "hidden_size": 12,
    "hidden_size_mult": (1, 2),
    "num_res_blocks": 1,
    "norm_groups": 1,
    "norm_out": False,
    "encoder_resnet_blocks": ("ResnetBlock2D", "ResnetBlock3D"),
    "decoder_resnet_blocks": ("ResnetBlock3D", "ResnetBlock3D"),
    "encoder_spatial_downsample": ("SpatialUnshuffle2x", ""),
    "encoder_temporal_downsample": ("TimeUnshuffle2x", ""),
    "decoder_spatial_upsample": ("", "SpatialShuffle2x"),
    "decoder_temporal_upsample": ("", "TimeShuffle2x"),
}


def smooth_clips() -> Tensor:
    """Noise of few waves, so that some components of a block hold nearly everything."""
    coarse = torch.randn(8, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (5, 16, 16), mode="trilinear").clamp(-1, 1)


def error(vae: CausalVAEModel, clips: Tensor) -> float:
    with torch.no_grad():
        output, _ = vae(clips, None)
    return (output - clips).square().mean().item()


def blocks(clips: Tensor) -> Tensor:
    """[values of a block of 2x2x2, blocks]; the first frame is a pair with itself, as in the autoencoder."""
    clips = torch.cat([clips[:, :, :1], clips], dim=2)
    parts = clips.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return parts.permute(1, 3, 5, 7, 0, 2, 4, 6).flatten(0, 3).flatten(1)


@pytest.mark.parametrize("channels", [4, 12])
def test_the_start_is_close_to_principal_components_of_blocks(channels: int) -> None:
    clips = smooth_clips()
    torch.manual_seed(0)
    vae = CausalVAEModel(**LAYOUT, z_channels=channels, embed_dim=channels)
    principal_start(vae, clips)
    rows = blocks(clips).double()
    directions = torch.linalg.eigh(rows @ rows.T)[1].flip(1)[:, :channels]
    best = (rows - directions @ (directions.T @ rows)).square().mean().item()
    # the first frame counts twice for the components and once here, and the way up is a regression
    assert 0.7 * best < error(vae, clips) < 1.15 * best
    assert best < 0.15 * clips.square().mean().item()


def test_latents_have_one_scale_and_little_noise() -> None:
    clips = smooth_clips()
    vae = CausalVAEModel(**LAYOUT, z_channels=4, embed_dim=4)
    principal_start(vae, clips)
    posterior = vae.posterior(clips)
    energies = posterior.mean.square().mean((0, 2, 3, 4))
    torch.testing.assert_close(energies, torch.ones(4), rtol=1e-3, atol=1e-3)
    assert torch.equal(posterior.logvar, torch.full_like(posterior.logvar, LOG_VARIANCE))


def test_every_weight_but_the_zeros_can_learn() -> None:
    """The last convolution of every residual branch has a gradient at once, the others after a step."""
    clips = smooth_clips()
    vae = CausalVAEModel(**LAYOUT, z_channels=4, embed_dim=4)
    principal_start(vae, clips)
    optimizer = torch.optim.SGD(vae.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        output, posterior = vae(clips, [torch.Generator().manual_seed(i) for i in range(len(clips))])
        ((output - clips).square().mean() + 1e-3 * posterior.kl().mean()).backward()
        optimizer.step()
    still = [name for name, each in vae.named_parameters() if each.grad is None or not each.grad.any()]
    assert [name for name in still if not name.endswith(".k.conv.bias")] == []  # softmax does not see a key's bias


@pytest.mark.parametrize(
    "change",
    [
        {"norm_out": True},
        {"encoder_spatial_downsample": ("Downsample", "")},
        {"decoder_temporal_upsample": ("", "TimeUpsampleRes2x")},
    ],
)
def test_another_layout_is_refused(change: dict[str, Any]) -> None:
    vae = CausalVAEModel(**{**LAYOUT, **change}, z_channels=4, embed_dim=4)
    with pytest.raises(ConfigError, match="SpatialUnshuffle2x, TimeUnshuffle2x"):
        principal_start(vae, smooth_clips())


def test_latents_of_another_width_are_refused() -> None:
    vae = CausalVAEModel(**LAYOUT, z_channels=4, embed_dim=3)
    with pytest.raises(ConfigError, match="embed_dim=3, z_channels=4; allowed here: equal ones"):
        principal_start(vae, smooth_clips())


def test_components_and_regression() -> None:
    x = torch.tensor([[3.0, -3.0, 3.0, -3.0], [1.0, 1.0, -1.0, -1.0]]).view(1, 2, 1, 2, 2)
    directions, scales = principal_components(x, 2)
    torch.testing.assert_close(directions.abs(), torch.eye(2))
    torch.testing.assert_close(scales, torch.tensor([3.0, 1.0]))
    matrix = torch.tensor([[2.0, -1.0], [0.5, 4.0], [0.0, 1.0]])
    y = torch.einsum("oc,bcthw->bothw", matrix, x)
    torch.testing.assert_close(regression(x, y), matrix, rtol=1e-3, atol=1e-3)
