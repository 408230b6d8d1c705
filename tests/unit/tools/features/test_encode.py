"""Features encoded once: what is encoded again after a change, and training from them as if from the footage."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from opensora import files
from opensora.config import load
from opensora.datasets.feature_store import FileHashes
from opensora.datasets.table import write_table
from opensora.errors import ConfigError, DataError
from opensora.models import build as models_build
from opensora.models.weights import read_config, save_weights
from opensora.parallel.world import World
from opensora.registry import DATASETS, VAES, build
from opensora.rng import Draw
from opensora.sampling.build import plan_sampling
from opensora.schema import SampleRun, TrainRun
from opensora.training.build import build_training
from opensora.training.cached_features import network_fingerprint, stored_clips
from opensora.training.loop import train
from opensora.training.metrics import read
from tests.dist import one_rank
from tests.support.command import ROOT
from tests.support.media_files import write_video
from tools.features import encode as tool
from tools.features.encode import encode

DEBUG = ROOT / "configs/stdit/train/debug.py"
CLIPS = 3


def footage(folder: Path, captions: Sequence[str] = ("one boat", "two boats", "three boats")) -> Path:
    """Videos of several lengths, and a config that takes the middle of each."""
    folder.mkdir()
    for index in range(CLIPS):
        write_video(folder / f"{index}.mp4", 8 + index, tint=(20 * index, 0, 0))
    write_captions(folder, captions)
    config = folder / "config.py"
    config.write_text(
        f"_base_ = [{os.path.relpath(DEBUG, folder)!r}]\n"
        f"_clips = dict(type='VideoTextDataset', data_path={str(folder / 'train.csv')!r}, num_frames=5,"
        " image_size=(16, 16), start='center')\n"
        "dataset = dict(_delete_=True, **_clips)\n"
        "steps, save_every, plugin = 4, 0, 'ddp'\n"
    )
    return config


def write_captions(folder: Path, captions: Sequence[str]) -> None:
    rows = [{"path": str(folder / f"{index}.mp4"), "text": text} for index, text in enumerate(captions)]
    write_table(str(folder / "train.csv"), rows)


def encode_counts(
    config: Path, folder: Path, *overrides: str, rank: int = 0, size: int = 1, **more: Any
) -> dict[str, str]:
    run = load(str(config), overrides, TrainRun).run
    here = World(rank, size, data_rank=rank, data_size=size, local_rank=rank, device=torch.device("cpu"))
    return {kind: str(count) for kind, count in encode(run, str(config), str(folder), here, **more).items()}


def count_text(made: int, kept: int, bad: int = 0) -> str:
    return f"{made} encoded, {kept} already there, {bad} bad"


def test_change_encodes_only_affected_items(tmp_path: Path) -> None:
    config, store = footage(tmp_path / "data"), tmp_path / "store"
    everything, nothing = count_text(CLIPS, 0), count_text(0, CLIPS)
    assert encode_counts(config, store) == {"video": everything, "text": everything}
    assert encode_counts(config, store) == {"video": nothing, "text": nothing}

    write_captions(tmp_path / "data", ("one boat", "four boats", "One boat"))
    assert encode_counts(config, store) == {"video": nothing, "text": count_text(2, 1)}
    write_captions(tmp_path / "data", ("one boat", "one boat", "four boats"))
    assert encode_counts(config, store, only="text") == {"text": count_text(0, 2)}

    write_video(tmp_path / "data" / "1.mp4", 9, tint=(0, 90, 0))
    assert encode_counts(config, store, only="video") == {"video": count_text(1, 2)}
    os.utime(tmp_path / "data" / "1.mp4")  # another time, the same bytes
    assert encode_counts(config, store, only="video")["video"] == nothing

    assert encode_counts(config, store, "vae.scaling_factor=0.5") == {"video": everything, "text": count_text(0, 2)}
    assert encode_counts(config, store, "text_encoder.model_max_length=7") == {
        "video": nothing,
        "text": count_text(2, 0),
    }
    assert encode_counts(config, store, "dataset.start=first", only="video")["video"] == everything
    assert encode_counts(config, store, "dataset.image_size=(8, 8)", only="video")["video"] == everything
    assert encode_counts(config, store, only="video")["video"] == nothing  # of all these none has taken another's place

    (tmp_path / "data").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "config.py"
    moved.write_text(moved.read_text().replace(str(tmp_path / "data"), str(tmp_path / "moved")))
    write_captions(tmp_path / "moved", ("one boat", "two boats", "three boats"))
    assert encode_counts(moved, store, only="video") == {"video": nothing}


def test_weights_are_identified_by_bytes(tmp_path: Path) -> None:
    config, store = footage(tmp_path / "data"), tmp_path / "store"
    run = load(str(config), [], TrainRun).run
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        vae = models_build.build_autoencoder(run.vae, seed=seed)
        save_weights(tmp_path / name, vae.state_dict(), vae.config)
    counts = [encode_counts(config, store, f"vae.from_pretrained={tmp_path / name}", only="video") for name in "abc"]
    assert [each["video"] for each in counts] == [count_text(CLIPS, 0), count_text(0, CLIPS), count_text(CLIPS, 0)]


def test_ranks_encode_disjoint_shares(tmp_path: Path) -> None:
    config, store = footage(tmp_path / "data"), tmp_path / "store"
    shares = [encode_counts(config, store, rank=rank, size=2) for rank in range(2)]
    assert [share["video"] for share in shares] == [count_text(2, 0), count_text(1, 0)]
    assert sorted(share["text"] for share in shares) == sorted([count_text(2, 0), count_text(1, 0)])
    assert encode_counts(config, store) == {"video": count_text(0, CLIPS), "text": count_text(0, CLIPS)}


def test_kill_during_write_leaves_no_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, store = footage(tmp_path / "data"), tmp_path / "store"
    replace, written = Path.replace, []

    def die_at_the_second(self: Path, target: Path) -> Path:
        if target.suffix == ".safetensors":
            written.append(target)
            if len(written) == 2:
                raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            encode_counts(config, store)
    assert encode_counts(config, store)["video"] == count_text(2, 1)
    whole = written[0].read_bytes()
    written[0].write_bytes(whole[:-7])  # a file system that lost power
    assert encode_counts(config, store)["video"] == count_text(1, 2)
    assert written[0].read_bytes() == whole


def curve(config: Path, run_dir: Path, *overrides: str) -> list[float]:
    run = load(str(config), [f"run_dir={str(run_dir)!r}", *overrides], TrainRun).run
    with one_rank() as world:
        training = build_training(run, world, str(config))
        try:
            train(training)
        finally:
            training.metrics.close()
    records = [record for record in read(run_dir / "metrics.jsonl")]
    return [record["loss"] for record in records if "loss" in record] + [
        record["validation"]["loss"] for record in records if "validation" in record
    ]


def from_store(store: Path) -> list[str]:
    return [f"load_video_features={str(store)!r}", f"load_text_features={str(store)!r}"]


def test_training_from_features_equals_training_from_footage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses, with a damaged video skipped alike; nothing of the networks is built, and no video is needed."""
    config, store = footage(tmp_path / "data"), tmp_path / "store"
    (tmp_path / "data" / "1.mp4").write_bytes(b"no video")
    with config.open("a") as file:
        file.write("validation_dataset = {**_clips, 'start': 'first'}\n")
    expected = curve(config, tmp_path / "plain")
    assert len(expected) == 5
    counts = encode_counts(config, store)
    assert counts["video"] == count_text(4, 0, 2)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("was built")

    monkeypatch.setattr(models_build, "build_autoencoder", never)
    monkeypatch.setattr("opensora.models.text.transformers_encoder.PretrainedEncoder.__init__", never)
    assert curve(config, tmp_path / "stored", *from_store(store)) == pytest.approx(expected, rel=1e-6)
    for index in (0, 2):
        (tmp_path / "data" / f"{index}.mp4").unlink()
    without = curve(config, tmp_path / "without", *from_store(store))
    assert without == pytest.approx(expected, rel=1e-6)

    weights = tmp_path / "stored" / "checkpoints" / "step-00000004" / "weights" / "model"
    recorded = read_config(weights)["run"]
    assert (recorded["vae"]["type"], recorded["text_encoder"]["type"]) == ("CausalVAEModel", "minilm")
    sample = ROOT / "configs/stdit/sample/debug.py"
    run = load(str(sample), [f"load={str(tmp_path / 'stored')!r}", "prompt=['a boat']"], SampleRun).run
    assert plan_sampling(run, str(sample)).parts["vae"]["hidden_size"] == 8


