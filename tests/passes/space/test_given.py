"""Blocks that read a mask beside their entry: what is computed from the inputs without a parameter."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnas.passes import Subnet, analyse, find_blocks, trace
from bnas.passes.space.blocks import given_values
from bnas.runtime.supernetwork import SuperNetwork
from bnas.testing import assert_extracted_is_oracle, assert_program_is_extracted


class Masked(nn.Module):
    """Two residual blocks over the tokens that a mask leaves; the first takes twice the mask."""

    def __init__(self, learned: bool = False, noisy: bool = False) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = (
            nn.Linear(4, 16),
            *(nn.Linear(16, 16) for _ in "ab"),
            nn.Linear(16, 2),
        )
        self.scale = nn.Parameter(torch.ones(1)) if learned else 1.0
        self.noisy = noisy

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        kept = mask.float().unsqueeze(-1) * self.scale
        x = self.stem(x)
        x = x + self.one(x * (kept - 1).exp())
        if self.noisy and self.training:
            x = F.dropout(x, 0.0)  # an operator of that mode only
        x = x + self.two((x * kept).sum(1, keepdim=True).expand_as(x))
        return self.head((x * kept).sum(1) / kept.sum(1))


def inputs(length: int = 6) -> tuple[Tensor, Tensor]:
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, length // 2 :] = 0
    return torch.randn(2, length, 4, generator=torch.Generator().manual_seed(length)), mask


def test_a_block_may_read_a_mask_and_takes_along_what_only_it_reads() -> None:
    types = analyse(trace(Masked().eval(), inputs()))
    first, second = find_blocks(types).found
    given = given_values(types.ir)
    assert {"x", "mask", "unsqueeze"} < {node.name for node in given}
    assert {str(node.target) for node in first.nodes & given} >= {"exp"}
    assert not second.nodes & given  # the head reads the mask too


def test_what_a_parameter_takes_part_in_is_no_mask() -> None:
    types = analyse(trace(Masked(learned=True).eval(), inputs()))
    found = find_blocks(types)
    assert not found.found
    assert [one.reason for one in found.refused] == [
        "not a skippable residual block: both branches change the tensor"
    ] * 2


@pytest.mark.parametrize("noisy", [False, True])
def test_without_such_blocks_the_rest_computes_the_same(noisy: bool) -> None:
    supernet = SuperNetwork.from_model(
        Masked(noisy=noisy), inputs(), dynamic={"x": {1: "length"}, "mask": {1: "length"}}
    )
    names = supernet.space.blocks
    assert len(names) == 2
    for skipped in chain.from_iterable(combinations(names, count) for count in range(3)):
        subnet = Subnet(supernet.space.minimal().widths, frozenset(skipped))
        assert_extracted_is_oracle(supernet, subnet, inputs(), tolerance=1e-9)
        assert_program_is_extracted(supernet, subnet, inputs(9))
        names_left = dict(supernet.extract(subnet).named_parameters())
        assert ("one.weight" in names_left, "two.weight" in names_left) == tuple(name not in skipped for name in names)
