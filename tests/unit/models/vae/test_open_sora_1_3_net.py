import torch
import torch.nn.functional as F

from opensora.models.vae.open_sora_1_3_net import CausalAttention


@torch.no_grad()
def test_attention_sees_earlier_pixels_only() -> None:
    torch.manual_seed(0)
    block = CausalAttention(8, groups=2).eval()
    q, k, v = (torch.randn(2, 8, 3, 2, 5) for _ in range(3))
    flat = [a.flatten(2).transpose(1, 2) for a in (q, k, v)]
    earlier = torch.ones(30, 30, dtype=torch.bool).tril()
    expected = F.scaled_dot_product_attention(*flat, attn_mask=earlier).transpose(1, 2).view_as(q)
    torch.testing.assert_close(block.mix(q, k, v), expected)
