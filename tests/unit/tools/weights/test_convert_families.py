"""Convert released files of DiT, Latte, LatteT2V and autoencoders; sizes are inferred from the file or are flags."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.errors import OpenSoraError
from opensora.models.build import build_denoiser
from opensora.models.layers.embed import sincos_spatial, sincos_temporal
from opensora.models.read_weights import read_weights
from opensora.models.vae.causal_vae import CausalVAEModel
from opensora.models.vae.open_sora_1_2 import OpenSoraVAE_V1_2
from opensora.models.weights import load_weights, read_config, save_weights
from tools.weights.convert import main

SIZES = {"hidden_size": 16, "depth": 2, "num_heads": 2}
WORDS = [f"{key}={value}" for key, value in SIZES.items()]


def by_class(kind: str, frames: int, classes: int = 5) -> dict[str, Tensor]:
    """A file of DiT or Latte: image patches and tables under their own names."""
    model = build_denoiser(
        {"type": kind, **SIZES, "condition": f"label_{classes}", "input_size": [frames, 8, 8]}, seed=3
    )
    state = {name: torch.randn(t.shape) for name, t in model.state_dict().items() if not name.startswith("pos_embed")}
    state["x_embedder.proj.weight"] = state["x_embedder.proj.weight"].squeeze(2)
    state["pos_embed"] = torch.as_tensor(sincos_spatial(16, 4, 4)).float()[None]
    if frames > 1:
        state["temp_embed"] = torch.as_tensor(sincos_temporal(16, frames)).float()[None]
    return state


def rebuilt(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of the model that config.json describes, with the weights in it; and that config without its run."""
    config = read_config(folder)
    run = config.pop("run")
    model = build_denoiser(config)
    load_weights(model, folder)
    return model.state_dict(), {**config, "run": run}


def test_dit(tmp_path: Path) -> None:
    state = by_class("DiT", frames=1)
    torch.save(state, tmp_path / "DiT.pt")
    assert main([str(tmp_path / "DiT.pt"), str(tmp_path / "out"), "--from", "dit", *WORDS]) == 0
    weights, config = rebuilt(tmp_path / "out")
    assert config["type"] == "DiT-XL/2"
    assert config["condition"] == "label_5"
    assert config["input_size"] == [1, 8, 8]
    assert config["no_temporal_pos_emb"] is True
    assert config["run"]["image_size"] == [64, 64]
    assert config["run"]["text_encoder"] == {"type": "classes", "num_classes": 5}
    assert torch.equal(weights["pos_embed_spatial"], state["pos_embed"])
    for name in state.keys() - {"pos_embed"}:
        assert torch.equal(weights[name].reshape(state[name].shape), state[name]), name


@pytest.mark.parametrize("setting", ["condition=label_5", "class_dropout_prob=0"])
def test_classes_without_one_for_no_class(tmp_path: Path, setting: str) -> None:
    """A table of five rows is five classes when either flag is set; without a flag its last row means "no class"."""
    state = by_class("DiT", frames=1)
    rows = "y_embedder.embedding_table.weight"
    state[rows] = state[rows][:5]
    torch.save(state, tmp_path / "DiT.pt")
    source, words = str(tmp_path / "DiT.pt"), ["--from", "dit", *WORDS]
    assert main([source, str(tmp_path / "out"), *words, setting]) == 0
    weights, config = rebuilt(tmp_path / "out")
    assert (config["condition"], config["class_dropout_prob"]) == ("label_5", 0)
    assert config["run"]["text_encoder"] == {"type": "classes", "num_classes": 5}
    assert torch.equal(weights[rows], state[rows])
    del config["run"]
    model = build_denoiser(config)
    with pytest.raises(OpenSoraError, match=r"class_dropout_prob=0.*null class"):
        model.null_text(1)
    assert main([source, str(tmp_path / "other"), *words]) == 0
    assert rebuilt(tmp_path / "other")[1]["condition"] == "label_4"
    assert main([source, str(tmp_path / "wrong"), *words, "condition=label_7"]) == 2


