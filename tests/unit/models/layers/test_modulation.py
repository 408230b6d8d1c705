import torch

from opensora.models.layers.modulation import FinalLayer, gated_residual


def test_final_layer_modulates_conditioning_frames_twice() -> None:
    torch.manual_seed(0)
    layer = FinalLayer(8, 4)
    x, t, still = torch.randn(1, 2, 3, 8), torch.randn(1, 8), torch.randn(1, 8)
    out = layer(x, t, torch.tensor([[True, False]]), still)
    torch.testing.assert_close(out[:, :1], layer(x, t)[:, :1])
    shift, scale = (layer.scale_shift_table + t).unbind(0)
    once = torch.nn.functional.layer_norm(x, (8,), eps=1e-6) * (1 + scale) + shift
    torch.testing.assert_close(out[:, 1:], layer(once, still)[:, 1:])


def test_gated_adds_the_branch_times_the_gate() -> None:
    x, branch, gate = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 8), torch.randn(2, 1, 1, 8)
    torch.testing.assert_close(gated_residual(x, gate, branch), x + gate * branch)
