"""LatteT2V against the original's numbers: forward, gradients, training loss and sampling."""

import json
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from opensora.models.latte_t2v.latte_t2v import LatteT2V
from opensora.models.latte_t2v.positions import rotation_1d, rotation_2d, sincos_frames, sincos_patches
from opensora.parallel.activation_checkpointing import checkpoint_activations
from opensora.registry import MODELS, SCHEDULERS, build
from opensora.schedulers.ddpm import IDDPM
from tests.parity.golden import Golden, assert_parity, directories, golden_folder, released_keys


def is_latte_t2v(golden: Golden) -> bool:
    config = golden.config.get("config")
    return isinstance(config, dict) and "video_length" in config and golden.has("forward")


def has_gradients(golden: Golden) -> bool:
    return is_latte_t2v(golden) and any(".grad." in key for key in golden.tensors("forward"))


def recorded_cases() -> list[Any]:
    """A parameter (golden directory, case) for each forward pass that a directory recorded."""
    parameters = directories(is_latte_t2v, "LatteT2V")
    if parameters[0].values[0] is None:
        return parameters
    pairs = [(golden, case) for (golden,) in (p.values for p in parameters) for case in golden.config["cases"]]
    return [pytest.param(pair, id=f"{pair[0].name}-{pair[1]['name']}") for pair in pairs]


def recorded_model(golden: Golden) -> LatteT2V:
    model = LatteT2V(**golden.config["config"])  # the arguments of its config.json, unchanged
    model.load_state_dict(golden.state(), strict=True)
    return model.eval()


def captions(cond: Tensor) -> Tensor:
    """Captions [B, 1 + n, L, C]; without images the recording has no second axis."""
    return cond if cond.ndim == 4 else cond[:, None]


def outcome(model: LatteT2V, case: dict[str, Any], recorded: dict[str, Tensor]) -> Tensor:
    tensors = {key.removeprefix(f"{case['name']}."): tensor for key, tensor in recorded.items()}
    return model(
        tensors["x"],
        tensors["t"],
        captions(tensors["cond"]),
        mask=tensors.get("encoder_attention_mask"),
        attention_mask=tensors.get("attention_mask"),
        **case["kwargs"],
    )


def forgets_frame_positions(case: dict[str, Any]) -> bool:
    """True if the original adds no frame positions: it trains with images and without activation checkpointing.

    Released weights were trained with checkpointing and are sampled with positions, so here they are always added.
    """
    joint = "use_image_num" in case["kwargs"] and case["kwargs"]["use_image_num"] > 0
    return joint and case["training_mode"] and not case["gradient_checkpointing"]


@pytest.mark.parametrize("recorded", recorded_cases())
def test_forward(recorded: tuple[Golden, dict[str, Any]]) -> None:
    golden, case = recorded
    tensors = golden.tensors("forward")
    model = recorded_model(golden).train(case["training_mode"])
    expected = tensors[f"{case['name']}.out"]
    with torch.no_grad():
        if forgets_frame_positions(case):
            assert (outcome(model, case, tensors) - expected).abs().max() > 1e-3
            model.temp_pos_embed.zero_()  # nothing else differs
        out = outcome(model, case, tensors)
    assert out.dtype == torch.float32
    assert_parity(out, expected)


@pytest.mark.parametrize("golden", directories(has_gradients, "gradients of LatteT2V"))
def test_gradients(golden: Golden) -> None:
    """Gradients of the mean square of the output, with activation checkpointing if the original had it."""
    tensors = golden.tensors("forward")
    for case in golden.config["cases"]:
        prefix = f"{case['name']}.grad."
        recorded = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        if not recorded:
            continue
        model = recorded_model(golden).train()
        if case["gradient_checkpointing"]:
            checkpoint_activations(model.checkpoint_blocks())
        outcome(model, case, tensors).square().mean().backward()
        parameters = dict(model.named_parameters())
        for name, expected in recorded.items():
            grad = parameters[name].grad
            assert grad is not None
            # Gradients are small, so the tolerance is relative to the largest one.
            assert_parity(grad / expected.abs().max(), expected / expected.abs().max(), what=name)


@pytest.mark.parametrize("golden", directories(is_latte_t2v, "LatteT2V"))
def test_position_tables_are_the_stored_ones(golden: Golden) -> None:
    model, recorded = LatteT2V(**golden.config["config"]), golden.tensors("forward")
    tables = {"buf.pos_embed": model.pos_embed.pos_embed, "buf.temp_pos_embed": model.temp_pos_embed}
    stored = [name for name in tables if name in recorded]
    assert stored
    for name in stored:
        assert torch.equal(tables[name], recorded[name]), name


