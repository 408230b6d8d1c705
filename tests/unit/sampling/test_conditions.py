"""Plain choices become references and a mask strategy."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from opensora.datasets.table import write_table
from opensora.errors import ConfigError
from opensora.sampling.build import plan_sampling
from opensora.sampling.conditions import Conditions, frames_in
from opensora.sampling.generate import Sampler, generate
from opensora.sampling.mask_strategy import read_reference
from opensora.sampling.reference_frames import is_edited_as_a_whole
from opensora.schedulers.dpm_solver import DPMSolver
from opensora.schema import SampleRun
from opensora.types import VideoConditioning
from tests.support.fake_sampler import FakeCodec, fake_sampler, request
from tests.support.media_files import write_picture, write_video

ROOT = Path(__file__).resolve().parents[3]


def causal(num_frames: int) -> int:
    """Latent frames of an autoencoder that codes the first frame alone and then four together."""
    return (num_frames - 1) // 4 + 1


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("media")
    return {
        "A": write_picture(folder / "a.png", 1),
        "B": write_picture(folder / "b.png", 2),
        "CLIP": write_video(folder / "clip.mp4", 33),
        "SHORT": write_video(folder / "short.mp4", 5),
    }


def words(media: dict[str, str], num_frames: int = 33, **keys: Any) -> tuple[list[str], str]:
    """The references by their letters, and the strategy."""
    letters = {path: letter for letter, path in media.items()}
    named = {key: media.get(value, value) if isinstance(value, str) else value for key, value in keys.items()}
    if "connect" in named:
        named["connect"] = [media[letter] for letter in named["connect"]]
    conditions = Conditions.of(SampleRun(**named), "s.py")
    assert conditions is not None
    paths, strategy = conditions.words(num_frames, causal)
    return [letters[path] for path in paths.split(";")], strategy


@pytest.mark.parametrize(
    ("keys", "references", "strategy"),
    [
        ({"first_frame": "A"}, ["A"], "0,0,0,0,1,0"),
        ({"last_frame": "B"}, ["B"], "0,0,0,-1,1,0"),
        ({"first_frame": "A", "last_frame": "B"}, ["A", "B"], "0,0,0,0,1,0;0,1,0,-1,1,0"),
        ({"first_frame": "A", "last_frame": "B", "loop": 3}, ["A", "B"], "0,0,0,0,1,0;2,1,0,-1,1,0"),
        ({"extend": "CLIP"}, ["CLIP"], "0,0,-4,0,4,0"),
        ({"extend": "CLIP", "backward": True}, ["CLIP"], "0,0,0,-4,4,0"),
        ({"extend": "CLIP", "condition_frame_length": 3}, ["CLIP"], "0,0,-3,0,3,0"),
        ({"extend": "SHORT"}, ["SHORT"], "0,0,-2,0,2,0"),
        ({"extend": "CLIP", "last_frame": "B"}, ["B", "CLIP"], "0,0,0,-1,1,0;0,1,-4,0,4,0"),
        ({"connect": "AB"}, ["A", "B"], "0,0,-1,0,1,0;0,1,0,-1,1,0"),
        ({"connect": ["CLIP", "SHORT"]}, ["CLIP", "SHORT"], "0,0,-4,0,4,0;0,1,0,-2,2,0"),
        ({"edit": "CLIP", "strength": 0.4}, ["CLIP"], "0,0,0,0,9,0.4"),
        ({"edit": "CLIP"}, ["CLIP"], "0,0,0,0,9,0.5"),
        ({"edit": "CLIP", "keep": "0-8,25-32"}, ["CLIP"], "0,0,0,0,9,0.5;0,0,0,0,3,0;0,0,7,7,2,0"),
        ({"edit": "CLIP", "keep": "2-11", "strength": 1}, ["CLIP"], "0,0,0,0,9,1;0,0,2,2,1,0"),
    ],
)
def test_choices_as_a_strategy(
    media: dict[str, str], keys: dict[str, Any], references: list[str], strategy: str
) -> None:
    """33 frames are 9 latent frames: 0, 1-4, 5-8, ... An edit keeps those whose frames all stay."""
    assert words(media, **keys) == (references, strategy)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"backward": True}, "s.py: key 'backward': belongs to 'extend'"),
        ({"strength": 0.4}, "key 'strength': belongs to 'edit'"),
        ({"keep": "0", "first_frame": "A"}, "key 'keep': belongs to 'edit'"),
        ({"first_frame": "A", "reference_path": "b.png"}, "keys 'first_frame', 'reference_path': both say"),
        ({"first_frame": "A", "mask_strategy": "0"}, "keys 'first_frame', 'mask_strategy': both say"),
        ({"first_frame": "A", "extend": "CLIP"}, "keys 'first_frame', 'extend': each says how the video is to begin"),
        ({"last_frame": "A", "extend": "CLIP", "backward": True}, "'last_frame', 'extend': each says .* to end"),
        ({"edit": "CLIP", "last_frame": "A"}, "'last_frame', 'edit': each says how the video is to end"),
        ({"connect": "ABA"}, "key 'connect': found 3 files; allowed: two"),
        ({"edit": "SHORT"}, "key 'edit': .*short.mp4 has 5 frames, the video 33; .* or num_frames=5"),
        ({"extend": "SHORT", "condition_frame_length": 3}, "short.mp4 has 5 frames, which are 2 latent frames"),
        ({"first_frame": "none.png"}, "key 'first_frame': none.png: no such file"),
        ({"edit": "CLIP", "keep": "0-33"}, "key 'keep': found '0-33' in .* frames from 0 to 32"),
        ({"edit": "CLIP", "keep": "2-4"}, "holds no whole latent frame; allowed: .* 0, 1-4, 5-8, 9-12, ..."),
    ],
)
def test_choices_that_cannot_be(media: dict[str, str], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        words(media, **keys)


def test_no_choice_is_no_condition() -> None:
    assert Conditions.of(SampleRun(mask_strategy="0", reference_path="a.png"), "s.py") is None


def test_ranges_of_frames() -> None:
    assert frames_in("0-2, 5,7-7", 8, "keep") == {0, 1, 2, 5, 7}
    for wrong in ("3-1", "a", "", "0-", "-1", "0,,1"):
        with pytest.raises(ConfigError, match=r"keep: found .* frames from 0 to 7"):
            frames_in(wrong, 8, "keep")


@pytest.mark.parametrize(
    ("strategy", "loop", "whole"),
    [
        ("0,0,0,0,9,0.4", 1, True),
        ("0,0,0,-9,9,0.4", 1, True),
        ("0,0,0,0,9,0.4", 2, False),
        ("0,0,0,0,8,0.4", 1, False),
        ("0,0,0,0,9,1", 1, False),
        ("0,0,0,0,9,0.4;0,0,0,0,3,0", 1, False),
        ("0", 1, False),
    ],
)
def test_edits_of_a_whole_clip(strategy: str, loop: int, whole: bool) -> None:
    assert is_edited_as_a_whole(VideoConditioning(mask_strategy=strategy, loop=loop), 9) is whole


@pytest.mark.parametrize("scheduler", [None, DPMSolver(num_sampling_steps=8, learn_sigma=False, cfg_scale=1.0)])
@pytest.mark.parametrize("conditioned", [False, True])
def test_stronger_edits_go_further_from_the_clip(tmp_path: Path, scheduler: Any, conditioned: bool) -> None:
    """With any scheduler, and a model that knows no masks: it never gets one."""
    path = write_video(tmp_path / "clip.mp4", 4)
    made = fake_sampler(steps=8)
    sampler = Sampler(made.model, scheduler or made.scheduler, made.codec)
    sampler.model.forward = lambda x, *_, x_mask=None, **__: 0.1 * x if x_mask is None else None  # type: ignore[method-assign]
    if conditioned:
        sampler.model.conditioned = True
        sampler.model.null_text = lambda n: torch.zeros(n, 1, 6, 5)  # type: ignore[method-assign]
    codec = FakeCodec()
    clip = codec.decode_video(codec.encode_video(read_reference(path, 16, 16)[None]), 4)[0]
    distances = []
    for strength in (0.2, 0.5, 0.9):
        conditioning = VideoConditioning((path,), "", f"0,0,0,0,4,{strength}")
        [video] = generate([request("a cat", conditioning=conditioning)], sampler, 1.0)
        distances.append(float((video - clip).abs().mean()))
    assert 0 < distances[0] < distances[1] < distances[2]


def run(**keys: Any) -> SampleRun:
    parts: dict[str, Any] = dict(
        vae=Config.fromfile(str(ROOT / "configs/_base_/tiny_vae.py")).vae.to_dict(),
        text_encoder={"type": "minilm"},
        scheduler={"type": "dpm-solver"},
        model={"type": "PixArt", "hidden_size": 48, "depth": 1, "num_heads": 2},
        prompt=["a"],
        num_frames=5,
        image_size=(16, 16),
        fps=8.0,
    )
    return SampleRun(**{**parts, **keys})


def test_models_without_masks_edit_whole_clips_only(media: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "opensora"):
        [one] = plan_sampling(run(edit=media["CLIP"], strength=0.3), "s.py").requests
    assert one.conditioning is not None
    assert one.conditioning.mask_strategy == "0,0,0,0,3,0.3"
    assert "clip.mp4: 32 rows of 64 pixels become 16 of 16: 50% of it, at the left and right, is cut off" in caplog.text
    for keys in ({"edit": media["CLIP"], "keep": "0"}, {"first_frame": media["A"]}):
        with pytest.raises(ConfigError, match="PixArt cannot be conditioned on frames"):
            plan_sampling(run(**keys), "s.py")


def test_a_reference_of_another_rate_is_mentioned(media: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "opensora"):
        plan_sampling(run(edit=media["CLIP"], fps=4.0), "s.py")
    assert (
        "clip.mp4: has 8 frames per second, the video 4; its frames are taken one by one, so they play slower"
        in caplog.text
    )


MASKED: dict[str, Any] = {
    "scheduler": {"type": "rflow"},
    "model": {"type": "STDiT", "hidden_size": 48, "depth": 1, "num_heads": 2},
}


def strategies(run: SampleRun) -> list[tuple[list[str], str, int]]:
    """The names of the references, the strategy and the loops of each request."""
    rows = []
    for one in plan_sampling(run, "s.py").requests:
        frames = one.conditioning or VideoConditioning()
        rows.append(([Path(path).name for path in frames.references], frames.mask_strategy, frames.loop))
    return rows


def test_rows_of_a_table_choose_for_themselves(media: dict[str, str]) -> None:
    """Files lie next to the table; a cell that is empty takes the run's value."""
    table = Path(media["A"]).parent / "p.csv"
    table.write_text(
        "text,first_frame,last_frame,extend,backward,edit,strength,keep,loop,connect\n"
        "a,a.png,,,,,,,,\n"
        "b,a.png,b.png,,,,,,2,\n"
        "c,,,clip.mp4,TRUE,,,,,\n"
        "d,,,clip.mp4,no,,,,,\n"
        "e,,,,,clip.mp4,0.3,0,,\n"
        "f,,,,,,,,,a.png;b.png\n"
        "g,,,,,,,,,\n"
    )
    rows = [dict.fromkeys(("first_frame", "extend", "backward", "loop", "strength")) | {"text": "h"} for _ in range(2)]
    rows[0] |= {"extend": "clip.mp4", "backward": True, "loop": 2}
    write_table(str(table.with_suffix(".parquet")), rows)
    assert strategies(run(**MASKED, prompt=[], prompt_path=str(table.with_suffix(".parquet")))) == [
        (["clip.mp4"], "1,0,0,-1,1,0", 2),
        ([], "", 1),
    ]
    assert strategies(run(**MASKED, prompt=[], prompt_path=str(table))) == [
        (["a.png"], "0,0,0,0,1,0", 1),
        (["a.png", "b.png"], "0,0,0,0,1,0;1,1,0,-1,1,0", 2),
        (["clip.mp4"], "0,0,0,-1,1,0", 1),
        (["clip.mp4"], "0,0,-1,0,1,0", 1),
        (["clip.mp4"], "0,0,0,0,3,0.3;0,0,0,0,1,0", 1),
        (["a.png", "b.png"], "0,0,-1,0,1,0;0,1,0,-1,1,0", 1),
        ([], "", 1),
    ]


