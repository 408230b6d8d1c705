"""Sampled MovingShapes videos: are the words followed, how much moves, what flickers?

Run:    opensora evaluate configs/evaluate/shapes.py
Expect: the figures on the terminal, and outputs/shapes/evaluation/report.html with a picture of every video
"""

videos = "outputs/shapes/videos"  # of configs/stdit/sample/shapes.py
metrics = dict(shapes=dict(type="ShapeAdherence"), motion=dict(type="Motion"), flicker=dict(type="Flicker"))
report_dir = "outputs/shapes/evaluation"
