import pytest

from opensora.datasets import aspect
from opensora.errors import ConfigError


def test_a_resolution_is_a_number_of_pixels_and_a_size_per_ratio() -> None:
    table = aspect.resolution("480p")
    assert table.num_pixels == 480 * 854
    assert table.sizes["0.56"] == (480, 854)
    assert table.sizes["1.78"] == (854, 480)
    assert aspect.resolution("512").sizes["0.25"] == (256, 1024)


def test_what_differs_by_version() -> None:
    assert set(aspect.tables("1.2")) - set(aspect.tables("1.1")) == {"2k", "2048", "2880"}
    assert "1.0" in aspect.resolution("256", "1.2").sizes
    assert "1.00" in aspect.resolution("256", "1.3").sizes
    assert aspect.resolution("480p_16d").sizes["0.56"] == (480, 848)
    with pytest.raises(ConfigError, match=r"'480p_16d'.*144p, .*Open-Sora 1\.2"):
        aspect.resolution("480p_16d", "1.2")


def test_the_closest_ratio_and_the_first_of_equals() -> None:
    assert aspect.closest_ratio(1080, 1920, "360p") == "0.56"
    assert aspect.closest_ratio(1920, 1080, "360p") == "1.78"
    assert aspect.closest_ratio(9000, 1, "360p") == "2.08"
    assert aspect.closest_ratio(125, 100, "256") == "1.21"  # 1.25 lies 0.04 from 1.21 and from 1.29


def test_sizes_by_written_ratio() -> None:
    assert aspect.image_size("720p", "9:16") == (720, 1280)
    assert aspect.image_size("256", "1:1") == (256, 256)
    with pytest.raises(ConfigError, match=r"'9:16'.*'256'.*12:25, .*1:1"):
        aspect.image_size("256", "9:16")
    assert aspect.NUM_FRAMES["4s"] == aspect.NUM_FRAMES["2x"] == 102