def test_all_variants_are_used(tmp_path: Path) -> None:
    """With one variant a row is always one clip; with two, the draw of the sample decides between them."""
    config, store = footage(tmp_path / "data"), tmp_path / "store"
    random = ("dataset.start=random", "dataset.flip=True")
    with pytest.raises(ConfigError, match=r"start='random', flip=True.*variants=N"):
        encode_counts(config, store, *random)
    with pytest.raises(ConfigError, match=r"variants=2"):
        encode_counts(config, store, variants=2)
    assert encode_counts(config, store, *random, variants=2)["video"] == count_text(2 * CLIPS, 0)
    run = load(str(config), [*random, *from_store(store)], TrainRun).run
    clips = stored_clips(run, build(DATASETS, run.dataset), [(5, 16, 16)], "config.py")
    draws = [clips.clip(0, Draw(0, step, 0)).video_CTHW for step in range(12)]
    assert len({tuple(moments.flatten().tolist()) for moments in draws}) == 2
    assert draws[0].shape == (8, 3, 8, 8)
    assert clips.clip(1, Draw(0, 0, 0)).size == (5, 16, 16)


def test_missing_features_raise_with_command(tmp_path: Path) -> None:
    config, store = footage(tmp_path / "data"), tmp_path / "store"
    command = rf"make them with `python -m tools\.features\.encode {config} {store}`"
    with pytest.raises(ConfigError, match=rf"'load_video_features'.*{command}"):
        curve(config, tmp_path / "run", *from_store(store))
    encode_counts(config, store)
    with pytest.raises(ConfigError, match=r"config\.scaling_factor.*0\.18215.*0\.5"):
        curve(config, tmp_path / "run", *from_store(store), "vae.scaling_factor=0.5")
    with pytest.raises(ConfigError, match=r"'load_text_features'.*model_max_length.*12.*7"):
        curve(config, tmp_path / "run", *from_store(store), "text_encoder.model_max_length=7")
    with pytest.raises(ConfigError, match=r"start .*center.*first"):
        curve(config, tmp_path / "run", *from_store(store), "dataset.start=first")
    with pytest.raises(ConfigError, match=r"5x16x16.*3x16x16"):
        curve(config, tmp_path / "run", *from_store(store), "dataset.num_frames=3")
    with pytest.raises(ConfigError, match=r"dtype.*fp32.*bf16"):
        curve(config, tmp_path / "run", *from_store(store), "dtype=bf16")

    write_video(tmp_path / "data" / "2.mp4", 12, tint=(0, 0, 90))
    with pytest.raises(DataError, match=rf"train\.csv:4: .*5x16x16.*{command}"):
        curve(config, tmp_path / "run", *from_store(store))
    encode_counts(config, store, only="video")
    write_captions(tmp_path / "data", ("one boat", "two boats", "a new caption"))
    with pytest.raises(DataError, match=rf"'a new caption'.*{command}"):
        curve(config, tmp_path / "run", *from_store(store))


