"""One call on resolved arguments: run for its shapes, lowered by its rule, and lowered again on another value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.fx.node import map_aggregate

from .errors import LoweringError, RuleError
from .lowering_builder import OnnxBuilder
from .lowering_execution import Execution
from .lowering_site import Site, Value
from .lowering_sizes import leaves
from .ops.calls import Call
from .ops.registry import OPERATORS, qualified_name

REMEDY = "register a record of it with an ONNX rule: bnas.passes.register(Operator(..., onnx=rule))"


@dataclass(frozen=True)
class Step:
    """One call on resolved arguments; as a step of a view, which of its results is meant, and of what it is a view."""

    root: nn.Module
    place: str
    call: Call
    """In canonical spelling."""
    args: tuple[Any, ...]
    """As the node has them."""
    kwargs: dict[str, Any]
    index: int = 0
    source: Value | None = None

    def run(self) -> Execution:
        """Let PyTorch compute the shapes."""
        return Execution(self.root, self.call, self.place, self.args, self.kwargs)

    def on(self, source: Value) -> Step:
        """The same view of another value."""

        def change(leaf: Any) -> Any:
            return source if leaf is self.source else leaf

        args, kwargs = map_aggregate(self.args, change), map_aggregate(self.kwargs, change)
        canonical = map_aggregate(self.call.args, change), map_aggregate(self.call.kwargs, change)
        call = replace(self.call, args=canonical[0], kwargs=canonical[1])
        return replace(self, call=call, args=args, kwargs=kwargs, source=source)

    def site(self, builder: OnnxBuilder, result: Any, twin: Any) -> Site:
        """What a rule sees of the call."""
        return Site(builder, self.call, result, self.place, self.root, twin)


def applied(builder: OnnxBuilder, step: Step, result: Any, twin: Any) -> Sequence[str]:
    """The names of the tensors in `result`, which the rule of the call emits.

    Raises:
        LoweringError: there is no rule, or it refuses.
    """
    call = step.call
    rule = OPERATORS.of(call.op).onnx
    if rule is None:
        raise LoweringError(
            f"{step.place}: no lowering rule for {qualified_name(call.op)} (node {call.node.name!r}); {REMEDY}"
        )
    tensors, names = tensors_of(result), rule(step.site(builder, result, twin))
    names = [names] if isinstance(names, str) else names
    if len(names) != len(tensors):
        raise RuleError(
            f"{step.place}: the rule for {qualified_name(call.op)} gives {len(names)} results for "
            f"{len(tensors)} tensors"
        )
    return names


def seen_again(builder: OnnxBuilder, step: Step, source: Value) -> Value:
    """What the operator of a view makes of `source`, lowered once more."""
    again = step.on(source)
    run = again.run()
    tensor, twin = tensors_of(run.result)[step.index], tensors_of(run.twin)[step.index]
    if isinstance(run.origin(tensor), Value):
        return source
    return Value(tensor, applied(builder, again, run.result, run.twin)[step.index], twin=twin)


def tensors_of(given: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    return [given] if isinstance(given, Tensor) else [leaf for leaf in leaves(given) if isinstance(leaf, Tensor)]
