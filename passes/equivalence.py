"""Whether two graphs over one model compute the same: measured, on random inputs in double precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .analysis import Analysis
from .frontend.state import deep_copy
from .interpreter import GraphInterpreter
from .ir import as_program_call


def difference(before: Analysis, after: Analysis) -> float:
    """The largest difference of the outputs of two graphs in evaluation mode, relative to the largest output.

    Both run on a copy of the model; infinity where the outputs differ in number or shape.
    """
    tensors, named = as_program_call(before.example_inputs)
    generator = torch.Generator().manual_seed(0)
    inputs = [_random(tensor, generator) for tensor in (*tensors, *named.values())]
    outputs = []
    for analysis in (before, after):
        twin = deep_copy(analysis.ir.root).eval().double()
        with torch.no_grad():
            outputs.append(tree_leaves(GraphInterpreter(analysis.ir, twin).run(*(one.clone() for one in inputs))))
    if [_shape(one) for one in outputs[0]] != [_shape(one) for one in outputs[1]]:
        return float("inf")
    pairs = [pair for pair in zip(*outputs, strict=True) if isinstance(pair[0], Tensor)]
    return max((_distance(one, other) for one, other in pairs), default=0.0)


def _random(example: Tensor, generator: torch.Generator) -> Tensor:
    if not example.is_floating_point():
        return example
    return torch.randn(example.shape, generator=generator, dtype=torch.float64).to(example.device)


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, Tensor) else value


def _distance(one: Tensor, other: Tensor) -> float:
    size = float(one.abs().max()) if one.numel() else 0.0
    return float((one - other).abs().max()) / max(size, 1e-30) if one.numel() else 0.0
