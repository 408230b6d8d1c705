"""Values that travel between the packages. B batch, C channels, T frames, H W rows and columns, L text tokens."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Clip:
    """One training sample."""

    # float32 in [-1, 1]; an image is a clip of one frame. Of stored features: moments, see datasets/feature_store.py
    video_CTHW: Tensor
    caption: str
    fps: float  # frames per second of video_CTHW
    row: int  # line of its manifest, counted from 0; for a synthetic data set, the sample number
    size: tuple[int, int, int] | None = None  # frames, height, width in pixels, where video_CTHW holds moments
    image_captions: tuple[str, ...] = ()  # of the images behind the clip's frames; see datasets/joint_padding.py
    valid_THW: Tensor | None = None  # float32 over latents, the images' included: 0 = padding; None = no padding


@dataclass(frozen=True)
class Batch:
    """One micro-batch. `sample_ids` are the samples' indices in the global batch: they key all randomness."""

    video_BCTHW: Tensor  # float32 in [-1, 1], or stored moments
    captions: list[str]  # of each clip, then of its images
    fps_B: Tensor  # float32, frames per second
    step: int  # optimizer step this batch belongs to, counted from 0
    sample_ids: list[int]  # in [0, micro_batches * batch_size)
    rows: list[int]  # manifest lines
    bad_rows: list[str] = field(default_factory=list)  # messages for rows skipped while making this batch
    size: tuple[int, int, int] | None = None  # as in Clip; read `clip_size`
    num_images: int = 0  # behind the frames of each clip
    valid_BTHW: Tensor | None = None  # as in Clip

    @property
    def clip_size(self) -> tuple[int, int, int]:
        """Frames, height and width of the clips in pixels, without their images."""
        if self.size is not None:
            return self.size
        frames, height, width = self.video_BCTHW.shape[2:]
        return frames - self.num_images, height, width


@dataclass(frozen=True)
class EncodedText:
    """Encoded captions."""

    text_B1LC: Tensor  # text encoder states, padding included; class labels are int64 [B]
    mask_BL: Tensor | None  # int64, 1 = token counts; None = all count


@dataclass(frozen=True)
class VideoConditioning:
    """Reference frames of one generated video, and its continuation in loops; see sampling/mask_strategy.py."""

    references: tuple[str, ...] = ()  # image or video files
    contents: str = ""  # hash of their bytes
    mask_strategy: str = ""  # destination of their latent frames
    align: int | None = None  # latent frames; destinations are moved to multiples of it
    loop: int = 1  # clips generated one after the other and joined
    condition_frame_length: int | None = None  # latent frames that a clip repeats from the one before; None: 5 or half
    condition_frame_edit: float = 0.0  # 0 keeps those frames, 1 generates them again


@dataclass(frozen=True)
class SampleRequest:
    """One video to generate."""

    prompt: str
    negative_prompt: str
    index: int  # in the request list; randomness is keyed by (seed, repeat), not by this or the rank
    repeat: int  # index of this video among those of its prompt, from 0
    num_frames: int  # of one clip; `conditioning.loop` clips are joined
    height: int  # pixels
    width: int  # pixels
    fps: float
    seed: int
    conditioning: VideoConditioning | None = None  # None: a video from noise alone
    save_fps: float | None = None  # of the file; None: `fps`, at which the video plays at true speed
    save_format: str = "mp4"  # see sampling/video_formats.py
    watermark: str = ""  # text over the lower right corner
    original_prompt: str = ""  # as the user wrote it, where `prompt` was rewritten
