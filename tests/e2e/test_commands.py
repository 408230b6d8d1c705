"""Output of `opensora check`, `opensora doctor` and `opensora --help`."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.command import ROOT, TRAIN

CONFIG = str(ROOT / TRAIN)


@pytest.fixture
def printed(opensora, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """`printed("check", ...)`: output of a command that succeeds, on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> str:
        assert opensora(*arguments) == 0
        return capsys.readouterr().out

    return call


def row(text: str, *cells: str) -> list[str]:
    """The one table row that begins with `cells`, as a list of its cells."""
    rows = [
        [cell.strip() for cell in line.replace("┃", "│").strip().strip("│").split("│")] for line in text.splitlines()
    ]
    matches = [each for each in rows if each[: len(cells)] == list(cells)]
    assert len(matches) == 1, (cells, text)
    return matches[0]


def test_check_prints_keys_with_origins_rows_tokens_and_memory(printed) -> None:
    text = printed("check", CONFIG, "world=2", "seed=7", "model.depth=3")
    lines = Path(CONFIG).read_text().splitlines()
    steps = next(number for number, line in enumerate(lines, 1) if line.startswith("steps, "))
    assert row(text, "steps") == ["steps", "6", f"{CONFIG}:{steps}"]
    assert row(text, "seed") == ["seed", "7", "command line"]
    assert row(text, "grad_clip") == ["grad_clip", "1.0", "default"]
    assert row(text, "model.depth")[-1] == "command line"
    assert "'depth': 3" in row(text, "model")[1]
    assert row(text, "in") == ["in", "64", ""]
    assert row(text, "kept") == ["kept", "64", "5x16x16: 64 clips"]
    assert "latents: 3 x 8 x 8 (frames x rows x columns), 48 tokens per sample" in text
    assert "one optimizer step: 4 samples, 192 tokens; 1 micro-batch(es) of 2 on each rank" in text
    for name in ("weights", "optimizer moments", "averaged weights (EMA)", "activations"):
        assert float(row(text, name)[1]) > 0
    assert "2 rank(s)" in text


def test_check_counts_the_parameters_that_training_saves(printed, opensora, tmp_path: Path) -> None:
    assert opensora("train", CONFIG, f"run_dir={tmp_path}", "steps=1", "plugin=ddp") == 0
    weights = tmp_path / "checkpoints/step-00000001/weights/model/model.safetensors"
    fixed = ("pos_embed", "pos_embed_temporal", "y_embedder.y_embedding")  # buffers
    saved = sum(tensor.numel() for name, tensor in load_file(weights).items() if name not in fixed)
    assert f"model: STDiT, {saved:,} parameters" in printed("check", CONFIG)


def test_check_needs_no_weights(printed, opensora, capsys, tmp_path: Path) -> None:
    """`train` fails on the same config because its weights do not exist."""
    options = [CONFIG, f"model.from_pretrained={tmp_path / 'none'}", f"run_dir={tmp_path / 'run'}"]
    assert "48 tokens per sample" in printed("check", *options)
    assert not (tmp_path / "run").exists()
    assert opensora("train", *options) == 1
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_check_and_train_load_an_autoencoder_from_its_run(printed, opensora, tmp_path: Path) -> None:
    """`vae.from_pretrained` is the run that trained it; the diffusion run records the path of its weights."""
    vae = str(ROOT / "configs/vae/train/debug.py")
    assert opensora("train", vae, f"run_dir={tmp_path / 'vae'}", "steps=1", "plugin=ddp") == 0
    options = [
        CONFIG,
        f"vae.from_pretrained={tmp_path / 'vae'}",
        f"run_dir={tmp_path / 'run'}",
        "steps=1",
        "plugin=ddp",
    ]
    assert "48 tokens per sample" in printed("check", *options)
    assert opensora("train", *options) == 0
    config = json.loads((tmp_path / "run/checkpoints/step-00000001/weights/model/config.json").read_text())
    assert config["run"]["vae"]["from_pretrained"] == str(tmp_path / "vae/checkpoints/step-00000001/weights/model")


def test_doctor_prints_versions_device_and_remedies(printed) -> None:
    text = printed("doctor")
    assert row(text, "torch") == ["torch", version("torch")]
    assert "device: cpu" in text
    assert "ranks talk through gloo" in text
    assert row(text, "every plugin but ddp and fsdp")[1] == "found"
    missing = row(text, "Ascend devices")
    assert missing[1] == "not installed"
    assert missing[2] == "pip install -r requirements/npu.txt"


def test_help_names_the_commands(printed) -> None:
    text = printed("--help")
    for name in ("check", "doctor", "sample", "train"):
        assert f"  {name} " in text
