from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.errors import ConfigError
from opensora.models.vae.causal_vae import CausalVAEModel
from opensora.models.vae.tiling import (
    Grid,
    Tiling,
    code_windows,
    concat_windows,
    first_frames,
    join,
    mix,
    tile_slices,
    tiles,
    windows,
)
from tests.support.live_bytes import peak_bytes

RELEASED: dict[str, Any] = {"size": 256, "frames": 65, "overlap": 0.25, "compression": (4, 8, 8)}
# 16 pixels and 5 frames a piece, which are 2 x 2 latents of 2 frames.
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "hidden_size_mult": (1, 1, 1, 1),
    "num_res_blocks": 1,
    "norm_groups": 4,
    "tile_sample_min_size": 16,
    "tile_sample_min_size_t": 5,
    "tile_overlap_factor": 0.5,
}


def ends(actual: list[slice]) -> list[tuple[int, int]]:
    return [(each.start, each.stop) for each in actual]


def small(**changes: Any) -> CausalVAEModel:
    torch.manual_seed(0)
    return CausalVAEModel(**{**SMALL, **changes}).eval()


def latents(frames: int, height: int = 2, width: int = 2) -> Tensor:
    return torch.randn(1, 4, frames, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (1, [(0, 1)]),
        (2, [(0, 2)]),
        (64, [(0, 64)]),
        (65, [(0, 65)]),
        (66, [(0, 65), (64, 66)]),
        (128, [(0, 65), (64, 128)]),
        (129, [(0, 65), (64, 129)]),
        (130, [(0, 65), (64, 129), (128, 130)]),
        (257, [(0, 65), (64, 129), (128, 193), (192, 257)]),
    ],
)
def test_windows_share_one_frame(frames: int, expected: list[tuple[int, int]]) -> None:
    assert ends(windows(frames, 65)) == expected


def test_sizes_of_the_release() -> None:
    tiling = Tiling(**RELEASED)
    assert (tiling.latent_size, tiling.latent_frames) == (32, 17)
    assert tiling.encoding() == Grid(frames=65, limit=256, stride=192, smallest=8, keep=24, blend=8)
    assert tiling.decoding() == Grid(frames=17, limit=32, stride=24, smallest=1, keep=192, blend=64)
    eighth = Tiling(**{**RELEASED, "overlap": 0.125})
    assert (eighth.encoding().stride, eighth.decoding().stride, eighth.encoding().blend) == (224, 28, 4)
    apart = Tiling(**{**RELEASED, "overlap": 0.0})
    assert (apart.encoding().stride, apart.encoding().blend) == (256, 0)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (8, [(0, 8)]),
        (192, [(0, 192)]),
        (200, [(0, 200), (192, 200)]),
        (256, [(0, 256), (192, 256)]),
        (512, [(0, 256), (192, 448), (384, 512)]),
        (579, [(0, 256), (192, 448), (384, 579)]),  # 576 to 579 are less than a latent: no tile of their own
        (584, [(0, 256), (192, 448), (384, 584), (576, 584)]),
    ],
)
def test_tiles_in_pixels(size: int, expected: list[tuple[int, int]]) -> None:
    encoding, decoding = Tiling(**RELEASED).encoding(), Tiling(**RELEASED).decoding()
    assert ends(tile_slices(size, encoding)) == expected
    assert [start // 8 for start, _ in expected] == [each.start for each in tile_slices(size // 8, decoding)]
    assert (encoding.output_size(size), decoding.output_size(size // 8)) == (size // 8, size // 8 * 8)


def test_tiles_come_row_by_row() -> None:
    actual = tiles((40, 24), Tiling(32, 5, 0.25, (4, 8, 8)).encoding())
    assert actual == [(slice(0, 32), slice(0, 24)), (slice(24, 40), slice(0, 24))]


@pytest.mark.parametrize(
    ("size", "exceeds"),
    [((65, 256, 256), False), ((69, 8, 8), True), ((1, 264, 8), True), ((1, 8, 264), True)],
)
def test_what_needs_tiles(size: tuple[int, int, int], exceeds: bool) -> None:
    tiling = Tiling(**RELEASED)
    assert tiling.encoding().is_exceeded_by(size) is exceeds
    latent = (size[0] + 3) // 4, size[1] // 8, size[2] // 8
    assert tiling.decoding().is_exceeded_by(latent) is exceeds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"overlap": 0.3},
            r"0\.3 .*256 .*179\.2 .*multiple of 8",
        ),
        ({"overlap": 0.26}, r"k / 32.*0\.25"),
        ({"overlap": 1.0}, " 0 pixels"),
        ({"overlap": -0.25}, " 320 pixels"),
        ({"size": 100}, "100 .*multiple of 8"),
        ({"size": 0}, "0 .*multiple of 8"),
        ({"frames": 64}, r"64 frames.*4 k \+ 1.*65"),
        ({"frames": 1}, "for example 5"),
    ],
)
def test_sizes_that_do_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tiling(**{**RELEASED, **changes})


