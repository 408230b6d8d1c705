import pytest

from opensora.models.shape_checks import ShapeError, as_3_tuple


@pytest.mark.parametrize("sizes", [(1, 2), (1, 2, 0), (1, 2, 1.5)])
def test_triples(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="three"):
        as_3_tuple("here", sizes)
    assert as_3_tuple("here", [1, 2, 3]) == (1, 2, 3)
