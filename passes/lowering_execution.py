"""Runs one node of a graph that is being lowered: for its shapes only, or for real if the inputs play no part in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.node import map_aggregate

from .calls import Call
from .errors import LoweringError
from .lowering_shapes import quick_result
from .lowering_site import BATCH, Value, batch_multiple, operator_name

META = torch.device("meta")
CPU = torch.device("cpu")


class Execution:
    """One node run once on resolved arguments, and what can be known of it afterwards.

    No parameter or buffer is changed: they take part as shapes or as copies.
    """

    def __init__(self, root: nn.Module, call: Call, place: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._root = root
        self._call = call
        self._node = call.node
        self._place = place
        self._given: dict[int, tuple[Value, Tensor, int]] = {}
        found = list(leaves([args, kwargs]))
        self.constant = not any(_follows_input(leaf) for leaf in found)
        """Whether the result is the same for all inputs."""
        self.result = self._run(args, kwargs)
        """What PyTorch returned: tensors on the meta device unless `constant`."""
        self._check_number([*args, *kwargs.values()])

    def written(self) -> list[Value]:
        """The arguments that the node changed in place."""
        return [value for value, tensor, version in self._given.values() if tensor._version != version]

    @property
    def holds_tensors(self) -> bool:
        """Whether there is a tensor in the result."""
        return any(isinstance(leaf, Tensor) for leaf in leaves(self.result))

    def passed_through(self) -> bool:
        """Whether the node made no tensor: it returned Python values or its own arguments, unchanged."""
        tensors = [leaf for leaf in leaves(self.result) if isinstance(leaf, Tensor)]
        return not self.written() and all(isinstance(self.origin(tensor), Value) for tensor in tensors)

    def origin(self, leaf: Any) -> Any:
        """The argument whose tensor is `leaf`, or `leaf` itself."""
        return next((value for value, tensor, _ in self._given.values() if tensor is leaf), leaf)

    def is_state(self, tensor: Tensor) -> bool:
        """Whether `tensor` is a view of a parameter or buffer."""
        memory = tensor.untyped_storage()._cdata
        return any(value.state and given.untyped_storage()._cdata == memory for value, given, _ in self._given.values())

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            quick = None if self.constant else quick_result(self._call, self._concrete)
            if quick is not None:
                return quick
            with CPU if self.constant else META:
                return self._invoke(map_aggregate(args, self._concrete), map_aggregate(kwargs, self._concrete))
        except Exception as error:
            batch = "" if self.constant else f"with {BATCH} as the size of a batch that is left open, "
            raise LoweringError(
                f"{self._place}: {operator_name(self._call.op)} fails: {batch}{type(error).__name__}: {error}. A "
                "model must take batches of any size: -1 or x.size(0) in views, no number that fits one size only"
            ) from error

    def _invoke(self, args: Any, kwargs: Any) -> Any:
        node = self._node
        if callable(node.target):
            return node.target(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        module = self._root.get_submodule(node.target)
        if self.constant:
            return module(*args, **kwargs)
        named = [*module.named_parameters(), *module.named_buffers()]
        state = {name: torch.empty_like(tensor, device=META) for name, tensor in named}
        return functional_call(module, state, args, kwargs)

    def _concrete(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return CPU if self.constant else META
        if not isinstance(leaf, Value):
            return leaf
        if id(leaf) not in self._given:
            tensor = self._tensor(leaf)
            self._given[id(leaf)] = leaf, tensor, tensor._version
        return self._given[id(leaf)][1]

    def _tensor(self, value: Value) -> Tensor:
        if value.constant and not self.constant:
            return torch.empty_like(value.tensor, device=META)
        return value.tensor.clone() if value.state else value.tensor  # the node may write into it

    def _check_number(self, direct: list[Any]) -> None:
        result = self.result
        if isinstance(result, bool) or not isinstance(result, int | float):
            return
        of_batch = any(_is_int(leaf) and batch_multiple(leaf) for leaf in direct)
        if of_batch and not (isinstance(result, int) and batch_multiple(result)):
            raise LoweringError(
                f"{self._place}: {operator_name(self._call.op)} makes a number of the size of the batch that is no "
                "multiple of it, so that the batch cannot be left open"
            )


def leaves(given: Any) -> list[Any]:
    """What is inside nested tuples, lists, dicts and slices."""
    found: list[Any] = []
    map_aggregate(given, lambda leaf: found.append(leaf))
    return found


def _is_int(leaf: Any) -> bool:
    return isinstance(leaf, int) and not isinstance(leaf, bool)


def _follows_input(leaf: Any) -> bool:
    return not leaf.constant if isinstance(leaf, Value) else _is_int(leaf) and bool(batch_multiple(leaf))
