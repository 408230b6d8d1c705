"""A folder of videos, or two, to figures, metrics.json and one page."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from opensora.datasets.moving_shapes import HOLDOUT, MovingShapes
from opensora.errors import ConfigError, DataError
from opensora.evaluation.evaluate import Evaluated, evaluate, pairs_of, results, write_evaluation
from opensora.evaluation.evaluated_video import EvaluatedVideo, read_folder, read_references
from opensora.evaluation.metric import Curve, Figure, Measurement, Needs, mean_figure
from opensora.evaluation.report import partners, report_page
from opensora.registry import METRICS
from opensora.rng import Draw
from opensora.sampling.video_writer import write_sample
from opensora.schema import EvaluateRun
from opensora.types import SampleRequest
from tests.support.fake_sampler import SETTINGS
from tests.support.media_files import write_picture, write_video

CPU = torch.device("cpu")
ADHERENCE = {"shapes": {"type": "ShapeAdherence"}}


def sampled(folder: Path, numbers: Sequence[int] = (0, 1), shift: int = 0, size: int = 32) -> Path:
    """Videos of held-out combinations, as `opensora sample` writes them; shift: show another combination."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        clip = MovingShapes(16, 9, (size, size), "holdout").clip(number + shift, Draw(3, 0, number))
        request = SampleRequest(HOLDOUT[number].caption(), "", number, 0, 9, size, size, 8.0, 42)
        write_sample(clip.video_CTHW, request, SETTINGS, folder)
    return folder


@METRICS.register_module()
class LengthOfName:
    """Of tests: a figure of each video and a curve."""

    needs: ClassVar[Needs] = "videos"

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def measure(
        self, videos: Sequence[EvaluatedVideo], references: Sequence[EvaluatedVideo], device: torch.device
    ) -> Measurement:
        lengths = [self.factor * len(video.name) for video in videos]
        curve = Curve("lengths", "place", "letters", tuple(map(float, range(len(lengths)))), {"names": tuple(lengths)})
        return Measurement([mean_figure("length", lengths, "letters", "lower")], [curve])


@METRICS.register_module()
class NoVideosNeeded:
    """Of tests: measures something else than videos."""

    needs: ClassVar[Needs] = "nothing"

    def measure(
        self, videos: Sequence[EvaluatedVideo], references: Sequence[EvaluatedVideo], device: torch.device
    ) -> Measurement:
        return Measurement([Figure("answer", 42.0)])


def test_figures_of_each_video_and_their_mean(tmp_path: Path) -> None:
    """The second video shows what the first prompt of the list does not say."""
    folder = sampled(tmp_path / "a", (0,))
    sampled(folder, (1,), shift=1)
    (each,) = evaluate(EvaluateRun(ADHERENCE, str(folder)), "config", CPU)
    figures = dict(each.figures())
    assert figures["adherence"].per_video == (1.0, 0.0)
    assert figures["adherence"].value == 0.5
    assert figures["color"].better == "higher"
    assert figures["drawing_psnr"].per_video[0] > figures["drawing_psnr"].per_video[1] + 8
    assert [video.prompt for video in each.videos] == [HOLDOUT[0].caption(), HOLDOUT[1].caption()]


def test_results_and_page_hold_the_same_numbers(tmp_path: Path) -> None:
    folder, out = sampled(tmp_path / "a", (0, 3)), tmp_path / "out"
    run = EvaluateRun({"length": {"type": "LengthOfName"}}, str(folder), report_dir=str(out))
    evaluated = evaluate(run, "config", CPU)
    paths = write_evaluation(run, evaluated)
    assert paths == (out / "metrics.json", out / "report.html")
    kept = json.loads(paths[0].read_text())
    (of_folder,) = kept["folders"]
    lengths = [len(path.name) for path in sorted(folder.glob("*.mp4"))]
    assert of_folder["figures"]["length"] == {
        "value": sum(lengths) / 2,
        "unit": "letters",
        "better": "lower",
        "note": "",
    }
    assert [row["length"] for row in of_folder["per_video"]] == lengths
    assert of_folder["weights"] == ["w0"]
    assert of_folder["curves"][0]["lines"] == {"names": lengths}
    assert kept["config"]["metrics"] == {"length": {"type": "LengthOfName"}}
    page = paths[1].read_text()
    assert re.findall(r"data-c0='([\d.]+)'", page) == [str(float(length)) for length in lengths]
    assert page.count("data:image/png;base64,") == 2 + 2 + 1  # the table, best and worst, the curve
    assert not re.search(r"(src|href)='(?!data:)", page)  # nothing is loaded from elsewhere


