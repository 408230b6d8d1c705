"""Given frames from the run's keys to the video: what is kept, what is made, and what is redone when a file changes."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.errors import ConfigError
from opensora.sampling.generate import Sampler, generate
from opensora.sampling.mask_strategy import read_reference
from opensora.sampling.metadata import file_stem, record, request_hash
from opensora.sampling.reference_frames import (
    ReferenceFrames,
    ReferenceKeys,
    condition_frame_length,
    overlap_frames,
    resolve,
    split_paths,
    with_condition_frame_length,
)
from opensora.sampling.requests import collect_requests
from opensora.types import SampleRequest, VideoConditioning
from tests.support.fake_sampler import SETTINGS, FakeCodec, fake_sampler, request, stdit_sampler
from tests.support.media_files import write_picture, write_video

RUN = dict(num_frames=4, image_size=(16, 16), fps=8.0, seed=42)


def collect(prompts: list[str], path: str | None = None, change: Any = str, **keys: Any) -> list[SampleRequest]:
    return collect_requests(prompts, path, reference_keys=ReferenceKeys(**keys), change=change, **RUN)


def test_paths_of_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert split_paths(" a.png ;; ~/b.mp4") == ("a.png", "/home/me/b.mp4")
    assert split_paths("a.png;/b.mp4", tmp_path) == (str(tmp_path / "a.png"), "/b.mp4")
    (tmp_path / "a;b.png").touch()
    assert split_paths("a;b.png", tmp_path) == (str(tmp_path / "a;b.png"),)
    assert split_paths(";".join(["x" * 200] * 9))[8] == "x" * 200


def latents_of(requests: list[SampleRequest], sampler: Sampler) -> list[Tensor]:
    """The latents that sampling hands to the decoder, loop by loop, [B, C, T, H, W]."""
    latents: list[Tensor] = []
    decode = sampler.codec.decode_video

    def keep(z: Tensor, num_frames: int) -> Tensor:
        latents.append(z)
        return decode(z, num_frames)

    sampler.codec.decode_video = keep
    generate(requests, sampler, 3.0)
    return latents


@pytest.mark.parametrize("make", [fake_sampler, stdit_sampler], ids=["velocity", "STDiT"])
def test_a_given_frame_is_the_encoded_reference_and_the_others_follow_it(tmp_path: Path, make: Any) -> None:
    first, last = write_picture(tmp_path / "a.png", 0b1011), write_video(tmp_path / "b.mp4", 6)
    [one] = collect(["a cat"], reference_path=f"{first};{last}", mask_strategy="0;0,1,-1,-1")
    [z] = latents_of([one], make())
    [plain] = latents_of(collect(["a cat"]), make())
    encoded = [FakeCodec().encode_video(read_reference(path, 16, 16)[None]) for path in (first, last)]
    assert torch.equal(z[:, :, 0], encoded[0][:, :, 0])
    assert torch.equal(z[:, :, 3], encoded[1][:, :, -1])
    assert not torch.equal(z[:, :, 1:3], encoded[0].expand_as(z)[:, :, 1:3])
    assert not torch.allclose(plain[:, :, 0], z[:, :, 0], atol=0.1)


def test_reference_changes_the_other_frames(tmp_path: Path) -> None:
    """A real denoiser attends to the given frame: another picture, another continuation."""
    made = []
    for number in (1, 200):
        path = write_picture(tmp_path / f"{number}.png", number)
        made += latents_of(collect(["a cat"], reference_path=path), stdit_sampler())
    assert (made[0][:, :, 1:] - made[1][:, :, 1:]).abs().max() > 1e-3


def test_requests_with_and_without_given_frames_share_a_batch(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png")
    with_frames, plain = collect(["a cat", "a dog"], reference_path=[path, ""], mask_strategy=["0", ""])
    assert plain.conditioning is None
    [together] = latents_of([with_frames, plain], fake_sampler())
    [alone] = latents_of([plain], fake_sampler())
    torch.testing.assert_close(together[1:], alone)


def test_loops_go_on_from_the_end_of_the_clip_before() -> None:
    """Four frames and three loops that repeat one: 4 + 3 + 3. Each loop has its own words and noise."""
    [one] = collect(["|0|a cat|2|a small dog"], loop=3, condition_frame_length=1)
    sampler, steps = fake_sampler(steps=2), []
    clips = latents_of([one], sampler)
    assert len(clips) == 3
    for before, after in pairwise(clips):
        end = FakeCodec().encode_video(FakeCodec().decode_video(before, 4))[:, :, -1]
        assert torch.equal(after[:, :, 0], end)
        assert (after[:, :, 1:] - before[:, :, 1:]).abs().min() > 0
    texts = [text[0] for text, _ in sampler.model.calls]
    assert torch.equal(texts[0], texts[2])
    assert not torch.equal(texts[2], texts[4])
    [video] = generate([one], fake_sampler(), 3.0, progress=lambda done, of: steps.append((done, of)))
    assert video.shape == (3, 10, 16, 16)
    assert steps == [(n, 9) for n in range(1, 10)]


def test_edited_frames_are_made_anew_from_what_was_there() -> None:
    kept, edited = (collect(["a cat"], loop=2, condition_frame_length=1, condition_frame_edit=e)[0] for e in (0, 0.5))
    [_, a], [_, b] = latents_of([kept], fake_sampler(steps=8)), latents_of([edited], fake_sampler(steps=8))
    assert 0 < (a[:, :, 0] - b[:, :, 0]).abs().mean() < (a[:, :, 0] - b[:, :, 2]).abs().mean()


@pytest.mark.parametrize(("num_frames", "length"), [(2, 1), (4, 2), (9, 4), (10, 5), (40, 5)])
def test_loops_repeat_five_latent_frames_or_half_of_a_short_clip(num_frames: int, length: int) -> None:
    """The request with the number is the one that said so itself, in its hash as well."""
    vae = FakeCodec().vae
    [default] = [replace(each, num_frames=num_frames) for each in collect(["a cat"], loop=2)]
    [explicit] = [
        replace(each, num_frames=num_frames) for each in collect(["a cat"], loop=2, condition_frame_length=length)
    ]
    assert condition_frame_length(default, vae) == overlap_frames(default, vae) == length
    assert with_condition_frame_length(default, vae) == with_condition_frame_length(explicit, vae) == explicit


def test_videos_of_one_clip_are_those_of_earlier_versions(tmp_path: Path) -> None:
    """Their hash has always held five frames, which nothing uses."""
    path = write_picture(tmp_path / "a.png")
    [default], [older] = (
        collect(["a cat"], reference_path=path, **keys) for keys in ({}, {"condition_frame_length": 5})
    )
    assert request_hash(with_condition_frame_length(default, FakeCodec().vae), SETTINGS) == request_hash(
        older, SETTINGS
    )


def test_reference_that_is_not_there_is_named_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = rf"prompt 1: reference_path: no\.png: no such file \(looked for {tmp_path}/no\.png\); correct the path"
    with pytest.raises(ConfigError, match=message):
        collect(["a cat"], reference_path="no.png")


def test_loop_that_adds_nothing_is_error() -> None:
    [one] = collect(["a cat"], loop=2, condition_frame_length=4)
    with pytest.raises(ConfigError, match=r"4 latent frames.*4 frames.*1 to 3"):
        generate([one], fake_sampler(), 3.0)


def test_a_changed_reference_redoes_the_video_and_a_moved_one_does_not(tmp_path: Path) -> None:
    path, moved = write_picture(tmp_path / "a.png", 1), write_picture(tmp_path / "b.png", 1)
    [one], [same] = collect(["a cat"], reference_path=path), collect(["a cat"], reference_path=moved)
    write_picture(path, 2)
    [other] = collect(["a cat"], reference_path=path)
    assert request_hash(one, SETTINGS) == request_hash(same, SETTINGS)
    assert request_hash(one, SETTINGS) != request_hash(other, SETTINGS)
    assert file_stem(one) != file_stem(other)
    changed = [
        replace(one, conditioning=replace(one.conditioning or VideoConditioning(), **c))
        for c in ({"mask_strategy": "0,0,0,1"}, {"align": 2})
    ]
    assert len({request_hash(each, SETTINGS) for each in [one, *changed]}) == 3
    noted = record(one, SETTINGS)
    assert (noted["references"], noted["mask_strategy"], noted["loop"]) == ((path,), "0", 1)


def test_requests_without_given_frames_keep_their_names_and_hashes() -> None:
    """Videos made before there were given frames stay done."""
    assert file_stem(request()) == "0000-a-red-circle-6800f98c"
    assert "given" not in record(request(), SETTINGS)
    assert "mask_strategy" not in record(request(), SETTINGS)


def test_where_references_may_be_written(tmp_path: Path) -> None:
    a, b = write_picture(tmp_path / "a.png", 1), write_picture(tmp_path / "b.png", 2)
    table = tmp_path / "p.csv"
    table.write_text('text,reference_path,mask_strategy\na cat,b.png,"0,0,0,2"\na dog,,\n')
    direct, cat, dog = collect([f'a fish {{"reference_path": "{b}"}}'], str(table), reference_path=a, mask_strategy=0)
    for one, expected in ((direct, ("a fish", b, "0")), (cat, ("a cat", b, "0,0,0,2")), (dog, ("a dog", a, "0"))):
        assert one.conditioning is not None
        assert (one.prompt, *one.conditioning.references, one.conditioning.mask_strategy) == expected
    [one] = collect(["a cat"], reference_path=a, mask_strategy=(0, 0, 0, 3, 1, 0.5))
    assert one.conditioning is not None
    assert one.conditioning.mask_strategy == "0,0,0,3,1,0.5"
    [one] = collect(["|0|a day|1|a night"], loop=2, change=lambda text: text + "!")
    assert one.prompt == "|0|a day!|1|a night!"


def test_bad_references_are_errors(tmp_path: Path) -> None:
    a = write_picture(tmp_path / "a.png")
    (tmp_path / "no.png").write_text("not a picture")
    for keys, message in (
        ({"reference_path": str(tmp_path / "none.png")}, r"prompt 1: reference_path: .*none\.png: no such file"),
        ({"reference_path": str(tmp_path / "no.png")}, r"prompt 1: reference_path: .*no\.png: cannot be decoded"),
        ({"reference_path": a, "mask_strategy": "0,1"}, r"names reference 1; there are 1, counted from 0"),
        ({"reference_path": a, "mask_strategy": "1"}, r"names loop 1; there are 1, counted from 0; set loop"),
        ({"mask_strategy": "0"}, r"names reference 0; there are 0"),
        ({"reference_path": [a, a]}, r"reference_path: 2 entries for 1 prompts"),
        (
            {"reference_path": a, "mask_strategy": "x"},
            r"prompt 1: mask_strategy: 'x' in 'x'; allowed: up to six numbers",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            collect(["a cat"], **keys)
    with pytest.raises(ConfigError, match=r"loop.* 2"):
        collect(["|0|a|2|b"], loop=2)
    with pytest.raises(ConfigError, match=r"empty.*JSON"):
        collect([f'{{"reference_path": "{a}"}}'])


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("a;b.png", ("a;b.png",)),
        ("c.png; a;b.png;d.png", ("c.png", "a;b.png", "d.png")),
        ("c.png;;d.png ", ("c.png", "d.png")),
        ("a; b.png", ("a", "b.png")),
        (" ; ", ()),
    ],
)
def test_name_of_a_file_that_holds_a_semicolon(tmp_path: Path, text: str, paths: tuple[str, ...]) -> None:
    (tmp_path / "a;b.png").touch()
    absolute = tuple(str(tmp_path / path) for path in paths)
    assert split_paths(text, tmp_path) == split_paths(resolve(text, tmp_path)) == absolute


class CountingCodec:
    """Latents hold the mean of the frames that they code: of a causal autoencoder one frame, then four each."""

    def __init__(self, causal: bool) -> None:
        self.causal = causal
        self.vae = SimpleNamespace(latent_size=lambda size: ((size[0] - 1) // 4 + 1 if causal else size[0], 4, 4))

    def encode_video(self, video_BCTHW: Tensor) -> Tensor:
        if not self.causal:
            return video_BCTHW[:, :1]
        first, rest = video_BCTHW[:, :1, :1], video_BCTHW[:, :1, 1:]
        return torch.cat([first, *[group.mean(2, keepdim=True) for group in rest.split(4, dim=2)]], dim=2)


def numbered(frames: int) -> Tensor:
    """A video whose frames hold their numbers."""
    return torch.arange(float(frames)).view(1, frames, 1, 1).expand(3, frames, 4, 4)


@pytest.mark.parametrize(
    ("causal", "strategy", "placed"),
    [
        (True, "0,0,-1,0,1", {0: 8.0}),  # the last frame, not the mean of the last four
        (True, "0,0,-2,0,2", {0: 4.0, 1: 6.5}),
        (True, "0,0,1,0,1", {0: 4.0}),  # of a part within the clip, its last frames
        (True, "0,0,0,0,2", {0: 0.0, 1: 2.5}),  # the beginning is a clip of its own already
        (True, "0,0,-1,1,1", {1: 6.5}),  # no beginning of a clip
        (True, "0,0,-1,-3,1", {0: 8.0}),
        (False, "0,0,-1,0,1", {0: 8.0}),
        (False, "0,0,-3,0,3", {0: 6.0, 1: 7.0, 2: 8.0}),
    ],
)
def test_a_part_that_begins_a_clip_is_encoded_as_a_clip(
    monkeypatch: pytest.MonkeyPatch, causal: bool, strategy: str, placed: dict[int, float]
) -> None:
    monkeypatch.setattr("opensora.sampling.reference_frames.read_reference", lambda path, height, width: numbered(9))
    conditioning = VideoConditioning(references=("a.mp4",), mask_strategy=strategy)
    frames = ReferenceFrames(request(num_frames=9, conditioning=conditioning), CountingCodec(causal))
    latents, mask_T = frames.paste(torch.full((1, 3 if causal else 9, 4, 4), -1.0), 0)
    shown = {place: latents[0, place, 0, 0].item() for place in (mask_T == 0).nonzero().flatten().tolist()}
    assert shown == placed


def test_a_further_loop_begins_with_the_last_frames_as_a_clip() -> None:
    conditioning = VideoConditioning(loop=3, condition_frame_length=2)
    frames = ReferenceFrames(request(num_frames=9, conditioning=conditioning), CountingCodec(causal=True))
    for loop, expected in ((1, [4.0, 6.5, -1.0]), (2, [14.0, 16.5, -1.0])):
        frames.append_clip(numbered(9) + 10 * (loop - 1), loop)
        latents, mask_T = frames.paste(torch.full((1, 3, 4, 4), -1.0), loop)
        assert latents[0, :, 0, 0].tolist() == expected
        assert mask_T.tolist() == [0, 0, 1]
