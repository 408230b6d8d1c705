"""The toy denoiser with which all golden scheduler cases were recorded (Open-Sora specification, section 0)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Toy:
    """y [B, 1, L, K] is the text of every row of the model's batch; the inputs of each call are stored."""

    y: Tensor
    channels: int | None = None  # outputs kept; None = all 8
    seen_x: list[Tensor] = field(default_factory=list)
    seen_t: list[Tensor] = field(default_factory=list)
    seen_mask: list[Tensor | None] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor, x_mask: Tensor | None = None) -> Tensor:
        self.seen_x.append(x.clone())
        self.seen_t.append(t.clone())
        self.seen_mask.append(None if x_mask is None else x_mask.clone())
        text = self.y.float().mean(dim=(1, 2, 3)).view(-1, 1, 1, 1, 1)
        time = torch.cos(t.float() / 130).view(-1, 1, 1, 1, 1)
        a = 0.55 * x + 0.2 * torch.roll(x, 1, dims=1) + 0.1 * time + 0.25 * text * x.abs()
        b = torch.tanh(0.3 * x - 0.1) + 0.05 * text
        if x_mask is not None:
            a = torch.where(x_mask[:, None, :, None, None].bool(), a, a / 2)
        return torch.cat([a, b], dim=1)[:, : self.channels]
