"""Measurements of the demo: report.json, contact.png and loss.png."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensora.datasets.decode import read_frames
from opensora.datasets.video import VideoTextDataset
from opensora.evaluation.contact_sheet import SheetRow, contact_sheet
from opensora.evaluation.loss_plot import plot_loss
from opensora.evaluation.motion_ratio import ENOUGH, TOO_MUCH, mean_flow, motion_ratio, moves_alike
from opensora.evaluation.retrieval import retrieval_accuracy
from opensora.rng import Draw
from opensora.training.metrics import read


class Stages:
    """Seconds per stage, added up over interruptions."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        print(f"\n=== {name}", flush=True)
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - began, 1)
            self.path.write_text(json.dumps(self.seconds))


def write_report(out: Path, manifest: Path, stages: Stages) -> dict[str, Any]:
    """Read what the stages left in `out`, measure, draw, and return what report.json says."""
    videos = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / "videos").glob("*.json"))]
    first = videos[0]
    size = {"num_frames": first["num_frames"], "image_size": (first["height"], first["width"])}
    shots = clips(manifest, **size, fps=first["fps"])
    generated = [read_video(out / "videos" / video["file"], **size) for video in videos]
    prompts = [video["prompt"] for video in videos]
    retrieval = retrieval_accuracy(generated, prompts, [clip for clip, _ in shots], [caption for _, caption in shots])
    motion = motion_of(generated, prompts, shots)
    rows = [
        SheetRow(video, shots[near][0], prompt, shots[near][1], float(retrieval.distances_GR[i, near]), moved["ratio"])
        for i, (video, prompt, near, moved) in enumerate(zip(generated, prompts, retrieval.nearest, motion["clips"]))
    ]
    contact_sheet(rows, out / "contact.png")
    losses = {name: read(out / name / "metrics.jsonl") for name in ("autoencoder", "diffusion")}
    plot_loss(losses["diffusion"], out / "loss.png", title="diffusion: rectified-flow loss")
    report = {
        "what": "a small STDiT that memorised eight shots: it proves the machinery, not quality",
        "seconds": stages.seconds,
        "psnr": _last(losses["autoencoder"], "validation")["psnr"],
        "losses": {name: [[r["step"], r["loss"]] for r in records if "loss" in r] for name, records in losses.items()},
        "prompts": len(prompts),
        "retrieval_hits": sum(retrieval.hits),
        "retrieval_accuracy": retrieval.accuracy,
        "retrieval": [
            {"prompt": prompt, "nearest": shots[near][1], "hit": hit}
            for prompt, near, hit in zip(prompts, retrieval.nearest, retrieval.hits)
        ],
        "motion": motion,
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def motion_of(
    generated: Sequence[Tensor], prompts: Sequence[str], shots: Sequence[tuple[Tensor, str]]
) -> dict[str, Any]:
    """The motion of each generated clip next to that of the shot of its prompt.

    clips: mean optical flow of both in pixels per frame and their ratio, None where the shot rests or is gone. within: how
    many ratios lie in `range`.
    """
    flows = {caption: mean_flow(clip) for clip, caption in shots}
    measured: list[dict[str, Any]] = []
    for clip, prompt in zip(generated, prompts, strict=True):
        flow, shot_flow = mean_flow(clip), flows.get(prompt)
        ratio = None if shot_flow is None else motion_ratio(flow, shot_flow)
        measured.append({"prompt": prompt, "flow": flow, "shot_flow": shot_flow, "ratio": ratio})
    within = sum(moves_alike(each["ratio"]) for each in measured)
    return {"within": within, "range": [ENOUGH, TOO_MUCH], "unit": "pixels per frame", "clips": measured}


def motion_sentence(motion: dict[str, Any]) -> str:
    """The figures of `motion_of` in one line."""
    low, high = motion["range"]
    ratios = [each["ratio"] for each in motion["clips"] if each["ratio"] is not None]
    spread = f" (optical flow: {min(ratios):.2f} to {max(ratios):.2f} times)" if ratios else ""
    count = f"{motion['within']} of {len(motion['clips'])}"
    return f"motion: {count} generated clips move {low:g} to {high:g} times as much as the shot of their prompt{spread}"


def clips(manifest: Path, num_frames: int, image_size: tuple[int, int], fps: float) -> list[tuple[Tensor, str]]:
    """One clip [3, T, H, W] per shot, from its middle, with its caption."""
    dataset = VideoTextDataset(str(manifest), num_frames, image_size, fps=fps, start="center")
    samples = [dataset.clip(row, Draw(0, 0, row)) for row in range(len(dataset))]
    return [(clip.video_CTHW, clip.caption) for clip in samples]


def read_video(path: Path, num_frames: int, image_size: tuple[int, int]) -> Tensor:
    """A generated mp4 back as [3, T, H, W] in [-1, 1]."""
    frames_THWC = torch.from_numpy(read_frames(str(path), range(num_frames)))
    return frames_THWC[:, : image_size[0], : image_size[1]].permute(3, 0, 1, 2).float() / 127.5 - 1


def _last(records: list[dict[str, Any]], key: str) -> Any:
    return next(record[key] for record in reversed(records) if key in record)
