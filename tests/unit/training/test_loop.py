"""One optimizer step: all its micro-batches, one update, one learning rate, one average, one record."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opensora.config import load
from opensora.errors import DataError, TrainingDiverged
from opensora.parallel import world
from opensora.parallel.engine import EngineOptions
from opensora.registry import PLUGINS, build
from opensora.schema import TrainRun
from opensora.training.ema import Ema
from opensora.training.loop import TrainState, train, validate
from opensora.training.signals import StopRequest
from opensora.training.step_stats import StepRecord
from opensora.training.task import MicroBatchLoss
from opensora.types import Batch
from tests.dist import one_rank

ROOT = Path(__file__).resolve().parents[3]
RUN = load(str(ROOT / "configs/stdit/train/debug.py"), [], TrainRun).run
RATE, DECAY = 0.25, 0.75
Change = Callable[[int, Tensor], Tensor]


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    with one_rank():
        yield


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Distance:
    """The task of bringing one number `w` to the value each sample holds: loss = (w - value)^2 / 2, gradient w - value."""

    autoencoder = discriminator = None

    measures_weights = False

    def __init__(self, change: Change | None = None):
        self.trained = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.trained.weight)
        self.change = change
        self.noise: list[Tensor] = []  # what dropout would draw

    def loss(self, model: Callable[..., Any], batch: Batch) -> MicroBatchLoss:
        self.noise.append(torch.rand(2))
        values = batch.video_BCTHW.flatten()
        loss_B = (model(torch.ones(len(values), 1)).flatten() - values).square() / 2
        if self.change is not None:
            loss_B = self.change(batch.step, loss_B)
        return MicroBatchLoss(loss_B, (values + 0.5) / 10, tokens=5 * len(values))

    def validate(self, model: Callable[..., Any], batches: Any) -> dict[str, tuple[float, int]]:
        assert not self.trained.training
        torch.manual_seed(0)  # must not be seen in training
        return {"count": (2.0 * len(list(batches)), 2), "nothing": (0.0, 0)}


class Log:
    """A Metrics and a Checkpointer that remember."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self.validations: list[tuple[int, dict[str, float]]] = []
        self.saved: list[tuple[int, list[str]]] = []
        self.troubles: list[tuple[int, dict[str, Any]]] = []
        self.previews: list[int] = []

    def log(self, record: StepRecord) -> None:
        self.records.append(record)

    def log_validation(self, step: int, values: dict[str, float]) -> None:
        self.validations.append((step, values))

    def log_trouble(self, step: int, trouble: dict[str, Any]) -> None:
        self.troubles.append((step, trouble))

    def log_save(self, step: int, waited: float) -> None:
        assert (step, waited) == (self.saved[-1][0], 0.5)

    def save(self, step: int, bad_rows: list[str]) -> float:
        self.saved.append((step, list(bad_rows)))
        self.finished = False
        return 0.5

    def finish(self) -> None:
        self.finished = True

    def describe_latest(self) -> str:
        return f"checkpoint {self.saved[-1][0]}" if self.saved else "none yet"


def batches(values: list[list[list[float]]], bad: dict[int, list[str]] | None = None) -> Iterator[Batch]:
    """values[step][micro-batch] = the samples' values."""
    for step, micro in enumerate(values):
        for number, samples in enumerate(micro):
            yield Batch(
                video_BCTHW=torch.tensor(samples).view(-1, 1, 1, 1, 1),
                captions=[""] * len(samples),
                fps_B=torch.ones(len(samples)),
                step=step,
                sample_ids=[number * len(samples) + j for j in range(len(samples))],
                rows=[0] * len(samples),
                bad_rows=(bad or {}).get(step, []) if number == 0 else [],
            )


def training(values: list[list[list[float]]], change: Change | None = None, bad: Any = None, **keys: Any) -> Any:
    """(TrainState of plain gradient descent without clipping, Log)."""
    defaults: dict[str, Any] = dict(steps=len(values), micro_batches=len(values[0]), log_every=1, save_every=0)
    task, log = Distance(change), Log()
    engine = build(PLUGINS, {"type": "ddp"}).apply(
        task.trained, EngineOptions(lambda params: torch.optim.SGD(params, lr=RATE), "fp32", 0.0, world.current())
    )
    built = TrainState(
        run=replace(RUN, **{**defaults, **keys}),
        world=world.current(),
        task=task,
        engine=engine,
        ema=Ema(engine, DECAY),
        schedule=lambda step: 1.0 / (step + 1),
        batches=batches(values, bad),
        validation=None,
        metrics=log,  # type: ignore[arg-type]
        checkpointer=log,
        stop=SimpleNamespace(requested=False),  # type: ignore[arg-type]
    )
    return built, log


def number(state: TrainState, average: bool = False) -> float:
    return (state.ema.weights() if average else state.engine.gather_state_dict())["weight"].item()


VALUES = [[[1.0, 3.0], [5.0, 7.0]], [[2.0, 2.0], [2.0, 6.0]]]


def test_micro_batches_accumulate_into_one_step() -> None:
    """By hand: w1 = 0 + 0.25 * mean(1, 3, 5, 7) = 1; w2 = w1 + 0.25 / 2 * (mean(2, 2, 2, 6) - w1) = 1.25."""
    state, log = training(VALUES)
    assert train(state)
    assert number(state) == pytest.approx(1.25)
    average = (1 - DECAY) * 1.0
    assert number(state, average=True) == pytest.approx(DECAY * average + (1 - DECAY) * 1.25)
    assert [record.lr for record in log.records] == [RATE, RATE / 2]
    assert [record.grad_norm for record in log.records] == pytest.approx([4.0, 2.0])
    assert log.saved == [(2, [])]


