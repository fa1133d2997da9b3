"""Attention by PyTorch's function, and keys that a layer adds: heads and widths are axes of the graph."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnas.passes import CaptureError
from bnas.passes.frontend.attention import DECOMPOSED, multi_head_attention_forward
from bnas.runtime.supernetwork import SuperNetwork
from bnas.runtime.verification import verify


class Pool(nn.Module):
    """The last layer of CLIP's ResNets: the mean of all places asks all places."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x])
        found, _ = F.multi_head_attention_forward(
            query=x[:1],
            key=x,
            value=x,
            embed_dim_to_check=x.shape[-1],
            num_heads=4,
            q_proj_weight=self.query.weight,
            k_proj_weight=self.key.weight,
            v_proj_weight=self.value.weight,
            in_proj_weight=None,
            in_proj_bias=torch.cat([self.query.bias, self.key.bias, self.value.bias]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.2,
            out_proj_weight=self.out.weight,
            out_proj_bias=self.out.bias,
            use_separate_proj_weight=True,
            training=self.training,
            need_weights=False,
        )
        return found.squeeze(0)


class Own(nn.MultiheadAttention):
    """A user's class: its forward calls PyTorch's, and that calls the function."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x)[0]


class Padded(nn.Module):
    """Self-attention with a padding mask, which also returns the weights of the heads."""

    def __init__(self, **settings: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 16), nn.Linear(16, 3)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True, **settings)  # type: ignore[arg-type]

    def forward(self, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        found, weights = self.attention(x, x, x, key_padding_mask=padding)
        return self.last(x + found), weights


def pooled() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Pool())


IMAGES = torch.randn(2, 3, 4, 4)


def elastic(model: nn.Module, inputs: object) -> SuperNetwork:
    """The super-network of a model, whose largest and smallest sub-networks are right."""
    supernet = SuperNetwork.from_model(model.eval(), inputs, {"min_width": 1, "divisor": 1})
    for subnet in (supernet.space.maximal(), supernet.space.minimal()):
        verify(model, supernet, subnet, inputs)
    return supernet


def smallest_share(supernet: SuperNetwork) -> float:
    low, high = (supernet.costs(one)["parameters"] for one in (supernet.space.minimal(), supernet.space.maximal()))
    return low / high


def test_the_attention_pool_is_elastic(monkeypatch: pytest.MonkeyPatch) -> None:
    assert smallest_share(elastic(pooled(), IMAGES)) < 0.5
    monkeypatch.delitem(DECOMPOSED, F.multi_head_attention_forward)
    assert smallest_share(elastic(pooled(), IMAGES)) == 1


def test_a_subclass_of_the_layer_has_elastic_heads() -> None:
    supernet = elastic(nn.Sequential(nn.Linear(5, 12), Own(12, 3), nn.Linear(12, 2)), torch.randn(2, 6, 5))
    assert supernet.space.widths["1"] == (1, 2, 3)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_keys_that_the_layer_adds(bias: bool, zero: bool) -> None:
    model = Padded(add_bias_kv=bias, add_zero_attn=zero)
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    supernet = elastic(model, (torch.randn(2, 6, 5), padding))
    assert supernet.space.widths["attention"] == (2, 3, 4)


def test_projected_keys_are_refused_with_what_to_give_instead() -> None:
    layer, x = nn.MultiheadAttention(8, 2), torch.randn(5, 2, 8)
    own = layer.in_proj_weight, layer.in_proj_bias, None, None, False, 0.0, layer.out_proj.weight, layer.out_proj.bias
    with pytest.raises(CaptureError, match=r"static_k.*pass only key and value"):
        multi_head_attention_forward(x, x, x, 8, 2, *own, static_k=torch.randn(4, 5, 4))
    torch.testing.assert_close(multi_head_attention_forward(x, x, x, 8, 2, *own)[0], layer(x, x, x)[0])
