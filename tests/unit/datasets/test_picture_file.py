"""Pictures: turned, transparent, deep, animated, damaged."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opensora.datasets.decode import Video, probe, read_frames
from opensora.errors import BadClip
from tests.support.media_files import corner_names, corners, frame_number, frame_picture


def show(path: Path) -> np.ndarray:
    return read_frames(str(path), [0])[0]


def noise(size: int = 128) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8))


HALVES = [
    ("a.jpg", "JPEG", {"quality": 90}),
    ("progressive.jpg", "JPEG", {"quality": 90, "progressive": True}),
    ("a.gif", "GIF", {}),
    ("a.png", "PNG", {}),
    ("a.webp", "WEBP", {"quality": 80}),
    ("lossless.webp", "WEBP", {"lossless": True}),
    ("a.bmp", "BMP", {}),
    ("a.tif", "TIFF", {}),
    ("a.avif", "AVIF", {}),
]


@pytest.mark.parametrize(("name", "kind", "options"), HALVES)
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_half_a_picture_is_refused(
    tmp_path: Path, name: str, kind: str, options: dict[str, object], share: float
) -> None:
    whole = io.BytesIO()
    noise().save(whole, kind, **options)
    path = tmp_path / name
    path.write_bytes(whole.getvalue())
    assert read_frames(str(path), [0]).shape == (1, 128, 128, 3)
    path.write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * share)])
    with pytest.raises(BadClip, match=rf"{name}: cannot be decoded .*truncated or damaged"):
        read_frames(str(path), [0])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    exif = Image.Exif()
    exif[274] = 5
    Image.fromarray(corners()).save(path, kind, exif=exif)
    info = probe(str(path))
    assert (info.height, info.width) == (64, 48)
    assert kind == "TIFF" or (info.stored_height, info.stored_width) == (48, 64)  # Pillow turns TIFF by itself
    assert corner_names(show(path)) == "rbgw"


def test_tags_that_cannot_be_read_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(corners()).save(path, exif=b"Exif\0\0nonsense")
    assert corner_names(show(path)) == "rgbw"


def transparent(mode: str) -> Image.Image:
    """Left half seen through; the right half red, or black where there is no color."""
    picture = np.zeros((32, 64, 4), np.uint8)
    picture[:, 32:] = (255, 0, 0, 255) if mode in ("RGBA", "P", "RGB") else (0, 0, 0, 255)
    image = Image.fromarray(picture)
    if mode == "P":
        image = Image.new("P", (64, 32), 0)
        image.putpalette([0, 200, 0, 255, 0, 0])
        image.paste(1, (32, 0, 64, 32))
        image.info["transparency"] = 0
        return image
    if mode == "RGB":
        image = image.convert("RGB")
        image.info["transparency"] = (0, 0, 0)
        return image
    return image.convert(mode)


MODES = [
    ("a.png", "RGBA"),
    ("a.png", "LA"),
    ("a.png", "P"),
    ("a.png", "RGB"),
    ("a.gif", "P"),
    ("a.webp", "RGBA"),
    ("a.tif", "RGBA"),
]


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_transparent_parts_are_white(tmp_path: Path, name: str, mode: str) -> None:
    image = transparent(mode)
    options = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
    if name.endswith("webp"):
        options = {"lossless": True}
    image.save(tmp_path / name, **options)
    assert corner_names(show(tmp_path / name)) == ("wkwk" if mode == "LA" else "wrwr")


def test_half_transparent_is_mixed_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 100, 255, 51)).save(tmp_path / "a.png")
    assert show(tmp_path / "a.png")[0, 0].tolist() == [204, 224, 255]


def test_nothing_but_transparency_shows_the_colors(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 100, 255, 0)).save(tmp_path / "a.png")
    assert show(tmp_path / "a.png")[0, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_of_gray(tmp_path: Path, name: str) -> None:
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / name)
    shown = show(tmp_path / name)
    assert np.array_equal(shown[..., 0].flatten(), np.arange(256))
    assert np.array_equal(shown[..., 0], shown[..., 2])


def test_sixteen_bits_of_color(tmp_path: Path) -> None:
    import cv2

    levels = np.linspace(0, 65535, 3 * 64).astype(np.uint16).reshape(8, 8, 3)
    for name in ("a.png", "a.tif"):
        cv2.imwrite(str(tmp_path / name), levels[..., ::-1])
        assert np.abs(show(tmp_path / name).astype(int) - (levels >> 8)).max() <= 1


def test_thirty_two_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(
        BadClip, match=r"a\.tif: its pixels are floating-point numbers of 32 bits; 8 and 16 bits are read"
    ):
        show(tmp_path / "a.tif")


def test_cmyk_of_print_shops(tmp_path: Path) -> None:
    """Adobe writes CMYK inverted, and so does Pillow."""
    Image.fromarray(corners()).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert corner_names(show(tmp_path / "a.jpg")) == "rgbw"


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "YCbCr" else "a.png")
    Image.fromarray(frame_picture(37)).convert(mode).save(path)
    assert frame_number(show(path)) == 37


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "GIF", "AVIF"])
def test_animations_are_videos(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "a")
    frames = [Image.fromarray(frame_picture(number)) for number in range(6)]
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], duration=40, **options)
    assert (probe(path).num_frames, probe(path).fps) == (6, 25.0)
    assert [frame_number(frame) for frame in read_frames(path, range(6))] == list(range(6))
    assert [frame_number(frame) for frame in read_frames(path, [1, 1, 4])] == [1, 1, 4]


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "GIF"])
def test_frames_of_an_animation_stay_as_long_as_they_say(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "a")
    frames = [Image.fromarray(frame_picture(number)) for number in range(4)]
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], duration=[100, 500, 100, 100], **options)
    assert (probe(path).num_frames, probe(path).fps) == (4, 5.0)
    assert [frame_number(frame) for frame in read_frames(path, range(4))] == [0, 1, 1, 2]


def test_an_animation_without_times_has_those_of_browsers(tmp_path: Path) -> None:
    path = str(tmp_path / "a.gif")
    frames = [Image.fromarray(frame_picture(number)) for number in range(4)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=0)
    assert (probe(path).num_frames, probe(path).fps) == (4, 10.0)


def test_a_second_visit_does_not_decode_all_frames(tmp_path: Path) -> None:
    path = str(tmp_path / "a.png")
    frames = [Image.fromarray(frame_picture(number)) for number in range(4)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40)
    with Video(path) as video:
        facts = video.facts
    assert facts is not None
    with Video(path, facts) as video:
        assert video.facts is facts
        assert [frame_number(frame) for frame in video.frames([2])] == [2]


def test_pages_and_depth_are_not_frames(tmp_path: Path) -> None:
    pages = [Image.fromarray(frame_picture(number)) for number in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=pages[1:])  # phones keep the depth there
    for name in ("a.tif", "a.jpg"):
        assert probe(str(tmp_path / name)).num_frames == 1
        assert frame_number(show(tmp_path / name)) == 0


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "PNG"), ("a.mp4", "JPEG"), ("a.png", "GIF"), ("a", "WEBP")])
def test_a_name_that_is_wrong(tmp_path: Path, name: str, kind: str) -> None:
    Image.fromarray(frame_picture(37)).save(tmp_path / name, kind)
    assert (probe(str(tmp_path / name)).num_frames, frame_number(show(tmp_path / name))) == (1, 37)


def test_enormous_and_empty(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.new("L", (8, 8)).save(whole, "BMP")
    for side, says in ((60000, r"a\.bmp: is too large"), (0, r"a\.bmp: cannot be decoded")):
        data = bytearray(whole.getvalue())
        data[18:26] = side.to_bytes(4, "little") * 2
        (tmp_path / "a.bmp").write_bytes(data)
        with pytest.raises(BadClip, match=says):
            show(tmp_path / "a.bmp")
