from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opensora.errors import ConfigError, OpenSoraError
from opensora.models.dit.dit import DiT
from opensora.models.text.classes import ClassLabels
from opensora.registry import SCHEDULERS, build
from opensora.rng import generator
from opensora.sampling.caches.first_block_cache import FirstBlockCache
from opensora.sampling.caches.tea_cache import TeaCache
from opensora.sampling.generate import Sampler, check_size, generate, initial_noise
from opensora.sampling.shortcuts import Shortcuts
from opensora.schedulers.ddpm import IDDPM
from opensora.schedulers.rectified_flow import RectifiedFlow
from opensora.schedulers.timesteps import Denoise
from opensora.types import VideoConditioning
from tests.support.fake_sampler import FakeCodec, fake_sampler, request, stdit_sampler
from tests.support.media_files import write_video


def test_a_video_does_not_depend_on_its_batch_or_its_place() -> None:
    cat, dog = request("a cat", index=0), request("a small dog", index=1)
    alone = generate([dog], fake_sampler(), 3.0)[0]
    together = generate([cat, dog], fake_sampler(), 3.0)[1]
    moved = generate([request("a small dog", index=7)], fake_sampler(), 3.0)[0]
    assert alone.shape == (3, 4, 16, 16)
    torch.testing.assert_close(together, alone)
    assert torch.equal(moved, alone)


def test_seed_repeat_and_prompt_each_change_the_video() -> None:
    videos = [
        generate([one], fake_sampler(), 3.0)[0]
        for one in (request(), request(seed=2), request(repeat=1), request("a dog"), request(negative_prompt="dark"))
    ]
    for place, one in enumerate(videos):
        assert all(not torch.equal(one, other) for other in videos[place + 1 :])


def test_noise_is_the_seeds_alone() -> None:
    first = initial_noise(request(), (4, 2, 3, 3))
    assert torch.equal(first, initial_noise(request("a dog", index=5), (4, 2, 3, 3)))
    assert not torch.equal(first, initial_noise(request(repeat=1), (4, 2, 3, 3)))
    assert first.dtype == torch.float32


def test_guidance_doubles_the_batch_and_one_switches_it_off() -> None:
    guided, plain = fake_sampler(steps=2), fake_sampler(steps=2)
    generate([request()], guided, 3.0)
    generate([request()], plain, 1.0)
    assert [len(text) for text, _ in guided.model.calls] == [2, 2]
    assert [len(text) for text, _ in plain.model.calls] == [1, 1]


def test_guidance_is_null_plus_scale_times_the_difference() -> None:
    """With one step the video is noise + velocity, so the scale can be read back from the result."""
    z = {}
    for scale in (0.0, 1.0, 5.0):
        sampler = fake_sampler(steps=1)
        sampler.codec.decode_video = lambda latents, frames: latents
        z[scale] = generate([request()], sampler, scale)[0]
    torch.testing.assert_close(z[5.0], z[0.0] + 5 * (z[1.0] - z[0.0]))
    assert (z[1.0] - z[0.0]).abs().min() > 1e-3


def test_progress_counts_steps_and_the_model_goes_back_to_training() -> None:
    sampler, reports = fake_sampler(steps=3), []
    sampler.model.train()
    generate([request()], sampler, 3.0, progress=lambda done, steps: reports.append((done, steps)))
    assert reports == [(1, 3), (2, 3), (3, 3)]
    assert sampler.model.training


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"8 frames of 16x16.*\(8, 4, 4\).*\(4, 4, 4\).*trained on, 4 frames of 16x16;"
    ):
        check_size((8, 16, 16), fake_sampler())
    assert len(generate([request(num_frames=8)], fake_sampler(fixed_size=False), 3.0)) == 1
    sampler = fake_sampler()
    sampler.codec.vae.latent_channels = 8
    with pytest.raises(ConfigError, match=r"model.in_channels.*4.* 8"):
        check_size((4, 16, 16), sampler)
    with pytest.raises(ValueError, match="size"):
        generate([request(), request(height=32)], fake_sampler(), 3.0)


def test_nan_is_not_written_as_a_video() -> None:
    sampler = fake_sampler()
    sampler.codec.decode_video = lambda latents, frames: latents * float("nan")
    with pytest.raises(OpenSoraError, match=r"'a red circle'.*NaN"):
        generate([request()], sampler, 3.0)


def test_a_real_denoiser_follows_prompt_and_negative_prompt() -> None:
    sampler = stdit_sampler()
    cat, again, dog = (generate([request(prompt)], sampler, 3.0)[0] for prompt in ("a cat", "a cat", "a small dog"))
    assert torch.equal(cat, again)
    assert (cat - dog).abs().max() > 1e-3
    assert (cat - generate([request("a cat", negative_prompt="dark")], sampler, 3.0)[0]).abs().max() > 1e-3
    pair = generate([request("a small dog"), request("a cat", index=1)], sampler, 3.0)
    torch.testing.assert_close(torch.stack(pair), torch.stack([dog, cat]), atol=1e-5, rtol=0)


