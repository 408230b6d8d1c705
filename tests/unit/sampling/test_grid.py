import numpy as np

from opensora.sampling.grid import GAP, make_grid


def test_videos_lie_row_by_row() -> None:
    videos = [np.full((frames, 4, 6, 3), value, np.uint8) for frames, value in ((2, 50), (3, 100), (1, 150))]
    grid = make_grid(videos)
    assert grid.shape == (3, 2 * 4 + GAP, 2 * 6 + GAP, 3)
    assert (grid[:, :4, :6] == 50).all()  # the last frame stays
    assert (grid[:, :4, 6 + GAP :] == 100).all()
    assert (grid[:, 4 + GAP :, :6] == 150).all()
    assert (grid[:, 4 + GAP :, 6:] == 0).all()
    assert (grid[:, 4 : 4 + GAP] == 0).all()
