"""ST-LPIPS by random weights of the package's layout: the package's own answers to them are recorded here."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from opensora.errors import WeightsError
from opensora.models.shape_checks import ShapeError
from opensora.models.vae.st_lpips import NETS, SMALLEST, STLPIPS, Blur

# stlpips-pytorch 0.0.2, LPIPS(net=NET, variant="shift_tolerant"), with the weights and frames below
RECORDED = {"alex": [0.0158727709, 0.0160962120], "vgg": [0.0122599946, 0.0122815957]}


def random_state(module: nn.Module) -> dict[str, Tensor]:
    """Weights that keep features alive through all layers; heads positive, as trained ones are."""
    rng = torch.Generator().manual_seed(0)
    state = module.state_dict()
    for name in sorted(state):
        if name.endswith(".weight"):
            inputs = state[name][0].numel()
            state[name] = torch.randn(state[name].shape, generator=rng).abs_() / inputs
            if name.startswith("net."):
                state[name] = torch.randn(state[name].shape, generator=rng) * (2 / inputs) ** 0.5
        elif name.endswith(".bias"):
            state[name] = 0.1 * torch.randn(state[name].shape, generator=rng)
    return state


def frames(seed: int, height: int = 24, width: int = 32) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """alex.pth and vgg.pth, laid out as the package's files."""
    folder = tmp_path_factory.mktemp("st_lpips")
    for net in NETS:
        torch.save(random_state(STLPIPS("none", net)), folder / f"{net}.pth")
    return folder


@torch.no_grad()
@pytest.mark.parametrize("net", NETS)
def test_the_distance_is_that_of_the_package(net: str, folder: Path) -> None:
    distance = STLPIPS(str(folder / f"{net}.pth"), net).load()  # type: ignore[arg-type]
    x, y = frames(1), frames(2)
    assert distance(x, y).tolist() == pytest.approx(RECORDED[net], rel=1e-4)
    assert torch.equal(distance(x, x), torch.zeros(2))
    torch.testing.assert_close(distance(y, x), distance(x, y))


@torch.no_grad()
def test_features_are_those_of_each_slice(folder: Path) -> None:
    features = STLPIPS(str(folder / "alex.pth")).load().features(frames(1, 64, 96))
    assert [tuple(each.shape[1:]) for each in features] == [
        (64, 30, 46),
        (192, 15, 23),
        (384, 8, 12),
        (256, 8, 12),
        (256, 8, 12),
    ]
    assert all(each.min() >= 0 for each in features)


def test_a_blur_keeps_what_is_even_and_averages_what_alternates() -> None:
    blur = Blur(2)
    even = torch.full((1, 2, 6, 6), 3.0)
    torch.testing.assert_close(blur(even), torch.full((1, 2, 4, 4), 3.0))
    stripes = torch.tensor([0.0, 1.0]).repeat(3).expand(1, 2, 6, 6)
    torch.testing.assert_close(blur(stripes), torch.full((1, 2, 4, 4), 0.5))


@torch.no_grad()
def test_the_smallest_frames(folder: Path) -> None:
    distance = STLPIPS(str(folder / "alex.pth")).load()
    assert distance(frames(1, SMALLEST, SMALLEST), frames(2, SMALLEST, SMALLEST)).isfinite().all()
    with pytest.raises(ShapeError, match=r"STLPIPS: frames of \[24, 23\]; at least 24 rows"):
        distance(frames(1, 24, 23), frames(2, 24, 23))


def test_weights_of_the_other_network_are_refused(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"vgg\.pth does not fit STLPIPS"):
        STLPIPS(str(folder / "vgg.pth"), "alex").load()
    with pytest.raises(WeightsError, match="no such file"):
        STLPIPS(str(folder / "none.pth")).load()


def test_it_is_frozen_but_teaches_the_frames(folder: Path) -> None:
    distance = STLPIPS(str(folder / "alex.pth")).load()
    distance.train()
    assert not any(module.training for module in distance.modules())
    assert not any(p.requires_grad for p in distance.parameters())
    x = frames(1).requires_grad_()
    distance(x, frames(2)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.any()


def test_weights_lie_in_a_folder_or_in_the_installed_package(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "stlpips_pytorch/weights/vST0.0"
    weights.mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(
        WeightsError, match=r"STLPIPS: weights is not given.*pip install --no-deps stlpips-pytorch==0\.0\.2"
    ):
        STLPIPS().load()
    (weights / "alex_shift_tolerant.pth").symlink_to(folder / "alex.pth")
    (tmp_path / "stlpips_pytorch/__init__.py").write_text("raise ImportError", encoding="utf-8")  # it is not imported
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    expected = torch.load(folder / "alex.pth")["net.slice1.0.weight"]
    for distance in (STLPIPS(str(weights)), STLPIPS()):
        assert torch.equal(distance.load().state_dict()["net.slice1.0.weight"], expected)
