"""Each shuffle undoes its unshuffle where the convolution between them keeps everything."""

import pytest
import torch
from torch import Tensor, nn

from opensora.models.vae.shuffle_blocks import SpatialShuffle2x, SpatialUnshuffle2x, TimeShuffle2x, TimeUnshuffle2x


def clip(frames: int) -> Tensor:
    return torch.rand(2, 3, frames, 4, 6, generator=torch.Generator().manual_seed(0))


def passing(block: nn.Module) -> nn.Module:
    """The block without its convolution."""
    block.conv = nn.Identity()
    return block


def test_squares_come_back() -> None:
    x = clip(3)
    squares = SpatialUnshuffle2x.gather(x)
    assert squares.shape == (2, 12, 3, 2, 3)
    assert torch.equal(squares[:, 4:8, :, 1, 2], x[:, 1, :, 2:4, 4:6].flatten(2).transpose(1, 2))
    assert torch.equal(passing(SpatialShuffle2x(3))(squares), x)


@pytest.mark.parametrize("frames", [1, 3, 5])
def test_pairs_of_frames_come_back(frames: int) -> None:
    x = clip(frames)
    pairs = TimeUnshuffle2x.gather(x)
    assert pairs.shape == (2, 6, frames // 2 + 1, 4, 6)
    assert torch.equal(pairs[:, 0, 0], pairs[:, 1, 0])  # the first frame is a pair with itself
    assert torch.equal(passing(TimeShuffle2x(3, 1))(pairs), x)


def test_a_frame_without_a_partner_is_left_out() -> None:
    x = clip(4)
    assert torch.equal(TimeUnshuffle2x.gather(x), TimeUnshuffle2x.gather(x[:, :, :3]))


def test_a_later_frame_does_not_change_an_earlier_latent() -> None:
    block, x = TimeUnshuffle2x(3, 1), clip(5)
    later = x.clone()
    later[:, :, 3:] += 1
    assert torch.equal(block(x)[:, :, :2], block(later)[:, :, :2])
    assert not torch.equal(block(x)[:, :, 2], block(later)[:, :, 2])


@pytest.mark.parametrize("block", [SpatialUnshuffle2x(3), SpatialShuffle2x(3), TimeUnshuffle2x(3, 1)])
def test_the_first_convolution_is_a_rotation(block: nn.Module) -> None:
    weight = block.conv.conv.weight.flatten(1)
    short = min(weight.shape)
    product = weight @ weight.T if len(weight) == short else weight.T @ weight
    torch.testing.assert_close(product, torch.eye(short))
