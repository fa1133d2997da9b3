"""The original model with skipped regions, by hooks on modules and not by rewriting the graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from bnas.passes.assembly.frames import GraphInterpreter
from bnas.passes.assembly.skeleton import Skeleton
from bnas.passes.errors import VerificationError
from bnas.passes.frontend.ir import IR, as_program_call, module_calls, path_of
from bnas.passes.space.blocks import Block
from bnas.passes.space.subnet import Subnet

from .oracle import load, owns_parameters, saved, zero_blocks


class OracleWarning(UserWarning):
    """The oracle must use the traced graph, so it is less independent than usual."""


def detour(model: nn.Module, ir: IR, regions: Sequence[Block]) -> Callable[..., Any]:
    """Return a function that runs `model`, a copy of the traced one, with each of `regions` replaced by its entry.

    Forward hooks on the modules at both ends of a region replace the output of the exit by that of the entry;
    everything else is the model's own forward. If an end of a region is not the output of a module, the traced graph is
    interpreted instead, with the same replacement, and an `OracleWarning` is shown.
    """
    ends = [(module_output(block.entry), module_output(block.out)) for block in regions]
    hidden = [block.name for block, pair in zip(regions, ends, strict=True) if None in pair]
    if hidden:
        told = f"block {hidden[0]}: its ends are not outputs of modules, so the oracle interprets the traced graph"
        warnings.warn(told, OracleWarning, stacklevel=2)
        return _Interpreter(model, ir, {block.out: block.entry for block in regions})
    for entry, out in ends:
        assert entry is not None
        assert out is not None
        saved = _Saved()
        _hook(model, entry, saved.keep)
        _hook(model, out, saved.give)
    return model


def identities(model: nn.Module, ir: IR, regions: Sequence[Block], inputs: Any) -> list[Block]:
    """Return those of `regions` that change nothing when the traced graph runs on the tensors of `model`."""
    graph = _Interpreter(model, ir, {}, {node for block in regions for node in (block.entry, block.out)})
    args, kwargs = inputs
    graph(*args, **kwargs)
    return [block for block in regions if torch.equal(graph.saved[block.entry], graph.saved[block.out])]


@dataclass(frozen=True)
class Skipped:
    """The skipped blocks of a sub-network, by the way in which the oracle skips them."""

    vanishing: Sequence[Block]
    """Residual blocks that zero parameters turn into the identity."""
    others: Sequence[Block]
    """Blocks that need a detour: regions, blocks that share parameters, and branches that are not zero then."""

    @classmethod
    def of(cls, model: nn.Module, skeleton: Skeleton, subnet: Subnet, inputs: Any) -> Skipped:
        """Find out by running the traced graph on `model` and `inputs`, with the parameters of the blocks at zero.

        A gate, ``x + x * sigmoid(f(x))``, and a frozen norm, which adds its mean, are not zero then. The parameters of
        `model` are restored.
        """
        skipped = [block for name, block in skeleton.choices.blocks.items() if name in subnet.skipped]
        own = [block for block in skipped if block.residual and owns_parameters(skeleton, block)]
        if not own:
            return cls((), skipped)
        before = saved(model)
        zero_blocks(model, skeleton, own)
        vanishing = identities(model, skeleton.ir, own, inputs)
        load(model, before)
        return cls(vanishing, [block for block in skipped if block not in vanishing])


@dataclass(frozen=True)
class ModuleOutput:
    """The output of the `number`-th call of a module, counted from 0."""

    path: str
    number: int


def module_output(node: Node) -> ModuleOutput | None:
    """Return the module call that returns the value of `node`; None for an intermediate value of a forward.

    The capture records which calls returned a value. The outermost call is taken inside which nothing reads the value,
    so that its hook replaces the value for all readers. Nodes that a pass added have no counterpart in the model.
    """
    readers = () if node.op == "call_module" else node.users
    if any(one.meta.get("added") for one in (node, *readers)):
        return None
    for call in reversed(node.meta.get("returned", ())):
        if not any(call in module_calls(user) for user in node.users):
            return ModuleOutput(path_of(call), int(call.partition("@")[2] or 0))
    return None


@dataclass
class _Saved:
    """Stores the value at the entry of a region."""

    values: list[Tensor] = field(default_factory=list)

    def keep(self, value: Tensor) -> Tensor:
        self.values = [value.clone()]
        return value

    def give(self, value: Tensor) -> Tensor:
        (saved,) = self.values
        if saved.shape != value.shape:
            raise VerificationError(f"a skipped region turns {tuple(saved.shape)} into {tuple(value.shape)}")
        return saved.clone()


def _hook(model: nn.Module, place: ModuleOutput, change: Callable[[Tensor], Tensor]) -> None:
    calls = -1

    def start(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls = -1

    def hook(module: nn.Module, args: Any, value: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != place.number:
            return value
        if not isinstance(value, Tensor):
            raise VerificationError(
                f"{place.path} returns {type(value).__name__}, not the one tensor of a region's end"
            )
        return change(value)

    model.register_forward_pre_hook(start)
    model.get_submodule(place.path).register_forward_hook(hook)


class _Interpreter(GraphInterpreter):
    """Runs the traced graph on a model's tensors, with some values replaced by others, and notes those of `noted`."""

    def __init__(self, model: nn.Module, ir: IR, stand_ins: dict[Node, Node], noted: Set[Node] = frozenset()) -> None:
        super().__init__(ir, model, garbage_collect_values=False)
        self.stand_ins, self.noted = stand_ins, {*stand_ins.values(), *noted}
        self.saved: dict[Node, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors, named = as_program_call(kwargs or args)
        return self.run(*tensors, *named.values())

    def run_node(self, n: Node) -> Any:
        """Run a node as fx does; the exit of a region gets the value that its entry had when it was computed."""
        value = super().run_node(n)
        if n in self.stand_ins:
            value = self.saved[self.stand_ins[n]].clone()
        if n in self.noted:
            self.saved[n] = value.clone()
        return value
