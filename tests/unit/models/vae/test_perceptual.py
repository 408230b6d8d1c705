from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from opensora.errors import ConfigError, WeightsError
from opensora.models.shape_checks import ShapeError
from opensora.models.vae.perceptual import LPIPS, SLICES, to_own_keys, unit_normalize


def random_state(module: nn.Module) -> dict[str, Tensor]:
    """Weights that keep features alive through thirteen layers; heads positive, as trained ones are."""
    rng = torch.Generator().manual_seed(0)
    state = module.state_dict()
    for name, tensor in state.items():
        if name.startswith("net.") and tensor.dim() > 1:
            state[name] = torch.randn(tensor.shape, generator=rng) * (2 / tensor[0].numel()) ** 0.5
        elif name.startswith("net."):
            state[name] = 0.1 * torch.randn(tensor.shape, generator=rng)
        elif name.startswith("lin"):
            state[name] = torch.rand(tensor.shape, generator=rng)
    return state


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state(LPIPS("none"))


@pytest.fixture(scope="module")
def files(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """whole.pt; trainer.ckpt as Open-Sora-Plan's; vgg16.pth as torchvision's and heads.pth, which belong together."""
    folder = tmp_path_factory.mktemp("lpips")
    torch.save(state, folder / "whole.pt")
    inside = {f"loss.perceptual_loss.{name}": each for name, each in state.items()}
    torch.save(
        {"state_dict": {**inside, "encoder.x": torch.zeros(1), "loss.logvar": torch.zeros(())}}, folder / "trainer.ckpt"
    )
    vgg = {f"features.{n.split('.', 2)[2]}": each for n, each in state.items() if n.startswith("net.")}
    torch.save({**vgg, "classifier.0.weight": torch.zeros(2, 2)}, folder / "vgg16.pth")
    heads = {name: each for name, each in state.items() if name.startswith("lin")}
    again = {name.replace("lin", "lins.", 1): each for name, each in heads.items()}
    torch.save({**heads, **again}, folder / "heads.pth")
    return folder


@pytest.fixture(scope="module")
def lpips(files: Path) -> LPIPS:
    return LPIPS(str(files / "whole.pt")).load()


def frames(seed: int, height: int = 32, width: int = 24) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def by_formula(state: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """torchvision's list of layers: rectifiers between, pools before 5, 10, 17 and 24; taps after 3, 8, 15, 22, 29."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    features = []
    for image in (x, y):
        h, taps = (image - shift.view(3, 1, 1)) / scale.view(3, 1, 1), []
        for n in range(30):
            weights = [k for k in state if k.startswith("net.") and k.endswith(f".{n}.weight")]
            if weights:
                bias = state[weights[0].removesuffix("weight") + "bias"]
                h = nn.functional.conv2d(h, state[weights[0]], bias, padding=1)
            elif n in (4, 9, 16, 23):
                h = nn.functional.max_pool2d(h, 2, 2)
            else:
                h = h.relu()
            if n in (3, 8, 15, 22, 29):
                taps.append(h)
        features.append(taps)
    total = torch.zeros(len(x))
    for n, (a, b) in enumerate(zip(*features, strict=True)):
        a, b = (f / (f.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for f in (a, b))
        total += ((a - b).pow(2) * state[f"lin{n}.model.1.weight"].view(-1, 1, 1)).sum(1).mean((1, 2))
    return total


@torch.no_grad()
def test_the_distance_is_the_paper_s(lpips: LPIPS, state: dict[str, Tensor]) -> None:
    x, y = frames(1), frames(2)
    actual = lpips(x, y)
    torch.testing.assert_close(actual, by_formula(state, x, y))
    assert actual.min() > 0.1
    assert torch.equal(lpips(x, x), torch.zeros(2))
    torch.testing.assert_close(lpips(y, x), actual)


@torch.no_grad()
def test_the_distance_is_that_of_the_lpips_package(lpips: LPIPS, state: dict[str, Tensor]) -> None:
    package = pytest.importorskip("lpips", reason="the package lpips is not installed")
    theirs = package.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False).eval()
    theirs.load_state_dict(state, strict=False)
    x, y = frames(1), frames(2)
    torch.testing.assert_close(lpips(x, y), theirs(x, y).flatten())


@torch.no_grad()
def test_the_distance_over_alexnet(tmp_path: Path) -> None:
    """torchvision's network, its features behind each rectifier; its file and the heads' belong together."""
    from torchvision.models import alexnet

    state = random_state(LPIPS("none", net="alex"))
    theirs = alexnet(weights=None).features.eval()
    layers = {name.split(".", 2)[2]: each for name, each in state.items() if name.startswith("net.")}
    theirs.load_state_dict(layers)
    torch.save({f"features.{name}": each for name, each in layers.items()}, tmp_path / "alexnet.pth")
    torch.save({name: each for name, each in state.items() if name.startswith("lin")}, tmp_path / "alex.pth")
    x, y = frames(1, 64, 48), frames(2, 64, 48)
    scaling, total = LPIPS("none", net="alex").scaling_layer, torch.zeros(2)
    a, b, head = scaling(x), scaling(y), 0
    for layer in theirs[:-1]:  # not the pool behind the last features
        a, b = layer(a), layer(b)
        if isinstance(layer, nn.ReLU):
            difference = (unit_normalize(a) - unit_normalize(b)).square()
            total += (difference * state[f"lin{head}.model.1.weight"].view(-1, 1, 1)).sum(1).mean((1, 2))
            head += 1
    lpips = LPIPS([str(tmp_path / "alexnet.pth"), str(tmp_path / "alex.pth")], net="alex").load()
    torch.testing.assert_close(lpips(x, y), total)
    assert head == 5
    assert total.min() > 0.1
    assert lpips(frames(1, 31, 31), frames(2, 31, 31)).isfinite().all()
    with pytest.raises(ShapeError, match=r"\[30, 31\]; at least 31 rows"):
        lpips(frames(1, 30, 31), frames(2, 30, 31))


def test_a_network_that_lpips_lacks() -> None:
    with pytest.raises(ConfigError, match="net='squeeze'; allowed: 'vgg', 'alex'"):
        LPIPS("none", net="squeeze")  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("inputs", ["trainer.ckpt", ["vgg16.pth", "heads.pth"]], ids=str)
def test_weights_in_the_usual_files(lpips: LPIPS, files: Path, inputs: str | list[str]) -> None:
    named = str(files / inputs) if isinstance(inputs, str) else [str(files / name) for name in inputs]
    assert torch.equal(LPIPS(named).load()(frames(1), frames(2)), lpips(frames(1), frames(2)))


def test_weights_that_are_not_all_there(files: Path) -> None:
    with pytest.raises(WeightsError, match=r"vgg16\.pth.*LPIPS.*5 missing.*lin0\.model\.1\.weight"):
        LPIPS(str(files / "vgg16.pth")).load()
    with pytest.raises(WeightsError, match="no such file"):
        LPIPS(str(files / "none.pth")).load()
    with pytest.raises(ConfigError, match="weights"):
        LPIPS([])


def test_it_is_frozen_but_teaches_the_frames(lpips: LPIPS) -> None:
    lpips.train()
    assert not any(module.training for module in lpips.modules())
    assert not any(p.requires_grad for p in lpips.parameters())
    x = frames(1).requires_grad_()
    lpips(x, frames(2)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.any()


def test_features_of_nothing_have_a_gradient() -> None:
    """A pixel at which every channel is 0, as behind a rectifier: a plain root of squares would give NaN."""
    x = torch.zeros(1, 3, 1, 1, requires_grad=True)
    unit_normalize(x).square().sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(1, 3, 1, 1))
    long = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(unit_normalize(long).flatten(), torch.tensor([0.6, 0.8]))


def test_frames_too_small_for_five_resolutions(lpips: LPIPS) -> None:
    with pytest.raises(ShapeError, match="at least 16 rows"):
        lpips(torch.zeros(1, 3, 8, 32), torch.zeros(1, 3, 8, 32))


def test_names_that_are_not_its_own_stay_to_be_refused() -> None:
    assert set(to_own_keys({"other": torch.zeros(1), "features.7.bias": torch.zeros(1)})) == {
        "other",
        "net.slice2.7.bias",
    }
    assert [each.number for convolutions in SLICES for each in convolutions][-1] == 28


def test_weights_of_a_folder(files: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    """The files of the network: torchvision's, and the heads as the package lpips names them."""
    (tmp_path / "vgg16-397923af.pth").symlink_to(files / "vgg16.pth")
    (tmp_path / "vgg.pth").symlink_to(files / "heads.pth")
    (tmp_path / "alex.pth").write_text("not read")
    loaded = LPIPS(str(tmp_path)).load().state_dict()
    assert all(torch.equal(loaded[name], each) for name, each in state.items())
    (tmp_path / "none").mkdir()
    with pytest.raises(WeightsError, match=rf"LPIPS: {tmp_path}/none: holds no weights whose names begin with 'vgg'"):
        LPIPS(str(tmp_path / "none")).load()
