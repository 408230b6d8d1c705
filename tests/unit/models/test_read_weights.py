"""Every kind of file that people pass as weights: read, or refused with what it is."""

import gzip
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from opensora.errors import WeightsError
from opensora.models.read_weights import (
    bare_names,
    explain_unreadable,
    find_weights,
    lfs_pointers,
    read_weights,
    shared_prefixes,
)
from opensora.models.weights import load_weights


class Model(nn.Module):
    """Two parts, so that no prefix is shared by all names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 2)
        self.head = nn.Linear(2, 3)


def model_state(value: float = 0.5) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in Model().state_dict().items()}


def prefixed(prefix: str, value: float = 0.5) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in model_state(value).items()}


STATE, OTHER = model_state(), model_state(9.0)
MOMENTS = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}
SAVED: dict[str, Any] = {  # what training programs write -> loads as STATE
    "compiled": prefixed("_orig_mod."),
    "compiled under DDP": prefixed("module._orig_mod."),
    "DDP compiled": prefixed("_orig_mod.module."),
    "Lightning": {"state_dict": prefixed("model."), "epoch": 1, "callbacks": {}},
    "Stable Diffusion": {"state_dict": prefixed("model.diffusion_model.")},
    "any module": prefixed("net.of.mine."),
    "FSDP": {
        f"_fsdp_wrapped_module.{name.replace('.', '._checkpoint_wrapped_module.')}": t for name, t in STATE.items()
    },
    "compiled blocks": {name.replace(".", "._orig_mod."): tensor for name, tensor in STATE.items()},
    "DeepSpeed": {"module": STATE, "buffer_names": [], "optimizer": None, "global_steps": 3},
    "average alone": {"ema_state_dict": STATE, "step": 4},
    "average of compiled": {"ema": prefixed("_orig_mod."), "model": prefixed("_orig_mod.", 9.0)},
    "torch tutorial": {"model_state_dict": STATE, "optimizer_state_dict": MOMENTS},
    "optimizer next to it": {"generator_weights": STATE, "optimizer": MOMENTS, "lr_scheduler": {"step": 1}},
    "average of timm": {"state_dict": OTHER, "state_dict_ema": STATE},
    "wrappers in wrappers": {"model": {"state_dict": STATE}},
    "counters next to tensors": {**STATE, "epoch": 3, "name": "run", "best": None},
    "doubles": {name: tensor.double() for name, tensor in STATE.items()},
    "halves": {name: tensor.half() for name, tensor in STATE.items()},
    "float8": {name: tensor.to(torch.float8_e4m3fn) for name, tensor in STATE.items()},
}


@pytest.mark.parametrize("kind", SAVED)
def test_what_training_programs_put_around_weights_is_taken_off(kind: str, tmp_path: Path) -> None:
    torch.save(SAVED[kind], tmp_path / "weights.pth")
    for device in ("cpu", "meta"):
        with torch.device(device):
            model = Model()
        load_weights(model, tmp_path / "weights.pth")
        for name, tensor in model.state_dict().items():
            assert tensor.unique().tolist() == [0.5], name
        if kind != "halves" or device == "cpu":
            assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def test_the_content_decides_not_the_ending(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.pth")
    torch.save(STATE, tmp_path / "weights.safetensors")
    torch.save(STATE, tmp_path / "3f2a", _use_new_zipfile_serialization=False)
    (tmp_path / "UPPER.PT").symlink_to(tmp_path / "3f2a")
    for name in ("weights.pth", "weights.safetensors", "3f2a", "UPPER.PT"):
        assert read_weights(tmp_path / name).keys() == STATE.keys()


@pytest.mark.parametrize("first", b"\x80{<P")
def test_a_header_whose_length_looks_like_another_kind(first: int, tmp_path: Path) -> None:
    raw = save(STATE)
    length = int.from_bytes(raw[:8], "little")
    spaces = (first - length) % 256
    longer = (length + spaces).to_bytes(8, "little")
    (tmp_path / "weights").write_bytes(longer + raw[8 : 8 + length] + b" " * spaces + raw[8 + length :])
    assert read_weights(tmp_path / "weights").keys() == STATE.keys()


def test_shared_prefixes() -> None:
    assert shared_prefixes(["a.b.weight", "a.b.bias", "a.c.d"]) == ["", "a."]
    assert shared_prefixes(["a.block.w", "a.bloom.w"]) == ["", "a."]
    assert shared_prefixes(["a", "b"]) == shared_prefixes([]) == [""]


def test_names_that_become_equal_stay_apart() -> None:
    assert bare_names({"a._orig_mod.b": 1, "a.b": 2}) == {"a._orig_mod.b": 1, "a.b": 2}


def write_torch(values: object) -> Callable[[Path], object]:
    return lambda path: torch.save(values, path)


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/one.jpg", b"jpg")


def write_cut(keep: float, safe: bool) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        tensors = {name: torch.rand(50, 50) for name in STATE}
        save_file(tensors, path) if safe else torch.save(tensors, path)
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])

    return write


NAN = {**STATE, "head.bias": torch.tensor([1.0, float("nan"), 2.0])}
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "empty, its copy or download failed; copy it again"),
    "LFS pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n"),
        "a Git LFS pointer, not the weights themselves; run `git lfs pull`",
    ),
    "web page": (lambda path: path.write_text("\n<!DOCTYPE html><html>"), "a web page or XML, not weights"),
    "JSON": (lambda path: path.write_text('{"error": "not found"}'), "JSON without a weight_map (it holds: error)"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x")), "compressed by gzip; unpack it"),
    "GGUF": (lambda path: path.write_bytes(b"GGUF\3\0\0\0" + bytes(99)), "a GGUF file of quantized weights"),
    "photos": (write_zip, "a zip archive that torch.save has not made (it holds photos/one.jpg)"),
    "arrays": (lambda path: np.savez(path.open("wb"), a=np.zeros(2)), "has not made (it holds a.npy)"),
    "script": (lambda path: torch.jit.script(nn.Linear(2, 2)).save(str(path)), "a TorchScript program"),
    "whole module": (write_torch(nn.Linear(2, 2)), "which is not read since it could run code"),
    "text": (lambda path: path.write_bytes(b"torn"), "damaged or of an unknown kind (it begins with b'torn')"),
    "half a safetensors": (write_cut(0.5, True), "cannot be read ("),
    "header cut": (write_cut(0.005, True), "cut off or damaged: its header takes"),
    "half of torch.save": (write_cut(0.5, False), "cut off or damaged (File is not a zip file)"),
    "optimizer": (write_torch(MOMENTS), "holds the state of an optimizer; give the weights of the model"),
    "moments": (
        write_torch({"a.exp_avg": torch.ones(1), "a.exp_avg_sq": torch.ones(1)}),
        "the moments of an optimizer",
    ),
    "LoRA": (
        write_torch({f"blocks.0.lora_{half}.weight": torch.ones(1) for half in "AB"}),
        "holds LoRA weights (blocks.0.lora_A.weight, blocks.0.lora_B.weight)",
    ),
    "two models": (
        write_torch({"student": STATE, "teacher": OTHER, "step": 3}),
        "no dictionary of tensors, but 'student' (4 tensors), 'teacher' (4 tensors), 'step' (int)",
    ),
    "list": (write_torch([torch.ones(1)]), "holds a list; give the file of a model's state_dict"),
    "nothing": (write_torch({}), "but an empty dictionary"),
    "other names": (
        write_torch({"a.b": torch.ones(1), "a.c": torch.ones(1), "d": torch.ones(1)}),
        "3 tensors: a.* (2), d;",
    ),
    "others next to it": (
        write_torch({**prefixed("model."), "loss.scale": torch.ones(1)}),
        "all of its names are there with 'model.' before them; the others, such as loss.scale, are left out by",
    ),
    "NaN": (write_torch(NAN), "1 of 4 tensors hold NaN or infinity: head.bias; the run that saved them had diverged"),
    "infinity": (write_torch({**STATE, "head.bias": torch.full([3], torch.inf)}), "hold NaN or infinity: head.bias"),
    "int8": (
        write_torch({**STATE, "embed.weight": torch.ones(2, 3, dtype=torch.int8)}),
        "1 tensors hold whole numbers: embed.weight (int8); quantized weights are not read",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_weights_is_named(kind: str, tmp_path: Path) -> None:
    write, expected = REFUSED[kind]
    path = tmp_path / "weights.bin"
    write(path)
    model = Model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(model, path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def write_shards(folder: Path, **placed: dict[str, Tensor]) -> Path:
    """Shards by name, and an index that places each of STATE in the first shard that holds it."""
    places = {name: f"{shard}.bin" for name in STATE for shard in reversed(placed) if name in placed[shard]}
    for shard, tensors in placed.items():
        save_file(tensors, folder / f"{shard}.bin")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def some(start: int, stop: int, value: float = 0.5) -> dict[str, Tensor]:
    return dict(list(model_state(value).items())[start:stop])


def test_an_old_copy_in_another_shard_does_not_win(tmp_path: Path) -> None:
    read = read_weights(write_shards(tmp_path, a=some(0, 2), b={**some(2, 4), **some(0, 2, 9.0)}))
    assert {name: tensor.max().item() for name, tensor in read.items()} == dict.fromkeys(STATE, 0.5)


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    write_shards(tmp_path, a=some(0, 2), b=some(2, 4))
    save_file(some(2, 3), tmp_path / "b.bin")
    with pytest.raises(WeightsError, match=r"b\.bin: lacks head\.bias; index and shards are of two versions"):
        read_weights(tmp_path)
    save_file({**some(2, 4), "old": torch.ones(1)}, tmp_path / "b.bin")
    with pytest.raises(WeightsError, match=r"b\.bin: holds old, which the index lacks; index and shards are of two"):
        read_weights(tmp_path)
    (tmp_path / "a.bin").unlink()
    with pytest.raises(WeightsError, match=r"1 of its 2 shards are missing: a\.bin; copy them to"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("diffusion_pytorch_model.fp16.safetensors config.json", "diffusion_pytorch_model.fp16.safetensors"),
        ("diffusion_pytorch_model.fp16.bin diffusion_pytorch_model.bin", "diffusion_pytorch_model.bin"),
        ("PixArt-XL-2.pth optimizer.pt scheduler.bin rng_state_0.pth training_args.bin", "PixArt-XL-2.pth"),
        ("epoch=9.ckpt epoch=10.ckpt", "epoch=10.ckpt"),
        ("mp_rank_00_model_states.pt zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"),
        ("m.fp16-00001-of-00002.bin m.fp16-00002-of-00002.bin m.bin.index.fp16.json", "m.bin.index.fp16.json"),
    ],
)
def test_the_file_of_a_folder(names: str, expected: str, tmp_path: Path) -> None:
    for name in names.split():
        (tmp_path / name).touch()
    assert find_weights(tmp_path) == tmp_path / expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("", "looked for model.safetensors, .*; it is empty"),
        ("photo.jpg optimizer.pt", "holds no weights; looked for .*; found: optimizer.pt, photo.jpg"),
        (
            "a.fp16.safetensors a.non_ema.safetensors",
            r"2 files of weights \(a.fp16.safetensors, a.non_ema.safetensors\); name",
        ),
        ("m-00001-of-00002.safetensors", "holds 1 shards without their index"),
        ("adapter_model.safetensors adapter_config.json", "holds an adapter"),
        (
            "model_index.json vae/ transformer/",
            "a whole pipeline of diffusers; name one of its parts: transformer, vae",
        ),
        (
            ".metadata __0_0.distcp",
            "sharded training state of a checkpoint; give the folder of the checkpoint or of the run",
        ),
    ],
)
def test_folders_without_one_file_of_weights(names: str, expected: str, tmp_path: Path) -> None:
    for name in names.split():
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=expected):
        find_weights(tmp_path)


def test_paths_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Model.safetensors").touch()
    (tmp_path / "link.pt").symlink_to(tmp_path / "gone.pt")
    for name, expected in (
        ("model.safetensors", "nearest: 'Model.safetensors'"),
        ("Mode1.safetensors", "nearest: 'Model.safetensors'"),
        ("link.pt", f"a link to {tmp_path / 'gone.pt'}, which does not exist"),
        ("x" * 300, "cannot be read \\(File name too long\\)"),
        ("\0", "no such file or folder"),
    ):
        with pytest.raises(WeightsError, match=expected):
            find_weights(tmp_path / name)
    with pytest.raises(WeightsError, match="addresses are not fetched"):
        find_weights("https://example.org/model.safetensors")
    save_file(STATE, tmp_path / "mine.pt")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_weights("~/mine.pt") == tmp_path / "mine.pt"


def test_pointers_of_a_folder(tmp_path: Path) -> None:
    assert lfs_pointers(tmp_path / "none") == []
    assert "no such file" in explain_unreadable(tmp_path / "none")
    save_file(STATE, tmp_path / "model.safetensors")
    assert explain_unreadable(tmp_path) == ""
    (tmp_path / "spiece.model").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n")
    assert lfs_pointers(tmp_path) == ["spiece.model"]
    assert explain_unreadable(tmp_path).startswith(f"{tmp_path}: spiece.model are Git LFS pointers")
    (tmp_path / "spiece.model").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "model.safetensors: empty" in explain_unreadable(tmp_path)


@pytest.mark.parametrize(
    "name", ["a b", 'it\'s "quoted"', "two\nlines", "[a]", "*", "100%d", "-x", "über", os.fsdecode(b"caf\xe9")]
)
def test_names_of_any_bytes(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    torch.save(STATE, folder / f"{name}.pt")
    assert read_weights(folder).keys() == STATE.keys()
    save_file(STATE, folder / "model.safetensors")
    assert read_weights(folder).keys() == STATE.keys()
