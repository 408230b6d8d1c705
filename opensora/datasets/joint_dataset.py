"""JointDataset: every clip comes with images behind its frames, as LatteT2V is trained.

Layout: C colors, T frames, H W rows and columns.
Source: Open-Sora-Plan 1.1, whose words `use_image_num` and `ae_stride` are kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from opensora.config import check_component
from opensora.datasets.base import Dataset
from opensora.datasets.joint_padding import image_group, join, select_frames
from opensora.datasets.row_report import Report
from opensora.errors import ConfigError
from opensora.registry import DATASETS, build
from opensora.rng import Draw, key_seed
from opensora.types import Clip


@DATASETS.register_module()
class JointDataset:
    """Clips of one data set, each with `use_image_num` images of another.

    videos, pictures: data sets as `dict(type=...)`, the pictures' with num_frames=1. pictures None: frames of the clip
    itself, evenly spread, with its caption. Images go to clips in groups, in order, over and over; the last group is
    left out, as in Open-Sora-Plan.
    Clips and images of different sizes (those of multi_scale always) are padded with zeros to the larger one, and a mask
    marks them for the model and the loss:
    ae_stride, ae_stride_t: rows and columns, and frames, that the autoencoder makes one latent of.
    Raises ConfigError where the two do not fit together.
    """

    def __init__(
        self,
        videos: dict[str, Any],
        pictures: dict[str, Any] | None,
        use_image_num: int,
        ae_stride: int = 8,
        ae_stride_t: int = 4,
    ) -> None:
        self.videos, self.images = _part("videos", videos), None if pictures is None else _part("pictures", pictures)
        self.use_image_num = use_image_num
        self.stride = (ae_stride_t, ae_stride)
        if use_image_num < 1 or min(self.stride) < 1:
            raise ConfigError(
                f"dataset: use_image_num={use_image_num}, ae_stride={ae_stride}, ae_stride_t={ae_stride_t}; allowed: 1 or "
                "more; for clips without images use their data set itself"
            )
        self.num_frames = self.videos.num_frames
        sizes = [self.videos.image_size]
        if self.images is not None:
            if self.images.num_frames != 1:
                raise ConfigError(f"dataset.pictures.num_frames: found {self.images.num_frames}; allowed: 1; set it")
            if len(self.images) <= use_image_num:
                raise ConfigError(
                    f"dataset.pictures: {self.images.where} has {len(self.images)} pictures for groups of "
                    f"{use_image_num} (use_image_num); allowed: more than one group; add pictures or lower use_image_num"
                )
            sizes.append(self.images.image_size)
        self.image_size = (max(height for height, _ in sizes), max(width for _, width in sizes))
        free = any(getattr(part, "multi_scale", False) for part in (self.videos, self.images))
        self.padded = free or len(set(sizes)) > 1  # whether masks are needed
        suffix = "" if self.images is None else f" with images of {self.images.where}"
        self.where = f"{self.videos.where}{suffix}"

    @property
    def fps(self) -> float:
        return self.videos.fps

    def __len__(self) -> int:
        return len(self.videos)

    def report(self) -> Report:
        """Counts of the videos' rows, and of the images'."""
        videos = self.videos.report()
        if self.images is None:
            return videos
        images = self.images.report()
        return replace(
            videos,
            rows=videos.rows + images.rows - images.kept,
            dropped={**videos.dropped, **{f"image, {reason}": rows for reason, rows in images.dropped.items()}},
            more={**videos.more, **{f"image, {reason}": rows for reason, rows in images.more.items()}},
            buckets={**videos.buckets, **{f"{size}, images": rows for size, rows in images.buckets.items()}},
            notes=videos.notes + images.notes,
        )

    def clip(self, row: int, draw: Draw) -> Clip:
        """The clip of a row with its images, `valid_THW` where there is padding; BadClip where one of them is bad."""
        clip = self.videos.clip(row, draw)
        images = self._images(row, clip, draw)
        video, valid_THW = join(
            clip.video_CTHW, [image for image, _ in images], self.num_frames, self.image_size, self.stride
        )
        captions = tuple(caption for _, caption in images)
        return replace(clip, video_CTHW=video, image_captions=captions, valid_THW=valid_THW if self.padded else None)

    def captions(self, row: int) -> list[str]:
        """Every caption that the row's clip and images can have."""
        rows = [] if self.images is None else image_group(row, len(self.images), self.use_image_num)
        sources: Any = [(self.videos, row), *((self.images, each) for each in rows)]
        return [caption for dataset, each in sources for caption in dataset.captions(each)]

    def _images(self, row: int, clip: Clip, draw: Draw) -> Sequence[tuple[Tensor, str]]:
        """Images [C, 1, H, W] with their captions."""
        if self.images is None:
            frames = select_frames(0, clip.video_CTHW.shape[1], self.use_image_num)
            return [(clip.video_CTHW[:, frame : frame + 1], clip.caption) for frame in frames]
        samples = []
        for index, each in enumerate(image_group(row, len(self.images), self.use_image_num)):
            own = Draw(
                key_seed(draw.seed, "picture", index), draw.step, draw.sample_id
            )  # else alike crops in one sample
            image = self.images.clip(each, own)
            samples.append((image.video_CTHW, image.caption))
        return samples


def _part(name: str, config: Mapping[str, Any]) -> Dataset:
    check_component(DATASETS, config, f"dataset.{name}", lambda key: "config")
    part: Dataset = build(DATASETS, dict(config))
    if not part.num_frames:
        raise ConfigError(f"dataset.{name}: num_frames and image_size are missing; clips with images have one size")
    return part
