"""Every mistake in a config ends in one sentence that names the file, the key and what is allowed."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from opensora.config import as_dict, digest, explain, load, parse_override
from opensora.errors import ConfigError
from opensora.schema import SampleRun, TrainRun

BASE = """
_size = 16
task = "autoencoder"
vae = dict(type="CausalVAEModel", hidden_size=32)
dataset = dict(type="MovingShapes", num_frames=9, image_size=(_size, _size))
steps = 4
run_dir = "outputs/x"
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "config.py") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def error(path: str, overrides: Sequence[str] = (), schema=TrainRun) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, schema)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_defaults_overrides_and_private_names(write) -> None:
    loaded = load(write(BASE), ["steps=9", "vae.hidden_size=64", "dtype=fp32", "ema_decay=none"], TrainRun)
    assert loaded.run.steps == 9
    assert loaded.run.vae["hidden_size"] == 64
    assert loaded.run.dtype == "fp32"
    assert loaded.run.ema_decay is None
    assert loaded.run.dataset["image_size"] == (16, 16)
    assert loaded.run.batch_size == 1


def test_override_reaches_into_a_default_component(write) -> None:
    run = load(write(BASE), ["optimizer.lr=0.5"], TrainRun).run
    assert run.optimizer == {"type": "AdamW", "lr": 0.5}


def test_paths_begin_at_home_or_anywhere(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    path = write(BASE + 'load = "~/weights"\n')
    run = load(path, ["run_dir=20260102", "vae.from_pretrained='~/vae'"], TrainRun).run
    assert (run.run_dir, run.load, run.vae["from_pretrained"]) == ("20260102", "/home/me/weights", "/home/me/vae")
    assert load(path, ["run_dir=./~/x"], TrainRun).run.run_dir == "./~/x"


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("", "an empty path"),
        ("' '", "an empty path"),
        ("'a\\0b'", "a path with a zero byte"),
        ("a/" + "é" * 128, "a name of 256 bytes"),
        ("a/" * 2048, "a path of 4096 bytes"),
    ],
)
def test_impossible_paths(write, path: str, fault: str) -> None:
    config = write(BASE)
    assert f"command line ({config}): key 'run_dir': found {fault}" in error(config, [f"run_dir={path}"])
    assert f"key 'vae.from_pretrained': found {fault}" in error(config, [f"vae.from_pretrained={path}"])


def test_names_that_are_not_utf8(write) -> None:
    name = os.fsdecode(b"caf\xe9")
    config = write(BASE)
    assert "key 'run_dir': found 'caf\\udce9', which is not UTF-8" in error(config, [f"run_dir={name}"])
    assert load(config, [f"load={name}"], TrainRun).run.load == name


