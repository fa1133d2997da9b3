"""The benchmark's peak of allocations tells tensors that live together from those that follow one another."""

from __future__ import annotations

import torch
from allocation import peak

ENTRIES = 1 << 20


def test_tensors_that_live_together_add_up() -> None:
    assert peak(lambda: [torch.empty(ENTRIES), torch.empty(ENTRIES)]) == 2 * 4 * ENTRIES


def test_tensors_that_follow_one_another_do_not() -> None:
    assert peak(lambda: [torch.empty(ENTRIES).numel(), torch.empty(ENTRIES).numel()]) == 4 * ENTRIES
