"""Vectors of clips, by which tools.dedupe.find finds those of equal content.

Run: python -m tools.dedupe.embed clips.csv embedded.parquet
"""

from opensora.errors import BadClip
from tools.runner import Row, run
from tools.score.clip import DEFAULT_MODEL, PACKAGES, ClipEncoder, mean_vector, require_frames


class Embed:
    """Each row with `embedding`: the mean of CLIP's vectors of its frames, of length 1.

    model: folder or hub id of a CLIP or SigLIP model
    device: cpu, a platform of opensora, or auto for the fastest
    frames: number of frames, spread over the clip
    """

    def __init__(self, *, model: str = DEFAULT_MODEL, device: str = "auto", frames: int = 4) -> None:
        require_frames(frames, "embed")
        self._encoder = ClipEncoder(model, device)
        self._frames = frames

    def __call__(self, rows: list[Row]) -> list[Row | BadClip]:
        results: list[Row | BadClip] = []
        for row, vectors in zip(rows, self._encoder.clips(rows, self._frames)):
            if isinstance(vectors, BadClip):
                results.append(vectors)
            else:
                results.append({**row, "embedding": [round(value, 6) for value in mean_vector(vectors).tolist()]})
        return results


if __name__ == "__main__":
    run(Embed, batch_size=8, packages=PACKAGES)