def test_rows_add_to_the_choices_of_the_run(media: dict[str, str]) -> None:
    table = Path(media["A"]).parent / "q.csv"
    table.write_text("text,strength\na,0.3\nb,\n")
    edit = run(**MASKED, prompt=["c"], prompt_path=str(table), edit=media["CLIP"], strength=0.7)
    assert [strategy for _, strategy, _ in strategies(edit)] == ["0,0,0,0,3,0.7", "0,0,0,0,3,0.3", "0,0,0,0,3,0.7"]


@pytest.mark.parametrize(
    ("columns", "cells", "message"),
    [
        ("first_frame,extend", "a.png,clip.mp4", "r.csv, line 2: keys 'first_frame', 'extend': each says how"),
        ("first_frame", "none.png", "r.csv, line 2: key 'first_frame': .*none.png: no such file"),
        ("strength", "0.5", "r.csv, line 2: key 'strength': belongs to 'edit'"),
        ("edit,keep", "clip.mp4,0-99", "r.csv, line 2: key 'keep': found '0-99' .* frames from 0 to 4"),
        ("connect", "a.png", "r.csv, line 2: key 'connect': found 1 files"),
        ("edit,mask_strategy", "clip.mp4,0", "r.csv, line 2: keys 'edit', 'mask_strategy': both say"),
        ("first_frame,num_frames", "a.png,0", "r.csv, line 2: num_frames is 0; it is more than 0"),
        ("edit,num_frames", "short.mp4,9", "r.csv, line 2: key 'edit': .*short.mp4 has 5 frames, the video 9"),
    ],
)
def test_rows_that_contradict_themselves_are_named(
    media: dict[str, str], columns: str, cells: str, message: str
) -> None:
    table = Path(media["A"]).parent / "r.csv"
    table.write_text(f"text,{columns}\na,{cells}\n")
    with pytest.raises(ConfigError, match=message):
        plan_sampling(run(**MASKED, prompt=[], prompt_path=str(table)), "s.py")


def test_a_row_with_references_contradicts_choices_of_the_run(media: dict[str, str]) -> None:
    """Its file would take the place of the clip in the strategy for that clip."""
    table = Path(media["A"]).parent / "s.csv"
    table.write_text("text,reference_path\na,a.png\n")
    with pytest.raises(ConfigError, match=r"s.csv, line 2: keys 'extend', 'reference_path': both say"):
        plan_sampling(run(**MASKED, prompt=[], prompt_path=str(table), extend=media["CLIP"]), "s.py")
