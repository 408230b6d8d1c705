"""Random changes of the bytes of a file, for property tests."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st


@dataclass(frozen=True)
class Damage:
    """A change of bytes; places are fractions of their number."""

    kind: str  # "flip", "insert", "delete" or "cut"
    place: float
    byte: int

    def apply(self, data: bytes) -> bytes:
        if not data:
            return data
        at = int(self.place * len(data))
        if self.kind == "cut":
            return data[:at]
        middle = {"flip": bytes([data[at] ^ self.byte]), "insert": bytes([self.byte, data[at]]), "delete": b""}
        return data[:at] + middle[self.kind] + data[at + 1 :]


DAMAGES = st.lists(
    st.builds(
        Damage,
        st.sampled_from(["flip", "insert", "delete", "cut"]),
        st.floats(0, 1, exclude_max=True),
        st.sampled_from([*b'",\n\r\x00\xff;\\ ', 1, 2, 128]),
    ),
    min_size=1,
    max_size=4,
)


def flip_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """1 to 32 bytes changed to any others: anywhere, or close together, as when a block is lost."""
    changed = bytearray(data)
    count = int(rng.integers(1, 33))
    first, span = (0, len(data)) if rng.random() < 0.5 else (int(rng.integers(len(data))), 64)
    for place in first + rng.integers(0, span, count):
        changed[int(place) % len(data)] ^= int(rng.integers(1, 256))
    return bytes(changed)
