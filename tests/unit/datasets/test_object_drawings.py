import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from opensora.datasets.object_drawings import FOLDER, ObjectDrawings, object_drawings
from opensora.errors import DataError


def drawing(
    name: str, *, size: tuple[int, int] = (64, 64), x: float = 32, y: float = 32, reach: float = 24, angle: float = 0
):
    drawings = object_drawings()
    return drawings.draw(drawings.names.index(name), size, [x], [y], [reach], [angle])[:, 0]


def middle(picture_4HW: torch.Tensor) -> tuple[float, float, float]:
    """x and y of the middle of the area, and the area."""
    alpha = picture_4HW[3]
    rows, columns = (torch.arange(side) + 0.5 for side in alpha.shape)
    area = alpha.sum()
    return ((alpha * columns).sum() / area).item(), ((alpha * rows[:, None]).sum() / area).item(), area.item()


def test_there_are_a_hundred_and_small() -> None:
    names = object_drawings().names
    assert len(names) == len(set(names)) == 100
    assert names == sorted(names)
    assert all(name.isalpha() and name.islower() for name in names)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 200_000
    assert {"LICENSE", "README.md"} <= {path.name for path in FOLDER.iterdir()}


def test_the_pivot_is_where_it_is_said_at_every_size_and_angle() -> None:
    for name in ("axe", "key", "whale"):
        for x, y, reach, angle in ((32, 32, 28, 0), (20.3, 30.6, 15, 1), (40, 24, 9, 4)):
            got_x, got_y, _ = middle(drawing(name, x=x, y=y, reach=reach, angle=angle))
            assert (got_x, got_y) == pytest.approx((x, y), abs=0.15)


def test_reach_bounds_the_drawing_and_its_square_is_the_area() -> None:
    for number, name in enumerate(object_drawings().names):
        small, large = drawing(name, reach=12), drawing(name, reach=24, angle=number)
        assert middle(large)[2] / middle(small)[2] == pytest.approx(4, rel=0.04), name
        rows, columns = torch.nonzero(large[3] > 0.3, as_tuple=True)
        farthest = torch.hypot(columns + 0.5 - 32, rows + 0.5 - 32).max()
        assert 21 < farthest < 25.5, name


def test_a_quarter_turn_goes_clockwise() -> None:
    straight, turned = drawing("boot"), drawing("boot", angle=math.pi / 2)
    torch.testing.assert_close(turned, straight.rot90(-1, (1, 2)), atol=0.02, rtol=0)
    assert (turned - straight.rot90(1, (1, 2))).abs().mean() > 0.05


def test_at_the_size_of_the_sheet_it_is_the_sheet() -> None:
    drawings = object_drawings()
    number = drawings.names.index("crab")
    pivot = drawings.pivot_x_N[number], drawings.pivot_y_N[number]
    same = drawings.draw(number, (64, 64), pivot[:1], pivot[1:], drawings.reach_N[number : number + 1], [0.0])[:, 0]
    row, column = divmod(number, 10)
    tile = torch.from_numpy(_sheet()[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64] / 255.0).permute(2, 0, 1)
    torch.testing.assert_close(same[3], tile[3].float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(same[:3], (tile[:3] * tile[3:]).float(), atol=1e-4, rtol=0)


def _sheet():
    import numpy as np

    return np.asarray(Image.open(FOLDER / "drawings.png"))


def test_each_frame_is_drawn_alone_and_outside_is_empty() -> None:
    drawings = object_drawings()
    reaches = [30.0, 14.0, 7.0]
    together = drawings.draw(7, (40, 56), [28, 10, 50], [20, 12, 30], reaches, [0, 0.4, 2])
    for t, (x, y, angle) in enumerate(((28, 20, 0), (10, 12, 0.4), (50, 30, 2))):
        alone = drawings.draw(7, (40, 56), [x], [y], reaches[t : t + 1], [angle])[:, 0]
        torch.testing.assert_close(together[:, t], alone, atol=1e-5, rtol=0)
    assert drawings.draw(7, (40, 56), [500], [-500], [9], [0]).abs().max() == 0


def test_a_folder_that_does_not_fit_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="drawings of MovingObjects cannot be read"):
        ObjectDrawings(tmp_path)
    (tmp_path / "names.json").write_text(json.dumps({"a": "a"}))
    Image.new("RGBA", (64, 64)).save(tmp_path / "drawings.png")
    with pytest.raises(DataError, match=r"drawings\.png: found 64x64 pixels; 1 names need 640x64"):
        ObjectDrawings(tmp_path)