@pytest.mark.parametrize("golden", directories(lambda g: g.has("positional"), "positions of Open-Sora-Plan"))
def test_positions(golden: Golden) -> None:
    recorded = golden.tensors("positional")
    for name in (key for key in recorded if key.startswith("pe.")):
        about = golden.config[name]
        width, scale = about["embed_dim"], about["interpolation_scale"]
        if "length" in about:
            actual = sincos_frames(width, about["length"], scale)
        else:
            actual = sincos_patches(width, *about["grid_size"], about["base_size"], scale)
        torch.testing.assert_close(torch.as_tensor(actual), recorded[name], rtol=0, atol=1e-14)
    for name in (key.removesuffix(".tok") for key in recorded if key.endswith(".tok")):
        tokens, positions = recorded[f"{name}.tok"], recorded[f"{name}.pos"][0]
        scale = float(name.partition("_lin")[2] or 1)
        if positions.ndim == 1:
            rotate = rotation_1d(positions, tokens.shape[-1], scale)
        else:
            rotate = rotation_2d(positions[:, 0], positions[:, 1], tokens.shape[-1], scale)
        assert_parity(rotate(tokens), recorded[f"{name}.out"], what=name)


@pytest.mark.parametrize("golden", directories(lambda g: is_latte_t2v(g) and g.has("diffusion_loss"), "its loss"))
def test_training_loss(golden: Golden) -> None:
    """Images are joined to the clip, and padding does not count."""
    model, recorded = recorded_model(golden).train(), golden.tensors("diffusion_loss")
    images = golden.config["diffusion_loss"]["use_image_num"]

    def denoise(x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
        return model(
            x,
            t_B,
            captions(recorded["cond"]),
            mask=recorded["encoder_attention_mask"],
            x_mask=x_mask,
            use_image_num=images,
            attention_mask=recorded["attention_mask"],
        )

    for case in golden.config["diffusion_loss"]["cases"]:
        with torch.no_grad():
            loss = IDDPM().training_loss(
                denoise,
                recorded["x_start"],
                t_B=recorded[f"{case}.t"],
                noise=recorded["noise"],
                valid_BTHW=recorded["attention_mask"],
            )
        assert_parity(loss.terms["mse"], recorded[f"{case}.mse"], what=f"{case} mse")
        assert_parity(loss.terms["vb"], recorded[f"{case}.vb"], what=f"{case} vb")
        assert_parity(loss.loss_B, recorded[f"{case}.loss"], what=case)


def sampled() -> list[Any]:
    parameters = directories(lambda g: is_latte_t2v(g) and g.has("sampling"), "sampling LatteT2V")
    if parameters[0].values[0] is None:
        return parameters
    pairs = [
        (golden, e) for (golden,) in (p.values for p in parameters) for e in golden.config["sampling"]["schedulers"]
    ]
    return [pytest.param(pair, id=f"{pair[0].name}-{pair[1]['name']}") for pair in pairs]


@pytest.mark.parametrize("recorded", sampled())
def test_sampling(recorded: tuple[Golden, dict[str, Any]]) -> None:
    """Whole trajectories with guidance; Open-Sora-Plan uses no text mask for several prompts."""
    golden, entry = recorded
    model, tensors, settings = recorded_model(golden), golden.tensors("sampling"), golden.config["sampling"]
    scheduler = build(SCHEDULERS, {"type": entry["name"]}, num_sampling_steps=entry["steps"])
    halves = {"null": tensors["negative_prompt_embeds"], "cond": tensors["prompt_embeds"]}
    y = captions(torch.cat([halves[name] for name in scheduler.text_order.split(",")]))

    def denoise(x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
        # The outputs of random weights are too large for a trajectory to stay finite.
        return model(x, t_B, y, x_mask=x_mask) * settings["model_output_multiplier"]

    actual = scheduler.sample(
        denoise,
        tensors["latents"],
        [Generator().manual_seed(settings["generator_seed"])] * len(tensors["latents"]),  # one for the whole batch
        guidance_scale=settings["guidance_scale"],
    )
    assert_parity(actual, tensors[f"{entry['name']}.out"], tolerance=1e-4)


@pytest.mark.parametrize("released", ["latte_t2v_v1.1.0", "latte_t2v_d64_v1.1.0"])
def test_released_keys(released: str) -> None:
    """Every key and shape of the released full-size weights, from the released config alone and from the preset."""
    expected = released_keys(released)
    listed = json.loads((golden_folder() / "keys" / f"{released}.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        from_config = LatteT2V(**listed["config"])
        models = [from_config, build(MODELS, {"type": listed["model"], "input_size": from_config.input_size})]
    for model in models:
        assert {k: list(v.shape) for k, v in model.state_dict().items()} == expected
        assert sum(p.numel() for p in model.parameters()) == listed["num_parameters"]
        assert all(tensor.is_meta for tensor in model.state_dict().values())