def test_a_config_of_a_run_that_was_moved(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its run_dir stays; what it reads is looked for next to the run as before, but for what the command line says."""
    values = as_dict(load(write(BASE), ["run_dir=runs/a", "load=parts/weights"], TrainRun).run)
    origin = {"folder": "/gone", "run_dir": "/gone/runs/a", "local": []}
    for folder in ("runs/a", "parts/weights", "here"):
        (tmp_path / folder).mkdir(parents=True)
    config = write(json.dumps({**values, "_origin": origin}), "runs/a/config.json")
    monkeypatch.chdir(tmp_path / "here")
    run = load(config, [], TrainRun).run
    assert (run.run_dir, run.load) == ("runs/a", str(tmp_path / "parts/weights"))
    assert load(config, ["load=parts/weights"], TrainRun).run.load == "parts/weights"


def test_delete_replaces_component_or_plugin_options(write) -> None:
    """Without `_delete_` options of the file stay, so that the command line could not name another plugin."""
    path = write(BASE + 'plugin = "zero2"\nplugin_config = dict(communication_dtype="bf16")\n')
    assert "'plugin_config.communication_dtype': unknown for ddp" in error(path, ["plugin=ddp", "plugin_config={}"])
    run = load(path, ["plugin=ddp", "plugin_config={'_delete_': True, 'bucket_cap_mb': 3}"], TrainRun).run
    assert (run.plugin, run.plugin_config) == ("ddp", {"bucket_cap_mb": 3})
    run = load(path, ["vae={'_delete_': True, 'type': 'CausalVAEModel'}"], TrainRun).run
    assert run.vae == {"type": "CausalVAEModel"}
    assert load(path, ["vae={'hidden_size': 64}"], TrainRun).run.vae == {"type": "CausalVAEModel", "hidden_size": 64}


def test_origins_name_file_and_line(write) -> None:
    base = write("steps = 3\nseed = 7\n", "base.py")
    child = write("_base_ = ['base.py']\n" + BASE.replace("steps = 4", ""), "child.py")
    loaded = load(child, ["log_every=2"], TrainRun)
    rows = {key: origin for key, _, origin in explain(loaded)}
    assert rows["steps"] == f"{base}:1"
    assert rows["seed"] == f"{base}:2"
    assert rows["run_dir"].startswith(f"{child}:")
    assert rows["log_every"] == "command line"
    assert rows["grad_clip"] == "default"


def test_unknown_key_names_the_file_the_line_and_the_nearest(write) -> None:
    path = write(BASE + "batchsize = 3\n")
    assert error(path) == (
        f"{path}:8: key 'batchsize': unknown; nearest: 'batch_size'; rename or remove it; `opensora keys` lists all"
    )


def test_unknown_key_on_the_command_line(write) -> None:
    text = error(write(BASE), ["stepz=3"])
    assert text.startswith("command line (")
    assert "nearest: 'steps'" in text


WRONG_VALUES = [
    ("vae.hiden_size=3", "key 'vae.hiden_size': unknown for CausalVAEModel; nearest: 'hidden_size'"),
    ("optimizer.learning_rat=1", "key 'optimizer.learning_rat': unknown for AdamW"),
    ("plugin_config.overlap_comunication=1", "key 'plugin_config.overlap_comunication': unknown for zero2"),
    ("dataset.frames=3", "key 'dataset.frames': unknown for MovingShapes; nearest: 'num_frames'"),
    ("vae.type=CausalVAE", "key 'vae.type': found 'CausalVAE'; nearest: 'CausalVAEModel'"),
    ("plugin=zero3", "key 'plugin': found 'zero3'; nearest: 'zero"),
    ("steps=many", "key 'steps': found 'many' (str); allowed: int"),
    ("steps=1.5", "key 'steps': found 1.5 (float); allowed: int"),
    ("steps=true", "key 'steps': found True (bool); allowed: int"),
    ("dtype=fp8", "key 'dtype': found 'fp8' (str); allowed: 'auto' or 'bf16' or 'fp32'"),
    ("vae.hidden_size=big", "key 'vae.hidden_size': found 'big' (str); allowed: int"),
    ("optimizer.lr=fast", "key 'optimizer.lr': found 'fast' (str); allowed: float"),
    ("vae=3", "key 'vae': found 3 (int)"),
    ("steps.more=3", "key 'steps.more': 'steps' is 4, not a dict"),
    ("steps=0", "key 'steps': found 0; allowed: a number above 0"),
    ("ema_decay=1.0", "key 'ema_decay': found 1.0; allowed: from 0 to below 1, or None; change the value"),
    ("grad_clip=1e400", "key 'grad_clip': found inf; allowed: 0 or more"),
    ("dataset.image_size=(16,)", "key 'dataset.image_size': found (16,); allowed: (height, width), such as (64, 96);"),
    ("dataset.image_size=16", "found 16 (int); allowed: (height, width), such as (64, 96); change the value"),
    ("vae.hidden_size_mult=2", "found 2 (int); allowed: Sequence[int], such as [1, 2]; change the value"),
    ("optimizer.lr=-1e-4", "key 'optimizer.lr': found -0.0001; allowed: 0 or more; change the value"),
    ("optimizer.lr=1e400", "key 'optimizer.lr': found inf; allowed: 0 or more"),
    ("optimizer.betas=1.5,2", "key 'optimizer.betas': found (1.5, 2); allowed: from 0 to below 1, for each number;"),
    ("optimizer.betas=[0.9]", "found [0.9]; allowed: two numbers, such as (0.9, 0.999); change the value"),
    ("optimizer.eps=-1", "key 'optimizer.eps': found -1; allowed: 0 or more"),
    ("optimizer.weight_decay=-0.1", "key 'optimizer.weight_decay': found -0.1; allowed: 0 or more"),
    ("disc_optimizer={'type':'AdamW','lr':-1}", "key 'disc_optimizer.lr': found -1; allowed: 0 or more"),
    (
        "discriminator={'type':'PatchDiscriminator3D','width':0}",
        "key 'discriminator.width': found 0; allowed: 1 or more",
    ),
    ("vae.hidden_size=0", "key 'vae.hidden_size': found 0; allowed: 1 or more; change the value"),
    ("vae.hidden_size_mult=[1,0]", "found [1, 0]; allowed: 1 or more, for each number; change the value"),
    ("vae.scaling_factor=0", "key 'vae.scaling_factor': found 0; allowed: a number above 0"),
    ("timeout_seconds=1e400", "key 'timeout_seconds': found inf (float); allowed: int"),
    (
        "timeout_seconds=100000000000000",
        "found 100000000000000; allowed: a number above 0, up to 31536000; change the value",
    ),
    ("dataset.fps=0", "key 'dataset.fps': found 0; allowed: a number above 0"),
    ("dataset.clips=-4", "key 'dataset.clips': found -4; allowed: 1 or more"),
]


def test_wrong_values(write) -> None:
    for override, expected in WRONG_VALUES:
        assert expected in error(write(BASE), [override]), override


@pytest.mark.parametrize(
    ("old", "new"), [("ckpt_every", "save_every"), ("outputs", "run_dir"), ("lr", "optimizer.lr"), ("epochs", "steps")]
)
def test_names_of_other_projects_are_answered_with_ours(write, old: str, new: str) -> None:
    assert f"key '{old}': called '{new}' here" in error(write(BASE), [f"{old}=1"])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["load_video_features=f", "preview_every=2", "preview_prompts=['a']"], "previews need the autoencoder"),
        (["load_text_features=f", "text_encoder_parallel=shard"], "there is no text encoder to share"),
    ],
)
def test_stored_features_go_with_what_needs_no_network(write, overrides: list[str], expected: str) -> None:
    debug = Path(__file__).resolve().parents[2] / "configs/stdit/train/debug.py"
    assert expected in error(str(debug), overrides)
    assert "task 'diffusion'" in error(write(BASE), overrides[:1])


def test_missing_keys(write) -> None:
    assert "'steps': missing" in error(write(BASE.replace("steps = 4", "")))
    assert "'model': missing" in error(write(BASE), ["task=diffusion"])
    without_type = BASE.replace('type="CausalVAEModel", ', "")
    assert "'vae.type': missing" in error(write(without_type))
    assert "'optimizer.lr': missing" in error(write(BASE + "optimizer = dict(type='AdamW')\n"))


def test_broken_files(write, tmp_path: Path) -> None:
    assert "no such file" in error(str(tmp_path / "none.py"))
    assert "allowed: .py or .json" in error(write("steps: 1", "config.yaml"))
    text = error(write("steps = = 3\n"))
    assert "SyntaxError" in text
    assert "ZeroDivisionError" in error(write("steps = 1 / 0\n"))


def test_override_must_be_an_assignment(write) -> None:
    assert "allowed: key=value" in error(write(BASE), ["steps"])
    assert parse_override("a.b=(1, 2)") == ("a.b", (1, 2))
    assert parse_override("a=x y") == ("a", "x y")


def test_error_names_the_origin_of_its_key(write) -> None:
    """Code that checks parts against each other knows the path of the config alone."""
    path = write(BASE)
    loaded = load(path, ["seed=3"], TrainRun)
    origins = {
        f"{path}: key 'seed': a": f"command line ({path}): key 'seed': a",
        "config: key 'vae.hidden_size': b": f"{path}:4: key 'vae.hidden_size': b",
        f"{path}: keys 'vae', 'seed': c": f"command line ({path}): keys 'vae', 'seed': c",
        f"{path}: key 'log_every': d": f"{path}: key 'log_every': d",
        "elsewhere: key 'seed': e": "elsewhere: key 'seed': e",
    }
    for message, expected in origins.items():
        with pytest.raises(ConfigError) as caught, loaded.naming_origins():
            raise ConfigError(message)
        assert str(caught.value) == expected


def test_digest_changes_with_any_value(write) -> None:
    one, other = (load(write(BASE), [f"seed={seed}"], TrainRun).run for seed in (1, 2))
    assert digest(as_dict(one)) != digest(as_dict(other))
    assert digest(as_dict(one)) == digest(as_dict(one))


def test_sample_run(write) -> None:
    path = write("load = 'outputs/run'\nprompt = ['a cat']\n")
    assert load(path, ["image_size=(64, 96)"], SampleRun).run.image_size == (64, 96)
    assert error(path, ["image_size=(64,)"], SampleRun).endswith(
        "found (64,); allowed: (height, width), such as (64, 96) or None; change the value"
    )