def test_latte(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    state = by_class("Latte", frames=4)
    worse = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"model": worse, "ema": state, "opt": {"state": {}}, "args": Namespace(lr=1e-4)}, tmp_path / "ucf101.pt")
    words = [str(tmp_path / "ucf101.pt"), str(tmp_path / "out"), "--from", "latte", *WORDS]
    assert main(words) == 0
    weights, config = rebuilt(tmp_path / "out")
    assert (config["condition"], config["input_size"]) == ("label_5", [4, 8, 8])
    assert "no_temporal_pos_emb" not in config
    assert (config["run"]["num_frames"], config["run"]["fps"]) == (4, 8)
    for name in state.keys() - {"pos_embed", "temp_embed"}:
        assert torch.equal(weights[name].reshape(state[name].shape), state[name]), name
    capsys.readouterr()
    assert main([*words, "input_size=[8,8,8]"]) == 0
    assert "pos_embed_temporal (the file's is [1, 4, 16], this is [1, 8, 16])" in capsys.readouterr().out
    longer = read_weights(tmp_path / "out")["pos_embed_temporal"]
    assert torch.equal(longer[0], torch.as_tensor(sincos_temporal(16, 8)).float())


LATTE_T2V = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": 6,
    "norm_type": "ada_norm_single",
}
NATIVE = {"sample_size": [8, 8], "video_length": 5}


def latte_t2v() -> dict[str, Tensor]:
    model = build_denoiser({"type": "LatteT2V", **LATTE_T2V, **NATIVE})
    return {name: torch.randn(tensor.shape) for name, tensor in model.state_dict().items()}


def test_latte_t2v_folder(tmp_path: Path) -> None:
    """As a hub holds it: diffusers' config, of which the model knows a part."""
    state = latte_t2v()
    foreign = {"_class_name": "LatteT2V", "_diffusers_version": "0.24.0", "num_embeds_ada_norm": 1000, "dropout": 0.0}
    save_weights(tmp_path / "65x512x512", state, {**foreign, **LATTE_T2V, **NATIVE})
    assert main([str(tmp_path / "65x512x512"), str(tmp_path / "out"), "--from", "latte-t2v"]) == 0
    weights, config = rebuilt(tmp_path / "out")
    assert set(weights) == set(state)
    assert all(torch.equal(weights[name], state[name]) for name in state)
    assert config["type"] == "LatteT2V-XL/122"
    assert (config["run"]["num_frames"], config["run"]["image_size"]) == (17, [64, 64])  # 4x in time, 8x8 in space
    assert config["run"]["scheduler"]["type"] == "PNDM"
    assert main([str(tmp_path / "out"), str(tmp_path / "longer"), "--from", "latte-t2v", "video_length=9"]) == 0
    assert read_config(tmp_path / "longer")["run"]["num_frames"] == 33


