"""Steps that went wrong: which ones, what becomes of them, and that the rest of the run does not know."""

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.errors import ConfigError, TrainingDiverged
from opensora.training.anomalies import AnomalyDetector
from opensora.training.loop import train, train_step
from tests.unit.training.test_loop import RATE, VALUES, Change, alone, batches, handlers, number, training

__all__ = ["alone", "handlers"]  # fixtures
STEPS = 8
WILD = [[[1000.0, 0.0], [0.0, 0.0]]]


def spoil(*steps: int) -> Change:
    """The second sample of each micro-batch of these steps has no number for a loss."""

    def change(step: int, loss_B: Tensor) -> Tensor:
        return loss_B * torch.tensor([1.0, math.nan]) if step in steps else loss_B

    return change


def guarded(values: Any = None, change: Change | None = None, adam: bool = False, **keys: Any) -> Any:
    state, log = training(VALUES * (STEPS // 2) if values is None else values, change)
    state.anomalies = AnomalyDetector(**keys)
    if adam:
        state.engine.optimizer = torch.optim.AdamW(state.task.trained.parameters(), lr=RATE)
    return state, log


def unseen(state: Any, values: Any, *steps: int) -> Any:
    """Train as if these steps were not in the run: the data and the schedule go on behind them."""
    feed, made = list(batches(values)), len(values[0])
    for first, stop in zip((0, *(step + 1 for step in steps)), (*steps, len(values))):
        state.start_step, state.run = first, SimpleNamespace(**{**state.run.__dict__, "steps": stop})
        state.batches = iter(feed[first * made : stop * made])
        train(state)
    return state


@pytest.mark.parametrize("bad", [(3,), (0,), (STEPS - 1,), (2, 3, 6)], ids=str)
def test_skipped_step_leaves_no_trace(bad: tuple[int, ...]) -> None:
    """Weights, average, moments and their step count, bit for bit, under a schedule that falls."""
    values = VALUES * (STEPS // 2)
    state, log = guarded(values, spoil(*bad), adam=True, on_nan="skip")
    assert train(state)
    spared = unseen(guarded(values, adam=True)[0], values, *bad)
    assert number(state) == number(spared)
    assert number(state, average=True) == number(spared, average=True)
    for key, value in state.engine.state().items():
        theirs = spared.engine.state()[key]
        assert torch.equal(
            getattr(value, "to_local", lambda v=value: v)(), getattr(theirs, "to_local", lambda v=theirs: v)()
        )
    assert state.anomalies.skipped == len(bad)
    assert [step for step, _ in log.troubles] == [step + 1 for step in bad]
    assert [record.step for record in log.records] == [step + 1 for step in range(STEPS) if step not in bad]
    assert log.records[-1].skipped == sum(step < log.records[-1].step for step in bad)
    assert log.records[-1].lr == RATE / log.records[-1].step  # the schedule counts every step


def test_anomaly_is_logged_with_its_samples() -> None:
    state, log = guarded(change=spoil(1), on_nan="skip")
    train(state)
    trouble = log.troubles[0][1]
    assert (trouble["what"], trouble["did"], trouble["skipped"]) == ("the loss is nan", "skip", 1)
    assert math.isnan(trouble["loss"])
    assert [each["place"] for each in trouble["samples"]] == [0, 1, 2, 3]
    assert [math.isfinite(each["loss"]) for each in trouble["samples"]] == [True, False, True, False]
    assert {each["row"] for each in trouble["samples"]} == {0}
    assert [each["level"] for each in trouble["samples"]] == pytest.approx([0.25, 0.25, 0.25, 0.65])


def test_max_skips_in_a_row_stops_run() -> None:
    """In a row, not in all: steps 1, 3, 4 go, the third of 6, 7 and 8 does not."""
    values = VALUES * 5
    state, log = guarded(values, spoil(1, 3, 4, 6, 7, 8), on_nan="skip", max_skips=2)
    with pytest.raises(TrainingDiverged, match=r"loss.*nan.*step 8 .*step 9 .*3 in a row"):
        train(state)
    assert [trouble["did"] for _, trouble in log.troubles] == ["skip"] * 5 + ["stop"]
    assert number(state) == number(unseen(guarded(values[:6])[0], values[:6], 1, 3, 4))


def test_max_skips_0_stops_at_first_nan() -> None:
    state, _ = guarded(change=spoil(0), on_nan="skip", max_skips=0)
    with pytest.raises(TrainingDiverged, match=r"loss.*nan.*step 0 .*step 1"):
        train(state)


def test_spike_is_relative_to_median_of_accepted_steps() -> None:
    calm = [[[1.0, 3.0], [2.0, 2.0]]]
    values = calm * 3 + WILD + calm * 2 + WILD
    state, log = guarded(values, spike_factor=20.0, spike_window=3)
    train(state)
    assert [step for step, _ in log.troubles] == [4, 7]
    assert [trouble["did"] for _, trouble in log.troubles] == ["skip", "skip"]
    # the losses of steps 1 to 3 are 2.25, 1.375 and 0.953 by hand, that of step 4 about 125,000
    assert log.troubles[0][1]["what"].startswith("the loss is 124")
    assert log.troubles[0][1]["what"].endswith(" times its median")
    assert number(state) == number(unseen(guarded(values)[0], values, 3, 6))
    blind, log = guarded(values)
    train(blind)
    assert log.troubles == []
    assert number(blind) > 20


def test_no_spike_before_window_is_full() -> None:
    calm = [[[1.0, 3.0], [2.0, 2.0]]]
    state, log = guarded(calm * 3 + WILD, spike_factor=20.0, spike_window=4)
    train(state)
    assert log.troubles == []


def test_gradient_spike_is_detected() -> None:
    def steep(step: int, loss_B: Tensor) -> Tensor:
        """The same value, a thousand times the slope."""
        return 1000 * loss_B - 999 * loss_B.detach() if step == 4 else loss_B

    state, log = guarded(change=steep, spike_factor=50.0, spike_window=2)
    train(state)
    assert [step for step, _ in log.troubles] == [5]
    assert log.troubles[0][1]["what"].startswith("the gradient norm is ")


def test_on_spike_stop_stops_run() -> None:
    state, log = guarded(VALUES + WILD, on_spike="stop", spike_factor=9.0, spike_window=2)
    with pytest.raises(TrainingDiverged, match=r"loss.* \d+.*median.*step 2 .*step 3"):
        train(state)
    assert log.troubles[0][1]["did"] == "stop"


def test_resumed_detector_decides_as_the_one_before() -> None:
    keys: dict[str, Any] = dict(spike_factor=2.0, spike_window=3, max_skips=1, on_nan="skip")
    detector = AnomalyDetector(**keys)
    for step, loss in enumerate([1.0, 1.5, 2.0, math.nan]):
        detector.check(step, loss, {"model": 1.0})
    state = detector.state()
    assert state == {
        "skipped": 1,
        "in_a_row": 1,
        "usual": {"loss": [1.0, 1.5, 2.0], "gradient norm": [1.0, 1.0, 1.0]},
    }
    again = AnomalyDetector(**keys)
    again.load_state(state)
    assert again.check(4, 3.1, {"model": 1.0}) == "the loss is 3.1, 2.07 times its median"
    assert again.ends_run  # the second in a row
    shorter = AnomalyDetector(spike_factor=2.0, spike_window=2)
    shorter.load_state(state)
    assert shorter.state()["usual"]["loss"] == [1.5, 2.0]


@pytest.mark.parametrize(("changes_at", "spikes"), [(2, [4]), (None, [2, 3, 4])])
def test_median_begins_anew_when_a_discriminator_changes_the_loss(changes_at: int | None, spikes: list[int]) -> None:
    detector = AnomalyDetector(spike_factor=2.0, spike_window=2, loss_changes_at=changes_at)
    anomalies = [detector.check(step, loss, {"model": 1.0}) for step, loss in enumerate([1.0, 1.0, 9.0, 9.0, 20.0])]
    assert [step for step, anomaly in enumerate(anomalies) if anomaly is not None] == spikes


class FakeEngine:
    """An engine with one gradient norm, or a discriminator; remembers if its gradients were used."""

    base_lr, start_step, model = RATE, 0, None

    def __init__(self, norm: float) -> None:
        self.norm = norm
        self.calls: list[str] = []

    def accumulating(self, last: bool) -> Any:
        return nullcontext()

    def backward(self, loss: Tensor) -> None: ...

    def accumulate(self, *_: Any, **__: Any) -> dict[str, Tensor]:
        return {}

    def grad_norm(self) -> float:
        self.calls.append("grad_norm")
        return self.norm

    def update(self, lr_factor: float) -> None:
        self.calls.append(f"update {lr_factor}")

    def discard_gradients(self) -> None:
        self.calls.append("discard")


@pytest.mark.parametrize(
    ("norms", "anomaly"),
    [
        ((1.0, 1.0), None),
        ((1.0, math.nan), "the discriminator's gradient norm is nan"),
        ((math.inf, 1.0), "the gradient norm is inf"),
    ],
)
def test_all_engines_are_updated_or_none(norms: tuple[float, float], anomaly: str | None) -> None:
    state, _ = training(VALUES)
    model, discriminator = map(FakeEngine, norms)
    state.ema, state.engine, state.task.discriminator = None, model, discriminator
    model.model = state.task.trained
    assert train_step(state, 0).anomaly == anomaly
    expected = ["grad_norm", "update 1.0" if anomaly is None else "discard"]
    assert (model.calls, discriminator.calls) == (expected, expected)


def test_discriminator_stands_still_before_its_start() -> None:
    state, _ = training(VALUES)
    state.task.discriminator = FakeEngine(math.nan)
    state.task.discriminator.start_step = 1
    assert train_step(state, 0).anomaly is None
    assert state.task.discriminator.calls == []
    assert train_step(state, 1).anomaly == "the discriminator's gradient norm is nan"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("spike_factor=1", "'spike_factor'.*1.*allowed: .*1.*None"),
        ("spike_window=0", "'spike_window'.*0"),
        ("max_skips=-1", "'max_skips'.*-1"),
        ("on_nan=go", "key 'on_nan'"),
    ],
)
def test_keys_are_checked(override: str, words: str) -> None:
    from opensora.config import load
    from opensora.schema import TrainRun
    from tests.support.command import ROOT, TRAIN

    with pytest.raises(ConfigError, match=words):
        load(str(ROOT / TRAIN), [override], TrainRun)
