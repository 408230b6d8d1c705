"""The adversarial loss of autoencoders against the original's numbers and gradients."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.models.vae.causal_vae import CausalVAEModel
from opensora.models.vae.discriminator import PatchDiscriminator, PatchDiscriminator2D, PatchDiscriminator3D
from opensora.models.vae.perceptual import LPIPS
from opensora.training import autoencoder_losses as gan
from tests.parity.golden import Golden, assert_parity, directories, golden_folder, released_keys
from tests.parity.test_vae import causal, is_causal


def has_loss(golden: Golden) -> bool:
    return is_causal(golden) and "loss" in golden.config and golden.has("loss")


def stub_distance(x_NCHW: Tensor, y_NCHW: Tensor) -> Tensor:
    """The stand-in for LPIPS of the recording: mean squared error per image."""
    return (x_NCHW - y_NCHW).square().mean(dim=(1, 2, 3))


def recorded_discriminator(golden: Golden, prefix: str, kind: type[PatchDiscriminator]) -> PatchDiscriminator:
    state = {k.removeprefix(prefix): v for k, v in golden.tensors("loss").items() if k.startswith(prefix)}
    first = state["main.0.weight"]
    convolutions = sum(1 for name, tensor in state.items() if name.endswith(".weight") and tensor.dim() > 1)
    model = kind(channels=first.shape[1], width=first.shape[0], layers=convolutions - 2)
    model.load_state_dict(state, strict=True)
    return model


def generator_call(
    model: CausalVAEModel, disc: PatchDiscriminator, x: Tensor, settings: dict[str, Any], step: int
) -> Any:
    """(loss, figures by the original's names, reconstruction) of optimizer 0."""
    rec, posterior = model(x)
    error = gan.reconstruction_error(x, rec, "l1")
    error = error + settings["perceptual_weight"] * gan.perceptual_error(x, rec, stub_distance)
    nll = gan.negative_log_likelihood(error, x[0, :, 0].numel(), settings["logvar"]).mean()
    pull = gan.generator_loss(disc(rec, learn=False), len(x)).mean()
    weight = gan.adaptive_weight(nll, pull, model.last_layer) * settings["disc_weight"]
    on = settings["disc_factor"] if step >= settings["disc_start"] else 0.0
    kl = posterior.kl().mean()
    loss = nll + settings["kl_weight"] * kl + weight * on * pull
    figures = {"total_loss": loss, "kl_loss": kl, "nll_loss": nll, "rec_loss": error.mean(), "d_weight": weight}
    return loss, {**figures, "g_loss": pull, "disc_factor": torch.tensor(on)}, rec.detach()


@pytest.mark.parametrize("golden", directories(has_loss, "CausalVAEModel's adversarial loss"))
def test_adversarial_loss(golden: Golden) -> None:
    recorded, settings = golden.tensors("loss"), golden.config["loss"]
    model, x = causal(golden).train(), recorded["x"]
    disc = recorded_discriminator(golden, "disc.", PatchDiscriminator3D).train()
    for norm in disc.modules():
        if isinstance(norm, torch.nn.BatchNorm3d):
            norm.reset_running_stats()  # the recorded statistics are from after the calls
    parameters = dict(model.named_parameters())
    for call in settings["calls"]:
        step, log = call["global_step"], {k.removeprefix("train/"): v for k, v in call["log"].items()}
        if call["optimizer_idx"] == 0:
            loss, figures, rec = generator_call(model, disc, x, settings, step)
            assert_parity(rec, recorded["rec"], tolerance=1e-4, what="reconstruction")  # float32 error of two networks
            for name, value in figures.items():
                assert value.item() == pytest.approx(log[name], rel=1e-5, abs=1e-6), (step, name)
            prefix = f"s{step}.grad."
            expected_gradients = {k.removeprefix(prefix): v for k, v in recorded.items() if k.startswith(prefix)}
            expected_gradients = {name: grad for name, grad in expected_gradients.items() if name in parameters}
            assert expected_gradients
            gradients = torch.autograd.grad(loss, [parameters[name] for name in expected_gradients])
            for (name, expected), grad in zip(expected_gradients.items(), gradients, strict=True):
                # in float32, two networks and the kink of |x| move the recorded gradients this far from float64 ones
                assert_parity(grad, expected, tolerance=3e-4, what=f"step {step} gradient of {name}")
            assert all(p.grad is None for p in disc.parameters())
        else:
            real, fake = disc(x), disc(rec)
            on = settings["disc_factor"] if step >= settings["disc_start"] else 0.0
            loss = on * gan.discriminator_loss(real, fake, "hinge")
            assert real.mean().item() == pytest.approx(log["logits_real"], rel=1e-4, abs=1e-6)
            assert fake.mean().item() == pytest.approx(log["logits_fake"], rel=1e-4, abs=1e-6)
            assert loss.item() == pytest.approx(log["disc_loss"], rel=1e-6, abs=1e-7)
            prefix = f"s{step}.grad.disc."
            for name, expected in recorded.items():
                if name.startswith(prefix):
                    weight = disc.get_parameter(name.removeprefix(prefix))
                    (grad,) = torch.autograd.grad(loss, weight, retain_graph=True)
                    # of what two networks in float32 made: 1.3e-5 with AVX2 kernels
                    assert_parity(grad, expected, tolerance=2e-5, what=f"step {step} gradient of {name}")
    after = {k.removeprefix("disc_after."): v for k, v in recorded.items() if k.startswith("disc_after.")}
    for name, expected in after.items():
        assert_parity(disc.state_dict()[name].double(), expected.double(), what=f"{name} afterwards")
    if "disc_eval_logits_on_x" in recorded:
        with torch.no_grad():
            assert_parity(disc.eval()(x), recorded["disc_eval_logits_on_x"], what="logits in eval mode")


@pytest.mark.parametrize("golden", directories(has_loss, "the 2-D discriminator"))
@torch.no_grad()
def test_discriminator_of_frames(golden: Golden) -> None:
    recorded = golden.tensors("loss")
    if "disc2d_in" not in recorded:
        pytest.skip(f"{golden.name} has no 2-D discriminator")
    disc = recorded_discriminator(golden, "disc2d.", PatchDiscriminator2D).eval()
    assert_parity(disc(recorded["disc2d_in"].unsqueeze(2)), recorded["disc2d_out"])


def test_released_loss_keys() -> None:
    """The networks of a released training checkpoint, whose keys lie under `loss.`."""
    released_keys("causalvae_v1.1.0")  # skips without the file
    listed = json.loads((golden_folder() / "keys" / "causalvae_v1.1.0.json").read_text())["loss_state_dict"]
    with torch.device("meta"):
        networks = {"perceptual_loss": LPIPS("none"), "discriminator": PatchDiscriminator3D()}
    shapes = {
        f"loss.{part}.{name}": list(tensor.shape)
        for part, network in networks.items()
        for name, tensor in network.state_dict().items()
    }
    assert {**shapes, "loss.logvar": []} == listed