def test_text_features_of_random_clips(tmp_path: Path) -> None:
    """Drawn clips keep their autoencoder; their captions, every wording, are stored."""
    store = tmp_path / "store"
    assert encode_counts(DEBUG, store, "dataset.clips=2", only="text") == {"text": count_text(4, 0)}
    options = ["dataset.clips=2", "steps=2", "save_every=0", "plugin=ddp"]
    plain = curve(DEBUG, tmp_path / "plain", *options)
    assert curve(DEBUG, tmp_path / "text", *options, from_store(store)[1]) == pytest.approx(plain, rel=1e-6)


def test_bucket_clips_are_stored(tmp_path: Path) -> None:
    """By chance half of the large clips are shrunk, anew each epoch: all that the run's steps need is there."""
    config, store = ROOT / "configs/stdit2/train/debug_buckets.py", tmp_path / "store"
    options = ["dataset.clips=24", "steps=14", "save_every=0", "plugin=ddp", "micro_batches=1"]
    counts = encode_counts(config, store, *options, variants=1)
    made = int(counts["video"].split()[0])
    assert made > 24
    assert encode_counts(config, store, *options, variants=1, only="video")["video"] == count_text(0, made)
    losses = curve(config, tmp_path / "run", *options, *from_store(store))
    assert len(losses) == 14
    records = [record for record in read(tmp_path / "run" / "metrics.jsonl") if "loss" in record]
    assert len({record["tokens"] for record in records}) > 1