def test_record_covers_global_batch() -> None:
    state, log = training(VALUES)
    train(state)
    first = log.records[0]
    assert first.step == 1
    assert first.totals.loss == pytest.approx((1 + 9 + 25 + 49) / 2 / 4)
    assert first.totals.tokens == 20
    assert first.seconds > 0
    assert first.totals.loss_per_bin == pytest.approx(
        {"0.1-0.2": 0.5, "0.3-0.4": 4.5, "0.5-0.6": 12.5, "0.7-0.8": 24.5}
    )
    second = log.records[1]
    assert second.totals.loss_per_bin == pytest.approx({"0.2-0.3": 0.5, "0.6-0.7": 12.5})


def test_dropout_is_keyed_by_step_and_sample() -> None:
    """Dropout after a resume is that of the uninterrupted run, and differs between steps and micro-batches."""
    whole, _ = training(VALUES)
    train(whole)
    draws = [tuple(noise.tolist()) for noise in whole.task.noise]
    assert len(set(draws)) == 4
    cut, _ = training(VALUES)
    cut.start_step, cut.batches = 1, iter(list(batches(VALUES))[2:])
    torch.manual_seed(5)
    train(cut)
    assert [tuple(noise.tolist()) for noise in cut.task.noise] == draws[2:]


def test_log_save_and_validation_intervals() -> None:
    state, log = training(VALUES[:1] * 7, log_every=3, save_every=2, validate_every=4)
    state.validation = lambda: batches(VALUES)
    train(state)
    assert [record.step for record in log.records] == [3, 6, 7]
    assert [step for step, _ in log.saved] == [2, 4, 6, 7]
    assert log.finished
    assert log.validations == [(4, {"count": 4.0}), (7, {"count": 4.0})]
    assert state.task.trained.training


def test_an_average_that_is_measured_is_validated_as_well() -> None:
    state, _ = training(VALUES)
    state.task.trained.weight.data.fill_(3.0)  # the average began at 0
    state.task.measures_weights = True
    state.task.validate = lambda model, batches: {"weight": (2 * model(torch.ones(1, 1)).item(), len(list(batches)))}
    state.validation = lambda: batches(VALUES[:1])
    samples = len(VALUES[0])
    assert validate(state) == {"weight": 6.0 / samples, "ema_weight": 0.0}
    assert number(state) == 3.0


def test_validation_restores_training_mode() -> None:
    state, _ = training(VALUES)
    state.validation = lambda: batches(VALUES)
    frozen = nn.Dropout().eval()
    state.task.trained.add_module("frozen", frozen)
    state.task.trained.train(True)
    frozen.eval()  # a part that is meant to evaluate in training
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert validate(state) == {"count": 4.0}
    assert torch.equal(torch.rand(2), expected)
    assert state.task.trained.training
    assert not frozen.training


def test_signal_saves_after_step_and_stops() -> None:
    def ask(step: int, loss_B: Tensor) -> Tensor:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss_B

    state, log = training(VALUES * 3, change=ask, log_every=100, save_every=100, validate_every=2, preview_every=2)
    state.validation, state.preview = lambda: batches(VALUES), log.previews.append
    state.stop = StopRequest().listen()
    assert train(state) is False
    assert state.stop.step == 2
    assert log.saved == [(2, [])]
    assert (log.validations, log.previews) == ([], [])  # the sender of the signal may not wait for them
    assert log.finished
    assert [record.step for record in log.records] == [2]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_loss_stops_run(value: float) -> None:
    def spoil(step: int, loss_B: Tensor) -> Tensor:
        return loss_B * value if step == 2 else loss_B

    state, log = training(VALUES * 2, change=spoil, save_every=2)
    with pytest.raises(TrainingDiverged) as caught:
        train(state)
    text = str(caught.value)
    assert re.match(
        rf"training: the loss is {value} between step 2 and step 3; the weights were not updated; "
        r"last good checkpoint: checkpoint 2; lower .* `opensora replay outputs/debug step=3`",
        text,
    )
    assert number(state) == pytest.approx(1.25)
    assert number(state, average=True) == pytest.approx(0.5)
    assert log.saved == [(2, [])]
    assert [record.step for record in log.records] == [1, 2]
    assert [(step, trouble["did"], trouble["skipped"]) for step, trouble in log.troubles] == [(3, "stop", 1)]


def test_nan_gradient_stops_run() -> None:
    def spoil(step: int, loss_B: Tensor) -> Tensor:
        return loss_B + (loss_B * 0).sqrt()  # the root's slope at 0 is infinite, and 0 * inf is NaN

    state, _ = training(VALUES, change=spoil)
    with pytest.raises(TrainingDiverged, match=r"gradient norm.*nan.*step 0 .*step 1.*none yet"):
        train(state)
    assert number(state) == 0.0


def test_bad_rows_are_counted_once_and_saved() -> None:
    bad = {0: ["t.csv:3: a", "t.csv:5: b"], 1: ["t.csv:3: another fault"]}
    state, log = training(VALUES, bad=bad, max_bad_rows=2)
    state.bad_rows = ["t.csv:5: b"]  # from before a resume
    assert train(state)
    assert log.saved == [(2, ["t.csv:5: b", "t.csv:3: a"])]


def test_max_bad_rows_stops_run() -> None:
    state, log = training(VALUES * 2, bad={2: ["t.csv:3: a", "t.csv:5: b"]}, max_bad_rows=1, save_every=1)
    with pytest.raises(DataError, match=r"2 rows.*t\.csv:5: b.*max_bad_rows=1") as e:
        train(state)
    assert str(e.value).endswith("checkpoint: checkpoint 2")
    assert [step for step, _ in log.saved] == [1, 2]
