"""From foreign files of any kind to a folder that loads: the accepted kinds, the made parts, the refusals."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from opensora.models.build import build_denoiser
from opensora.models.layers.embed import sincos_spatial, sincos_temporal
from opensora.models.read_weights import read_weights
from opensora.models.weights import load_weights, read_config, save_weights
from tools.weights.convert import convert, main

SIZES = {"hidden_size": 16, "depth": 2, "num_heads": 2, "caption_channels": 6, "model_max_length": 3}
INPUT = [2, 4, 6]
WORDS = [f"{key}={value}" for key, value in SIZES.items()]
STDIT = {"type": "STDiT", "input_size": INPUT, **SIZES}


def stdit(**changes: Any) -> dict[str, Tensor]:
    """Weights of a small STDiT, none of them zero."""
    model = build_denoiser({**STDIT, **changes}, seed=7)
    generator = torch.Generator().manual_seed(5)
    state = dict(model.state_dict())
    return {k: v if "pos_embed" in k else torch.randn(v.shape, generator=generator) for k, v in state.items()}


def pixart() -> dict[str, Tensor]:
    """The state of a PixArt file of the same sizes."""
    state = {k: v for k, v in stdit().items() if "attn_temp" not in k and k != "pos_embed_temporal"}
    state["x_embedder.proj.weight"] = state["x_embedder.proj.weight"].squeeze(2)
    return {**state, "pos_embed": torch.randn(1, 4, 16)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.save({"state_dict": pixart(), "epoch": 3, "args": Namespace(lr=1e-4)}, tmp_path / "pixart.pth")
    return tmp_path / "pixart.pth"


def to_stdit(source: Path, out: Path, *more: str) -> int:
    words = ["--from", "pixart-alpha", "--to", "STDiT", f"input_size={INPUT}", *WORDS, *more]
    return main([str(source), str(out), *words])


def assert_is_pixart(folder: Path) -> None:
    state, expected = read_weights(folder), pixart()
    for name, tensor in expected.items():
        if name != "pos_embed":
            assert torch.equal(state[name].reshape(tensor.shape), tensor), name


def test_the_folder_rebuilds_the_model(source: Path, tmp_path: Path) -> None:
    assert to_stdit(source, tmp_path / "out", "space_scale=0.5") == 0
    assert_is_pixart(tmp_path / "out")
    config = read_config(tmp_path / "out")
    run = config.pop("run")
    assert config == {**STDIT, "space_scale": 0.5, "in_channels": 4}
    model = build_denoiser(config)
    load_weights(model, tmp_path / "out")
    state = model.state_dict()
    assert torch.equal(state["pos_embed"][0], torch.as_tensor(sincos_spatial(16, 2, 3, 0.5)).float())
    assert not state["blocks.0.attn_temp.proj.weight"].any()
    assert state["blocks.0.attn_temp.qkv.weight"].any()
    assert run["scheduler"]["type"] == "iddpm"
    assert run["vae"]["scaling_factor"] == 0.18215
    assert run["text_encoder"]["model_max_length"] == 3
    assert (run["num_frames"], run["image_size"]) == (2, [32, 48])
    assert run["converted"] == {"from": "pixart-alpha", "file": "pixart.pth"}


def test_what_it_runs_with_can_be_changed(source: Path, tmp_path: Path) -> None:
    small = [
        "vae.type=CausalVAEModel",
        "vae.from_pretrained=assets/vae-small",
        "scheduler.num_sampling_steps=7",
        "fps=12",
    ]
    assert to_stdit(source, tmp_path / "out", *small) == 0
    run = read_config(tmp_path / "out")["run"]
    assert run["vae"] == {"type": "CausalVAEModel", "from_pretrained": "assets/vae-small"}
    assert run["scheduler"] == {"type": "iddpm", "num_sampling_steps": 7, "cfg_scale": 7.0}
    assert (run["fps"], run["num_frames"], run["image_size"]) == (12, 5, [32, 48])  # 4x in time, 8x8 in space
    assert to_stdit(source, tmp_path / "other", "num_frames=9", "image_size=[40, 40]") == 0
    run = read_config(tmp_path / "other")["run"]
    assert (run["num_frames"], run["image_size"]) == (9, [40, 40])


def write_shards(state: dict[str, Tensor], folder: Path, kind: str) -> None:
    parts = [dict(list(state.items())[i::2]) for i in range(2)]
    files = [f"part-{i}.{kind}" for i in range(2)]
    for part, file in zip(parts, files, strict=True):
        save_file(part, folder / file) if kind == "safetensors" else torch.save(part, folder / file)
    index = {"weight_map": {name: file for part, file in zip(parts, files, strict=True) for name in part}}
    name = "model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json"
    (folder / name).write_text(json.dumps(index))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    write_shards(pixart(), tmp_path / "in", kind)
    assert to_stdit(tmp_path / "in", tmp_path / "out") == 0
    assert_is_pixart(tmp_path / "out")


@pytest.mark.parametrize("wrapper", ["ema", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers(tmp_path: Path, wrapper: str, prefix: str) -> None:
    wrapped = {wrapper: {f"{prefix}{name}": tensor for name, tensor in pixart().items()}, "step": 9}
    torch.save(wrapped, tmp_path / "in.pt")
    assert to_stdit(tmp_path / "in.pt", tmp_path / "out") == 0
    assert_is_pixart(tmp_path / "out")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "model.", "pipeline.denoiser."])
def test_prefixes_that_all_names_share(tmp_path: Path, prefix: str) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in pixart().items()}
    torch.save({"module": {**state, "loss.scale": torch.ones(1)}, "global_steps": 3}, tmp_path / "in.pt")
    assert to_stdit(tmp_path / "in.pt", tmp_path / "out", "--ignore", "loss.") == 0
    assert_is_pixart(tmp_path / "out")


def test_the_average_is_preferred(tmp_path: Path) -> None:
    worse = {name: tensor + 1 for name, tensor in pixart().items()}
    torch.save({"model": worse, "ema": pixart()}, tmp_path / "in.pt")
    assert to_stdit(tmp_path / "in.pt", tmp_path / "out") == 0
    assert_is_pixart(tmp_path / "out")


@pytest.mark.parametrize("length", [2, 5])
def test_caption_table_of_another_length(source: Path, tmp_path: Path, length: int, capsys) -> None:
    assert to_stdit(source, tmp_path / "out", f"model_max_length={length}") == 0
    table, before = read_weights(tmp_path / "out")["y_embedder.y_embedding"], pixart()["y_embedder.y_embedding"]
    rows = [min(i, 2) for i in range(length)]  # the last row is repeated, or rows are cut
    assert torch.equal(table, before[rows])
    assert f"y_embedder.y_embedding: [3, 6] to [{length}, 6]" in capsys.readouterr().out


def test_report_lists_everything(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert to_stdit(source, tmp_path / "out", "--report") == 0
    lines = capsys.readouterr().out.splitlines()
    for name in pixart():
        assert f"  {name}" in lines or f"  {name} (the file's is [1, 4, 16], this is [1, 6, 16])" in lines
    assert "missing, freshly initialized: 8" in lines
    assert "  blocks.1.attn_temp.proj.bias" in lines
    assert "  x_embedder.proj.weight: [16, 4, 2, 2] to [16, 4, 1, 2, 2], patches of one frame" in lines
    assert to_stdit(source, tmp_path / "out") == 0
    short = capsys.readouterr().out.splitlines()
    assert "missing, freshly initialized: 8" in short
    assert "  blocks.*.attn_temp.proj.bias (2)" in short
    assert "  blocks.1.attn_temp.proj.bias" not in short
    assert "  pos_embed (the file's is [1, 4, 16], this is [1, 6, 16])" in short


def test_dry_run_checks_and_writes_nothing(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert to_stdit(source, tmp_path / "out", "--dry-run") == 0
    assert "missing, freshly initialized: 8" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert to_stdit(source, tmp_path / "out", "--dry-run", "depth=3") == 2
    planned = convert(str(source), "pixart-alpha", "STDiT", [f"input_size={INPUT}", *WORDS], dry_run=True).model
    assert all(tensor.is_meta for tensor in planned.state_dict().values())


def test_latents_of_other_channels_have_first_and_last_layers_of_their_own(
    source: Path, tmp_path: Path, capsys
) -> None:
    assert to_stdit(source, tmp_path / "out", "in_channels=6") == 0
    shown = capsys.readouterr().out.splitlines()
    start = shown.index("missing, freshly initialized for other latents: 3") + 1
    names = ["x_embedder.proj.weight", "final_layer.linear.weight", "final_layer.linear.bias"]
    assert [line.split()[0] for line in shown[start : start + 3]] == names
    state, before = read_weights(tmp_path / "out"), pixart()
    assert list(state["x_embedder.proj.weight"].shape) == [16, 6, 1, 2, 2]
    assert not state["final_layer.linear.weight"].any()
    assert torch.equal(state["blocks.1.attn.qkv.weight"], before["blocks.1.attn.qkv.weight"])
    assert torch.equal(state["x_embedder.proj.bias"], before["x_embedder.proj.bias"])
    assert to_stdit(source, tmp_path / "other", "pred_sigma=False") == 2  # not the latents' doing
    assert "2 of another shape: final_layer.linear.weight [32, 16] instead of [16, 16]" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("frames", [1, 4])
def test_an_image_model_of_several_frames_knows_their_places(source: Path, tmp_path: Path, frames: int) -> None:
    words = ["--from", "pixart-alpha", "--to", "PixArt", f"input_size=[{frames},4,4]", *WORDS, "space_scale=1.0"]
    assert main([str(source), str(tmp_path / "out"), *words]) == 0
    assert_is_pixart(tmp_path / "out")
    config = read_config(tmp_path / "out")
    assert build_denoiser({k: v for k, v in config.items() if k != "run"}).no_temporal_pos_emb is (frames == 1)


# our own and Open-Sora's weights at another size


def test_another_size_has_tables_of_its_own(tmp_path: Path) -> None:
    save_weights(tmp_path / "in", stdit(), {**STDIT, "run": {"vae": {"type": "VideoAutoencoderKL", "config": {}}}})
    words = ["--from", "stdit", "input_size=[6, 8, 4]", "space_scale=2.0", "time_scale=3"]
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), *words]) == 0
    state, before = read_weights(tmp_path / "out"), stdit()
    assert torch.equal(state["pos_embed"][0], torch.as_tensor(sincos_spatial(16, 4, 2, 2.0)).float())
    assert torch.equal(state["pos_embed_temporal"][0], torch.as_tensor(sincos_temporal(16, 6, 3)).float())
    assert all(torch.equal(state[name], before[name]) for name in before if "pos_embed" not in name)
    config = read_config(tmp_path / "out")
    assert config["run"]["num_frames"] == 6
    assert config["run"]["vae"] == {"type": "VideoAutoencoderKL", "config": {}}


@pytest.mark.parametrize(("space", "time"), [(0.5, 1.0), (1.0, 2 / 3), (2.0, 1.5)])
def test_sizes_are_read_from_the_tables(tmp_path: Path, space: float, time: float) -> None:
    """A released file has no config; its tables give rows, columns, frames and the meaning of positions."""
    save_file(stdit(space_scale=space, time_scale=time, input_size=[3, 4, 10]), tmp_path / "released.safetensors")
    words = ["--from", "stdit", "--to", "STDiT", *WORDS]
    assert main([str(tmp_path / "released.safetensors"), str(tmp_path / "out"), *words]) == 0
    config = read_config(tmp_path / "out")
    assert config["input_size"] == [3, 4, 10]
    assert config["space_scale"] == space
    assert config["time_scale"] == time
    assert torch.equal(
        read_weights(tmp_path / "out")["pos_embed"], torch.as_tensor(sincos_spatial(16, 2, 5, space)).float()[None]
    )


def test_tables_that_no_formula_gives_are_not_dropped_silently(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_weights(tmp_path / "in", {**stdit(), "pos_embed": torch.randn(1, 6, 16)}, STDIT)
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--from", "stdit"]) == 2
    assert "position tables" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--from", "stdit", f"input_size={INPUT}"]) == 0


def test_foreign_config_next_to_weights(tmp_path: Path) -> None:
    """As hubs hold them: other keys, and null where nothing was said."""
    foreign = {
        "architectures": ["STDiT"],
        "torch_dtype": "float32",
        "input_size": [None] * 3,
        "enable_flash_attn": True,
    }
    save_weights(tmp_path / "in", stdit(), {**foreign, **SIZES, "drop_path": None})
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--from", "stdit"]) == 0
    config = read_config(tmp_path / "out")
    config.pop("run")
    scales = {"space_scale": 1.0, "time_scale": 1.0}
    assert config == {"type": "STDiT-XL/2", "input_size": INPUT, **SIZES, **scales, "in_channels": 4}


# other layouts and autoencoders


@torch.no_grad()
def test_pixart_of_diffusers_gives_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Read from a folder as hubs hold it; then our PixArt answers as diffusers' does."""
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(3)
    theirs = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        sample_size=8,
        cross_attention_dim=16,
        caption_channels=6,
        use_additional_conditions=False,
    ).eval()
    for parameter in theirs.parameters():
        parameter.copy_(torch.randn_like(parameter) / 4)
    theirs.save_pretrained(tmp_path / "transformer")
    words = ["--from", "pixart-diffusers", "--to", "PixArt-XL/2", "model_max_length=3"]
    assert main([str(tmp_path / "transformer"), str(tmp_path / "out"), *words]) == 0
    config = read_config(tmp_path / "out")
    assert config["run"]["image_size"] == [64, 64]
    config.pop("run")
    ours = build_denoiser(config).eval()
    load_weights(ours, tmp_path / "out")
    x, y, t = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 6), torch.tensor([30, 700])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    expected = theirs(
        x, y, t, {"resolution": None, "aspect_ratio": None}, encoder_attention_mask=mask, return_dict=False
    )[0]
    torch.testing.assert_close(ours(x[:, :, None], t, y[:, None], mask)[:, :, 0], expected, rtol=1e-4, atol=1e-4)
    shown = capsys.readouterr().out.splitlines()
    place = shown.index("missing, freshly initialized: 1")
    assert shown[place + 1] == "  y_embedder.y_embedding"
    assert "reshaped: 9, 8 of them only joined" in shown
    assert not any("attn1.to_q" in line for line in shown)
    words = ["--from", "pixart-diffusers", "--to", "STDiT-XL/2", "model_max_length=3", "input_size=[1,8,8]"]
    assert main([str(tmp_path / "transformer"), str(tmp_path / "video"), *words]) == 0
    config = read_config(tmp_path / "video")
    assert {key: config[key] for key in SIZES} == SIZES
    video = build_denoiser({key: value for key, value in config.items() if key != "run"}).eval()
    load_weights(video, tmp_path / "video")
    torch.testing.assert_close(video(x[:, :, None], t, y[:, None], mask)[:, :, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "config", "expected"),
    [
        (
            "dit",
            {"_class_name": "DiTTransformer2DModel", "patch_size": 2},
            "DiTTransformer2DModel; allowed: the file that",
        ),
        (
            "dit",
            {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero"},
            "Transformer2DModel; allowed: the file that",
        ),
        (
            "latte",
            {"_class_name": "LatteTransformer3DModel"},
            "diffusers' LatteTransformer3DModel; allowed: --from latte-t2v",
        ),
        (
            "pixart-alpha",
            {"_class_name": "PixArtTransformer2DModel"},
            "PixArtTransformer2DModel; allowed: --from pixart-",
        ),
        ("causal-vae", {"_class_name": "AutoencoderKL"}, "diffusers' AutoencoderKL; allowed: --from sd-vae"),
    ],
)
def test_diffusers_layouts_are_recognized(
    family: str, config: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_weights(tmp_path / "in", {"a": torch.ones(1)}, config)
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--from", family]) == 2
    message = capsys.readouterr().err
    assert message.startswith(
        f"error: --from: found {family!r} for {tmp_path / 'in'}, but its config.json says that it is"
    )
    assert expected in message


def test_sizes_come_from_the_tensors_and_heads_from_the_user(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["--from", "pixart-alpha", "--to", "STDiT-XL/2", f"input_size={INPUT}", "model_max_length=3"]
    assert main([str(source), str(tmp_path / "out"), *words]) == 2
    assert "has depth=2 hidden_size=16 caption_channels=6, and the number of heads is not" in capsys.readouterr().err
    assert main([str(source), str(tmp_path / "out"), *words, "num_heads=2"]) == 0
    assert_is_pixart(tmp_path / "out")
    config = read_config(tmp_path / "out")
    assert {key: config[key] for key in SIZES} == SIZES


# mistakes


def mistakes() -> dict[str, tuple[list[str], str]]:
    sizes = [f"input_size={INPUT}", *WORDS]
    return {
        "family": (["--from", "pixart"], "--from: found 'pixart'; nearest: 'pixart-"),
        "no target": (["--from", "pixart-alpha", *sizes], "--to: not given, and several are possible; allowed"),
        "target": (["--from", "pixart-alpha", "--to", "STDIT", *sizes], "--to: found 'STDIT'; allowed with --from"),
        "no size": (["--from", "pixart-alpha", "--to", "STDiT", *WORDS], "key 'model.input_size': missing"),
        "argument": (["--from", "pixart-alpha", "--to", "STDiT", *sizes, "dept=2"], "'model.dept': unknown for STDiT"),
        "value": (["--from", "pixart-alpha", "--to", "STDiT", *sizes, "depth=two"], "'model.depth': found 'two'"),
        "part": (["--from", "pixart-alpha", "--to", "STDiT", *sizes, "vea.type=x"], "key 'vea.type': found a dotted"),
        "scheduler": (
            ["--from", "pixart-alpha", "--to", "STDiT", *sizes, "scheduler.steps=3"],
            "'scheduler.steps': unknown for iddpm",
        ),
        "deeper": (["--from", "pixart-alpha", "--to", "STDiT", *sizes, "depth=3"], "15 missing: blocks.2.scale_shift"),
        "shallower": (["--from", "pixart-alpha", "--to", "STDiT", *sizes, "depth=1"], "15 unexpected: blocks.1."),
        "wider": (
            ["--from", "pixart-alpha", "--to", "STDiT", *sizes, "caption_channels=8"],
            "y_embedder.y_embedding [3, 6] instead of [3, 8]",
        ),
        "not a video model": (["--from", "stdit", "--to", "STDiT", *sizes], "8 missing: blocks.0.attn_temp"),
    }


@pytest.mark.parametrize("mistake", mistakes())
def test_mistakes_are_sentences(source: Path, tmp_path: Path, mistake: str, capsys: pytest.CaptureFixture) -> None:
    words, expected = mistakes()[mistake]
    assert main([str(source), str(tmp_path / "out"), *words]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert expected in message
    assert not (tmp_path / "out").exists()


def test_unknown_tensors_need_ignore(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save(
        {**pixart(), "adapter.0.weight": torch.ones(1), "csize_embedder.mlp.0.bias": torch.ones(1)}, tmp_path / "in.pth"
    )
    assert to_stdit(tmp_path / "in.pth", tmp_path / "out") == 2
    assert "1 unexpected: adapter.0.weight" in capsys.readouterr().err
    assert to_stdit(tmp_path / "in.pth", tmp_path / "out", "--ignore", "adapter.") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[shown.index("unexpected, left out: 1") + 1] == "  csize_embedder.mlp.0.bias"  # STDiT knows no sizes


def test_a_file_without_blocks(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({k: v for k, v in pixart().items() if not k.startswith("blocks.")}, tmp_path / "in.pth")
    assert to_stdit(tmp_path / "in.pth", tmp_path / "out") == 2
    assert "it fills no block" in capsys.readouterr().err


def test_files_that_are_not_weights(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert to_stdit(tmp_path / "absent.pth", tmp_path / "out") == 2
    assert "no such file or folder" in capsys.readouterr().err
    (tmp_path / "torn.pth").write_bytes(b"torn")
    assert to_stdit(tmp_path / "torn.pth", tmp_path / "out") == 2
    assert "damaged" in capsys.readouterr().err
    torch.save({"state_dict": {"a": Path("x")}}, tmp_path / "objects.pth")
    assert to_stdit(tmp_path / "objects.pth", tmp_path / "out") == 2
    assert "could run code" in capsys.readouterr().err


def test_the_source_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_weights(tmp_path / "in", stdit(), STDIT)
    before = (tmp_path / "in" / "model.safetensors").read_bytes()
    assert main([str(tmp_path / "in"), str(tmp_path / "in"), "--from", "stdit"]) == 2
    assert "name another folder" in capsys.readouterr().err
    assert (tmp_path / "in" / "model.safetensors").read_bytes() == before