@torch.no_grad()
def test_latte_of_diffusers_gives_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It has no null caption, so that is new; everything else agrees."""
    from diffusers import LatteTransformer3DModel

    torch.manual_seed(3)
    sizes = {key: value for key, value in LATTE_T2V.items() if key != "cross_attention_dim"}
    theirs = LatteTransformer3DModel(
        **sizes,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        video_length=4,
        activation_fn="gelu-approximate",
        attention_bias=True,
        norm_elementwise_affine=False,
    ).eval()
    for parameter in theirs.parameters():
        parameter.copy_(torch.randn_like(parameter) / 4)
    theirs.save_pretrained(tmp_path / "transformer")
    words = ["--from", "latte-t2v", "model_max_length=3"]
    assert main([str(tmp_path / "transformer"), str(tmp_path / "out"), *words]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[shown.index("missing, freshly initialized: 1") + 1] == "  caption_projection.y_embedding"
    config = read_config(tmp_path / "out")
    ours = build_denoiser({key: value for key, value in config.items() if key != "run"}).eval()
    load_weights(ours, tmp_path / "out")
    x, y, t = torch.randn(1, 4, 4, 8, 8), torch.randn(1, 3, 6), torch.tensor([300])
    expected = theirs(x, t, encoder_hidden_states=y, return_dict=False)[0]
    torch.testing.assert_close(ours(x, t, y[:, None]), expected, rtol=1e-4, atol=1e-4)


def test_latte_t2v_file_with_compressed_keys(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    state = latte_t2v()
    torch.save({"model": state}, tmp_path / "t2v.pt")
    sizes = [f"{key}={value}" for key, value in {**LATTE_T2V, **NATIVE}.items()]
    words = [str(tmp_path / "t2v.pt"), str(tmp_path / "out"), "--from", "latte-t2v", *sizes]
    assert main([*words, "compress_kv_factor=2", "--report"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "missing, freshly initialized: 8" in shown  # of the second layer's two blocks
    assert "  transformer_blocks.1.attn1.sr.weight" in shown
    assert torch.equal(
        read_weights(tmp_path / "out")["caption_projection.y_embedding"], state["caption_projection.y_embedding"]
    )
    del state["caption_projection.y_embedding"]
    torch.save({"model": state}, tmp_path / "t2v.pt")
    assert main(words) == 2
    assert "1 missing: caption_projection.y_embedding" in capsys.readouterr().err


def test_latte_t2v_without_any_size(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"model": latte_t2v()}, tmp_path / "t2v.pt")
    assert main([str(tmp_path / "t2v.pt"), str(tmp_path / "out"), "--from", "latte-t2v"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "video_length" in message


VAE = ["hidden_size=4", "hidden_size_mult=[1,2,2,3]", "num_res_blocks=1", "norm_groups=2"]


def test_an_image_autoencoder_becomes_a_causal_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL(
        block_out_channels=(4, 8, 8, 12),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        latent_channels=4,
    ).save_pretrained(tmp_path / "sd")
    assert main([str(tmp_path / "sd"), str(tmp_path / "out"), "--from", "sd-vae", *VAE, "scaling_factor=0.2"]) == 0
    shown = capsys.readouterr().out
    assert "encoder.conv_out.conv.weight: image kernel to [8, 12, 3, 3, 3], in the last frame of 3" in shown
    vae = CausalVAEModel(from_pretrained=str(tmp_path / "out")).load()
    assert vae.latents.factor == 0.2
    image, ours = read_weights(tmp_path / "sd"), vae.state_dict()
    kernel = ours["encoder.conv_out.conv.weight"]
    assert torch.equal(kernel[:, :, 2], image["encoder.conv_out.weight"])
    assert not kernel[:, :, :2].any()
    assert ours["encoder.down.1.time_downsample.mix_factor"].item() == 2.0
    assert "run" not in read_config(tmp_path / "out")


def test_a_lightning_checkpoint_of_the_causal_autoencoder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    vae = CausalVAEModel(hidden_size=4, hidden_size_mult=[1, 2, 2, 3], num_res_blocks=1, norm_groups=2)
    (tmp_path / "in").mkdir()
    state = {**vae.state_dict(), "loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.ones(2)}
    torch.save({"state_dict": state, "global_step": 5}, tmp_path / "in" / "last.ckpt")
    stored = {**vae.config, "loss_type": "LPIPSWithDiscriminator3D", "lr": 1e-5}
    (tmp_path / "in" / "config.json").write_text(json.dumps(stored))
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--from", "causal-vae"]) == 0
    assert "position tables and losses of the file, not used: 2" in capsys.readouterr().out
    assert read_config(tmp_path / "out") == json.loads(json.dumps(vae.config))
    again = CausalVAEModel(from_pretrained=str(tmp_path / "out")).load()
    assert all(torch.equal(tensor, vae.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_a_pipeline_of_two_autoencoders(tmp_path: Path) -> None:
    """Open-Sora 1.2's folder says where its makers had the parts from; the command needs no such file."""
    parts: dict[str, Any] = {
        "spatial": {
            "config": {
                "block_out_channels": [4, 8],
                "down_block_types": ["DownEncoderBlock2D"] * 2,
                "up_block_types": ["UpDecoderBlock2D"] * 2,
                "norm_num_groups": 2,
            }
        },
        "temporal": {"filters": 4, "num_res_blocks": 1, "num_groups": 2},
    }
    vae = OpenSoraVAE_V1_2(**parts)
    foreign = {
        "from_pretrained": "somewhere/else",
        "model_type": "VideoAutoencoderPipeline",
        "scale": [1.0, 2.0, 3.0, 4.0],
    }
    save_weights(tmp_path / "in", vae.state_dict(), {**foreign, **parts, "micro_frame_size": 9})
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--from", "open-sora-vae"]) == 0
    config = read_config(tmp_path / "out")
    assert config["type"] == "OpenSoraVAE_V1_2"
    assert "from_pretrained" not in config
    again = OpenSoraVAE_V1_2(from_pretrained=str(tmp_path / "out")).load()
    assert again.micro_frame_size == 9
    assert all(torch.equal(tensor, vae.state_dict()[name]) for name, tensor in again.state_dict().items())