def test_two_folders_stand_next_to_each_other(tmp_path: Path) -> None:
    first, second = sampled(tmp_path / "a"), sampled(tmp_path / "b", (1,), shift=1)
    run = EvaluateRun(ADHERENCE, str(first), compare=str(second))
    evaluated = evaluate(run, "config", CPU)
    assert [dict(each.figures())["adherence"].value for each in evaluated] == [1.0, 0.0]
    page = report_page(run, evaluated)
    assert "<td class='number bad'>-1</td>" in page
    assert page.count("no video of this prompt and seed") == 1
    assert [other and other.prompt for other in partners(evaluated[0].videos, evaluated[1].videos)] == [
        None,
        HOLDOUT[1].caption(),
    ]


def test_figures_of_one_name_carry_that_of_their_metric(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "a", (0,))
    metrics = {"once": {"type": "LengthOfName"}, "twice": {"type": "LengthOfName", "factor": 2.0}}
    (each,) = evaluate(EvaluateRun(metrics, str(folder)), "config", CPU)
    once, twice = each.figures()
    assert (once[0], twice[0]) == ("once.length", "twice.length")
    assert twice[1].value == 2 * once[1].value
    assert [name for name, _ in each.curves()] == ["once.lengths", "twice.lengths"]
    assert "alt='twice.lengths'" in report_page(EvaluateRun(metrics, str(folder)), [each])


def test_a_run_may_be_measured_without_videos() -> None:
    run = EvaluateRun({"one": {"type": "NoVideosNeeded"}})
    evaluated = evaluate(run, "config", CPU)
    assert results(run, evaluated)["folders"][0]["figures"]["answer"]["value"] == 42
    assert "<td>answer</td><td class='number'>42</td>" in report_page(run, evaluated)


def test_prompts_are_text_on_the_page(tmp_path: Path) -> None:
    video = read_folder(sampled(tmp_path / "a", (0,)))[0]
    evil = replace(video, prompt="<script>alert('1')</script>\"'&")
    run = EvaluateRun(ADHERENCE, "<b>")
    measured = {"shapes": Measurement([mean_figure("<i>", [1.0], "", "higher", note="<u>")])}
    page = report_page(run, [Evaluated("<b>", [evil], measured)])
    assert page.count("<script>") == 1  # the page's own
    assert "&lt;script&gt;alert(&#x27;1&#x27;)" in page
    assert not any(tag in page for tag in ("<b>", "<i>", "<u>"))


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (EvaluateRun({}), "key 'metrics': empty"),
        (EvaluateRun(ADHERENCE), "key 'videos': missing, and metric 'shapes' measures videos"),
        (
            EvaluateRun({"q": {"type": "PSNR"}}, "a"),
            "key 'references': missing, and metric 'q' compares with videos of",
        ),
        (EvaluateRun(ADHERENCE, "a", compare="a"), "keys 'videos', 'compare': the same folder"),
        (EvaluateRun({"n": {"type": "NoVideosNeeded"}}, compare="a"), "key 'videos': missing; 'compare' is shown"),
    ],
)
def test_contradictions_are_sentences(run: EvaluateRun, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"config: {sentence}")):
        evaluate(run, "config", CPU)


def test_bad_folders_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(DataError, match="found no video or picture"):
        read_folder(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"a\.mp4: .*; remove it, or make it again"):
        read_folder(tmp_path)
    (tmp_path / "a.mp4").unlink()
    write_video(tmp_path / "b.mp4", 4)
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(DataError, match=r"b\.json: is not JSON"):
        read_folder(tmp_path)
    (tmp_path / "b.json").unlink()
    with pytest.raises(DataError, match=r"b\.mp4: no reference of this name, which metric 'q' needs"):
        pairs_of(read_folder(tmp_path), [], "q")


def test_a_number_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "a", (0,))
    run = EvaluateRun({"length": {"type": "LengthOfName", "factor": float("nan")}}, str(folder))
    with pytest.raises(DataError, match="metric 'length': length is nan"):
        evaluate(run, "config", CPU)


def test_videos_come_without_grids_and_without_the_rows_of_codecs(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "a", (0,), size=31)  # H.264 has 32 rows and columns
    write_video(folder / "grid-1.mp4", 4)
    write_picture(folder / "z.png")
    video, picture = read_folder(folder)
    assert (video.num_frames, video.height, video.width) == (9, 31, 31)
    assert next(video.blocks(4)).shape == (4, 31, 31, 3)
    assert [len(block) for block in video.blocks(4)] == [4, 4, 1]
    assert (picture.name, picture.num_frames, picture.prompt) == ("z.png", 1, None)
    assert len(read_folder(folder, 1)) == 1


def test_references_are_clips_of_a_manifest(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 24, fps=8)
    (tmp_path / "train.csv").write_text(f"path,text,start,end\n{path},one,0,1\n{path},two,1,2.5\n")
    first, second = read_references(tmp_path / "train.csv")
    assert (first.num_frames, second.num_frames, second.first_frame) == (8, 12, 8)
    with_all = read_folder(tmp_path)[0].whole()
    assert (second.whole() == with_all[8:20]).all()
    assert (second.read([0, 11]) == with_all[[8, 19]]).all()
    assert second.name == "a.mp4 [8:20]"
