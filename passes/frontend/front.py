"""`trace`, the entry point of the frontend: capture a model as an IR and compare it with the model."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Node

from bnas.passes.alone import alone
from bnas.passes.errors import CaptureError, Diagnostic
from bnas.passes.ops.calls import call_of, writes_in_place

from .candidates import Dynamic
from .capture import Captured, capture
from .decompositions import spell_shuffles
from .entry import Axis
from .exported.program import ExportedModel
from .fidelity import Fidelity, Stateful, compare, copied
from .functions import BATCH
from .groups import release_group
from .ir import IR, aliases_of, as_call, floating
from .places import CALL_IT
from .recording import WRAPPERS, exporting, inner_of
from .state import preserved
from .structure import map_leaves, tensors_of
from .values import resize_inputs, revalue


@alone
def trace(model: nn.Module, example_inputs: Any, dynamic: Dynamic | None = None, *, check: bool = True) -> IR:
    """Capture `model` called with `example_inputs`: a tensor, a tuple of positional, or a dict of keyword inputs.

    The model is not changed. The graph follows the mode of its modules, as the model does. If training mode calls other
    operators and cannot be recorded, the graph is that of evaluation mode, and a diagnostic says so. The graph is
    compared with the model: at the example inputs and at other sizes of its dynamic axes, in both modes. An axis at
    which they differ becomes static. Calls in several threads run one after another.

    Args:
        model: Any module.
        example_inputs: Inputs with tensors anywhere inside.
        dynamic: Names of axes that must be dynamic besides the batch, by input and axis; by default all that can be.
        check: Whether the graph is compared with the model.

    Raises:
        CaptureError: The model's own forward cannot be captured, or the graph differs from the model.
    """
    release_group()
    args, kwargs = as_call(example_inputs)
    if isinstance(model, WRAPPERS):
        args, kwargs = _placed((args, kwargs), model)
    fixed: dict[str, str] = {}
    wrong_at: dict[str, tuple[int, ...]] = {}
    apart = check  # a graph that was not recorded at the example's sizes must be compared there
    while True:
        try:
            ir = _captured(model, args, kwargs, dynamic, fixed, apart, wrong_at)
            if any(one.is_meta for one in (*tensors_of((args, kwargs)), *model.parameters())):
                return _with(
                    ir,
                    Diagnostic("the model", "its graph was not compared with the model, which is on the meta device"),
                )
            if not check:
                return _with(ir, Diagnostic("the model", "its graph was not compared with the model: check=False"))
            found = _compared(ir, args, kwargs)
        except NotAtExample as error:
            if not error.apart and (dynamic is not None or fixed.keys() >= set(error.axes)):
                raise
            fixed |= {} if error.apart else dict.fromkeys(error.axes, f"at the example's size {error}")
            apart = apart and not error.apart
            continue
        new = {name: why for name, why in found.wrong.items() if name not in fixed}
        if not new:
            return _with(ir, *_told_of(found))
        again = {name: found.sizes[name] for name in new if _may_learn(name, found, wrong_at)}
        wrong_at |= {name: (*wrong_at.get(name, ()), size) for name, size in again.items()}
        fixed |= {name: why for name, why in new.items() if name not in again}


LEARNT = 4
"""Number of times that an axis with a wrong size is recorded at this size, too, before it becomes static."""


def _may_learn(name: str, found: Fidelity, wrong_at: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether one more recording, at the size where the graph was wrong, may correct the graph."""
    known = wrong_at.get(name, ())
    return name != "batch" and name in found.sizes and found.sizes[name] not in known and len(known) < LEARNT


def _placed(inputs: Any, model: nn.Module) -> Any:
    """Move inputs to the device of a model, because the graph does not move its inputs as the model may do."""
    device = next(model.parameters(), torch.empty(0)).device
    return map_leaves(inputs, lambda _, leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf)


class NotAtExample(CaptureError):
    """A graph that was made from several sizes differs from the model at the example's size."""

    def __init__(self, why: str, axes: Sequence[Axis]) -> None:
        super().__init__(why)
        self.axes = [axis.name for axis in axes if axis.name != "batch"] or ["batch"]
        self.apart = any(axis.apart for axis in axes)
        """Whether it was recorded without the example's size."""


def _compared(ir: IR, args: Any, kwargs: Any) -> Fidelity:
    try:
        return compare(ir, args, kwargs)
    except Stateful:
        raise
    except CaptureError as error:
        if ir.sizes.axes:
            raise NotAtExample(str(error), ir.sizes.axes) from error
        raise


def _told_of(found: Fidelity) -> list[Diagnostic]:
    return [Diagnostic("the model", text) for text in found.notes]


def _with(ir: IR, *diagnostics: Diagnostic) -> IR:
    return replace(ir, diagnostics=(*ir.diagnostics, *diagnostics))


def _captured(
    model: nn.Module,
    args: Any,
    kwargs: Any,
    dynamic: Dynamic | None,
    fixed: Mapping[str, str],
    apart: bool,
    wrong_at: Mapping[str, tuple[int, ...]],
) -> IR:
    try:
        found = capture(model, args, kwargs, dynamic, fixed, apart=apart, wrong_at=wrong_at)
    except CaptureError as error:
        raise _advised(model, (args, kwargs), error) from error.__cause__
    ir = _ir_of(model, found, found.graph)
    return ir if found.trained is None else replace(ir, trained=_ir_of(model, found, found.trained))


