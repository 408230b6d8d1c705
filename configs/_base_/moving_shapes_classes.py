# Every caption of MovingShapes as a class, held-out combinations too, so that a model by class can draw them all.
text_encoder = dict(
    type="classes",
    names=[
        f"a {color} {shape} {moves} {direction}"
        for color in ("red", "green", "blue", "yellow", "purple", "white")
        for shape in ("circle", "square", "triangle", "cross")
        for moves in ("moves", "moving")
        for direction in ("left", "right", "up", "down")
    ],
)
