import torch
from torch import nn

from opensora.models.layers.patch import PatchEmbed3D, unpatchify


def test_patches_come_back() -> None:
    """With identity weights, cutting and putting together is the identity."""
    embed = PatchEmbed3D((2, 1, 3), in_channels=2, hidden_size=12)
    with torch.no_grad():
        features = torch.eye(12).view(2, 1, 3, 2, 12).permute(4, 3, 0, 1, 2)  # channel fastest
        embed.proj.weight.copy_(features)
        nn.init.zeros_(embed.proj.bias)
    x = torch.randn(2, 2, 4, 3, 6)
    torch.testing.assert_close(unpatchify(embed(x), (2, 1, 3), 2), x)


def test_sizes_that_do_not_divide_are_padded_at_the_end() -> None:
    embed = PatchEmbed3D((1, 2, 2), 1, 4)
    x = torch.randn(1, 1, 2, 3, 5)
    assert embed(x).shape == (1, 2, 2, 3, 4)
    torch.testing.assert_close(embed(x), embed(nn.functional.pad(x, (0, 1, 0, 1))))
