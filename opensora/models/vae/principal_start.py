"""Begin the training of a CausalVAEModel as the linear transform of blocks that suits its footage best.

Residual branches begin at zero; the convolutions between them become principal components on the way down and linear
regressions on the way up. The start reconstructs about as well as principal components of whole blocks do, the rest is left
to training. A random start has to find those directions first, the fine ones last, since they hold least of the energy.
Source: Kraehenbuehl et al. 2015, arXiv:1511.06856 (principal components as initial weights); the way up is ours.

Shapes: B clips, C channels, T H W frames/rows/columns.
"""

import torch
from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.models.vae.causal_blocks import AttnBlock3DFix, CausalConv3d, ResnetBlock3D
from opensora.models.vae.causal_net import UNetLevel
from opensora.models.vae.causal_vae import CausalVAEModel
from opensora.models.vae.shuffle_blocks import SpatialShuffle2x, SpatialUnshuffle2x, TimeShuffle2x, TimeUnshuffle2x

LOG_VARIANCE = -6.0  # of the first posteriors: a deviation of 0.05 for latents of 1
_DOWN = (SpatialUnshuffle2x, TimeUnshuffle2x)
_GATHER = {SpatialShuffle2x: SpatialUnshuffle2x.gather, TimeShuffle2x: TimeUnshuffle2x.gather}
_RIDGE = 1e-5  # of the mean energy of a channel


@torch.no_grad()
def principal_start(vae: CausalVAEModel, clips_BCTHW: Tensor) -> None:
    """Set all weights of `vae`. Raises ConfigError when its layout has other resampling blocks or `norm_out`.

    vae: on the CPU. clips_BCTHW: float32 in [-1, 1]; some dozen of the footage to be trained on, whose activations are all kept.
    """
    encoder, decoder = vae.encoder, vae.decoder
    resamplers = [
        level.get_submodule(name)
        for level in _levels(nn.ModuleList([*encoder.down, *decoder.up]))
        for name in level.after
    ]
    fits = all(isinstance(each, (*_DOWN, *_GATHER)) for each in resamplers)
    if not fits or vae.config["norm_out"] or not vae.config["double_z"]:
        raise ConfigError(
            "vae: principal components need SpatialUnshuffle2x, TimeUnshuffle2x, SpatialShuffle2x and TimeShuffle2x as the "
            "only resampling blocks, norm_out=False and double_z=True; change the layout, or train from random weights"
        )
    for module in vae.modules():
        _make_neutral(module)
    latents, whole = _start_encoder(vae, clips_BCTHW)
    mixing = torch.eye(vae.config["z_channels"])
    if len(mixing) != vae.latent_channels:
        raise ConfigError(
            f"vae: embed_dim={vae.latent_channels}, z_channels={len(mixing)}; allowed here: equal ones; change one"
        )
    _set(vae.quant_conv, torch.block_diag(mixing, mixing))
    _set(vae.post_quant_conv, mixing)
    _start_decoder(vae, latents, whole, clips_BCTHW)


