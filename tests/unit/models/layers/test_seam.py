import pytest
import torch

from opensora.models.layers.seam import Seam


def test_a_seam_is_the_identity_without_parameters() -> None:
    x = torch.randn(2, 3)
    assert Seam("split", dim=1)(x) is x
    assert not Seam("gather", dim=1).state_dict()
    assert (Seam("switch", dim=1, swap_dim=2).dim, Seam("switch", dim=1, swap_dim=2).swap_dim) == (1, 2)


@pytest.mark.parametrize(("kind", "swap_dim"), [("switch", None), ("split", 2)])
def test_only_a_switch_names_two_dimensions(kind: str, swap_dim: int | None) -> None:
    with pytest.raises(ValueError, match="only a switch"):
        Seam(kind, dim=1, swap_dim=swap_dim)  # type: ignore[arg-type]