def test_a_model_refuses_them_too() -> None:
    with pytest.raises(ConfigError, match="tile_overlap_factor"):
        small(tile_overlap_factor=0.25)


def test_mixing_fades_in() -> None:
    before, tile = torch.full((1, 1, 1, 4, 1), 8.0), torch.zeros(1, 1, 1, 6, 1)
    assert mix(before, tile, 4, dim=3).flatten().tolist() == [8, 6, 4, 2, 0, 0]
    assert mix(before, tile, 2, dim=3).flatten().tolist() == [8, 4, 0, 0, 0, 0]
    assert mix(before[..., :1, :], tile, 4, dim=3).flatten().tolist() == [8, 0, 0, 0, 0, 0]
    assert torch.equal(mix(before, tile, 0, dim=3), tile)


def test_joining_mixes_above_then_left_with_mixed_neighbors() -> None:
    """2 x 2 tiles of 4 that share 2: by hand, with the value of each tile constant."""
    grid = Grid(frames=1, limit=4, stride=2, smallest=1, keep=2, blend=2)
    values = torch.tensor([1.0, 2.0, 3.0, 5.0]).view(4, 1, 1, 1, 1, 1)
    sizes = [(4, 4), (4, 2), (2, 4), (2, 2)]
    parts = [value.expand(1, 1, 1, *size) for value, size in zip(values, sizes, strict=True)]
    upper_left, upper_right = [1, 1], [1, 1.5]
    # below on the left: 1 from above, then (1 + 3) / 2
    # below on the right: rows from above are 1, 1.5 | 1, 1.5 there (its own columns), then mixed with the left's end
    below = [[1, 1, 1, (1 + 1.5) / 2], [2, 2, 2, (2 + (1.5 + 5) / 2) / 2]]
    expected = [upper_left + upper_right] * 2 + below
    assert join(iter(parts), (4, 4), grid).squeeze().tolist() == expected


def test_joining_one_tile_copies_nothing() -> None:
    grid = Grid(frames=1, limit=4, stride=3, smallest=1, keep=3, blend=1)
    tile = torch.randn(1, 1, 1, 3, 2)
    assert join([tile], (3, 2), grid) is tile


def test_identity_in_tiles_is_the_identity() -> None:
    """Tiles of one and the same picture agree where they overlap; a frame is seen again only to be dropped."""
    grid = Grid(frames=5, limit=4, stride=3, smallest=1, keep=3, blend=1)
    clip = torch.randn(2, 3, 14, 10, 7)
    actual = list(code_windows(lambda tile: tile, clip, grid))
    assert [each.shape[2] for each in actual] == [5, 4, 4, 1]
    torch.testing.assert_close(torch.cat(actual, dim=2), clip)
    torch.testing.assert_close(concat_windows(iter(actual), 14), clip)


def test_first_frames_reads_no_more_than_it_needs() -> None:
    calls: list[int] = []

    def endless() -> Any:
        while True:
            calls.append(4)
            yield torch.zeros(1, 1, 4, 1, 1)

    assert [each.shape[2] for each in first_frames(endless(), 8)] == [4, 4]
    assert [each.shape[2] for each in first_frames(endless(), 6)] == [4, 2]
    assert len(calls) == 4


@torch.no_grad()
def test_tiling_is_off_by_default() -> None:
    model, z = small(), latents(5)
    whole = model.decode(z)
    assert [each.shape[2] for each in model.decode_windows(z)] == [17]
    model.enable_tiling()
    pieces = model.decode(z)
    assert pieces.shape == whole.shape
    assert not torch.allclose(pieces, whole)
    later = z.clone()
    later[:, :, 2:] = 0
    assert torch.equal(pieces[:, :, :5], model.decode(later)[:, :, :5])  # the first window does not know of the rest
    model.disable_tiling()
    assert torch.equal(model.decode(z), whole)
    assert torch.equal(small(use_tiling=True).decode(z), pieces)


@torch.no_grad()
def test_encoding_in_pieces() -> None:
    model, x = small(use_tiling=True), torch.randn(1, 3, 17, 16, 8).clamp(-1, 1)
    mean = model.posterior(x).mean
    # the overlap of one half is tiled even where 16 rows would fit one tile, as the original does
    upper, lower = (model.encode_tile(x[:, :, 4:9, rows])[:, :4, 1:] for rows in (slice(0, 16), slice(8, 16)))
    expected = torch.cat([upper[..., :1, :], upper[..., 1:, :]], dim=3)  # blending over one row is the upper tile's
    assert lower.shape[3] == 1
    torch.testing.assert_close(mean[:, :, 2:3], expected)


@torch.no_grad()
def test_clips_that_lose_frames() -> None:
    """The last window of 2 to 4 frames gives no latent: 8 frames are 2 latents, whole or in pieces."""
    model, x = small(), torch.rand(1, 3, 8, 16, 24)
    assert model.encode(x).shape[2] == 2
    model.enable_tiling()
    assert tuple(model.encode(x).shape[2:]) == (2, 2, 3) == model.latent_size((8, 16, 24))


