import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from opensora.errors import ConfigError, WeightsError
from opensora.models.read_weights import read_weights
from opensora.models.weights import load_weights, read_config, require_kind, save_weights
from opensora.registry import MODELS, VAES, build


class Inside(nn.Module):
    """A model whose own names start with "module.", as VideoAutoencoderKL's do."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(3, 2)


def state() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in nn.Linear(3, 2).state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def write(kind: str, folder: Path, weights: dict[str, Tensor]) -> Path:
    if kind == "folder":
        return save_weights(folder / "out", weights, {})
    if kind == "diffusers folder":
        save_file(weights, folder / "diffusion_pytorch_model.safetensors")
        return folder
    if kind == "sharded":
        files = {name: f"part-{i}.safetensors" for i, name in enumerate(weights)}
        for name, file in files.items():
            save_file({name: weights[name]}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
        return folder
    if kind == "lightning folder":
        torch.save({"state_dict": state()}, folder / "a.ckpt")
        torch.save({"state_dict": weights, "epoch": 1}, folder / "b.ckpt")
        return folder
    wrap = {
        "plain": weights,
        "ema": {"ema": weights, "state_dict": state(), "step": 3},
        "state_dict": {"state_dict": weights},
        "model in ema": {"model": state(), "ema": {"model": weights}},
        "ddp": {f"module.{name}": tensor for name, tensor in weights.items()},
    }
    torch.save(wrap[kind], folder / "weights.pth")
    return folder / "weights.pth"


KINDS = [
    "folder",
    "diffusers folder",
    "sharded",
    "lightning folder",
    "plain",
    "ema",
    "state_dict",
    "model in ema",
    "ddp",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_reads_the_same(kind: str, tmp_path: Path) -> None:
    weights = state()
    path = write(kind, tmp_path, weights)
    assert equal(read_weights(path), weights)
    plain, inside = nn.Linear(3, 2), Inside()
    load_weights(plain, path)
    load_weights(inside, path)
    assert equal(dict(plain.state_dict()), weights)
    assert equal(dict(inside.module.state_dict()), weights)


def test_a_model_on_meta_takes_the_file(tmp_path: Path) -> None:
    weights = state()
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    load_weights(model, save_weights(tmp_path, weights, {}))
    assert equal(dict(model.state_dict()), weights)


def test_values_are_copied_in_the_module_s_precision(tmp_path: Path) -> None:
    model = nn.Linear(3, 2).to(torch.bfloat16)
    load_weights(model, save_weights(tmp_path, state(), {}))
    assert model.weight.dtype == torch.bfloat16


def test_the_report_names_what_does_not_fit(tmp_path: Path) -> None:
    weights = {"weight": torch.zeros(2, 4), "extra": torch.zeros(1), "loss.a": torch.zeros(1)}
    path = save_weights(tmp_path, weights, {})
    before = nn.Linear(3, 2)
    after = nn.Linear(3, 2)
    after.load_state_dict(before.state_dict())
    with pytest.raises(WeightsError) as caught:
        load_weights(after, path, ignore=["loss."])
    message = str(caught.value)
    assert "1 missing: bias" in message
    assert "1 unexpected: extra;" in message
    assert "weight [2, 4] instead of [2, 3]" in message
    assert "loss" not in message
    assert equal(dict(after.state_dict()), dict(before.state_dict()))


def test_long_reports_are_cut(tmp_path: Path) -> None:
    path = save_weights(tmp_path, {**state(), **{f"x{i}": torch.zeros(1) for i in range(9)}}, {})
    with pytest.raises(WeightsError, match=r"9 unexpected: x0, x1, x2, x3 .*5 more"):
        load_weights(nn.Linear(3, 2), path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "model.safetensors.index.json", "model.txt"])
def test_damaged_files_are_errors_of_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(WeightsError, match=name):
        read_weights(tmp_path / name)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere"):
        read_weights(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="holds no weights"):
        read_weights(tmp_path)


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must not run",))


def test_pickled_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": Runs()}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError):
        read_weights(tmp_path / "weights.pth")
    assert "must not run" not in capsys.readouterr().out


def test_a_failed_save_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = state()
    save_weights(tmp_path, weights, {"hidden_size": 3})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("opensora.files.write_tensors", full)
    with pytest.raises(WeightsError, match="No space left"):
        save_weights(tmp_path, state(), {"hidden_size": 4})
    assert equal(read_weights(tmp_path), weights)
    assert read_config(tmp_path) == {"hidden_size": 3}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_shared_tensors_are_written_twice(tmp_path: Path) -> None:
    table = torch.randn(2, 3)
    save_weights(tmp_path, {"a": table, "b": table}, {})
    assert equal(read_weights(tmp_path), {"a": table, "b": table})


def test_weights_of_another_kind_of_component(tmp_path: Path) -> None:
    for name in ("CausalVAEModel", "PatchDiscriminator3D"):
        folder = save_weights(tmp_path / name, state(), {"type": name})
        with pytest.raises(
            ConfigError, match=rf"key 'load': {folder} holds an? \w+ \({name}, as its config.json says\)"
        ):
            require_kind(folder, MODELS, "key 'load'")
    require_kind(tmp_path / "CausalVAEModel", VAES, "key 'load'")
    require_kind(tmp_path / "CausalVAEModel/model.safetensors", VAES, "key 'load'")
    require_kind(save_weights(tmp_path / "foreign", state(), {"type": "theirs"}), MODELS, "key 'load'")
    require_kind(tmp_path, MODELS, "key 'load'")  # without a config.json
    denoiser = save_weights(tmp_path / "denoiser", state(), {"type": "STDiT"})
    for name in ("CausalVAEModel", "OpenSoraVAE_V1_3", "VideoAutoencoderKL"):
        with pytest.raises(ConfigError, match=rf"key 'vae.from_pretrained': {denoiser} holds a denoiser \(STDiT,"):
            build(VAES, {"type": name, "from_pretrained": str(denoiser)})


def test_config_errors(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="not JSON"):
        read_config(tmp_path)
