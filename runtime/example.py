"""The example inputs of a super-network in other sizes, with which its networks are exported and timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bnas.passes.frontend.ir import as_call, as_program_call
from bnas.passes.frontend.structure import map_leaves
from bnas.passes.frontend.trials import resize

from .supernetwork import SuperNetwork


def one_sample(supernet: SuperNetwork, sizes: Mapping[str, int] | None = None, copies: int = 1) -> Any:
    """Return one sample of the example inputs, repeated `copies` times, as a tuple or a dict by name.

    If `sizes` changes a dynamic axis, the values are random within the range of the example.
    """
    inputs = as_call(supernet.example_inputs)
    if sizes:
        inputs = resize(inputs, {supernet.ir.sizes.axis(title): size for title, size in sizes.items()})
    batched = {path for axis in supernet.ir.sizes.axes if axis.name == "batch" for path, _ in axis.places}

    def repeated(path: object, one: Any) -> Any:
        return one[:1].repeat(copies, *[1] * (one.ndim - 1)) if path in batched else one

    args, named = map_leaves(inputs, repeated)
    args, named = as_program_call(named or args)
    return named or args