@torch.no_grad()
def test_windows_stop_after_num_frames() -> None:
    model, z = small(use_tiling=True), latents(5)
    assert [each.shape[2] for each in model.decode_windows(z)] == [5, 4, 4, 4]
    some = list(model.decode_windows(z, num_frames=7))
    assert [each.shape[2] for each in some] == [5, 2]
    assert torch.equal(torch.cat(some, dim=2), model.decode(z)[:, :, :7])
    assert torch.equal(model.decode(z, num_frames=7), model.decode(z)[:, :, :7])


def test_gradients_pass_through_tiles() -> None:
    """Against central differences in float64 along one direction."""
    model = small().double()
    torch.manual_seed(1)
    z = latents(3, 3, 3).double().requires_grad_()
    direction = torch.randn(z.shape, dtype=torch.float64)

    def loss(z: Tensor) -> Tensor:
        decode = lambda tile: model.decoder(model.post_quant_conv(tile))  # noqa: E731 - decode_tile ends in float32
        return concat_windows(code_windows(decode, z, model.tiling.decoding()), 9).square().mean()

    (grad,) = torch.autograd.grad(loss(z), z)
    with torch.no_grad():
        numeric = (loss(z + 1e-3 * direction) - loss(z - 1e-3 * direction)) / 2e-3
    torch.testing.assert_close((grad * direction).sum(), numeric, rtol=1e-3, atol=0)  # attention rounds to float32


def test_nothing_but_borders_is_kept() -> None:
    """With a network that only copies: the window, a tile being mixed (three times) and two rows of borders."""
    grid = Grid(frames=5, limit=16, stride=12, smallest=1, keep=12, blend=4)
    clip = torch.zeros(1, 1, 17, 96, 96)

    def run(frames: int) -> None:
        for window in first_frames(code_windows(Tensor.clone, clip[:, :, :frames], grid), frames):
            del window

    peaks = [peak_bytes(lambda t=t: run(t)) for t in (5, 9, 17)]
    window, tile, borders = 5 * 96 * 96 * 4, 5 * 16 * 16 * 4, 5 * 4 * (96 + 8 * 4) * 4
    assert peaks[0] == peaks[1] == peaks[2] <= window + 3 * tile + 2 * borders
    whole = peak_bytes(lambda: concat_windows(code_windows(Tensor.clone, clip, grid), 17))
    assert whole <= clip.nbytes + peaks[2]


def consume(model: CausalVAEModel, z: Tensor) -> Callable[[], None]:
    def run() -> None:
        for window in model.decode_windows(z):
            assert window.shape[2] <= 5
            del window

    return run


@torch.no_grad()
@pytest.mark.parametrize(("size", "most"), [((2, 2), 9), ((2, 3), 5)], ids=["one tile", "tiles"])
def test_decoding_memory_does_not_grow_with_frames(size: tuple[int, int], most: int) -> None:
    """Windows one by one: 5, 9 and 17 or 33 frames need the same memory; whole, as much more as there is more."""
    model = small(use_tiling=True)
    peaks = {t: peak_bytes(consume(model, latents(t, *size))) for t in (2, 3, most)}
    assert max(peaks.values()) <= 1.1 * min(peaks.values()), peaks
    model.disable_tiling()
    whole = {t: peak_bytes(lambda t=t: model.decode(latents(t, *size))) for t in (2, 3, most)}
    assert whole[3] > 1.5 * whole[2]
    assert whole[most] > 0.6 * most * whole[2]
    assert whole[most] > 0.6 * most * peaks[most]


@torch.no_grad()
def test_the_released_layout_decodes_257_frames_in_the_memory_of_65() -> None:
    """At 256 x 256, on the meta device, where tensors live as long as elsewhere and nothing is computed."""
    with torch.device("meta"):
        model = CausalVAEModel(use_tiling=True)

    def run(frames: int) -> None:
        for window in model.decode_windows(torch.empty(1, 4, (frames - 1) // 4 + 1, 32, 32, device="meta")):
            del window

    peaks = [peak_bytes(lambda frames=frames: run(frames)) for frames in (65, 257)]
    assert peaks[0] > 2**30  # activations of 65 frames
    assert peaks[1] <= 1.1 * peaks[0]


@torch.no_grad()
def test_decoding_into_one_clip_grows_by_the_clip_alone() -> None:
    model = small(use_tiling=True)
    peaks, clips = {}, {}
    for t in (3, 9):
        peaks[t] = peak_bytes(lambda t=t: clips.update({t: model.decode(latents(t)).nbytes}))
    latent_bytes = 2 * (latents(9).nbytes - latents(3).nbytes)  # z, and z scaled back
    assert peaks[9] - peaks[3] <= clips[9] - clips[3] + latent_bytes


@torch.no_grad()
def test_encoding_memory_does_not_grow_with_frames() -> None:
    model, clip = small(use_tiling=True), torch.zeros(1, 3, 33, 16, 16)
    peaks = {t: peak_bytes(lambda t=t: model.encode(clip[:, :, :t])) for t in (5, 9, 17, 33)}
    assert max(peaks.values()) <= 1.1 * min(peaks.values()), peaks