def class_sampler() -> Sampler:
    """A real denoiser by class with open gates; the captions of its two classes are "walk" and "run"."""
    model = DiT(input_size=(4, 4, 4), hidden_size=24, depth=1, num_heads=2, condition="label_2")
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator(0, name))
    codec = FakeCodec()
    codec.encode_text = ClassLabels(["walk", "run"]).encode
    return Sampler(model, IDDPM(num_sampling_steps=2, cfg_scale=3.0), codec)


def test_classes_are_prompts_and_negative_prompts() -> None:
    walk, run, away = (
        generate([request(prompt, negative_prompt=negative)], class_sampler(), 3.0)[0]
        for prompt, negative in (("walk", ""), ("run", ""), ("walk", "run"))
    )
    assert not torch.allclose(walk, run)
    assert not torch.allclose(walk, away)
    both = generate([request("run"), request("walk")], class_sampler(), 3.0)
    torch.testing.assert_close(both[1], walk, rtol=1e-4, atol=1e-5)
    with pytest.raises(OpenSoraError, match=r"'jump'.*class"):
        generate([request("jump")], class_sampler(), 3.0)


def test_shortcuts_begin_anew_with_every_clip_and_video() -> None:
    """Neither the video before nor the clip before of the same video leaves a state behind."""
    shortcuts = Shortcuts((0.2, 0.9), 2, FirstBlockCache(1e9))
    sampler = replace(stdit_sampler(), shortcuts=shortcuts)
    conditioning = VideoConditioning(loop=2, condition_frame_length=1)
    for changes in ({}, {"conditioning": conditioning}):
        cat, dog = request("a cat", **changes), request("a small dog", **changes)
        first, _, again = (generate([one], sampler, 3.0)[0] for one in (cat, dog, cat))
        assert torch.equal(first, again)
        assert not torch.equal(first, generate([cat], stdit_sampler(), 3.0)[0])


class TwoCalls(RectifiedFlow):
    """Calls the model twice a step."""

    num_model_calls = 6

    def sample(self, denoise: Denoise, noise: Tensor, *rest: object, **options: object) -> Tensor:
        return super().sample(
            lambda *args, **more: (denoise(*args, **more), denoise(*args, **more))[1], noise, *rest, **options
        )


def test_last_call_of_a_scheduler_that_calls_twice_a_step_runs_whole() -> None:
    sampler = replace(
        stdit_sampler(), scheduler=TwoCalls(num_sampling_steps=3), shortcuts=Shortcuts(cache=TeaCache(1e9))
    )
    blocks: list[int] = []
    calls: list[int] = []
    sampler.model.blocks[1].mlp.register_forward_hook(lambda *_: blocks.append(len(calls)))
    sampler.model.x_embedder.register_forward_hook(lambda *_: calls.append(1))
    generate([request()], sampler, 3.0)
    assert (len(calls), blocks) == (6, [1, 6])


@pytest.mark.parametrize("scheduler", ["rflow", "iddpm", "dpm-solver", "EulerDiscrete", "HeunDiscrete"])
@pytest.mark.parametrize("share", [0.3, 0.95, None])
def test_the_last_call_of_an_edit_runs_whole_as_well(tmp_path: Path, scheduler: str, share: float | None) -> None:
    """An edit begins at the step that reaches its noise, so it calls the model less often."""
    config = {"type": scheduler, "num_sampling_steps": 9, "cfg_scale": 3.0}
    learned = {} if scheduler == "rflow" else {"learn_sigma": False}
    sampler = replace(
        stdit_sampler(), scheduler=build(SCHEDULERS, config | learned), shortcuts=Shortcuts(cache=TeaCache(1e9))
    )
    path = write_video(tmp_path / "a.mp4", 4, size=(16, 16))
    conditioning = VideoConditioning((path,), "", f"0,0,0,0,4,{share}") if share is not None else None
    blocks: list[int] = []
    calls: list[int] = []
    sampler.model.blocks[1].mlp.register_forward_hook(lambda *_: blocks.append(len(calls)))
    sampler.model.x_embedder.register_forward_hook(lambda *_: calls.append(1))
    generate([request(conditioning=conditioning)], sampler, 3.0)
    assert blocks == [1, len(calls)]
    whole = 17 if scheduler == "HeunDiscrete" else 9
    assert len(calls) == whole if share is None else 1 < len(calls) <= whole
    assert share != 0.3 or len(calls) < whole / 2
