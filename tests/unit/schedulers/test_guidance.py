import torch

from opensora.schedulers.guidance import guided, is_guided


def test_scale_one_is_not_guided() -> None:
    assert not is_guided(None)
    assert not is_guided(1.0)
    assert is_guided(0.0)
    assert is_guided(7.0)


def test_doubled_batch_is_pushed_from_null_to_text() -> None:
    text = torch.tensor([1.0, 2.0, 10.0, 20.0])  # two captions, then two null captions
    seen = []

    def denoise(x: torch.Tensor, t_B: torch.Tensor, x_mask: torch.Tensor | None = None) -> torch.Tensor:
        seen.append((x, t_B, x_mask))
        return text.view(-1, 1, 1, 1, 1).expand(4, 4, 1, 1, 1)

    x, t, mask = torch.randn(2, 2, 1, 1, 1), torch.tensor([5.0, 6.0]), torch.tensor([[True], [False]])
    answer = guided(denoise, 3.0, guided_channels=3)(x, t, mask)
    assert torch.equal(answer[:, :3, 0, 0, 0], torch.tensor([[-17.0] * 3, [-34.0] * 3]))
    assert torch.equal(answer[:, 3, 0, 0, 0], torch.tensor([1.0, 2.0]))
    assert torch.equal(seen[0][0], torch.cat([x, x]))
    assert torch.equal(seen[0][1], torch.cat([t, t]))
    assert torch.equal(seen[0][2], torch.cat([mask, mask]))
    assert torch.equal(guided(denoise, 3.0, None)(x, t, mask)[:, 3, 0, 0, 0], torch.tensor([-17.0, -34.0]))


def test_without_guidance_the_batch_is_not_doubled() -> None:
    x = torch.randn(2, 2, 1, 1, 1)
    assert torch.equal(guided(lambda x, t_B, x_mask=None: x, 1.0, None)(x, torch.zeros(2), None), x)
