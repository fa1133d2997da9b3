"""The example inputs of a super-network in other sizes: what a network of it is exported and timed with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bnas.passes.frontend.ir import as_call, as_program_call
from bnas.passes.frontend.structure import map_leaves
from bnas.passes.frontend.trials import resize

from .supernetwork import SuperNetwork


def one_sample(supernet: SuperNetwork, sizes: Mapping[str, int] | None = None, copies: int = 1) -> Any:
    """The example inputs of a super-network, one sample of them, `copies` times: a tuple, or a dict by name.

    Where `sizes` gives dynamic axes another size, the values are random ones within the range of the example.
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
