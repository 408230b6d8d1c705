"""Short clips from still pictures: a camera pans, zooms and turns over them, drawings fly across, and words run past.

An autoencoder that saw a few shots knows their colors only. Photographs and paintings are easier to come by than
footage, and a camera that moves over them shows an autoencoder the textures and colors of all of them.

Run: python -m tools.demo.varied_footage outputs/varied --pictures FOLDER [FOLDER ...] [--sprites FOLDER]
Writes outputs/varied/clips/*.mp4 and outputs/varied/manifest.csv, which VideoTextDataset reads with captions=False.
The same folders, seed and numbers give the same clips.

Layout: T frames, H W rows and columns, C red, green, blue.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opensora import files
from opensora.datasets.manifest import ManifestRow, read_manifest
from opensora.datasets.table_writer import write_rows
from opensora.errors import ConfigError, DataError, OpenSoraError

Frames = NDArray[np.uint8]
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
RATE = 24  # frames per second of the clips
CLIPS_OF_A_TEXT = 4
FOOTAGE_SHARE = 0.7  # of every shot; the rest is what the autoencoder is measured on
LONGEST = 2400  # pixels of a picture's longer side; larger ones are shrunk, which costs no detail at the size of clips
WORDS = (
    *(
        "stop",
        "go",
        "left",
        "right",
        "night",
        "train",
        "open",
        "closed",
        "sale",
        "coffee",
        "museum",
        "exit",
        "tea",
        "24 hours",
    ),
    *(
        "hotel",
        "street",
        "north",
        "market",
        "bakery",
        "film",
        "cinema",
        "news",
        "weather",
        "radio",
        "1984",
        "3.14",
        "42",
    ),
    *("7:30", "platform", "music", "garden", "library", "school", "river", "bridge"),
)


@dataclass(frozen=True)
class Camera:
    """The window of a picture that one frame shows; x, y: its middle in pixels of the picture."""

    x: float
    y: float
    pixels: float  # of the picture per pixel of the frame
    angle: float  # in radians, clockwise


def view(picture_HWC: Frames, camera: Camera, size: tuple[int, int]) -> Frames:
    """The frame that the camera takes, [height, width, C]; each pixel is a mean of four points, and edges are mirrored."""
    import cv2

    height, width = 2 * size[0], 2 * size[1]
    scale = camera.pixels / 2
    cos, sin = scale * math.cos(camera.angle), scale * math.sin(camera.angle)
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    to_picture = np.array(
        [
            [cos, -sin, camera.x - cos * middle_x + sin * middle_y],
            [sin, cos, camera.y - sin * middle_x - cos * middle_y],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    fine = cv2.warpAffine(picture_HWC, to_picture, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(cv2.resize(fine, (size[1], size[0]), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def camera_path(rng: np.random.Generator, picture: tuple[int, int], size: tuple[int, int], frames: int) -> list[Camera]:
    """A smooth way over a picture of (height, width): 0 to 4 pixels of the clip per frame, some with a shaking hand."""
    widest = max(1.0, min(picture[0] / size[0], picture[1] / size[1]))
    pixels = widest ** rng.uniform(0.4, 1.0)  # rather wide than near: detail is what has to be learnt
    zoom = float(np.exp(rng.uniform(-0.35, 0.35))) if rng.random() < 0.5 else 1.0
    turn = rng.uniform(-0.3, 0.3) if rng.random() < 0.25 else 0.0
    tilt = rng.uniform(-0.2, 0.2) if rng.random() < 0.25 else 0.0
    way, heading = pixels * frames * rng.choice([0.0, rng.uniform(0, 1), rng.uniform(0, 4)]), rng.uniform(0, 2 * np.pi)
    margin_y, margin_x = (min(side * pixels / 2, whole / 2) for side, whole in zip(size, picture, strict=True))
    x = rng.uniform(margin_x, picture[1] - margin_x)
    y = rng.uniform(margin_y, picture[0] - margin_y)
    shake = pixels * rng.choice([0.0, 0.0, 0.0, 0.7])
    cameras = []
    for along in np.linspace(-0.5, 0.5, frames):
        cameras.append(
            Camera(
                x + way * along * np.cos(heading) + shake * rng.normal(),
                y + way * along * np.sin(heading) + shake * rng.normal(),
                pixels * zoom**along,
                tilt + turn * along,
            )
        )
    return cameras


def put(frames_THWC: Frames, sprite_HWC: Frames, rng: np.random.Generator) -> Frames:
    """The frames with a drawing [H, W, red green blue alpha] that flies across, turns and grows or shrinks."""
    import cv2

    count, height, width, _ = frames_THWC.shape
    side = rng.uniform(0.25, 0.9) * height
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    step_x, step_y = rng.normal(0, 1.5, 2)
    growth, turn, angle = float(np.exp(rng.normal(0, 0.3))), rng.normal(0, 1.0), rng.uniform(-0.5, 0.5)
    # color times alpha, so that the edge does not take up the color of what is transparent
    alpha = sprite_HWC[..., 3:].astype(np.float32) / 255
    premultiplied = np.concatenate([sprite_HWC[..., :3] * alpha, alpha], axis=2)
    middle = (sprite_HWC.shape[1] - 1) / 2, (sprite_HWC.shape[0] - 1) / 2
    out = frames_THWC.copy()
    for index, along in enumerate(np.linspace(-0.5, 0.5, count)):
        scale = 2 * side / max(sprite_HWC.shape[:2]) * growth**along
        matrix = cv2.getRotationMatrix2D(middle, np.degrees(angle + turn * along), scale)
        matrix[:, 2] += (
            2 * (x + step_x * along * count) - middle[0] + 0.5,
            2 * (y + step_y * along * count) - middle[1] + 0.5,
        )
        fine = cv2.warpAffine(premultiplied, matrix, (2 * width, 2 * height), flags=cv2.INTER_LINEAR)
        small = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
        out[index] = np.clip(frames_THWC[index] * (1 - small[..., 3:]) + small[..., :3] + 0.5, 0, 255)
    return out


def text_picture(rng: np.random.Generator) -> Frames:
    """Words of several sizes and colors on a plain ground, 480x720."""
    from PIL import Image, ImageDraw, ImageFont

    color = [tuple(int(value) for value in rng.integers(0, 256, 3)) for _ in range(4)]
    image = Image.new("RGB", (720, 480), color[0])
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(6, 30))):
        words = " ".join(rng.choice(WORDS, int(rng.integers(1, 4))))
        place = (int(rng.integers(-60, 600)), int(rng.integers(-20, 460)))
        pen.text(place, words, color[int(rng.integers(1, 4))], ImageFont.load_default(float(rng.integers(14, 90))))
    return np.asarray(image)


def make_clip(
    picture_HWC: Frames, sprites: Sequence[Frames], rng: np.random.Generator, frames: int, size: tuple[int, int]
) -> Frames:
    """One clip [T, H, W, C]: a camera path, up to three drawings in a quarter of the clips, dusk or night in a fifth."""
    cameras = camera_path(rng, picture_HWC.shape[:2], size, frames)
    clip = np.stack([view(picture_HWC, camera, size) for camera in cameras])
    if sprites and rng.random() < 0.25:
        for _ in range(int(rng.integers(1, 4))):
            clip = put(clip, sprites[int(rng.integers(len(sprites)))], rng)
    if rng.random() < 0.2:
        clip = (255 * (clip / 255.0) ** rng.uniform(1.2, 2.5) * rng.uniform(0.3, 1.0)).astype(np.uint8)
    return clip[:, :, ::-1] if rng.random() < 0.5 else clip


def crop_footage(video_THWC: Frames, rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Frames:
    """Consecutive frames of real footage in a window that does not move: the whole picture in half of the clips."""
    start = int(rng.integers(len(video_THWC) - frames + 1))
    height, width = video_THWC.shape[1:3]
    widest = min(height / size[0], width / size[1])
    pixels = widest if rng.random() < 0.5 else max(1.0, widest ** rng.uniform(0.4, 1.0))
    half_y, half_x = (min(side * pixels / 2, whole / 2) for side, whole in zip(size, (height, width), strict=True))
    camera = Camera(rng.uniform(half_x, width - half_x), rng.uniform(half_y, height - half_y), pixels, 0.0)
    clip = np.stack([view(frame, camera, size) for frame in video_THWC[start : start + frames]])
    return clip[:, :, ::-1] if rng.random() < 0.5 else clip


def find_pictures(folders: Sequence[str]) -> list[Path]:
    """The pictures below the folders, in the order of their paths; ConfigError where there are none."""
    paths = [path for folder in folders for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in ENDINGS]
    if not paths:
        raise ConfigError(f"{', '.join(folders)}: no picture; allowed endings: {', '.join(ENDINGS)}")
    return paths


def load_picture(path: Path, mode: str = "RGB") -> Frames:
    """Pixels of a picture, shrunk to LONGEST; mode "RGBA" keeps what is transparent. DataError for a damaged file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.draft("RGB", (LONGEST, LONGEST))
            picture = image.convert(mode)
            picture.thumbnail((LONGEST, LONGEST))
            return np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's for damaged files
        raise DataError(f"{path}: cannot be read as a picture ({error}); remove the file") from None