def test_changed_file_is_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    contents = FileHashes(tmp_path / "store", remember=True)
    first = contents.of(str(file))
    with monkeypatch.context() as patch:
        patch.setattr(files, "hash_file", lambda *_: "read")
        assert contents.of(str(file)) == first
        file.write_bytes(b"other")
        assert contents.of(str(file)) == "read"
    file.unlink()
    assert contents.of(str(file)) == "read"
    assert FileHashes(tmp_path / "store").of(str(file)) == "read"
    with pytest.raises(DataError, match=r"nowhere: No such file"):
        contents.of(str(tmp_path / "nowhere"))


def test_neutral_settings_keep_keys(tmp_path: Path) -> None:
    """A default that is written down, a whole number for a broken one, and how many frames are coded at a time."""
    config, store = footage(tmp_path / "data"), tmp_path / "store"
    encode_counts(config, store, "dataset.fps=8.0")
    same = ("vae.resolution=256", "text_encoder.from_pretrained=minilm", "dataset.fps=8", "dataset.time_range=(0, 1)")
    assert encode_counts(config, store, *same) == {"video": count_text(0, CLIPS), "text": count_text(0, CLIPS)}

    def network(**arguments: Any) -> dict[str, Any]:
        spatial = {"config": {}, **arguments}
        return network_fingerprint(
            VAES, {"type": "OpenSoraVAE_V1_2", "spatial": spatial, **arguments}, "fp32", FileHashes(store)
        )

    assert network() == network(micro_batch_size=1)
    assert network() != network(scaling_factor=1.0)
    kl = [
        network_fingerprint(VAES, {"type": "VideoAutoencoderKL", **more}, "fp32", FileHashes(store))["config"]
        for more in ({}, {"use_tiling": False}, {"use_tiling": True})
    ]
    assert (
        kl[0] == kl[1] == {key: value for key, value in kl[2].items() if key != "use_tiling"}
    )  # older than the switch


def test_fixed_validation_with_random_training_clips(tmp_path: Path) -> None:
    """`variants` belongs to the data set with random clips; the other one has a single variant."""
    config, store = footage(tmp_path / "data"), tmp_path / "store"
    with config.open("a") as file:
        file.write("validation_dataset = {**_clips, 'start': 'first'}\n")
    random = "dataset.start=random"
    assert encode_counts(config, store, random, variants=3)["video"] == count_text(3 * CLIPS + CLIPS, 0)
    assert len(curve(config, tmp_path / "run", random, *from_store(store))) == 5
    with pytest.raises(ConfigError, match=r"'validation_dataset'.*crop='random'"):
        encode_counts(config, store, "validation_dataset.crop=random")


def test_datasets_with_equal_settings_keep_own_fps_and_variants(tmp_path: Path) -> None:
    """They share a store; a checkpoint records the frames per second of the clips that it was trained on."""
    store, runs = tmp_path / "store", {}
    for name, fps, variants in (("fast", 8, 3), ("slow", 4, 2)):
        config = footage(tmp_path / name)
        for index in range(CLIPS):
            write_video(tmp_path / name / f"{index}.mp4", 8 + index, fps=fps)
        run = load(str(config), ["dataset.start=random", *from_store(store)], TrainRun).run
        encode_counts(config, store, "dataset.start=random", only="video", variants=variants)
        runs[name] = run
    for name, fps, variants in (("fast", 8.0, 3), ("slow", 4.0, 2)):
        clips = stored_clips(runs[name], build(DATASETS, runs[name].dataset), [(5, 16, 16)], "config.py")
        assert (clips.fps, clips.keys.variants) == (fps, variants)
        assert clips.clip(0, Draw(0, 0, 0)).fps == fps


