import torch

from opensora.models.frame_conditioning import frame_conditioning


def test_frame_conditioning_by_hand() -> None:
    latents = torch.arange(24.0).view(3, 2, 4, 1, 1) + 1
    kwargs = frame_conditioning(latents, [[0, 3], [], [1]], y_null := torch.ones(3, 1, 2, 2), drop_last=1)
    assert kwargs["cond_mask"][:, :, :, 0, 0].tolist() == [[[1, 0, 0, 1]] * 2, [[0] * 4] * 2, [[0, 1, 0, 0]] * 2]
    assert kwargs["cond"][:, :, :, 0, 0].tolist() == [[[1, 0, 0, 4], [5, 0, 0, 8]], [[0] * 4] * 2, [[0] * 4] * 2]
    assert kwargs["mask_index"] == [[0, 3], [], [1]]
    assert kwargs["y_null"] is y_null
    assert not frame_conditioning(latents, [], y_null)["cond_mask"].any()
