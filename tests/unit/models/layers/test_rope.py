import pytest
import torch

from opensora.models.layers.rope import rope_frequencies, rotate_halves, rotate_pairs


def test_rotations_keep_length_and_turn_by_the_difference() -> None:
    """<R(a) q, R(b) k> depends on a - b only: what makes the embedding relative."""
    q, k, frequencies = torch.randn(6), torch.randn(6), rope_frequencies(6)
    assert frequencies.tolist() == pytest.approx([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)])
    for rotate in (rotate_pairs, rotate_halves):
        turned = rotate(q[None], 3.0 * frequencies[None])
        torch.testing.assert_close(turned.norm(), q.norm())
        near = (turned * rotate(k[None], 1.0 * frequencies[None])).sum()
        far = (rotate(q[None], 12.0 * frequencies[None]) * rotate(k[None], 10.0 * frequencies[None])).sum()
        torch.testing.assert_close(near, far)
    angle = torch.tensor([[torch.pi / 2, 0.0, 0.0]])
    pair = rotate_pairs(torch.tensor([[1.0, 2, 3, 4, 5, 6]]), angle)
    torch.testing.assert_close(pair, torch.tensor([[-2.0, 1, 3, 4, 5, 6]]))
    half = rotate_halves(torch.tensor([[1.0, 2, 3, 4, 5, 6]]), angle)
    torch.testing.assert_close(half, torch.tensor([[-4.0, 2, 3, 1, 5, 6]]))