def _start_encoder(vae: CausalVAEModel, clips: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Latents, and the tensors before each level's resampling with the encoder's result behind them."""
    encoder = vae.encoder
    _set(encoder.conv_in, torch.eye(vae.config["hidden_size"], vae.in_channels))
    x = encoder.conv_in(clips)
    before = []
    for level in _levels(encoder.down):
        x = _run_blocks(level, x)
        if level.after:
            before.append(x)
        for name in level.after:
            module = level.get_submodule(name)
            assert isinstance(module, _DOWN)
            _set(module.conv, principal_components(module.gather(x), x.shape[1])[0])
            x = module(x)
    before.append(x)
    components, deviations = principal_components(x, vae.config["z_channels"])
    means = components / deviations.clamp_min(1e-6)[:, None]
    _set(encoder.conv_out, torch.cat([means, torch.zeros_like(means)]))
    _bias(encoder.conv_out)[len(means) :] = LOG_VARIANCE
    return encoder.conv_out(x)[:, : len(means)], before


def _start_decoder(vae: CausalVAEModel, latents: Tensor, before: list[Tensor], clips: Tensor) -> None:
    decoder = vae.decoder
    _set(decoder.conv_in, regression(latents, before.pop()))
    x = decoder.conv_in(latents)
    for level in reversed(_levels(decoder.up)):
        x = _run_blocks(level, x)
        if level.after:
            aim = _with_channels(before.pop(), x.shape[1])
        modules = [level.get_submodule(name) for name in level.after]
        for module, later in zip(modules, [*modules, None][1:], strict=True):
            target = aim
            if later is not None:  # what the next one needs, in the channels that there are
                pairs = _GATHER[type(later)](aim)
                target = _mix(principal_components(pairs, x.shape[1])[0], pairs)
            assert isinstance(module, (SpatialShuffle2x, TimeShuffle2x))
            _set(module.conv, regression(x, _GATHER[type(module)](target)))
            x = module(x)
    _set(decoder.conv_out, regression(x, clips))


def principal_components(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` directions [count, C] of most energy over all places of [B, C, T, H, W], and the root mean squares along
    them. Energy, not variance: the mean takes part, since nothing subtracts it."""
    rows = x.transpose(0, 1).flatten(1).double()
    energies, directions = torch.linalg.eigh(rows @ rows.T / rows.shape[1])
    return directions.T.flip(0)[:count].float(), energies.flip(0)[:count].clamp_min(0).sqrt().float()


def regression(x: Tensor, y: Tensor) -> Tensor:
    """The matrix [Cy, Cx] that brings the channels of x closest to those of y, place by place."""
    rows, aims = (each.transpose(0, 1).flatten(1).double() for each in (x, y))
    squares = rows @ rows.T
    ridge = _RIDGE * squares.diagonal().mean() * torch.eye(len(squares), dtype=squares.dtype)
    return torch.linalg.solve(squares + ridge, rows @ aims.T).T.float()


def _make_neutral(module: nn.Module) -> None:
    """Residual branches add nothing; a shortcut that changes the channels keeps the first ones, or adds zeros."""
    if isinstance(module, ResnetBlock3D):
        _set(module.conv2, torch.zeros(1, 1))
        if not isinstance(module.nin_shortcut, nn.Identity):
            kernel = _kernel(module.nin_shortcut)
            _set(module.nin_shortcut, torch.eye(*kernel.shape[:2]))
    elif isinstance(module, AttnBlock3DFix):
        _set(module.proj_out, torch.zeros(1, 1))


def _levels(modules: nn.ModuleList) -> list[UNetLevel]:
    return [level for level in modules if isinstance(level, UNetLevel)]


def _run_blocks(level: UNetLevel, x: Tensor) -> Tensor:
    """A level without its resampling; attention is neutral."""
    for block in level.block:
        x = block(x)
    return x


def _inner(convolution: nn.Module) -> nn.Conv2d | nn.Conv3d:
    inner = convolution.conv if isinstance(convolution, CausalConv3d) else convolution
    assert isinstance(inner, nn.Conv2d | nn.Conv3d)
    return inner


def _kernel(convolution: nn.Module) -> Tensor:
    return _inner(convolution).weight


def _bias(convolution: nn.Module) -> Tensor:
    bias = _inner(convolution).bias
    assert bias is not None
    return bias


def _set(convolution: nn.Module, matrix: Tensor) -> None:
    """`matrix` [out, in] at the tap over the pixel itself, zeros elsewhere; the current frame is a causal filter's last."""
    kernel = _kernel(convolution)
    kernel.zero_()
    middle = (kernel.shape[-2] // 2, kernel.shape[-1] // 2)
    (kernel[:, :, -1] if kernel.dim() == 5 else kernel)[..., middle[0], middle[1]] = matrix
    _bias(convolution).zero_()


def _mix(matrix: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("oc,bcthw->bothw", matrix, x)


def _with_channels(x: Tensor, channels: int) -> Tensor:
    """The first channels, or zeros behind them."""
    missing = channels - x.shape[1]
    return (
        x[:, :channels] if missing <= 0 else torch.cat([x, torch.zeros_like(x[:, :1]).repeat_interleave(missing, 1)], 1)
    )
