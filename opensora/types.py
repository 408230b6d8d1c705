"""The values that travel between the parts. B batch, C channels, T frames, H W rows and columns, L text tokens."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Precision = Literal["auto", "bf16", "fp32"]  # the config's word for what numbers a model computes with


@dataclass(frozen=True)
class Clip:
    """One training sample."""

    video_CTHW: (
        Tensor  # float32 in [-1, 1]; an image is a clip of one frame. Stored: moments, see datasets/feature_store.py
    )
    caption: str
    fps: float  # frames per second of video_CTHW
    row: int  # line of the manifest it came from, counted from 0; for a drawn data set, the sample number
    size: tuple[int, int, int] | None = None  # frames, height, width in pixels, where video_CTHW does not say them
    image_captions: tuple[str, ...] = ()  # of pictures that follow the clip's frames; see datasets/joint_padding.py
    valid_THW: Tensor | None = None  # float32 over latents, the pictures' included: 0 = padding; None = no padding


@dataclass(frozen=True)
class Batch:
    """One micro-batch. `places` are the samples' indices in the global batch: all randomness is keyed by them."""

    video_BCTHW: Tensor  # float32 in [-1, 1], or stored moments
    captions: list[str]  # of each clip, then of its pictures
    fps_B: Tensor  # float32, frames per second
    step: int  # optimizer step this batch belongs to, counted from 0
    places: list[int]  # in [0, micro_batches * batch_size)
    rows: list[int]  # manifest lines
    bad_rows: list[str] = field(default_factory=list)  # messages for rows skipped while making this batch
    size: tuple[int, int, int] | None = None  # as in Clip; ask `clip_size`
    pictures: int = 0  # behind the frames of each clip
    valid_BTHW: Tensor | None = None  # as in Clip

    @property
    def clip_size(self) -> tuple[int, int, int]:
        """Frames, height and width of the clips in pixels, without their pictures."""
        if self.size is not None:
            return self.size
        frames, height, width = self.video_BCTHW.shape[2:]
        return frames - self.pictures, height, width


@dataclass(frozen=True)
class Condition:
    """Encoded captions."""

    text_B1LC: Tensor  # text encoder states, padding included; of captions that are classes, labels int64 [B]
    mask_BL: Tensor | None  # int64, 1 = token counts; None = all count


@dataclass(frozen=True)
class Given:
    """Frames that a video is built around, and how it goes on from itself; see sampling/mask_strategy.py."""

    references: tuple[str, ...] = ()  # picture or video files
    contents: str = ""  # hash of what is in them
    mask_strategy: str = ""  # which of their latent frames go where
    align: int | None = None  # latent frames; places are moved to multiples of it
    loop: int = 1  # clips made one after the other and joined
    condition_frame_length: int = 5  # latent frames of a clip that the next one begins with
    condition_frame_edit: float = 0.0  # 0 keeps those frames, 1 makes them anew


@dataclass(frozen=True)
class SampleRequest:
    """One video to generate."""

    prompt: str
    negative_prompt: str
    index: int  # place in the request list; randomness is keyed by (seed, index of a repeat), not by rank
    repeat: int  # the how-manieth video for this prompt, from 0
    num_frames: int  # of one clip; `given.loop` clips are joined
    height: int  # pixels
    width: int  # pixels
    fps: float
    seed: int
    given: Given | None = None  # None: a video from noise alone
