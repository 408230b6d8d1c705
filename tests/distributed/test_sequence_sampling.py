"""Several ranks make one video: its latents are those of one rank, and its pieces are decoded by all of them."""

import contextlib
import copy
import io
import os
import socket
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from opensora.cli.sample import sample_command
from opensora.cli.train import train_command
from opensora.datasets.decode import probe, read_frames
from opensora.errors import BadClip, OpenSoraError
from opensora.parallel import world
from opensora.parallel.tile_parallel import shard_tiles
from opensora.sampling import sample as sample_module
from opensora.sampling.caches import first_block_cache, tea_cache
from opensora.sampling.caches.base import relative_change
from opensora.sampling.caches.first_block_cache import FirstBlockCache
from opensora.sampling.caches.tea_cache import TeaCache
from opensora.sampling.generate import Sampler, generate
from opensora.sampling.sample import apply_sequence_parallel, sample
from opensora.sampling.shortcuts import Shortcuts
from opensora.sampling.video_writer import WriteError
from opensora.schedulers.rectified_flow import RectifiedFlow
from tests.dist import run_ranks
from tests.support.fake_sampler import SETTINGS, request, stdit_sampler
from tests.support.short_runs import DEBUG, ROOT
from tests.unit.models.vae import test_autoencoder_kl, test_open_sora_1_3, test_tiling

REQUESTS = [request(prompt, index=n) for n, prompt in enumerate(["a cat", "a small dog", "one red bird"])]


class Halving(nn.Module):
    """The sizes of a codec that has no network."""

    latent_channels = 4

    def latent_size(self, size: tuple[int, int, int]) -> tuple[int, int, int]:
        return size[0], size[1] // 4, size[2] // 4


def shared_sampler(sp_size: int, mode: Any = "dsp") -> tuple[Sampler, world.World]:
    here, sampler = world.split_sequence_groups(sp_size), stdit_sampler()
    sampler.codec.vae = Halving()
    return apply_sequence_parallel(sampler, here, mode), here


def sample_together(folder: str, sp_size: int, mode: str = "dsp") -> tuple[list[Tensor], int, int]:
    """(latents that this rank decoded, files it wrote, tokens of a frame that its blocks see)."""
    sampler, here = shared_sampler(sp_size, mode)
    decode, write = sampler.codec.decode_video, sample_module.write_sample
    latents: list[Tensor] = []
    written: list[Any] = []
    tokens: set[int] = set()
    sampler.model.blocks[0].register_forward_hook(lambda block, args, x: tokens.add(x.shape[2]))

    def decode_video(z: Tensor, num_frames: int) -> Tensor:
        latents.append(z)
        return decode(z, num_frames)

    def write_sample(*arguments: Any) -> Path:
        written.append(arguments[1])
        return write(*arguments)

    sampler.codec.decode_video = decode_video
    with mock.patch.object(sample_module, "write_sample", write_sample), contextlib.redirect_stdout(io.StringIO()):
        sample(REQUESTS, sampler, here, folder, SETTINGS)
    return latents, len(written), *tokens


def frames(file: Path) -> Tensor:
    return torch.as_tensor(read_frames(str(file), range(probe(str(file)).num_frames))).int()


def assert_same_videos(folder: Path, other: Path, count: int) -> None:
    names = sorted(path.name for path in folder.glob("*.mp4"))
    assert len(names) == count
    assert names == sorted(path.name for path in other.glob("*.mp4"))
    for name in names:
        assert (frames(folder / name) - frames(other / name)).abs().max() <= 2  # of 255: what coding makes of rounding


