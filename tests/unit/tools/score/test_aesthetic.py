"""CLIP's vectors and a head become a score."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opensora.datasets.table import read_table
from opensora.errors import BadClip, ConfigError
from tests.support.clip_models import WIDTH, tiny_clip_model
from tests.support.media_files import write_video
from tools.runner import main
from tools.score.aesthetic import Aesthetic, read_head
from tools.score.clip import ClipEncoder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_clip_model(tmp_path_factory.mktemp("clip"))


def laion_layers() -> nn.Sequential:
    """The improved aesthetic predictor, narrower."""
    sizes, layers = [WIDTH, 8, 6, 4, 3, 1], list[nn.Module]()
    for place, (size, after) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(size, after), *([nn.Dropout(0.2)] if place < 3 else [])]
    return nn.Sequential(*layers)


def heads() -> dict[str, tuple[nn.Module, dict[str, Tensor]]]:
    mlp, linear = laion_layers().eval(), nn.Linear(WIDTH, 1)
    return {
        "mlp": (mlp, {f"layers.{name}": tensor for name, tensor in mlp.state_dict().items()}),
        "linear": (linear, dict(linear.state_dict())),
    }


@pytest.mark.parametrize("name", ["mlp", "linear"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_heads_of_laion_are_read(name: str, ending: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    head, state = heads()[name]
    path = str(tmp_path / f"head.{ending}")
    torch.save(state, path) if ending == "pth" else save_file(state, path)
    vectors = torch.randn(5, WIDTH)
    torch.testing.assert_close(read_head(path)(vectors), head(vectors))


def test_the_score_is_the_mean_of_the_frames(model: str, tmp_path: Path) -> None:
    head, state = heads()["mlp"]
    torch.save(state, tmp_path / "head.pth")
    rows = [{"path": write_video(tmp_path / f"{count}.mp4", count), "text": "kept"} for count in (12, 5)]
    tool = Aesthetic(head=str(tmp_path / "head.pth"), model=model, device="cpu", frames=3)
    first, bad, second = tool([rows[0], {"path": str(tmp_path / "none.mp4")}, rows[1]])
    assert isinstance(bad, BadClip)
    encoder = ClipEncoder(model, "cpu")
    for row, result in zip(rows, (first, second)):
        [vectors] = encoder.clips([row], 3)
        assert isinstance(result, dict)
        assert result == {**row, "aes": pytest.approx(head(vectors).mean().item(), abs=1e-4)}


def test_the_command_writes_aes(model: str, tmp_path: Path) -> None:
    torch.save(heads()["linear"][1], tmp_path / "head.pth")
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "a.mp4", 3)
    out = str(tmp_path / "out.csv")
    flags = ["--head", str(tmp_path / "head.pth"), "--model", model, "--device", "cpu"]
    assert main(Aesthetic, [str(tmp_path / "clips"), out, *flags], batch_size=8) == 0
    [row] = read_table(out).rows
    assert row["path"] == "clips/a.mp4"
    assert -5 < float(row["aes"]) < 5


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"layers.0.weight": torch.ones(1, 4)}, "found the tensors layers.0.weight; weight and bias"),
        ({f"layers.{n}.{k}": torch.ones(1, 1) for n in (0, 1) for k in ("weight", "bias")}, "of one linear layer"),
        ({"weight": torch.ones(2, 4), "bias": torch.ones(2)}, "of one linear layer"),
        ([1, 2], "holds no named tensors"),
        ({}, "holds no named tensors"),
    ],
)
def test_other_files_are_no_heads(state: Any, message: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "head.pth")
    with pytest.raises(ConfigError, match=f"^--head .*head.pth: .*{message}"):
        read_head(str(tmp_path / "head.pth"))


def test_missing_and_damaged_heads_are_sentences(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.pth: no such file; .* improved-aesthetic-predictor|no such file"):
        read_head(str(tmp_path / "none.pth"))
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(b"not a head")
        with pytest.raises(ConfigError, match=f"{name}: cannot be read .*fetch it again"):
            read_head(str(tmp_path / name))
    torch.save({"weight": torch.ones(1, 9), "bias": torch.ones(1)}, tmp_path / "wide.pth")
    tool = Aesthetic(head=str(tmp_path / "wide.pth"), model=model, device="cpu")
    with pytest.raises(ConfigError, match=f"takes vectors of 9 numbers, and .* makes {WIDTH}"):
        tool([{"path": write_video(tmp_path / "a.mp4", 2)}])
    with pytest.raises(ConfigError, match="--frames 0"):
        Aesthetic(head="x", model=model, frames=0)
