"""One call on resolved arguments: run it for its shapes, lower it, or lower it again on another value."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.node import map_aggregate

from bnas.passes.errors import LoweringError, RuleError
from bnas.passes.frontend.functions import hooked, quick_call, quick_leaf, run_leaf, run_on_meta
from bnas.passes.ops.calls import Call, form_of
from bnas.passes.ops.record import Trait
from bnas.passes.ops.registry import OPERATORS, qualified_name

from .builder import OnnxBuilder
from .site import Site
from .values import BATCH, Size, Value, leaves

# Running one node of a graph that is being lowered: on meta tensors, or for real if it does not depend on inputs.

META = torch.device("meta")
CPU = torch.device("cpu")

COUNTS = (7_919, 11_927)
"""Assumed numbers of entries that a mask picks, at the two sets of sizes; the real number depends on values."""


class SampleError(LoweringError):
    """An operator fails at the sizes tried for the dynamic axes; other sizes may work."""


@dataclass(frozen=True)
class Given:
    """An argument in the form in which PyTorch got it."""

    value: Value
    tensor: Tensor
    version: int

    @property
    def same(self) -> bool:
        """Whether a parameter or buffer still has the same numbers; some layers rescale their weights."""
        known = self.value.state and self.value.constant and not self.tensor.is_meta
        return known and torch.equal(self.tensor, self.value.tensor)


class Execution:
    """One execution of a node on resolved arguments, and the facts that follow from it.

    The node runs at both sets of sizes. Parameters and buffers never change: the node gets their shapes or copies.
    """

    def __init__(self, root: nn.Module, call: Call, place: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._root = root
        self._call = call
        self._node = call.node
        self._place = place
        self._second = False
        self._module = root.get_submodule(str(call.node.target)) if call.node.op == "call_module" else None
        form = None if self._module is None or hooked(self._module) else form_of(self._module)
        self._form = form if form is not None and callable(form.op) else None
        found = list(leaves([args, kwargs]))
        self.constant = not any(_follows_input(leaf) for leaf in found)
        """Whether the result is the same for all inputs."""
        self._given: dict[int, Given] = {}
        self.result = self._run(args, kwargs)
        """What PyTorch returned: tensors on the meta device unless `constant`."""
        self.twin = self.result if self.constant else self._run_again(args, kwargs)
        """What it returned at the other set of sizes."""

    def _run_again(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first, self._given, self._second = self._given, {}, True
        try:
            return self._run(args, kwargs)
        finally:
            self._given, self._second = first, False

    def written(self) -> list[Value]:
        """The arguments that the node changed in place. A parameter that was set to its own numbers did not change."""
        return [one.value for one in self._given.values() if one.tensor._version != one.version and not one.same]

    @property
    def holds_tensors(self) -> bool:
        """Whether there is a tensor in the result."""
        return any(isinstance(leaf, Tensor) for leaf in leaves(self.result))

    def passed_through(self) -> bool:
        """Whether the node made no tensor: it returned Python values or its own arguments, unchanged."""
        tensors = [leaf for leaf in leaves(self.result) if isinstance(leaf, Tensor)]
        return not self.written() and all(isinstance(self.origin(tensor), Value) for tensor in tensors)

    def origin(self, leaf: Any) -> Any:
        """Return the argument whose tensor is `leaf`, else `leaf` itself."""
        return next((one.value for one in self._given.values() if one.tensor is leaf), leaf)

    def viewed(self, tensor: Tensor) -> Value | None:
        """Return the argument that shares memory with `tensor`."""
        memory = tensor.untyped_storage()._cdata
        shared = (one.value for one in self._given.values() if one.tensor.untyped_storage()._cdata == memory)
        return next(shared, None)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            if self._picks_by_mask():
                return self._picked()
            if self._call.op is operator.getitem and not self.constant:
                args = args[0], map_aggregate(args[1], _place)
            args, kwargs = map_aggregate(args, self._concrete), map_aggregate(kwargs, self._concrete)
            found = None if self.constant else self._quick(args, kwargs)
            if found is not None:
                return found
            with CPU if self.constant else META:
                return self._invoke(args, kwargs)
        except Exception as error:
            if self.constant:
                raise LoweringError(f"{self._told(error)}.") from error
            raise SampleError(
                f"{self._told(error)}. bnas runs the model at other sizes of its dynamic axes (a batch of {BATCH}), "
                "so it must accept any batch size: use -1 or x.size(0) in views, not a fixed number"
            ) from error

    def _told(self, error: Exception) -> str:
        return f"{self._place}: {qualified_name(self._call.op)} fails: {type(error).__name__}: {error}"

    def _picks_by_mask(self) -> bool:
        """Whether the call is ``x[mask]``, which PyTorch cannot run without the numbers of the mask."""
        if not OPERATORS.of(self._call.op).has(Trait.PICKS) or self.constant:
            return False
        mask = self._call.argument(1, "mask")
        return isinstance(mask, Value) and mask.tensor.dtype in (torch.bool, torch.uint8) and mask.tensor.ndim > 0

    def _picked(self) -> Tensor:
        source, mask = self._concrete(self._call.args[0]), self._concrete(self._call.argument(1, "mask"))
        if self._call.op is torch.masked_select:
            return torch.empty(COUNTS[self._second], dtype=source.dtype, device=META)
        if tuple(source.shape[: mask.ndim]) != tuple(mask.shape):
            raise IndexError(f"a mask of {tuple(mask.shape)} does not fit a tensor of {tuple(source.shape)}")
        return torch.empty((COUNTS[self._second], *source.shape[mask.ndim :]), dtype=source.dtype, device=META)

    def _quick(self, args: Any, kwargs: Any) -> Any:
        """Return the result by the shape rule of the operator's record; None if PyTorch must compute it."""
        if self._module is None:
            return quick_call(self._node.op, self._node.target, args, kwargs)
        return None if self._form is None else quick_leaf(self._module, self._form, args, kwargs)

    def _invoke(self, args: Any, kwargs: Any) -> Any:
        """Run the node: for real if the result is constant, else on meta tensors as the capture does."""
        node, target = self._node, self._node.target
        if self._module is not None:
            return self._call_layer(self._module, args, kwargs)
        if not self.constant:
            return run_on_meta(node.op, target, args, kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(target))(*args[1:], **kwargs)
        return target(*args, **kwargs)  # type: ignore[operator]

    def _call_layer(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if self.constant:
            return module(*args, **kwargs)
        if self._form is not None:
            return run_leaf(module, self._form, args, kwargs)
        named = [*module.named_parameters(), *module.named_buffers()]
        state = {name: torch.empty_like(tensor, device=META) for name, tensor in named}
        return functional_call(module, state, args, kwargs)

    def _concrete(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return CPU if self.constant else META
        if isinstance(leaf, Size):
            return leaf.twin if self._second else leaf.sample
        if not isinstance(leaf, Value):
            return leaf
        if id(leaf) not in self._given:
            tensor = self._tensor(leaf)
            self._given[id(leaf)] = Given(leaf, tensor, tensor._version)
        return self._given[id(leaf)].tensor

    def _tensor(self, value: Value) -> Tensor:
        if value.constant and not self.constant:
            return torch.empty_like(value.tensor, device=META)
        if value.constant:
            return value.tensor.clone() if value.state else value.tensor  # the node may write into it
        return value.twin if self._second and value.twin is not None else value.tensor


def _place(index: Any) -> Any:
    """Replace an index tensor with one entry by some integer, because PyTorch reads its number; keep masks."""
    if isinstance(index, Value) and index.constant and index.tensor.dtype == torch.bool:
        return index.tensor
    single = isinstance(index, Value) and not index.tensor.ndim and index.tensor.dtype != torch.bool
    return 0 if single else index


def _follows_input(leaf: Any) -> bool:
    return not leaf.constant if isinstance(leaf, Value) else isinstance(leaf, Size)


REMEDY = "register a record of it with an ONNX rule: bnas.passes.register(Operator(..., onnx=rule))"


@dataclass(frozen=True)
class Step:
    """One call on resolved arguments. As a step of a view, it also has the viewed argument and the used result."""

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
        """Return the same view of another value."""

        def change(leaf: Any) -> Any:
            return source if leaf is self.source else leaf

        args, kwargs = map_aggregate(self.args, change), map_aggregate(self.kwargs, change)
        canonical = map_aggregate(self.call.args, change), map_aggregate(self.call.kwargs, change)
        call = replace(self.call, args=canonical[0], kwargs=canonical[1])
        return replace(self, call=call, args=args, kwargs=kwargs, source=source)

    def site(self, builder: OnnxBuilder, result: Any, twin: Any) -> Site:
        """Return the `Site` of the call for its rule."""
        return Site(builder, self.call, result, self.place, self.root, twin)


def applied(builder: OnnxBuilder, step: Step, result: Any, twin: Any) -> Sequence[str]:
    """Apply the rule of the call; return the names of the tensors in `result`.

    Raises:
        LoweringError: There is no rule, or it refuses the call.
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
    """Lower the operator of a view again, on `source`."""
    again = step.on(source)
    run = again.run()
    tensor, twin = tensors_of(run.result)[step.index], tensors_of(run.twin)[step.index]
    if isinstance(run.origin(tensor), Value):
        return source
    return Value(tensor, applied(builder, again, run.result, run.twin)[step.index], twin=twin)


def tensors_of(given: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and dicts."""
    return [given] if isinstance(given, Tensor) else [leaf for leaf in leaves(given) if isinstance(leaf, Tensor)]
