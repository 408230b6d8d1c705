import json
from dataclasses import replace
from pathlib import Path

import pytest

from opensora.errors import ConfigError
from opensora.sampling.metadata import (
    GenerationSettings,
    file_stem,
    generation_settings,
    hash_config,
    is_done,
    output_path,
    record,
    request_hash,
    slug,
    weights_id,
)
from opensora.schedulers.rectified_flow import RectifiedFlow
from tests.support.fake_sampler import SETTINGS, request

NASTY = [
    "../../etc/passwd",
    "a/b\\c",
    '"; rm -rf / #',
    "--help",
    ".hidden",
    "🎈🎈",
    "日本",
    "x" * 500,
    "a\nb\x00c",
    "CON",
    " . ",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Red Circle, moving!", "a-red-circle-moving"),
        ("../../etc/passwd", "etc-passwd"),
        ("--help", "help"),
        ("Größe café", "groe-cafe"),
        ("🎈", "video"),
        ("", "video"),
        ("abc def ghi", "abc-def"),
    ],
)
def test_slug(text: str, expected: str) -> None:
    assert slug(text, length=8 if text == "abc def ghi" else 48) == expected


@pytest.mark.parametrize("prompt", NASTY)
def test_any_prompt_is_one_safe_file_inside_the_folder(tmp_path: Path, prompt: str) -> None:
    path = output_path(tmp_path, request(prompt, index=12))
    assert path.parent == tmp_path
    assert path.name.isascii()
    assert set(path.stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert path.name.startswith("0012-")
    assert len(path.name) < 100


def test_two_requests_never_share_a_file() -> None:
    requests = [request(prompt) for prompt in [*NASTY, "x" * 499 + "y"]]
    requests += [request(seed=2), request(repeat=1), request(height=32), request(negative_prompt="n"), request(index=1)]
    assert len({file_stem(one) for one in requests}) == len(requests)
    assert file_stem(request(repeat=1)).startswith("0000-a-red-circle-r1-")


def test_one_frame_is_a_picture() -> None:
    assert output_path("d", request(num_frames=1)).suffix == ".png"
    assert output_path("d", request(num_frames=2)).suffix == ".mp4"


def test_the_hash_follows_what_changes_pixels() -> None:
    base = request_hash(request(), SETTINGS)
    assert request_hash(request(index=9), SETTINGS) == base
    others = [request_hash(request(seed=2), SETTINGS)]
    changes = dict(guidance_scale=2.0, steps=9, batch_size=2, dtype="bf16", config_hash="c1", weights="w1")
    others += [request_hash(request(), replace(SETTINGS, **{name: value})) for name, value in changes.items()]
    assert len({base, *others}) == 8


def test_done_needs_the_video_its_size_and_its_record(tmp_path: Path) -> None:
    path, note = tmp_path / "v.mp4", tmp_path / "v.json"
    assert not is_done(path, request(), SETTINGS)
    path.write_bytes(b"12345")
    assert not is_done(path, request(), SETTINGS)
    note.write_text(json.dumps(record(request(), SETTINGS, bytes=5)))
    assert is_done(path, request(), SETTINGS)
    assert not is_done(path, request(), replace(SETTINGS, weights="w1"))
    path.write_bytes(b"123")
    assert not is_done(path, request(), SETTINGS)
    path.unlink()
    assert not is_done(path, request(), SETTINGS)
    path.write_bytes(b"12345")
    for damaged in ('{"request_hash": ', "[]", "{}", "\x00"):
        note.write_text(damaged)
        assert not is_done(path, request(), SETTINGS)


def test_config_hash_ignores_order_and_sees_depth() -> None:
    assert hash_config({"a": {"x": 1, "y": (2, 3)}, "b": 2}) == hash_config({"b": 2, "a": {"y": [2, 3], "x": 1}})
    assert hash_config({"a": {"x": 1}}) != hash_config({"a": {"x": 2}})


def test_weights_are_known_by_their_contents(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(b"\x01" * 3_000_000)
    assert weights_id(tmp_path / "one") == weights_id(tmp_path / "two")
    with (tmp_path / "two" / "model.safetensors").open("r+b") as file:
        file.seek(2_500_000)
        file.write(b"\x02")
    assert weights_id(tmp_path / "one") != weights_id(tmp_path / "two")
    assert weights_id(tmp_path / "two" / "model.safetensors") != weights_id(tmp_path / "one" / "model.safetensors")


def test_settings_come_from_scheduler_by_default() -> None:
    scheduler = RectifiedFlow(num_sampling_steps=7, cfg_scale=3.0)
    kwargs = dict(dtype="bf16", config_hash="c", weights="w")
    assert generation_settings(scheduler, **kwargs) == GenerationSettings(3.0, 7, 1, "bf16", "c", "w")
    assert generation_settings(scheduler, guidance_scale=1, **kwargs).guidance_scale == 1.0
    with pytest.raises(ConfigError, match=r"batch_size.*0"):
        generation_settings(scheduler, batch_size=0, **kwargs)
