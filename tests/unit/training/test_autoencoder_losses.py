"""The losses by hand, and their use by the autoencoder's task and its discriminator."""

import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opensora.config import load
from opensora.errors import ConfigError, TrainingDiverged
from opensora.models.vae.discriminator import PatchDiscriminator3D
from opensora.models.vae.gaussian import Gaussian
from opensora.parallel import world
from opensora.parallel.engine import EngineOptions
from opensora.registry import PLUGINS, build
from opensora.schema import TrainRun
from opensora.training import autoencoder_losses as gan
from opensora.training.autoencoder_task import AutoencoderTask
from opensora.training.build import build_discriminator_trainer
from opensora.training.discriminator_trainer import DiscriminatorTrainer, build_discriminator
from opensora.training.loop import train
from opensora.training.task import MicroBatchLoss
from opensora.types import Batch
from tests.dist import one_rank
from tests.unit.training import test_loop
from tests.unit.training.test_loop import ROOT

ADVERSARIAL = str(ROOT / "configs/vae/train/debug_adversarial.py")


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    with one_rank():
        yield


def test_discriminator_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    hinge = 0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3)
    assert gan.discriminator_loss(real, fake, "hinge").item() == pytest.approx(hinge)
    soft = [math.log1p(math.exp(v)) for v in (-2.0, -0.5, 1.0)], [math.log1p(math.exp(v)) for v in (-2.0, 0.0, 1.0)]
    assert gan.discriminator_loss(real, fake, "vanilla").item() == pytest.approx(0.5 * sum(map(sum, soft)) / 3)


def test_generator_loss_belongs_to_clips() -> None:
    """Six frames of two clips judged alone."""
    logits = torch.tensor([1.0, 2.0, 3.0, -1.0, -1.0, -1.0]).view(6, 1, 1, 1)
    assert gan.generator_loss(logits, clips=2).tolist() == [-2.0, 1.0]


def test_likelihood_is_of_a_frame() -> None:
    error = torch.tensor([0.5, 2.0])
    assert gan.negative_log_likelihood(error, 12).tolist() == [6.0, 24.0]
    scaled = gan.negative_log_likelihood(error, 12, logvar=1.0)
    torch.testing.assert_close(scaled, 12 * (error / math.e + 1))


def test_errors_of_clips() -> None:
    x, y = torch.zeros(2, 3, 2, 2, 2), torch.zeros(2, 3, 2, 2, 2)
    y[0], y[1, :, 0] = -0.5, 2.0
    assert gan.reconstruction_error(x, y, "l1").tolist() == [0.5, 1.0]
    assert gan.reconstruction_error(x, y, "l2").tolist() == [0.25, 2.0]
    assert gan.perceptual_error(x, y, lambda a, b: (a - b).abs().amax(dim=(1, 2, 3))).tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("nll", "pull", "expected"), [(6.0, 2.0, 3.0), (0.0, 2.0, 0.0), (6.0, 0.0, 1e4), (6.0, 1e-4, 1e4)]
)
def test_adaptive_weight_balances_gradients(nll: float, pull: float, expected: float) -> None:
    layer = nn.Parameter(torch.tensor([3.0, 4.0]))
    direction = torch.tensor([0.6, 0.8])
    weight = gan.adaptive_weight((nll * direction * layer).sum(), (pull * direction * layer).sum(), layer)
    assert weight.item() == pytest.approx(expected, rel=1e-3)
    assert not weight.requires_grad


class Scale(nn.Module):
    """An "autoencoder" of one number: output = number * clip."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.tensor([0.5]))

    @property
    def last_layer(self) -> nn.Parameter:
        return self.number

    def forward(self, clips: Tensor, rngs: Any) -> tuple[Tensor, Gaussian]:
        mean = torch.zeros(len(clips), 1, 1, 1, 2)
        return self.number * clips, Gaussian(mean, torch.zeros_like(mean))


class Mean(nn.Module):
    """A "discriminator" whose logit is its weight times the clip's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0]))
        self.config = {"type": "Mean"}

    def forward(self, clips: Tensor, learn: bool = True) -> Tensor:
        weight = self.weight if learn else self.weight.detach()
        return weight * clips.flatten(1).mean(1, keepdim=True)


def trainer(start: int = 0, module: nn.Module | None = None, rate: float = 0.5) -> DiscriminatorTrainer:
    options = EngineOptions(lambda params: torch.optim.SGD(params, lr=rate), "fp32", 0.0, world.current())
    engine = build(PLUGINS, {"type": "ddp"}).apply(module or Mean(), options)
    return DiscriminatorTrainer(engine, "hinge", weight=0.5, start_step=start)


