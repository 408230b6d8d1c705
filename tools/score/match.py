"""Match of captions and clips: the cosine of CLIP's vectors of the text and of a few frames.

Run: python -m tools.score.match captioned.csv scored.csv
"""

from opensora.datasets.missing_values import is_missing
from opensora.errors import BadClip
from tools.runner import Row, run
from tools.score.clip import DEFAULT_MODEL, PACKAGES, ClipEncoder, mean_vector, require_frames


class Match:
    """Each row with `match`: the cosine, from -1 to 1, of its text and the mean of its frames; it is not multiplied by 100.

    model: folder or hub id of a CLIP or SigLIP model
    column: of the captions; one of more tokens than the model takes, 77 in CLIP, is cut
    device: cpu, a platform of opensora, or auto for the fastest
    frames: number of frames, spread over the clip
    """

    def __init__(
        self, *, model: str = DEFAULT_MODEL, column: str = "text", device: str = "auto", frames: int = 4
    ) -> None:
        require_frames(frames, "match")
        self._encoder = ClipEncoder(model, device)
        self._column, self._frames = column, frames

    def __call__(self, rows: list[Row]) -> list[Row | BadClip]:
        texts = ["" if is_missing(row.get(self._column)) else str(row[self._column]).strip() for row in rows]
        with_text = [row for row, text in zip(rows, texts) if text]
        clips = iter(self._encoder.clips(with_text, self._frames))
        vectors = iter(self._encoder.texts([text for text in texts if text]) if with_text else ())
        results: list[Row | BadClip] = []
        for row, text in zip(rows, texts):
            if not text:
                results.append(
                    BadClip(f"{row['path']}: column {self._column!r} is empty; a caption is needed; write one")
                )
                continue
            frames, vector = next(clips), next(vectors)
            if isinstance(frames, BadClip):
                results.append(frames)
            else:
                results.append({**row, "match": round(float(mean_vector(frames) @ vector), 4)})
        return results


if __name__ == "__main__":
    run(Match, batch_size=8, packages=PACKAGES)
