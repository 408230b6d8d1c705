from pathlib import Path

import pytest
import torch
from torch import nn

from opensora.errors import WeightsError
from opensora.models.shape_checks import ShapeError
from opensora.models.vae.discriminator import PatchDiscriminator, PatchDiscriminator2D, PatchDiscriminator3D
from opensora.registry import DISCRIMINATORS, build, names

KINDS = [PatchDiscriminator2D, PatchDiscriminator3D]


def make(kind: type[PatchDiscriminator], **arguments: int) -> PatchDiscriminator:
    torch.manual_seed(0)
    return kind(**{"width": 4, **arguments})


def test_both_are_registered() -> None:
    assert names(DISCRIMINATORS) == ["PatchDiscriminator2D", "PatchDiscriminator3D"]


@pytest.mark.parametrize(
    ("kind", "kernel", "strides", "parameters"),
    [
        (PatchDiscriminator3D, (3, 3, 3), [(2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1)], 4_665_729),
        (PatchDiscriminator2D, (4, 4), [(2, 2), (2, 2), (2, 2), (1, 1), (1, 1)], 2_765_633),
    ],
)
def test_released_sizes(
    kind: type[PatchDiscriminator], kernel: tuple[int, ...], strides: list[tuple[int, ...]], parameters: int
) -> None:
    with torch.device("meta"):
        model = kind()
    convolutions = [each for each in model.main if isinstance(each, nn.Conv2d | nn.Conv3d)]
    assert [each.stride for each in convolutions] == strides
    assert {each.kernel_size for each in convolutions} == {kernel}
    assert [each.out_channels for each in convolutions] == [64, 128, 256, 512, 1]
    assert [each.bias is not None for each in convolutions] == [True, False, False, False, True]
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_initial_weights() -> None:
    model = make(PatchDiscriminator3D, width=32)
    weights = torch.cat([p.flatten() for n, p in model.named_parameters() if p.dim() > 1])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    scales = torch.cat([each.weight for each in model.main if isinstance(each, nn.BatchNorm3d)])
    assert scales.mean().item() == pytest.approx(1.0, abs=0.005)
    assert 0.01 < scales.std().item() < 0.03


def test_channels_double_up_to_eight_times() -> None:
    model = make(PatchDiscriminator3D, layers=5)
    assert [each.num_features for each in model.main if isinstance(each, nn.BatchNorm3d)] == [8, 16, 32, 32, 32]


@pytest.mark.parametrize("kind", KINDS)
def test_judging_teaches_the_clips_but_not_the_weights(kind: type[PatchDiscriminator]) -> None:
    model, clips = make(kind), torch.randn(2, 3, 5, 32, 32, requires_grad=True)
    learning, judging = model(clips), model(clips, learn=False)
    assert torch.equal(learning, judging)
    expected = torch.autograd.grad(learning.mean(), clips)[0]
    judging.mean().backward()
    assert clips.grad is not None
    torch.testing.assert_close(clips.grad, expected)
    assert clips.grad.any()
    assert all(p.grad is None for p in model.parameters())


def test_frames_are_judged_alone_in_two_dimensions() -> None:
    model, clips = make(PatchDiscriminator2D).eval(), torch.randn(2, 3, 3, 32, 32)
    logits = model(clips)
    assert logits.shape == (6, 1, 2, 2)
    torch.testing.assert_close(model(clips[1:, :, 2:]), logits[5:])


def test_clips_too_small_for_a_patch() -> None:
    message = r"clips of \[1, 8, 8\] \(frames, rows, columns\) leave less than two patches to compare"
    with pytest.raises(ShapeError, match=message):
        make(PatchDiscriminator2D)(torch.zeros(2, 3, 1, 8, 8))
    with pytest.raises(ShapeError, match=message):
        make(PatchDiscriminator3D)(torch.zeros(1, 3, 1, 8, 8))  # one number for a batch norm
    assert make(PatchDiscriminator3D)(torch.zeros(2, 3, 1, 8, 8)).shape == (2, 1, 1, 1, 1)
    assert make(PatchDiscriminator3D, layers=1)(torch.zeros(1, 3, 1, 8, 8)).shape == (1, 1, 1, 4, 4)


def test_weights_from_a_training_checkpoint(tmp_path: Path) -> None:
    """As Lightning saves them, with the autoencoder and the rest of the loss; and alone."""
    saved = make(PatchDiscriminator3D).state_dict()
    inside = {f"loss.discriminator.{name}": each for name, each in saved.items()}
    torch.save(
        {"state_dict": {**inside, "loss.logvar": torch.zeros(()), "encoder.x": torch.zeros(1)}}, tmp_path / "a.ckpt"
    )
    torch.save(saved, tmp_path / "b.pt")
    for file in ("a.ckpt", "b.pt"):
        torch.manual_seed(9)
        config = {"type": "PatchDiscriminator3D", "width": 4, "from_pretrained": str(tmp_path / file)}
        fresh = build(DISCRIMINATORS, config)
        assert not torch.equal(fresh.state_dict()["main.0.weight"], saved["main.0.weight"])
        torch.testing.assert_close(dict(fresh.load().state_dict()), dict(saved), rtol=0, atol=0)
        assert fresh.config == {"type": "PatchDiscriminator3D", "channels": 3, "width": 4, "layers": 3}
    with pytest.raises(WeightsError, match="PatchDiscriminator2D"):
        PatchDiscriminator2D(width=4, from_pretrained=str(tmp_path / "b.pt")).load()