def task(trained: Any, **more: Any) -> AutoencoderTask:
    return AutoencoderTask(
        trained=trained,
        seed=1,
        reconstruction="l1",
        kl_weight=0.0,
        device=torch.device("cpu"),
        statistics_clips=lambda: iter([]),
        **more,
    )


def batch(step: int = 0) -> Batch:
    clips = torch.tensor([1.0, 0.5]).view(2, 1, 1, 1, 1).expand(2, 1, 2, 2, 3).contiguous()
    return Batch(clips, ["", ""], torch.ones(2), step, [0, 1], [0, 0])


def test_task_with_both_by_hand() -> None:
    """Frames of 6 numbers. Errors 0.5 and 0.25, distances twice that; logits 3 * 0.5 and 3 * 0.25.

    d error / d number = -0.75 * 3 (L1 and twice it), times 6 on the frame's scale; d gan / d number = -3 * 0.75.
    """
    model, against = Scale(), trainer()
    distance = lambda a, b: 2 * (a - b).abs().mean(dim=(1, 2, 3))  # noqa: E731
    loss = task(model, perceptual=distance, perceptual_weight=1.0, discriminator=against).loss(model, batch())
    weight = 0.5 * (6 * 0.75 * 3) / (3 * 0.75 + 1e-4)
    expected = [error + 2 * error - weight * 3 * value / 6 for error, value in ((0.5, 0.5), (0.25, 0.25))]
    torch.testing.assert_close(loss.loss_B, torch.tensor(expected))
    metrics = {name: value.item() for name, value in loss.metrics.items()}
    assert metrics == pytest.approx({"pixels": 0.375, "perceptual": 0.75, "gan_weight": weight}, rel=1e-5)
    assert loss.discriminator_inputs is not None
    real, fake = loss.discriminator_inputs
    torch.testing.assert_close(fake, 0.5 * real)
    assert not fake.requires_grad
    loss.loss_B.mean().backward()
    assert model.number.grad is not None
    slope = -0.75 * 3 - weight * 3 * 0.75 / 6
    assert model.number.grad.item() == pytest.approx(slope, rel=1e-5)
    assert all(p.grad is None for p in against.engine.module.parameters())


def test_discriminator_waits_for_its_step() -> None:
    model = Scale()
    waiting = task(model, discriminator=trainer(start=3))
    plain = task(model).loss(model, batch(2))
    before = waiting.loss(model, batch(2))
    assert torch.equal(before.loss_B, plain.loss_B)
    assert before.discriminator_inputs is None
    assert plain.metrics == {}
    assert set(before.metrics) == {"pixels"}
    assert waiting.loss(model, batch(3)).discriminator_inputs is not None


def test_discriminator_step_by_hand() -> None:
    """Logits 3 and 1.5 (real), 1 and 0.5 times 1/4 (fake): only fake ones and none of the real ones are inside the hinge."""
    against = trainer()
    real = batch().video_BCTHW
    metrics = against.accumulate(real, real / 4, scale=0.5, last=False)
    assert metrics["logits_real"].item() == pytest.approx(2.25)
    assert metrics["logits_fake"].item() == pytest.approx(2.25 / 4)
    assert metrics["discriminator"].item() == pytest.approx(0.5 * (1 + 2.25 / 4))
    against.accumulate(real, real / 4, scale=0.5, last=True)
    norm = against.grad_norm()
    against.update(lr_factor=0.5)
    gradient = 0.5 * 0.75 / 4  # of the fake half; two micro-batches scaled by a half
    assert norm == pytest.approx(gradient)
    weight = against.engine.gather_state_dict()["weight"].item()
    assert weight == pytest.approx(3.0 - 0.5 * 0.5 * gradient)


def learn(against: DiscriminatorTrainer, real: Tensor, fake: Tensor) -> None:
    against.accumulate(real, fake, scale=1.0, last=True)
    against.grad_norm()
    against.update()


def test_state_lies_apart_and_comes_back() -> None:
    torch.manual_seed(0)
    first = trainer(module=PatchDiscriminator3D(channels=1, width=2, layers=1))
    clips = torch.randn(2, 1, 5, 8, 8)
    learn(first, clips, -clips)
    state = first.state()
    assert all(key.startswith("discriminator/") for key in state)
    assert "discriminator/fixed/main.3.running_mean" in state
    again = trainer(module=PatchDiscriminator3D(channels=1, width=2, layers=1))
    again.load_state({**state, "master/other": torch.zeros(1)})
    torch.testing.assert_close(again.weights(), first.weights(), rtol=0, atol=0)


