"""The one source of randomness: a generator named by what it is for.

A draw depends on the seed and on the purpose (for example "noise", step, index in the global batch), never on a
rank or on what was drawn before. So the same run on 1, 2 or 4 ranks sees the same numbers, and nothing random has
to be saved to resume.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator


def key_seed(seed: int, *keys: int | str) -> int:
    """A 63-bit seed that differs for every (seed, keys)."""
    text = "\x1f".join([str(int(seed)), *(f"{type(key).__name__}:{key}" for key in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *keys: int | str) -> Generator:
    """A fresh CPU generator for (seed, keys): the same numbers on every device; move the draws, not the generator."""
    return torch.Generator().manual_seed(key_seed(seed, *keys))


def permutation(count: int, seed: int, *keys: int | str) -> NDArray[np.int64]:
    """The numbers 0, ..., count - 1 in an order of their own for every (seed, keys)."""
    return torch.randperm(count, generator=generator(seed, *keys)).numpy()


@dataclass(frozen=True)
class Draw:
    """The randomness of one training sample: its index in the global batch of one optimizer step."""

    seed: int
    step: int
    sample_id: int

    def rng(self, purpose: str) -> Generator:
        """A fresh generator for one purpose, for example "noise", "timestep", "crop", "caption drop"."""
        return generator(self.seed, purpose, self.step, self.sample_id)
