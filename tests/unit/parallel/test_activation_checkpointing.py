import copy

import torch
from torch import Tensor, nn

from opensora.parallel.activation_checkpointing import checkpoint_activations


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.calls = 0

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        self.calls += 1
        return self.drop(torch.tanh(self.linear(x))) * scale


def make() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(Block() for _ in range(3))


def run(blocks: nn.ModuleList) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(1)
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    for block in blocks:
        x = block(x, scale=1.5)
    x.square().sum().backward()
    return x.detach(), [parameter.grad for parameter in blocks.parameters()]


def test_checkpointing_keeps_results_names_and_classes() -> None:
    plain, frugal = make(), make()
    checkpoint_activations(frugal)
    expected, gradients = run(plain)
    result, recomputed = run(frugal)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    torch.testing.assert_close(recomputed, gradients, rtol=0, atol=0)  # dropout drew the same mask again
    assert [name for name, _ in frugal.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert list(frugal.state_dict()) == list(plain.state_dict())
    assert all(type(block) is Block for block in frugal)


def test_backward_recomputes_each_block_once() -> None:
    blocks = make()
    checkpoint_activations(blocks)
    checkpoint_activations(blocks)  # twice is once
    run(blocks)
    assert [block.calls for block in blocks] == [2, 2, 2]
    with torch.no_grad():
        blocks[0](torch.zeros(1, 4))
    assert blocks[0].calls == 3


def test_deep_copy_recomputes_with_its_own_weights() -> None:
    blocks = make().eval()
    checkpoint_activations(blocks)
    twin = copy.deepcopy(blocks)
    twin[0](torch.ones(1, 4, requires_grad=True)).sum().backward()
    assert (twin[0].calls, blocks[0].calls) == (2, 0)
    with torch.no_grad():
        twin[0].linear.weight.zero_()
        twin[0].linear.bias.zero_()
    assert twin[0](torch.ones(1, 4)).abs().sum() == 0
    assert blocks[0](torch.ones(1, 4)).abs().sum() > 0