def test_classes_have_no_empty_caption(tmp_path: Path) -> None:
    config = ROOT / "configs/dit/train/debug.py"
    previews = ("preview_every=2", "preview_prompts=['a red circle moves left']", "dataset.clips=4")
    made = encode_counts(config, tmp_path / "store", *previews, only="text")["text"]
    assert made == count_text(int(made.split()[0]), 0)


def test_full_disk_raises_and_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, store = footage(tmp_path / "data"), tmp_path / "store"

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(DataError, match=r"\.safetensors: cannot be written \(No space left on device\); choose"):
        encode_counts(config, store, only="video")
    assert not list(store.rglob("*.part"))
    assert not list(store.rglob("*.safetensors"))


def test_item_permissions_equal_those_of_new_files(tmp_path: Path) -> None:
    config, store = footage(tmp_path / "data"), tmp_path / "store"
    encode_counts(config, store, only="text")
    modes = {path.suffix: path.stat().st_mode & 0o777 for path in store.rglob("*") if path.is_file()}
    (tmp_path / "plain").touch()
    plain = (tmp_path / "plain").stat().st_mode & 0o777
    assert modes == {".json": plain, ".safetensors": plain}


def test_loader_process_error_keeps_its_message(tmp_path: Path) -> None:
    config, store = footage(tmp_path / "data"), tmp_path / "store"
    store.mkdir()
    (store / "files").touch()
    with pytest.raises(DataError, match=r"^/.*/files/.*\.json: .*Not a directory"):
        encode_counts(config, store, "num_workers=1", only="video")


@pytest.mark.parametrize("ranks", [1, 2])
def test_rank_with_only_bad_rows_exits_0_among_others(
    tmp_path: Path, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = footage(tmp_path / "data")
    monkeypatch.setattr(tool, "encode", lambda *_, **__: {"video": tool.Count(bad=1)})
    monkeypatch.setattr("opensora.parallel.world.rank_from_environment", lambda: (0, ranks))
    monkeypatch.setattr("opensora.parallel.world.init", lambda *_: None)
    if ranks == 1:
        with pytest.raises(DataError, match="no clip could be encoded"):
            tool.encode_command(str(config), str(tmp_path / "store"), [])
    else:
        assert tool.encode_command(str(config), str(tmp_path / "store"), []) == 0


def test_changed_footage_is_hashed_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training writes nothing down, but does not read a video again for every clip either."""
    file, hashed = tmp_path / "file", []
    file.write_bytes(b"one")
    FileHashes(tmp_path / "store", remember=True).of(str(file))
    os.utime(file, ns=(1, 1))
    monkeypatch.setattr(files, "hash_file", lambda path, _: hashed.append(path) or "read")
    contents = FileHashes(tmp_path / "store")
    assert [contents.of(str(file)) for _ in range(3)] == ["read"] * 3
    os.utime(file, ns=(2, 2))
    assert contents.of(str(file)) == "read"
    assert len(hashed) == 2


def test_names_and_contents_are_those_of_earlier_versions(tmp_path: Path) -> None:
    """They are a format: features encoded before must be found again."""
    config, store = footage(tmp_path / "data"), tmp_path / "store"
    encode_counts(config, store)
    [video] = store.glob("video-*")
    about = json.loads((store / "text-302500737608/about.json").read_text())
    assert about["tells"] == {"condition": "text", "caption_channels": 384, "model_max_length": 12}
    assert json.loads((video / "about.json").read_text()).keys() == {"network", "latent_channels"}
    clips = json.loads((video / "clips-3dfe4a47ca14.json").read_text())
    assert clips.keys() == {"settings", "latent_sizes", "data_sets", "variants", "fps"}
    assert clips["latent_sizes"] == {"5x16x16": [3, 8, 8]}
    captions = {file.parent.name + file.stem for file in (store / "text-302500737608").rglob("*.safetensors")}
    assert captions == {
        "6bd52213ef6543ad7010f07172b2d52b",
        "aec8068d54cbed522bfcb1ef04e8287e",
        "c9e5bd7b144170760422fa625d99ad61",
    }
