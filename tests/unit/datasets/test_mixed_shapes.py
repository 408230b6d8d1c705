import pytest

from opensora.datasets.mixed_shapes import MixedShapes
from opensora.errors import ConfigError


def test_rows_claim_the_sizes_in_turn() -> None:
    sizes = MixedShapes(clips=3, sizes=((10, 32, 48), (1, 16, 16))).sizes()
    assert sizes.num_frames.tolist() == [10, 1, 10]
    assert sizes.width.tolist() == [48, 16, 48]


def test_a_size_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"sizes=\(\); allowed: at least one"):
        MixedShapes(sizes=())