@pytest.mark.parametrize(("ranks", "sp_size", "mode"), [(2, 2, "dsp"), (4, 2, "ulysses"), (3, 3, "dsp")])
def test_sampled_video_equals_one_rank(tmp_path: Path, ranks: int, sp_size: int, mode: str) -> None:
    """The groups share the videos, the ranks of a group the tokens; one of them writes."""
    ((expected, _, whole),) = run_ranks(sample_together, 1, str(tmp_path / "one"), 1)
    results = run_ranks(sample_together, ranks, str(tmp_path / "many"), sp_size, mode)
    groups = ranks // sp_size
    for rank, (latents, written, tokens) in enumerate(results):
        group = rank // sp_size
        assert tokens == -(-whole // sp_size)
        group_latents = expected[group::groups]
        assert written == (len(group_latents) if rank % sp_size == 0 else 0)
        for z, z_alone in zip(latents, group_latents, strict=True):
            torch.testing.assert_close(z, z_alone, rtol=1e-5, atol=1e-5)
    assert_same_videos(tmp_path / "one", tmp_path / "many", len(REQUESTS))


def sample_with_caches(sp_size: int) -> list[tuple[list[float], list[bool], Tensor]]:
    """For each cache: the changes that it measured, in which calls the last block ran, and the latents."""
    results = []
    for module, cache in ((first_block_cache, FirstBlockCache(1.3)), (tea_cache, TeaCache(0.8))):
        sampler, _ = shared_sampler(sp_size)
        scheduler = RectifiedFlow(num_sampling_steps=6)
        sampler = replace(sampler, scheduler=scheduler, shortcuts=Shortcuts(cache=cache))
        sampler.codec.decode_video = lambda z, num_frames: z
        changes: list[float] = []
        calls: list[bool] = []
        sampler.model.x_embedder.register_forward_hook(lambda *_, calls=calls: calls.append(False))
        sampler.model.blocks[-1].mlp.register_forward_hook(lambda *_, calls=calls: calls.__setitem__(-1, True))

        def measure(*arguments: Any, changes: list[float] = changes) -> Tensor:
            result = relative_change(*arguments)
            changes.extend(result.tolist())
            return result

        with mock.patch.object(module, "relative_change", measure):
            (z,) = generate([REQUESTS[0]], sampler, 3.0)
        results.append((changes, calls, z))
    return results


def test_caches_decide_alike_on_all_ranks() -> None:
    """The third of three ranks holds padding only, which does not count."""
    (alone,) = run_ranks(sample_with_caches, 1, 1)
    for results in run_ranks(sample_with_caches, 3, 3):
        for (changes, calls, z), (changes_alone, calls_alone, z_alone) in zip(results, alone, strict=True):
            assert changes == pytest.approx(changes_alone, rel=1e-4)
            assert calls == calls_alone
            assert set(calls[1:-1]) == {True, False}
            torch.testing.assert_close(z, z_alone, rtol=1e-4, atol=1e-4)


def fail_together(folder: str, kind: str) -> str:
    """Only the rank that writes meets the trouble."""
    sampler, here = shared_sampler(2)

    def refuse(video: Tensor, request: Any, *rest: Any) -> Path:
        if kind == "disk":
            raise WriteError("out/v.mp4: cannot be written (No space left on device)")
        if request.prompt == "a cat":
            raise OpenSoraError("the cat has gone")
        return Path(folder)

    with mock.patch.object(sample_module, "write_sample", refuse), pytest.raises(OpenSoraError) as caught:
        sample(REQUESTS, sampler, here, folder, SETTINGS)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("disk", "3 of 3 videos are missing; out/v.mp4: cannot be written"),
        ("one", "1 of 3 videos are missing; prompt 'a cat"),
    ],
)
def test_leader_errors_reach_group(tmp_path: Path, kind: str, expected: str) -> None:
    messages = run_ranks(fail_together, 2, str(tmp_path), kind)
    assert messages[0] == messages[1]
    assert expected in messages[0]


def lose_a_reference(folder: str) -> str:
    """One rank cannot read what the others read, and they are in the middle of the video."""
    sampler, here = shared_sampler(2)
    world.set_timeout(timedelta(seconds=3), here.sequence_group)
    make = sample_module.generate

    def generate(*arguments: Any, **options: Any) -> Any:
        if here.sequence_rank == 1:
            raise BadClip("clip.mp4: cannot be read")
        return make(*arguments, **options)

    with mock.patch.object(sample_module, "generate", generate), pytest.raises(Exception) as caught:
        sample(REQUESTS, sampler, here, folder, SETTINGS)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_unreadable_reference_on_one_rank_ends_job(tmp_path: Path) -> None:
    """At once: the others would wait for that rank's part of the video."""
    others, message = run_ranks(lose_a_reference, 2, str(tmp_path))
    assert message == "BadClip: clip.mp4: cannot be read"
    assert "BadClip" not in others


