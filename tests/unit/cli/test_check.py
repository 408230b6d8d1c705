"""The arguments of `opensora check`, and its output."""

from dataclasses import replace
from typing import Any

import pytest

from opensora.cli import check
from opensora.cli.check import check_command, main, on_gpu, size_text, table_command
from opensora.cli.check_layouts import checkpoint_bytes, searched_plugins
from opensora.config import load
from opensora.datasets.row_report import Report
from opensora.errors import ConfigError, DataError
from opensora.parallel.step_costs import StepSizes
from opensora.planning import device_specs, dry_run, layout_table
from opensora.planning.dry_run import DryRun
from opensora.planning.estimate import FrozenNetworks, ModelSummary, StepModel, estimate
from opensora.planning.meta_profile import MemoryPoint, StepProfile
from opensora.planning.parallel_layout import ParallelLayout
from opensora.schema import TrainRun
from tests.support.command import ROOT, TRAIN

CONFIG = str(ROOT / TRAIN)


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of ranks of each dry run, which is a fake."""
    worlds: list[int] = []
    step = StepModel(
        StepSizes(100, largest=10), FrozenNetworks(), profile_step, tokens=6, ema=False, max_sequence_ranks=2
    )

    def fake(run: Any, world: int, sp_size: int = 1, gloo: bool = False) -> DryRun:
        worlds.append(world)
        layout = ParallelLayout(run.plugin, world, run.micro_batches // world, sp_size=sp_size, gloo=gloo)
        summary = ModelSummary("M", 100, 0, None, (1, 2, 3), 6)
        return DryRun(summary, step, estimate(step, layout), 4, Report("here", 1, 1))

    monkeypatch.setattr(dry_run, "dry_run", fake)
    return worlds


def profile_step(layout: ParallelLayout) -> StepProfile:
    live = 9 * 10**9 // (10 if layout.grad_checkpoint else 1)
    return StepProfile(live // 2, (MemoryPoint(0, live), MemoryPoint(100, 0)), 10**12, 2 * 10**12)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], 1),
        (["world=2"], 2),
        (["seed=3", "world=2"], 2),
        (["world=1", "world=2"], 2),
        (["world=4", "micro_batches=8"], 4),
    ],
)
def test_world_is_taken_out_of_the_overrides(worlds: list[int], overrides: list[str], expected: int) -> None:
    assert check_command(CONFIG, overrides) == 0
    assert worlds == [expected]


def test_plan_without_data_names_what_was_not_checked(capsys: pytest.CaptureFixture[str]) -> None:
    config, missing = str(ROOT / "configs/stdit/train/demo.py"), ["dataset.data_path=nowhere.csv", "model.depth=1"]
    assert check_command(config, missing, data=False) == 0
    assert "(--no-data)" in printed(capsys)
    with pytest.raises(DataError, match=r"nowhere.csv: "):
        check_command(config, missing)


LOSES_FRAMES = r"num_frames': found 4; allowed: 3 or 5 frames, which CausalVAEModel holds"


@pytest.mark.parametrize("data", [True, False])
def test_length_that_the_autoencoder_does_not_hold(data: bool) -> None:
    with pytest.raises(ConfigError, match=rf"'dataset\.{LOSES_FRAMES}"):
        check_command(CONFIG, ["dataset.num_frames=4"], data=data)
    config = str(ROOT / "configs/vae/train/debug.py")
    for key in ("dataset", "validation_dataset"):
        with pytest.raises(ConfigError, match=rf"'{key}\.{LOSES_FRAMES}"):
            check_command(config, [f"{key}.num_frames=4"], data=data)


@pytest.mark.parametrize("data", [True, False])
def test_every_bucket_that_the_autoencoder_does_not_hold(data: bool) -> None:
    buckets = "bucket_config={'16x32': {1: (1.0, 2), 4: (1.0, 1), 8: (0.0, None)}, '16x16': {5: (1.0, 2), 6: (1.0, 1)}}"
    with pytest.raises(ConfigError, match=r"'bucket_config.16x32': found 4.*3 or 5.*16x16': found 6.*5 or 7") as error:
        check_command(str(ROOT / "configs/stdit2/train/debug_buckets.py"), [buckets], data=data)
    assert "found 8" not in str(error.value)  # no clip ever goes there


@pytest.mark.parametrize("value", ["0", "-2", "two", "1.0", "true", "none"])
def test_worlds_that_cannot_be(worlds: list[int], value: str) -> None:
    with pytest.raises(ConfigError, match=r"'world'.*allowed: .*1"):
        check_command(CONFIG, [f"world={value}"])
    assert worlds == []


def test_ranks_that_cannot_share_the_micro_batches(worlds: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"'micro_batches'.*2.*3 data ranks"):
        check_command(CONFIG, ["world=3"])
    assert worlds == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["plugin_config.reduce_bucket_size_in_m=0"], "plugin_config.reduce_bucket_size_in_m.*0"),
        (["plugin=hybrid", "plugin_config.pp_size=2"], "plugin_config.pp_size.*2"),
        (["plugin=hybrid", "plugin_config.tp_size=0"], "plugin_config.tp_size.*0"),
    ],
)
def test_bad_plugin_value_is_error(worlds: list[int], overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        check_command(CONFIG, overrides)
    with pytest.raises(ConfigError, match=expected):
        table_command(CONFIG, overrides)
    assert worlds == []


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (["plugin=fsdp", "plugin_config.cpu_offload=true"], "cpu_offload.*True.*CPU"),
        (["plugin_config.overlap_communication=true"], "overlap_communication.*True.*CPU"),
    ],
)
def test_options_that_the_cpu_does_not_have(worlds: list[int], option: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        check_command(CONFIG, ["gpu=cpu", *option])
    assert worlds == []
    assert check_command(CONFIG, ["gpu=h100", *option]) == 0


def test_heads_that_ranks_cannot_share() -> None:
    with pytest.raises(ConfigError, match=r"tp_size.*4.*2 heads.*STDiT.*divisor of 2"):
        check_command(CONFIG, ["world=4", "plugin=hybrid", "plugin_config.tp_size=4"])


def test_auto_is_float32_where_that_is_faster() -> None:
    run = load(CONFIG, ["dtype=auto"], TrainRun).run
    assert on_gpu(run, device_specs.gpu_named("cpu")).dtype == "fp32"
    assert {on_gpu(run, gpu).dtype for gpu in (device_specs.gpu_named("h100"), None)} == {"auto"}
    bf16 = replace(run, dtype="bf16")
    assert on_gpu(bf16, device_specs.gpu_named("cpu")) is bf16


def test_bad_scheduler_value_is_error(worlds: list[int]) -> None:
    with pytest.raises(ConfigError):
        check_command(CONFIG, ["scheduler.num_sampling_steps=0"])
    assert worlds == []


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_no_gpu_no_time_estimate(worlds: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert check_command(CONFIG, []) == 0
    text = printed(capsys)
    assert "arithmetic of one step on each rank: 6 TFLOP of the trained model, 0 TFLOP of the frozen networks" in text
    assert "grad_checkpoint=True: 429.2 MiB saved for the backward, 858.3 MiB at the peak" in text
    assert "the text encoder" in text
    assert "expected on" not in text


def test_time_and_the_smallest_layout_that_fits(worlds: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    """6 TFLOP at 0.4 of 165.2 TFLOP/s; nothing else takes time."""
    assert check_command(CONFIG, ["gpu=rtx4090", "dtype=bf16"]) == 0
    text = printed(capsys)
    assert (
        "expected on 1 x rtx4090, 8 to a machine (a plan from data sheets, not a measurement): 0.091 s a step" in text
    )
    assert "132 tokens/s" in text
    assert (
        "(plugin=zero2 sp_size=1 grad_checkpoint=False): 8.4 GiB, fits into the 20.1 GiB that are left of 24 GB" in text
    )
    assert "smallest layout that fits: plugin=ddp sp_size=1 grad_checkpoint=False with 8.4 GiB" in text


def test_hours_and_checkpoints_of_the_run(worlds: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    """100 elements: 12 bytes each to resume from, 4 as whole weights; of 400,000 steps at 0.0454 s each 100,000th is saved."""
    step = ["steps=400000", "save_every=100000", "keep_last=3", "micro_batches=4", "world=4"]
    assert check_command(CONFIG, ["gpu=rtx4090", "dtype=bf16", *step]) == 0
    text = printed(capsys)
    assert "the run: 400,000 steps in 5.0 hours, 20.2 hours of rtx4090, without validation" in text
    assert "a checkpoint: 1.6e-06 GB; kept at the end: 3 of 4, 4.8e-06 GB" in text
    assert check_command(CONFIG, ["save_every=0"]) == 0
    text = printed(capsys)
    assert "the run: " not in text
    assert "kept at the end: 1 of 1, 1.6e-06 GB" in text


def test_checkpoint_bytes_of_average_and_discriminator() -> None:
    step = StepModel(StepSizes(100, fixed=10), FrozenNetworks(), profile_step, tokens=6, ema=True)
    assert checkpoint_bytes(step) == 4 * (100 * 4 + 10 + 2 * 110)
    step.discriminator = StepSizes(7)
    assert checkpoint_bytes(step) == 4 * (100 * 4 + 10 + 2 * 110) + 4 * 7 * 4


def test_set_keys_come_first_and_defaults_last(
    worlds: list[int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a key that the command line changed stands below it with its value."""
    monkeypatch.setenv("COLUMNS", "200")
    overrides = ["seed=7", "model.depth=3", "plugin_config.cpu_offload=true", "plugin=zero1"]
    assert check_command(CONFIG, overrides) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    keys = [line[0] for line in cells if line[0]]
    assert keys.index("model") + 1 == keys.index("model.depth")
    assert (
        keys.index("plugin_config.cpu_offload") < keys.index("total, without the framework") < keys.index("grad_clip")
    )
    assert [line[1:] for line in cells if line[0] == "model.depth"] == [["3", "command line"]]
    assert len(keys) == len(set(keys))
    assert check_command(CONFIG, overrides, defaults=False) == 0
    quiet = capsys.readouterr().out
    assert "grad_clip" not in quiet
    assert "model.depth" in quiet


