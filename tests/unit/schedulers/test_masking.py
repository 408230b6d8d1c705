import torch

from opensora.schedulers.masking import choose_frames, mean_over_frames


def test_choose_frames() -> None:
    new, old = torch.ones(1, 2, 3, 2, 2), torch.zeros(1, 2, 3, 2, 2)
    chosen = choose_frames(torch.tensor([[True, False, True]]), new, old)
    assert chosen.mean(dim=(0, 1, 3, 4)).tolist() == [1, 0, 1]
    assert choose_frames(None, new, old) is new


def test_mean_counts_true_frames_only() -> None:
    values = torch.arange(12.0).view(2, 1, 3, 2, 1)
    mean = mean_over_frames(values, torch.tensor([[True, False, True], [False, False, False]]))
    assert mean.tolist() == [2.5, 0.0]
    assert mean_over_frames(values, None).tolist() == [2.5, 8.5]