def _advised(model: nn.Module, inputs: Any, error: CaptureError) -> CaptureError:
    """Return an error of a capture; without the advice to check the inputs if the model accepts them."""
    text = str(error)
    if not text.endswith(CALL_IT) or not _accepts(model, inputs):
        return error
    with exporting():
        accepts = _accepts(model, inputs)
    return CaptureError(f"{text.removesuffix(CALL_IT)}{WITHOUT_NUMBERS if accepts else EXPORTED}")


EXPORTED = (
    ". Forward accepts the example inputs, but not while torch.compiler.is_exporting() or is_compiling() is true, as "
    "it is during a capture: correct the branch that is taken then"
)
WITHOUT_NUMBERS = (
    ". Forward accepts the example inputs, but fails during a capture, in which tensors have no numbers. Move that "
    "code into a submodule or method of its own: only that part is then kept unchanged"
)


def _accepts(model: nn.Module, inputs: Any) -> bool:
    """Whether forward accepts these inputs."""
    args, kwargs = copied(inputs)
    try:
        with preserved(model, inputs, data=True), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inner_of(model)(*args, **kwargs)
    except Exception:
        return False
    return True


def _ir_of(model: nn.Module, found: Captured, graph: Graph) -> IR:
    own, plain = found.own, found.plain
    _at_example(model, found, graph)
    erase_dead(graph)
    spell_shuffles(graph)
    erase_dead(graph)
    _state_scales(graph)
    _reshape_own(graph)
    like = floating(model)
    return IR(
        root=model,
        graph=graph,
        constants=found.constants,
        aliases=aliases_of(model),
        diagnostics=(*found.diagnostics, *_told(model, found)),
        calls={node: call for node in graph.nodes if (call := call_of(node, model, own, plain)) is not None},
        modules=own,
        plain=plain,
        dtype=torch.get_default_dtype() if like is None else like.dtype,
        sizes=found.sizes,
        names=found.names,
        checks=found.checks,
        training=found.training,
    )


def _at_example(model: nn.Module, found: Captured, graph: Graph) -> None:
    """Give the nodes their values at the example's sizes if other sizes were recorded."""
    if not any(axis.apart for axis in found.sizes.axes):
        return
    sizes = {axis: BATCH if axis.name == "batch" else axis.size for axis in found.sizes.axes}
    resize_inputs(graph, found.names, sizes)
    try:
        deque(revalue(model, found.own, found.constants, graph, found.plain), maxlen=0)
    except Exception as error:
        why = f"the graph of other sizes cannot be run at the example's: {error}"
        raise NotAtExample(why, found.sizes.axes) from error


def _told(model: nn.Module, found: Captured) -> list[Diagnostic]:
    """Return the diagnostics: axes that cannot change, and a training mode that differs from the model's."""
    told = list(model.diagnostics) if isinstance(model, ExportedModel) else []
    told += [Diagnostic(axis, f"its size is fixed: {why}") for axis, why in found.sizes.static.items()]
    told += [
        Diagnostic(axis.name, f"its size must be {axis.ends}: {axis.why}") for axis in found.sizes.axes if axis.ends
    ]
    if found.training:
        told.append(Diagnostic("the model", f"training mode uses the graph of evaluation mode: {found.training}"))
    return told


def erase_dead(graph: Graph) -> None:
    """Remove nodes that are not read, except operators that write in place and modules with a state."""
    for node in reversed(list(graph.nodes)):
        removable = node.op in ("call_function", "call_method", "get_attr") and not writes_in_place(node)
        if removable and not node.users:
            graph.erase_node(node)


def _state_scales(graph: Graph) -> None:
    """State the default scale of attention: every sub-network keeps the scale of the full width."""
    for node in graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention):
        if node.kwargs.get("scale") is None and len(node.args) < 8:
            query = node.args[0] if node.args else node.kwargs["query"]
            width = query.meta["value"].shape[-1]
            node.update_kwarg("scale", 1 / math.sqrt(width))  # to the last bit as PyTorch does; width ** -0.5 is not


def _reshape_own(graph: Graph) -> None:
    """Replace views of the model's own tensors by reshapes, because a program has only a part of these tensors.

    A part of a tensor is not contiguous, so a view would fail. A view that is written into stays a view.
    """
    written = {one for node in graph.nodes if writes_in_place(node) for one in _first_operands(node)}
    for node in graph.find_nodes(op="call_method", target="view"):
        source = next(reversed(_first_operands(node)))
        plain = not any(isinstance(one, torch.dtype) for one in node.args)
        if source.op == "get_attr" and plain and node not in written:
            node.target = "reshape"


def _first_operands(node: Node) -> list[Node]:
    """Return the first operand of a node, the first operand of that one, and so on."""
    found: list[Node] = []
    while node.args and isinstance(node.args[0], Node):
        node = node.args[0]
        found.append(node)
    return found