def alone_and_shared(model: Any, z: Tensor, coder: str) -> tuple[int, int]:
    """Pieces coded alone, and by this rank when they are shared; the results are the same bit for bit."""
    counts: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        counts[-1] += 1
        return original(*arguments, **options)

    owner, _, name = coder.rpartition(".")
    target = model.get_submodule(owner) if owner else model
    original = getattr(target, name)
    with torch.no_grad(), mock.patch.object(target, name, counted):
        counts.append(0)
        expected = model.decode(z)
        counts.append(0)
        assert torch.equal(shard_tiles(model, dist.group.WORLD).decode(z), expected)
        own_pieces = counts[1]
        assert torch.equal(copy.deepcopy(model).decode(z), expected)  # a copy works in the same group
    return counts[0], own_pieces


def decode_together() -> list[tuple[int, int]]:
    """Of each autoencoder that can decode in pieces."""
    tiled = test_tiling.small(use_tiling=True)
    by_frames = test_autoencoder_kl.make(micro_batch_size=2)
    in_time = test_open_sora_1_3.v1_3(micro_frame_size=5, micro_batch_size=1)
    z = torch.randn(1, in_time.latent_channels, 5, 1, 2, generator=torch.Generator().manual_seed(0))
    return [
        # 2 windows of 9 tiles, smaller at borders
        alone_and_shared(tiled, test_tiling.latents(3, 3, 3), "decode_tile"),
        alone_and_shared(by_frames, test_tiling.latents(5), "module.decode"),
        alone_and_shared(in_time, z, "decoder.forward"),
    ]


def test_tiles_are_decoded_by_all_ranks() -> None:
    for ranks in (2, 4):
        results = run_ranks(decode_together, ranks)
        for each in zip(*results, strict=True):
            alone = each[0][0]
            assert alone > 2
            assert sum(shared for _, shared in each) == alone
            assert max(shared for _, shared in each) < alone


def encode_with_gradients() -> bool:
    """In training every rank codes its own clip: nothing may be exchanged."""
    model = shard_tiles(test_tiling.small(use_tiling=True))
    model.encode(torch.zeros(1, 3, 5, 24, 24)).sum().backward()
    return all(parameter.grad is not None for parameter in model.encoder.parameters())


def test_tiles_with_gradients_stay_local() -> None:
    assert run_ranks(encode_with_gradients, 2) == [True, True]


def commands(ports: tuple[int, int], folder: str, sp_size: int) -> None:
    """Train, then sample, as two commands on the ranks that torchrun starts."""
    rank, size = world.current().global_rank, world.current().size
    world.shutdown()
    changes = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    changes |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": 1}
    with mock.patch.dict(os.environ, {name: str(value) for name, value in changes.items()}):
        overrides = ["steps=2", "save_every=0", f"run_dir={folder!r}", f"sp_size={sp_size}", "plugin=zero2-seq"]
        if sp_size > 1:
            overrides.remove(f"sp_size={sp_size}")  # the plugin's name is enough
        os.environ["MASTER_PORT"] = str(ports[0])
        assert train_command(DEBUG, overrides) == 0
        os.environ["MASTER_PORT"] = str(ports[1])  # the server of the first command may still be there
        overrides = [f"load={folder!r}", f"save_dir={folder + '/samples'!r}", f"sp_size={sp_size}"]
        with contextlib.redirect_stdout(io.StringIO()):
            assert sample_command(str(ROOT / "configs/stdit/sample/debug.py"), overrides, ["a red circle"]) == 0


def test_commands_with_sequence_groups(tmp_path: Path) -> None:
    for ranks in (1, 2):
        with socket.socket() as one, socket.socket() as other:
            for each in (one, other):
                each.bind(("127.0.0.1", 0))
            ports = (one.getsockname()[1], other.getsockname()[1])
        run_ranks(commands, ranks, ports, str(tmp_path / str(ranks)), ranks)
    assert_same_videos(tmp_path / "1" / "samples", tmp_path / "2" / "samples", 1)
