"""The restoration of a manifest's clips by an autoencoder: a table by clip, and a picture of originals and reconstructions.

Run: python -m opensora.evaluation.reconstruct assets/vae-small shots.csv --num-frames 9 --image-size 64 96
     python -m opensora.evaluation.reconstruct assets/vae-small film.csv --clips 24 --sheet reconstructions.png
The middle of every row is cut out; of more rows than --clips, evenly spread ones. Flow is mean optical flow: 1 = the
reconstruction moves as the original does.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import torch
from torch import Tensor

from opensora.datasets.video import VideoTextDataset
from opensora.errors import ConfigError, OpenSoraError
from opensora.evaluation.contact_sheet import GAP, strip
from opensora.evaluation.motion_ratio import mean_flow, motion_ratio
from opensora.evaluation.psnr import psnr
from opensora.evaluation.ssim import ssim_frames
from opensora.interfaces import Autoencoder
from opensora.models.build import build_autoencoder
from opensora.models.frame_counts import require_frame_counts
from opensora.models.weights import CONFIG_FILE, read_config
from opensora.rng import Draw

SHEET_ROWS, SHEET_FRAMES, SHEET_HEIGHT = 12, 4, 64


@dataclass(frozen=True)
class Reconstructed:
    """One clip and its reconstruction [C, T, H, W] in [-1, 1]."""

    where: str  # file and line of its row
    original: Tensor
    reconstruction: Tensor

    @property
    def psnr(self) -> float:
        return psnr(self.reconstruction[None], self.original[None]).item()

    @property
    def ssim(self) -> float:
        pair = (each.transpose(0, 1)[None] for each in (self.reconstruction, self.original))
        return ssim_frames(*pair).mean().item()

    @property
    def motion(self) -> float | None:
        """Mean flow over that of the original; None for a single frame and for an original that rests."""
        if self.original.shape[1] < 2:
            return None
        return motion_ratio(mean_flow(self.reconstruction), mean_flow(self.original))


def load_autoencoder(folder: str) -> Autoencoder:
    """The autoencoder of a weights folder, in float32 on the CPU. Raises WeightsError, ConfigError."""
    config = read_config(folder)
    if not isinstance(config.get("type"), str):
        raise ConfigError(f"{folder}/{CONFIG_FILE}: names no 'type' of an autoencoder; name a folder of its weights")
    return build_autoencoder({"type": config["type"], "from_pretrained": folder}).load().eval()


@torch.no_grad()
def reconstruct(vae: Autoencoder, dataset: VideoTextDataset, clips: int) -> Iterator[Reconstructed]:
    """`clips` rows evenly spread over the data set, or all, from the mode of the posterior."""
    for row in torch.linspace(0, len(dataset) - 1, min(clips, len(dataset))).round().int().tolist():
        original = dataset.clip(row, Draw(seed=0, step=0, sample_id=row)).video_CTHW
        output = vae.decode(vae.encode(original[None]), original.shape[1])[0].float().clamp(-1, 1)
        yield Reconstructed(dataset.row_label(row), original, output)


def table(rows: Sequence[Reconstructed]) -> list[str]:
    """A line for each clip, and their means; the median of flow, whose ratio is far off where little moves."""
    width = max(len(row.where) for row in rows)
    lines = [f"{'clip':{width}}  PSNR dB   SSIM   flow"]
    flows = [row.motion for row in rows]
    for row, flow in zip(rows, flows, strict=True):
        lines.append(
            f"{row.where:{width}}  {row.psnr:7.2f}  {row.ssim:.3f}  {'-' if flow is None else f'{flow:.2f}':>5}"
        )
    known = [flow for flow in flows if flow is not None]
    middle = f"{median(known):.2f}" if known else "-"
    name = f"mean of {len(rows)}, flow: median"
    lines.append(f"{name:{width}}  {mean(r.psnr for r in rows):7.2f}  {mean(r.ssim for r in rows):.3f}  {middle:>5}")
    return lines


def write_sheet(rows: Sequence[Reconstructed], path: Path) -> None:
    """Frames of originals on the left, of their reconstructions on the right; of many clips, evenly spread ones."""
    from PIL import Image

    chosen = [rows[i] for i in torch.linspace(0, len(rows) - 1, min(SHEET_ROWS, len(rows))).round().int().tolist()]
    pairs = [[strip(clip, SHEET_FRAMES, SHEET_HEIGHT) for clip in (row.original, row.reconstruction)] for row in chosen]
    width = max(image.width for pair in pairs for image in pair)
    sheet = Image.new("RGB", (2 * width + 4 * GAP, len(pairs) * (SHEET_HEIGHT + GAP) - GAP), "#ffffff")
    for number, (left, right) in enumerate(pairs):
        sheet.paste(left, (0, number * (SHEET_HEIGHT + GAP)))
        sheet.paste(right, (width + 4 * GAP, number * (SHEET_HEIGHT + GAP)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vae", help="folder with the autoencoder's config.json and weights")
    parser.add_argument("data_path", help="manifest of videos")
    parser.add_argument("--num-frames", type=int, default=9, help="of a clip (default: %(default)s)")
    parser.add_argument("--image-size", type=int, nargs=2, default=(64, 96), help="height and width (default: 64 96)")
    parser.add_argument(
        "--time-range", type=float, nargs=2, default=(0.0, 1.0), help="part of each video (default: 0 1)"
    )
    parser.add_argument("--clips", type=int, default=100, help="at most (default: %(default)s)")
    parser.add_argument("--sheet", type=Path, help="picture to write")
    options = parser.parse_args(argv)
    try:
        if options.clips < 1:
            raise ConfigError(f"--clips: found {options.clips}; allowed: 1 or more")
        vae = load_autoencoder(options.vae)
        require_frame_counts(vae, [("--num-frames", options.num_frames)], options.vae)
        dataset = VideoTextDataset(
            options.data_path,
            num_frames=options.num_frames,
            image_size=options.image_size,
            start="center",
            time_range=options.time_range,
            captions=False,
        )
        rows = list(reconstruct(vae, dataset, options.clips))
        if not rows:
            raise ConfigError(f"{options.data_path}: no row holds {options.num_frames} frames; lower --num-frames")
    except OpenSoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(table(rows)))
    if options.sheet is not None:
        write_sheet(rows, options.sheet)
        print(options.sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main())
