"""Draws are named by what they are for."""

import torch

from opensora.rng import Draw, generator, key_seed


def test_same_keys_same_numbers() -> None:
    assert torch.equal(
        torch.randn(8, generator=generator(1, "noise", 3)), torch.randn(8, generator=generator(1, "noise", 3))
    )


def test_every_key_counts_and_keys_do_not_run_together() -> None:
    keys = [
        (1,),
        (1, "a"),
        (1, "a", 1),
        (1, "a", 2),
        (1, "b", 1),
        (2, "a", 1),
        (1, "a1"),
        (1, "a", "1"),
        (1, 1, 2),
        (1, 12),
        (1, 1, 1, 2),
    ]
    seeds = [key_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_never_change_between_versions() -> None:
    """A run that is resumed under a later version must see the same noise."""
    assert key_seed(42, "noise", 0, 0) == 8884169119718856454
    assert key_seed(0) == 4761921975702974394


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    generator(1, "noise").seed()
    assert torch.equal(torch.rand(3), expected)


def test_draw_differs_by_call_and_neighbor() -> None:
    draw = Draw(seed=1, step=2, sample_id=3)
    first, again = (torch.randn(4, generator=draw.rng("noise")) for _ in range(2))
    assert torch.equal(first, again)
    for other in (Draw(1, 2, 4), Draw(1, 3, 3), Draw(2, 2, 3)):
        assert not torch.equal(first, torch.randn(4, generator=other.rng("noise")))
    assert not torch.equal(first, torch.randn(4, generator=draw.rng("crop")))
