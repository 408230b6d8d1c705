"""The caches on blocks that are simple enough to count by hand: each call's latents are a multiple of the same tokens."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.models.layers.attention import SelfAttention
from opensora.registry import CACHES, build
from opensora.sampling.caches.attention_broadcast import PyramidAttentionBroadcast
from opensora.sampling.caches.base import Call, StepCache, replaced_forwards
from opensora.sampling.caches.first_block_cache import FirstBlockCache
from opensora.sampling.caches.tea_cache import TeaCache


class Doubling(nn.Module):
    """x -> 2 x; its attention sees x and adds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = SelfAttention(2, 1)
        nn.init.zeros_(self.attn.proj.weight)
        nn.init.zeros_(self.attn.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + self.attn(x)


class Cubic(nn.Module):
    """Three doubling blocks, with an addition between the first two, as models add positions there."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Doubling() for _ in range(3))

    def checkpoint_blocks(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            x = block(x + 1 if number == 1 else x)
        return x


def answers(
    cache: StepCache | None,
    calls: list[dict[int, float]],
    last: int | None = None,
    levels: dict[int, float] | None = None,
) -> tuple[list[list[float]], int]:
    """The answer of every copy in every call, and the parts skipped. calls: copy -> the value of all its tokens."""
    model, results = Cubic(), []
    with torch.no_grad(), cache.installed(model) if cache is not None else nullcontext() as state:
        for number, values in enumerate(calls):
            level = (levels or {}).get(number, 0.5)
            call = Call(number, number == last, tuple(values), level)
            x = torch.tensor(list(values.values())).view(-1, 1, 1, 1).expand(-1, 2, 3, 2)
            with state.calling(call) if state is not None else nullcontext():
                results.append(model(x)[:, 0, 0, 0].tolist())
    return results, 0 if state is None else state.counts.skipped


def exact(value: float) -> float:
    return 8 * value + 4


def test_first_block_cache_compares_with_the_last_whole_call() -> None:
    """The first block adds the input itself, so that its changes are those of the values."""
    values = [1.0, 1.05, 1.11, 1.2, 1.24]
    results, skipped = answers(FirstBlockCache(0.1), [{0: value} for value in values])
    # 1.05 and 1.2 are within a tenth of 1 and of 1.11; 1.24 is not. The rest's residual is 6 x + 4 of the call before.
    expected = [exact(1), 2.1 + 10, exact(1.11), 2.4 + 6 * 1.11 + 4, exact(1.24)]
    assert [row[0] for row in results] == pytest.approx(expected)
    assert skipped == 2 * 2


def test_tea_cache_adds_up_changes_from_call_to_call() -> None:
    values = [1.0, 1.05, 1.11, 1.2, 1.2, 1.2]
    results, skipped = answers(TeaCache(0.1), [{0: value} for value in values], last=5)
    # 0.05 is below a tenth, 0.05 + 0.057 above; then 0.081 and 0. The last call runs whatever the sum.
    expected = [exact(1), 1.05 + 11, exact(1.11), 1.2 + 7 * 1.11 + 4, 1.2 + 7 * 1.11 + 4, exact(1.2)]
    assert [row[0] for row in results] == pytest.approx(expected)
    assert skipped == 3 * 3


def test_tea_cache_rescales_changes() -> None:
    calls = [{0: value} for value in (1.0, 1.06, 1.12)]
    assert answers(TeaCache(0.1, coefficients=(2.0, 0.0)), calls)[1] == 0  # twice 0.06 is not below a tenth
    assert answers(TeaCache(0.1, coefficients=(1.0, 0.0, 0.0)), calls)[1] == 3 * 2  # its square is
    assert answers(TeaCache(0.1, coefficients=(-1.0, 0.0)), calls)[1] == 3 * 2  # below 0 is 0
    with pytest.raises(ConfigError, match="coefficients"):
        TeaCache(coefficients=())


@pytest.mark.parametrize("cache", [FirstBlockCache(0.1), TeaCache(0.1)])
def test_the_copy_that_changes_most_decides(cache: StepCache) -> None:
    """The captioned copy stands still, the other one moves; and the other way round."""
    for still, moving in ((0, 1), (1, 0)):
        calls = [{still: 1.0, moving: value} for value in (3.0, 4.0, 5.0)]
        results, skipped = answers(cache, [dict(sorted(call.items())) for call in calls])
        assert skipped == 0
        assert results == [[exact(call[0]), exact(call[1])] for call in calls]


@pytest.mark.parametrize("cache", [FirstBlockCache(0.1), TeaCache(0.1)])
def test_each_copy_has_its_own_state(cache: StepCache) -> None:
    """Copy 0 is called alone in between, far away from copy 1: neither takes over the other's residual."""
    calls = [{0: 1.0, 1: 50.0}, {0: 1.0}, {0: 2.0}, {0: 2.0, 1: 50.0}, {1: 50.0}]
    results, skipped = answers(cache, calls)
    whole = [[exact(value) for value in call.values()] for call in calls]
    assert [pytest.approx(row) for row in whole] == results
    parts = 2 if isinstance(cache, FirstBlockCache) else 3
    assert skipped == 3 * parts  # calls 1, 3 and 4


@pytest.mark.parametrize("cache", [FirstBlockCache(0.1), TeaCache(0.1), PyramidAttentionBroadcast()])
def test_a_copy_that_joins_later_has_no_state_yet(cache: StepCache) -> None:
    """Guidance that begins in the middle of a clip."""
    results, _ = answers(cache, [{0: 1.0}, {0: 1.0, 1: 50.0}, {0: 1.0, 1: 50.0}])
    assert results == [[exact(1.0)], *[pytest.approx([exact(1.0), exact(50.0)])] * 2]


def test_one_video_of_a_batch_is_enough_to_run_all_blocks() -> None:
    model = Cubic()
    first, second = (torch.tensor([1.0, value]).view(-1, 1, 1, 1).expand(-1, 1, 2, 2) for value in (1.0, 2.0))
    for cache in (FirstBlockCache(0.1), TeaCache(0.1)):
        with torch.no_grad(), cache.installed(model) as state:
            for number, x in enumerate((first, second)):
                with state.calling(Call(number, False, (0,), 0.5)):
                    assert torch.equal(model(x), 8 * x + 4)
            assert state.counts.skipped == 0


def test_attention_is_reused_within_levels_and_span() -> None:
    """Outside the levels it runs in every call, and what it gave there counts inside."""
    cache = PyramidAttentionBroadcast(spatial=3, temporal=1, cross=1, noise_levels=(0.2, 0.8))
    levels = {0: 0.9, 1: 0.81, 2: 0.8, 3: 0.6, 4: 0.4, 5: 0.2, 6: 0.1}
    calls = [{0: 1.0}] * 7
    _, skipped = answers(cache, calls, levels=levels)
    assert skipped == 3 * 3  # three attentions in calls 2 and 3, which follow 1, and in 5, which follows 4
    with pytest.raises(ConfigError, match=r"noise_levels: \(0.8, 0.2\)"):
        PyramidAttentionBroadcast(noise_levels=(0.8, 0.2))


def test_attention_of_a_copy_that_was_left_out_runs() -> None:
    """Call 2 sees the second copy 2 calls after its last; a span of 2 does not reach that far."""
    cache = PyramidAttentionBroadcast(spatial=2, temporal=1, cross=1)
    calls = [{0: 1.0, 1: 5.0}, {0: 1.0}, {0: 1.0, 1: 5.0}, {0: 1.0, 1: 5.0}]
    assert answers(cache, calls)[1] == 3 * 2  # calls 1 and 3


def test_forwards_come_back_also_after_an_error() -> None:
    block = nn.Linear(1, 1)
    own = nn.Linear(1, 1)
    kept = own.forward = lambda x: x  # type: ignore[method-assign, assignment]

    def run() -> None:
        with replaced_forwards([(block, lambda x: 2 * x), (own, lambda x: 3 * x)]):
            assert (block(2), own(2)) == (4, 6)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert "forward" not in block.__dict__
    assert own.forward is kept


def test_configs_name_caches() -> None:
    assert build(CACHES, {"type": "TeaCache", "threshold": 0.2}).threshold == 0.2