def load_footage(path: str, share: float) -> Frames:
    """The first `share` of a video's frames, [T, H, W, C]."""
    from opensora.datasets.decode import Video

    with Video(path) as video:
        return np.stack(list(video.frames(range(int(share * video.info.num_frames)))))


def long_enough(row: ManifestRow, frames: int) -> bool:
    """True if the used share of the shot holds a clip; a shot that does not is named."""
    used = int(FOOTAGE_SHARE * (row.num_frames or 0))
    if used < frames:
        print(f"{row.location}: left out: {used} frames in the first {FOOTAGE_SHARE:.0%}, a clip has {frames}")
    return used >= frames


def write_clip(path: Path, clip_THWC: Frames) -> None:
    """Without loss: an autoencoder that learns from damaged colors gives them back."""
    import av

    def encode(part: Path) -> None:
        with av.open(str(part), "w", format="mp4") as container:
            stream = container.add_stream("libx264rgb", rate=RATE, options={"qp": "0", "threads": "1"})
            stream.height, stream.width, stream.pix_fmt = *clip_THWC.shape[1:3], "rgb24"
            for frame_HWC in clip_THWC:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())

    files.atomic_write(path, encode)


@dataclass(frozen=True)
class Source:
    """A picture or a film that clips are made of."""

    name: str
    clips: int
    load: Callable[[np.random.Generator], Frames]  # a picture [H, W, C] or a film [T, H, W, C]