def test_nothing_is_sent_by_one_rank(worlds: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert check_command(CONFIG, ["plugin=ddp"]) == 0
    assert "sent by each rank" not in printed(capsys)
    assert check_command(CONFIG, ["plugin=ddp", "world=2"]) == 0
    assert "sent by each rank in one step: 4e-07 GB of gradients a checkpoint" in printed(capsys)


@pytest.mark.parametrize(("size", "text"), [(9.5 * 2**30, "9,728.0 MiB"), (10 * 2**30, "10.0 GiB")])
def test_memory_in_gib_from_ten(size: float, text: str) -> None:
    assert size_text(size) == text


def test_missing_manifest_names_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    config, missing = str(ROOT / "configs/stdit/train/demo.py"), "dataset.data_path=nowhere.csv"
    assert main([config, missing, "world=2", "gpu=h100"]) == 1
    assert capsys.readouterr().err.endswith("; or add --no-data, which plans without the data\n")


def test_autoencoder_is_measured_where_its_weights_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped one knows the demo's shots, and nothing of drawn shapes."""
    vae = f"vae={{'_delete_': True, 'type': 'CausalVAEModel', 'from_pretrained': '{ROOT / 'assets/vae-small'}'}}"
    settings = [vae, "dataset.image_size=(32, 32)", "model.depth=1"]
    assert check_command(CONFIG, settings, defaults=False) == 0
    text = printed(capsys)
    assert "autoencoder: CausalVAEModel restores 4 clips of" in text
    assert "warning: the autoencoder restores these clips at" in text
    monkeypatch.setattr(check, "MOST_MEASURED", 10**6)
    assert check_command(CONFIG, settings, defaults=False) == 0
    assert "training logs at its start how well it restores the clips" in printed(capsys)


def test_nothing_that_fits(worlds: list[int], capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    tiny = replace(device_specs.GPUS["a100-40"], memory_gb=0.1)
    monkeypatch.setitem(device_specs.GPUS, "a100-40", tiny)
    assert check_command(CONFIG, ["gpu=a100-40", "gpus_per_node=4"]) == 0
    text = printed(capsys)
    assert "needs 8.3 GiB more than the 0.1 GiB that are left of 0.1 GB after 10% for the framework" in text
    assert "nothing fits: of " in text
    assert "needs 0.8 GiB, 0.8 GiB too much; take a smaller batch_size" in text
    assert "4 to a machine" in text


def test_machines_that_cannot_be(worlds: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"'gpu'.*'h101'.*h100"):
        check_command(CONFIG, ["gpu=h101"])
    with pytest.raises(ConfigError, match=r"'gpus_per_node'.*0.*allowed: .*1"):
        check_command(CONFIG, ["gpu=h100", "gpus_per_node=0"])
    with pytest.raises(ConfigError, match=r"'gpus_per_node'.*gpu"):
        check_command(CONFIG, ["gpus_per_node=4"])
    assert worlds == []


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """StepSizes of clips times numbers of GPUs, from the config's own model."""
    monkeypatch.setattr(layout_table, "CLIPS", ((5, 16, 16),))
    assert table_command(CONFIG, ["gpu=a100-40", "dtype=bf16"]) == 0
    head, rule, *rows = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert head.count("|") == rule.count("|") == 1 + len(layout_table.HEAD)
    assert [row[:4] for row in cells] == [["5x16x16", "48", str(n), "zero2, sp 1, kept"] for n in (8, 64, 512)]


def test_table_of_untried_plugin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_table, "CLIPS", ((5, 16, 16),))
    assert table_command(CONFIG, ["plugin=hybrid", "plugin_config.tp_size=2"]) == 0
    assert capsys.readouterr().out.count("sp 1, kept") == 3


def test_a_table_has_worlds_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"'world'.*--table"):
        table_command(CONFIG, ["world=8"])


def test_an_autoencoder_is_not_sent_to_fsdp() -> None:
    """Training refuses it there."""
    assert "fsdp" in searched_plugins("diffusion")
    assert searched_plugins("autoencoder") == [name for name in searched_plugins("diffusion") if name != "fsdp"]
    config = str(ROOT / "configs/vae/train/debug.py")
    with pytest.raises(ConfigError, match=r"'plugin': found 'fsdp'.*; allowed: ddp, hybrid, zero1, zero2; "):
        load(config, ["plugin=fsdp"], TrainRun)


def test_flags_may_stand_anywhere(worlds: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([CONFIG, "--table", "world=8"]) == 2
    assert "key 'world': found with --table" in capsys.readouterr().err
