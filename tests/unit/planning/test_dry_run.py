"""The dry run's numbers against hand counts for a small model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opensora.config import load
from opensora.errors import ConfigError, DataError
from opensora.models.build import assemble, build_autoencoder
from opensora.models.text.t5 import T5Encoder
from opensora.models.weights import save_weights
from opensora.planning.communication import sequence_bytes
from opensora.planning.dry_run import DryRun, dry_run, dry_run_without_data
from opensora.planning.text_encoder_size import text_parameters
from opensora.registry import TEXT_ENCODERS, build
from opensora.schema import TrainRun
from tests.support.command import ROOT
from tests.support.media_files import write_manifest, write_video
from tests.support.text_models import tiny_t5


def run(config: str = "stdit", **changes: Any) -> TrainRun:
    return replace(load(str(ROOT / f"configs/{config}/train/debug.py"), [], TrainRun).run, **changes)


def activations(result: DryRun) -> int:
    return result.estimate.peak_activations


def test_counts_are_those_of_the_real_model() -> None:
    """5 frames of 16x16 become 3 x 8 x 8 latents, and patches of 2x2 make 48 tokens of them."""
    base = run()
    result = dry_run(base, world=1)
    parts = assemble(
        base.model, base.vae, base.text_encoder, num_frames=5, image_size=(16, 16), seed=0, weights=False
    )  # fmt: skip
    assert result.summary.model == "STDiT"
    assert result.summary.parameters == sum(p.numel() for p in parts.model.parameters())
    assert result.summary.frozen_parameters == sum(p.numel() for p in parts.vae.parameters())
    assert result.summary.latent_size == (3, 8, 8)
    assert result.summary.tokens_per_sample == 3 * 4 * 4
    assert result.samples_per_step == 4
    assert result.report.kept == 64


def test_no_data_takes_size_from_config() -> None:
    dataset = {"type": "VideoTextDataset", "data_path": "nowhere.csv", "num_frames": 5, "image_size": (16, 16)}
    result = dry_run_without_data(run(dataset=dataset), world=1)
    assert result.report is None
    assert (result.summary, result.estimate) == (dry_run(run(), world=1).summary, dry_run(run(), world=1).estimate)
    with pytest.raises(ConfigError, match=r"'dataset'.*num_frames.*image_size"):
        dry_run_without_data(run(dataset={"type": "VideoTextDataset", "data_path": "nowhere.csv"}), world=1)


def test_no_data_takes_largest_bucket() -> None:
    """The micro-batch of the most latents: 25 clips of 3 latent frames outweigh 60 pictures; none comes into the last bucket."""
    lengths = {1: (1.0, 60), 5: (1.0, 25), 9: (0.0, 99)}
    dataset = {"type": "VideoTextDataset", "data_path": "nowhere.csv"}
    result = dry_run_without_data(run("stdit2", dataset=dataset, bucket_config={"144p": lengths}), world=1)
    assert result.samples_per_step == 25 * run("stdit2").micro_batches
    assert result.summary.latent_size[0] == 3


def test_joint_images_are_counted() -> None:
    """Two of them are two more latent frames of 4 x 4 patches, with captions of their own."""
    base = run(
        "latte_t2v", dataset=load(str(ROOT / "configs/latte_t2v/train/debug_joint.py"), [], TrainRun).run.dataset
    )
    result = dry_run(base, world=1)
    assert (result.summary.tokens_per_sample, result.summary.num_images) == ((3 + 2) * 4 * 4, 2)
    alone = dry_run(replace(base, dataset=base.dataset["videos"]), world=1)
    assert alone.summary.tokens_per_sample == 3 * 4 * 4
    # each token goes through the blocks within frames alike, pictures not through those along time
    assert 1.2 < result.estimate.model_flops / alone.estimate.model_flops < 5 / 3
    assert result.estimate.frozen_flops > alone.estimate.frozen_flops
    assert activations(result) > 1.2 * activations(alone)
    without = dry_run_without_data(base, world=1)
    assert (without.summary, without.estimate) == (result.summary, result.estimate)


def test_class_conditional_model_takes_labels() -> None:
    result = dry_run(run("dit"), world=1)
    assert result.summary.model == "DiT"
    # the embedding's weights for 192 captions and "none", each 48 wide, are among the parameters
    fewer = dry_run(run("dit", text_encoder={"type": "classes", "num_classes": 100_000}), world=1)
    assert fewer.summary.parameters - result.summary.parameters == (100_000 - 192) * 48
    assert activations(result) > 0


def test_loss_networks_are_counted() -> None:
    """A discriminator of one strided layer: 2 clips of 5x16x16 become 3x8x8, then twice 3x8x8; float32 under ddp."""
    plain = run("vae", plugin="ddp", plugin_config={}, dtype="fp32")
    small = {"type": "PatchDiscriminator3D", "width": 2, "layers": 1}
    against = dry_run(replace(plain, discriminator=small), world=1).estimate.memory
    first, second, last = 2 * 3 * 27 + 2, 4 * 2 * 27, 4 * 27 + 1
    parameters = first + second + 2 * 4 + last
    place = 2 * 3 * 8 * 8 * 4  # bytes of one channel
    state, kept = (4 + 4 + 8) * parameters, 2 * 3 * 5 * 16 * 16 * 4 + (2 + 4 + 4) * place
    assert against["discriminator"] == pytest.approx(state + kept, rel=0.05)  # and the norm's statistics
    assert {k: v for k, v in against.items() if k != "discriminator"} == dry_run(plain, world=1).estimate.memory
    looked = dry_run(replace(plain, perceptual={"type": "LPIPS", "weights": "none"}), world=1).estimate.memory
    vgg = 14_714_688 + 64 + 128 + 256 + 512 + 512
    first_slice = 10 * 64 * 16 * 16 * 4  # ten frames, 64 channels; there is more behind it
    assert 4 * vgg + 2 * first_slice < looked["perceptual network"] < 4 * vgg + 40 * first_slice


# per trained parameter: weights, masters, moments, average; a shared part is divided by the ranks
EXPECTED = {
    ("ddp", "fp32", 1): (4, 0, 8, 4),
    ("ddp", "fp32", 2): (4, 0, 8, 4 / 2),
    ("ddp", "bf16", 2): (4, 0, 8, 4 / 2),
    ("zero1", "bf16", 1): (2, 4, 8, 4),
    ("zero1", "bf16", 2): (2, 4 / 2, 8 / 2, 4 / 2),
    ("zero2", "bf16", 1): (2, 4, 8, 4),
    ("zero2", "bf16", 2): (2, 4 / 2, 8 / 2, 4 / 2),
    ("zero2", "fp32", 2): (4, 4 / 2, 8 / 2, 4 / 2),
    ("fsdp", "bf16", 2): (4 / 2, 0, 8 / 2, 4 / 2),
}
NAMES = ("weights", "fp32 master weights", "optimizer moments", "averaged weights (EMA)")


@pytest.mark.parametrize(("plugin", "dtype", "world"), EXPECTED, ids=str)
def test_state_bytes_by_hand(plugin: str, dtype: Any, world: int) -> None:
    result = dry_run(run(plugin=plugin, dtype=dtype), world)
    sizes, width = result.step.sizes, result.estimate.layout.weight_dtype.itemsize
    expected = dict(zip(NAMES, EXPECTED[plugin, dtype, world]))
    memory = {name: result.estimate.memory.get(name, 0) for name in NAMES}
    memory["weights"] -= width * sizes.fixed
    assert {name: value / sizes.trained for name, value in memory.items()} == pytest.approx(expected, abs=1e-3)
    assert result.estimate.memory["frozen autoencoder"] == result.summary.frozen_parameters * (
        2 if dtype == "bf16" else 4
    )
    assert (
        result.estimate.memory["text encoder"]
        == (result.summary.text_parameters or 0) * (2 if dtype == "bf16" else 4)
        > 0
    )
    assert result.estimate.total == sum(result.estimate.memory.values())


def test_no_ema_takes_no_memory() -> None:
    assert "averaged weights (EMA)" not in dry_run(run(ema_decay=None), 1).estimate.memory


def test_activations_shrink_with_recomputation_and_grow_with_the_batch() -> None:
    base = run()
    deep = {**base.model, "depth": 8}
    everything = activations(dry_run(replace(base, model=deep), 1))
    recomputed = activations(dry_run(replace(base, model=deep, grad_checkpoint=True), 1))
    assert 0 < recomputed < everything / 2
    double = activations(dry_run(replace(base, model=deep, batch_size=4), 1))
    assert double == pytest.approx(2 * everything, rel=0.05)
    half = activations(dry_run(replace(base, model=deep, dtype="bf16"), 1))
    assert half < 0.8 * everything


def test_autoencoder_dry_run() -> None:
    result = dry_run(run("vae"), 2)
    assert (result.summary.model, result.summary.frozen_parameters) == ("CausalVAEModel", 0)
    assert result.summary.latent_size == (3, 8, 8)
    assert result.summary.tokens_per_sample == 3 * 8 * 8
    assert activations(result) > 0


def test_no_usable_row_is_an_error(tmp_path: Path) -> None:
    """Every row of this manifest looks fine until its video is opened."""
    write_video(tmp_path / "short.mp4", 2)
    (tmp_path / "train.csv").write_text("path,text\nshort.mp4,too short\nmissing.mp4,not there\n")
    dataset = {
        "type": "VideoTextDataset",
        "data_path": str(tmp_path / "train.csv"),
        "num_frames": 5,
        "image_size": (16, 16),
    }
    with pytest.raises(DataError, match=r"train\.csv: .* 2 .*: 2, first "):
        dry_run(run(dataset=dataset), 1)


def test_dry_run_opens_every_video_and_reports_bad_ones(tmp_path: Path) -> None:
    data_path = write_manifest(tmp_path, clips=3)
    (tmp_path / "clip1.mp4").write_bytes(b"")
    dataset = {"type": "VideoTextDataset", "data_path": data_path, "num_frames": 5, "image_size": (16, 16)}
    report = dry_run(run(dataset=dataset), 1).report
    assert (report.rows, report.kept) == (3, 2)
    assert report.buckets == {"5x16x16": 2}
    assert f"{data_path}:3: " in report.dropped["cannot be used"][0]


def test_model_that_contradicts_its_parts_is_refused() -> None:
    base = run()
    with pytest.raises(ConfigError, match=r"'model\.in_channels': .*7.*4"):
        dry_run(replace(base, model={**base.model, "in_channels": 7}), 1)


def test_sequence_group_shares_activations() -> None:
    """Tokens between the seams are cut; what the seams send is what the formula of their own says."""
    base = run("stdit", sp_size=2)
    whole, shared = dry_run(base, 2), dry_run(base, 2, sp_size=2)
    assert 0.5 < activations(shared) / activations(whole) < 0.75
    assert whole.estimate.sequence_bytes == 0
    assert shared.estimate.sequence_bytes == 2 * sequence_bytes(
        ranks=2, mode="dsp", batch=2, frames=3, patches=16, width=32, heads=2, depth=2, out_features=32, itemsize=4
    )


def test_tensor_group_shares_weights_and_activations() -> None:
    """Of each block of width 32 two self-attentions, the one to the text and the perceptron are cut, and the perceptron
    that takes captions of 384 numbers, but not the biases behind their sums. Sums are made of 48 tokens of 2 clips, in a
    block four going forward, four back, and of 12 words one back, and one forward where they come in."""
    base = run("stdit", plugin="hybrid", plugin_config={"tp_size": 2})
    whole, shared = dry_run(run("stdit", plugin="ddp"), 2), dry_run(base, 2, sp_size=2)
    square = 32 * 32
    block = 2 * (4 * square + 3 * 32) + (4 * square + 3 * 32) + (8 * square + 4 * 32)
    captions = 384 * 32 + 32 + square
    assert shared.step.sizes.tensor_sharded == 2 * block + captions
    assert (
        whole.estimate.memory["optimizer moments"] - shared.estimate.memory["optimizer moments"]
        == 8 * (2 * block + captions) // 2
    )
    assert 0.5 < activations(shared) / activations(whole) < 0.9
    flops = [each.estimate.model_flops / each.estimate.layout.micro_batches for each in (whole, shared)]
    assert 0.5 < flops[1] / flops[0] < 0.7
    tokens, words = 2 * 48 * 32 * 4, 2 * 12 * 32 * 4
    assert shared.estimate.sequence_bytes == 2 * (2 * (8 * tokens + words) + words)  # two micro-batches of two blocks
    assert shared.estimate.layout.micro_batches == 2


@pytest.mark.parametrize(
    ("config", "mode", "expected"), [("stdit", "dsp", 3), ("stdit", "ulysses", 2), ("dit", "dsp", 2)]
)
def test_max_sequence_ranks(config: str, mode: Any, expected: int) -> None:
    """Three frames or two heads; DiT has no whole frames to give, so its heads count in either mode."""
    assert dry_run(run(config, sp_mode=mode), 1).step.max_sequence_ranks == expected


def test_text_parameters_of_known_encoders() -> None:
    """The encoder of T5 v1.1-XXL has 4,762,310,656 parameters; MiniLM-L6 has 22,713,216 and a row of 512 positions."""
    assert text_parameters(T5Encoder("DeepFloyd/t5-v1_1-xxl"))[0] == 4_762_310_656  # type: ignore[index]
    assert text_parameters(build(TEXT_ENCODERS, {"type": "minilm"}))[0] == 22_713_216 + 512  # type: ignore[index]


def test_text_parameters_from_weight_files(tmp_path: Path) -> None:
    folder = tiny_t5(tmp_path / "t5")
    encoder = T5Encoder(str(folder))
    result = text_parameters(encoder)
    assert result is not None
    total = sum(p.numel() for p in encoder.load().model.parameters())  # type: ignore[union-attr]
    assert result == (total, total - 192 * 32)


def test_autoencoder_may_be_a_run_folder(tmp_path: Path) -> None:
    """As in training; the folder's config says its sizes."""
    base = run()
    vae = build_autoencoder(base.vae)
    save_weights(tmp_path / "run" / "weights" / "model", vae.state_dict(), vae.config)
    named = {"type": base.vae["type"], "from_pretrained": str(tmp_path / "run")}
    result = dry_run(replace(base, vae=named), world=1)
    assert (result.summary.latent_size, result.summary.frozen_parameters) == (
        (3, 8, 8),
        dry_run(base, world=1).summary.frozen_parameters,
    )


def test_stored_latents_open_no_video(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("path,text\ngone.mp4,a boat\n")
    footage = {
        "type": "VideoTextDataset",
        "data_path": str(tmp_path / "train.csv"),
        "num_frames": 5,
        "image_size": (16, 16),
    }
    with pytest.raises(DataError, match="no such file"):
        dry_run(run(dataset=footage), world=1)
    assert dry_run(run(dataset=footage, load_video_features="features"), world=1).report.kept == 1
