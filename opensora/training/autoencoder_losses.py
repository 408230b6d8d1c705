"""The losses that an autoencoder and a discriminator minimize against each other: the arithmetic, without state.

Scale: `nll` is a sum over the pixels and channels of a frame, averaged over frames, because the balance between the
two losses (`adaptive_weight`) was tuned on that scale. B clips.
Source: Esser et al. 2021, arXiv:2012.09841, eq. 5 to 7 and section 3.1; Open-Sora-Plan 1.1's LPIPSWithDiscriminator3D.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GanLoss = Literal["hinge", "vanilla"]
Distance = Callable[[Tensor, Tensor], Tensor]  # frames [N, C, H, W] twice -> [N]


def reconstruction_error(x_BCTHW: Tensor, y_BCTHW: Tensor, pixels: Literal["l1", "l2"]) -> Tensor:
    """Mean over a clip's pixels of the absolute or squared difference, [B]."""
    difference = y_BCTHW - x_BCTHW
    error = difference.abs() if pixels == "l1" else difference.square()
    return error.flatten(1).mean(1)


def perceptual_error(x_BCTHW: Tensor, y_BCTHW: Tensor, distance: Distance) -> Tensor:
    """Mean distance of a clip's frames, [B]."""
    frames = (clip.transpose(1, 2).flatten(0, 1) for clip in (x_BCTHW, y_BCTHW))
    return distance(*frames).view(len(x_BCTHW), -1).mean(1)


def negative_log_likelihood(error_B: Tensor, frame_size: int, logvar: float = 0.0) -> Tensor:
    """The NLL, [B], of a frame of `frame_size` numbers (channels, rows, columns) whose mean error is `error_B`, up to a
    constant."""
    scaled = error_B / math.exp(logvar) + logvar
    return scaled * frame_size


def adaptive_weight(nll: Tensor, gan: Tensor, last_layer: nn.Parameter) -> Tensor:
    """The weight at which `gan` moves the autoencoder's last layer as strongly as `nll` does; from 0 to 10,000.

    Both are scalars with a graph, which stays. The result has none.
    """
    nll_norm, gan_norm = (
        torch.linalg.vector_norm(torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float())
        for loss in (nll, gan)
    )
    return (nll_norm / (gan_norm + 1e-4)).clamp(0.0, 1e4)


def generator_loss(logits_fake: Tensor, clips: int) -> Tensor:
    """Low where the discriminator calls reconstructions real: [clips]; logits of single frames count for their clip."""
    return -logits_fake.reshape(clips, -1).mean(1)


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor, loss_type: GanLoss) -> Tensor:
    """Low where footage has positive logits and reconstructions have negative ones; a scalar."""
    if loss_type == "hinge":
        return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())
    return 0.5 * (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean())