def test_discarded_step_restores_running_statistics() -> None:
    """And the weights; without it the statistics would hold NaN for good."""
    torch.manual_seed(0)
    against = trainer(module=PatchDiscriminator3D(channels=1, width=2, layers=1))
    clips = torch.randn(2, 1, 5, 8, 8)
    learn(against, clips, -clips)
    before = {name: value.clone() for name, value in against.weights().items()}
    for real in (clips * torch.nan, clips * 2):
        against.accumulate(real, -clips, scale=0.5, last=False)
        against.accumulate(clips, -clips, scale=0.5, last=True)
        against.grad_norm()
        against.discard_gradients()
        torch.testing.assert_close(against.weights(), before, rtol=0, atol=0)
    learn(against, clips * 2, -clips)
    moved = {name for name, value in against.weights().items() if not torch.equal(value, before[name])}
    assert {"main.0.weight", "main.3.running_mean", "main.3.running_var", "main.3.num_batches_tracked"} <= moved


def test_initial_weights_depend_on_the_seed_alone() -> None:
    config = {"type": "PatchDiscriminator3D", "width": 2}
    made = []
    for noise, seed in ((0, 7), (1, 7), (0, 8)):
        torch.manual_seed(noise)
        made.append(build_discriminator(config, seed=seed).state_dict()["main.0.weight"])
        assert torch.initial_seed() == noise
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_discriminator_learns_from_every_micro_batch() -> None:
    """Two micro-batches a step: scaled by a half, the second the last; the schedule's factor; metrics over all samples."""
    state, log = test_loop.training(test_loop.VALUES)
    calls: list[Any] = []
    plain = state.task.loss

    def loss(model: Any, batch: Batch) -> MicroBatchLoss:
        pair = (batch.video_BCTHW, -batch.video_BCTHW) if batch.step else None
        metrics = {"of task": batch.video_BCTHW.mean()}
        return replace(plain(model, batch), discriminator_inputs=pair, metrics=metrics)

    def accumulate(real: Tensor, fake: Tensor, scale: float, last: bool) -> dict[str, Tensor]:
        assert torch.equal(fake, -real)
        calls.append((scale, last))
        return {"of discriminator": real.max()}

    state.task.loss = loss
    state.task.discriminator = SimpleNamespace(
        accumulate=accumulate, grad_norm=lambda: 0.0, update=calls.append, start_step=1
    )
    train(state)
    assert calls == [(0.5, False), (0.5, True), 0.5]
    metrics = [record.totals.metrics for record in log.records]
    assert metrics == [{"of task": 4.0}, {"of discriminator": 4.0, "of task": 3.0}]
    assert log.records[0].json()["figures"] == {"of task": 4.0}
    bare, quiet = test_loop.training(test_loop.VALUES)
    train(bare)
    assert "figures" not in quiet.records[0].json()


def test_discriminator_that_diverges_ends_the_run() -> None:
    state, _ = test_loop.training(test_loop.VALUES)
    state.task.discriminator = SimpleNamespace(grad_norm=lambda: math.nan, discard_gradients=lambda: None, start_step=0)
    message = r"the discriminator's gradient norm is nan between step 0 and step 1; the weights were not updated"
    with pytest.raises(TrainingDiverged, match=message):
        train(state)


def test_keys_that_belong_elsewhere() -> None:
    diffusion = str(ROOT / "configs/stdit/train/debug.py")
    with pytest.raises(ConfigError, match=r"'discriminator'.*'autoencoder'"):
        load(diffusion, ["discriminator={'type': 'PatchDiscriminator3D'}"], TrainRun)
    with pytest.raises(ConfigError, match=r"'disc_weight'.*-1"):
        load(ADVERSARIAL, ["disc_weight=-1.0"], TrainRun)
    with pytest.raises(ConfigError, match="PatchDiscriminator3D"):
        load(ADVERSARIAL, ["discriminator.type='Patch'"], TrainRun)


def test_a_last_layer_that_does_not_train_is_refused() -> None:
    run, frozen = load(ADVERSARIAL, [], TrainRun).run, Scale().requires_grad_(False)
    with pytest.raises(ConfigError, match="key 'discriminator': CausalVAEModel as configured does not train its last"):
        build_discriminator_trainer(run, world.current(), frozen, "a.py")
