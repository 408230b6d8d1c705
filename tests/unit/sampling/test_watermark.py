import numpy as np
import pytest

from opensora.errors import ConfigError
from opensora.sampling.watermark import add_watermark, draw_watermark


def test_text_lies_over_the_lower_right_corner() -> None:
    frames = np.full((3, 64, 96, 3), (10, 120, 200), np.uint8)
    marked = add_watermark(frames, "made by me")
    rows, columns = draw_watermark("made by me", 64, 96).shape[:2]
    assert (rows < 20, 40 < columns <= 96) == (True, True)
    changed = (marked.astype(int) - frames).__abs__().max(axis=(0, 3)) > 8
    assert changed.any()
    assert not changed[: 64 - rows].any()
    assert not changed[:, : 96 - columns].any()
    assert marked.max() > 200  # white letters
    assert np.array_equal(marked[0], marked[2])
    assert np.array_equal(marked[:, :40], frames[:, :40])


@pytest.mark.parametrize("text", ["日本", "Größe", "a\nb", "a\0b", "  "])
def test_letters_that_the_font_lacks(text: str) -> None:
    with pytest.raises(ConfigError, match=r"'watermark': found .* cannot be drawn; allowed: letters, digits"):
        draw_watermark(text, 64, 96)


def test_text_that_does_not_fit() -> None:
    with pytest.raises(
        ConfigError, match=r"'watermark': 'made by me' needs \d+ columns .* the video has 16 of 16 rows"
    ):
        draw_watermark("made by me", 16, 16)
