"""Pictures: orientation, transparency, depth, several frames, damage."""

import io

import numpy as np
from PIL import Image

from opensora.datasets.decode import probe, read_frames
from opensora.errors import BadClip
from opensora.sampling.mask_strategy import read_reference
from tests.e2e.odd_inputs.case import OddInput, Workbench
from tests.support.media_files import corner_names, corners, frame_number, frame_picture

KINDS = {"jpg": {}, "progressive.jpg": {"progressive": True}, "gif": {}, "png": {}, "webp": {}, "bmp": {}}


def halves(bench: Workbench) -> list[str]:
    """Formats of which half a picture is taken, by training's reader or as a reference."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    readable = []
    for name, options in KINDS.items():
        path = bench.folder / f"half.{name}"
        noise.save(path, **options)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        for read in (lambda path: read_frames(path, [0]), lambda path: read_reference(path, 16, 16)):
            try:
                read(str(path))
            except BadClip:
                continue
            readable.append(name)
    return readable


def animated(bench: Workbench) -> list[list[int]]:
    """Numbers of all frames by format."""
    frames = [Image.fromarray(frame_picture(number)) for number in range(5)]
    numbers = []
    for name in ("a.webp", "a.png", "a.gif"):
        path = str(bench.folder / name)
        frames[0].save(
            path,
            save_all=True,
            append_images=frames[1:],
            duration=100,
            **({"lossless": True} if "webp" in name else {}),
        )
        numbers.append([frame_number(frame) for frame in read_frames(path, range(probe(path).num_frames))])
    return numbers


def orientations(bench: Workbench) -> list[str]:
    """Colors of the quarters by EXIF orientation, 1 to 8."""
    shown = []
    for value in range(1, 9):
        exif = Image.Exif()
        exif[274] = value
        Image.fromarray(corners()).save(bench.folder / "a.jpg", exif=exif, quality=95)
        shown.append(corner_names(read_frames(str(bench.folder / "a.jpg"), [0])[0]))
    return shown


def heic(bench: Workbench) -> str:
    path = bench.folder / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(4) + b"mif1heic" + bytes(200))
    try:
        return str(probe(str(path)))
    except BadClip as error:
        return str(error).split("a.heic: ")[1]


def values(bench: Workbench, image: Image.Image, name: str) -> list[int]:
    """The first pixel as read."""
    whole = io.BytesIO()
    image.save(whole, name.split(".")[1].upper())
    (bench.folder / name).write_bytes(whole.getvalue())
    pixel: list[int] = read_frames(str(bench.folder / name), [0])[0, 0, 0].tolist()
    return pixel


CASES = [
    OddInput("half a picture: formats of which it is taken", [], halves),
    OddInput("animated WebP, PNG, GIF: their frames", [list(range(5))] * 3, animated),
    OddInput("jpg turned by EXIF", ["rgbw", "grwb", "wbgr", "bwrg", "rbgw", "brwg", "wgbr", "gwrb"], orientations),
    OddInput(
        "HEIC is not called damaged",
        "is a HEIC picture, which is not read; convert it to jpg or png, or remove the row",
        heic,
    ),
    OddInput(
        "png that is half transparent: over white",
        [204, 224, 255],
        lambda bench: values(bench, Image.new("RGBA", (4, 4), (0, 100, 255, 51)), "a.png"),
    ),
    OddInput(
        "png of 16 bits: half of white",
        [127, 127, 127],
        lambda bench: values(bench, Image.fromarray(np.full((4, 4), 32767, np.uint16)), "a.png"),
    ),
]
