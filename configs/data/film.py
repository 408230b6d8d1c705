"""All of Big Buck Bunny -> a manifest of its shots, with scores, captions and a report page.

Run: python -m tools.pipeline configs/data/film.py videos=bbb.mp4

The film is in the sources of moviepy 2.2.1 (`pip download --no-deps --no-binary moviepy moviepy==2.2.1`, then unpack
moviepy_10_minutes.zip inside): 1280x720, 24 frames/s, 596 s; (c) Blender Foundation, CC BY 3.0.
"""

videos = "bbb.mp4"
out = "outputs/film"
steps = [
    dict(tool="datasets.probe", inputs="{videos}", output="videos.csv"),
    dict(tool="scene_cut.detect", output="scenes.csv"),
    # Prints recall and precision of the cuts.
    dict(tool="scene_cut.accuracy", output="cuts.json", true="bench/big_buck_bunny_cuts.txt"),
    dict(tool="scene_cut.cut", inputs="scenes.csv", output="clips.csv", folder="{out}/clips", min_seconds=1.0, workers=2),
    dict(tool="score.motion", output="motion.csv", workers=2),
    dict(tool="score.camera", output="camera.csv", workers=2),
    dict(tool="score.technical", output="technical.csv", workers=2),
    dict(tool="score.text_area", output="text_area.csv", workers=2),
    dict(tool="dedupe.fingerprint", output="fingerprints.csv", workers=2),
    dict(tool="dedupe.find", output="unique.csv", drop=True),
    dict(tool="caption.caption", output="captions.csv", captioner="template", workers=2),
    # Neither black nor the credits.
    dict(tool="datasets.filter", output="train.csv", keep=["black_frames < 0.5", "text_area < 0.05"]),
    dict(tool="datasets.validate", output="problems.jsonl", decode=True),
    dict(tool="datasets.analyze", inputs="text_area.csv", output="report", by="flow"),
]