def write_clips(
    out: Path, sources: Iterable[Source], sprites: Sequence[Frames], frames: int, size: tuple[int, int], seed: int
) -> None:
    """out/clips/*.mp4 of (height, width) and out/manifest.csv; each source has random numbers of its own."""
    (out / "clips").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str | int | float]] = []
    for number, source in enumerate(sources):
        rng = np.random.default_rng([seed, number])
        pixels = source.load(rng)
        for index in range(source.clips):
            path = out / "clips" / f"{source.name}-{index:03d}.mp4"
            is_film = pixels.ndim == 4
            write_clip(
                path,
                crop_footage(pixels, rng, frames, size) if is_film else make_clip(pixels, sprites, rng, frames, size),
            )
            sizes = dict(num_frames=frames, fps=float(RATE), height=size[0], width=size[1])
            rows.append({"path": f"clips/{path.name}", **sizes, "source": source.name})
    write_rows(str(out / "manifest.csv"), lambda: rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "tools.demo.varied_footage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", help="folder for the clips and their manifest")
    parser.add_argument("--pictures", nargs="+", required=True, help="folders of pictures, searched to any depth")
    parser.add_argument("--sprites", nargs="*", default=[], help="folders of pictures with alpha, which fly across")
    parser.add_argument("--footage", help="manifest of real shots, of which the first 70 %% are used")
    parser.add_argument("--each", type=int, default=16, help="clips of every picture (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=160, help="clips over words (default: %(default)s)")
    parser.add_argument("--footage-each", type=int, default=140, help="clips of every shot (default: %(default)s)")
    parser.add_argument("--num-frames", type=int, default=17, help="of a clip (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 96), help="height and width (default: 64 96)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        pictures = find_pictures(options.pictures)
        sprites = [load_picture(path, "RGBA") for path in find_pictures(options.sprites)] if options.sprites else []
        shots = read_manifest(options.footage, captions=False).rows if options.footage else []
        sources = [Source(f"picture-{i:03d}", options.each, of_picture(path)) for i, path in enumerate(pictures)]
        sources += [
            Source(f"text-{i:03d}", CLIPS_OF_A_TEXT, text_picture) for i in range(options.texts // CLIPS_OF_A_TEXT)
        ]
        sources += [
            Source(f"footage-{i:03d}", options.footage_each, of_film(row.path))
            for i, row in enumerate(row for row in shots if long_enough(row, options.num_frames))
        ]
        size = (options.size[0], options.size[1])
        write_clips(Path(options.out), sources, sprites, options.num_frames, size, options.seed)
    except OpenSoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def of_picture(path: Path) -> Callable[[np.random.Generator], Frames]:
    return lambda rng: load_picture(path)


def of_film(path: str) -> Callable[[np.random.Generator], Frames]:
    return lambda rng: load_footage(path, FOOTAGE_SHARE)


if __name__ == "__main__":
    sys.exit(main())
