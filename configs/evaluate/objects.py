"""Sampled MovingObjects videos: which show the object, the motion, the background and the speed of their prompt?

Run:    opensora evaluate configs/evaluate/objects.py
Expect: the figures on the terminal, and outputs/objects/evaluation/report.html with a picture of every video
"""

videos = "outputs/objects/videos"  # of configs/stdit/sample/objects.py
metrics = dict(objects=dict(type="ObjectAdherence"), motion=dict(type="Motion"), flicker=dict(type="Flicker"))
report_dir = "outputs/objects/evaluation"
