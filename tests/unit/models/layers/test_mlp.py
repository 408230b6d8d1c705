import math

import torch

from opensora.models.layers.mlp import DropPath, Mlp


def test_mlp_is_two_linear_layers_around_the_tanh_approximation_of_gelu() -> None:
    torch.manual_seed(0)
    mlp = Mlp(4, 6, 3).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    gelu = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    torch.testing.assert_close(mlp(x), gelu @ mlp.fc2.weight.T + mlp.fc2.bias)
    assert list(mlp.state_dict()) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert Mlp(4, 6).fc2.out_features == 4


def test_drop_path_leaves_out_whole_samples_and_scales_the_others() -> None:
    branch = torch.arange(1.0, 25).view(6, 2, 2).requires_grad_()
    drop = DropPath(0.25)
    torch.manual_seed(3)
    expected = torch.empty(6, 1, 1).bernoulli_(0.75)
    assert 0 < expected.sum() < 6
    torch.manual_seed(3)
    torch.testing.assert_close(drop(branch), branch * expected / 0.75)
    assert drop.eval()(branch) is branch
    state = torch.get_rng_state()
    assert DropPath(0.0)(branch) is branch
    assert torch.equal(torch.get_rng_state(), state)
