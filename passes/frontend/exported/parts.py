"""Facts about the exported model that its program keeps: its layers, and the axes of its inputs."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils._pytree import tree_unflatten

from bnas.passes.frontend.entry import Allowed, Check
from bnas.passes.frontend.structure import Path, leaves_of
from bnas.passes.ops.aten import arguments, in_python
from bnas.passes.ops.calls import NORM_OF_RANK
from bnas.passes.ops.registry import OPERATORS

# The layers of an exported program: calls of operators on the tensors of one submodule, as `torch.nn` layers again.

TENSORS = ("weight", "bias", "running_mean", "running_var")
"""The names that tensors of a layer have both in the layer and in the schema of its operator."""

Shapes = Mapping[str, Any]
"""The tensors of a call that are of the submodule, by name; None for those that are not given."""


def kind_of(node: Node) -> type[nn.Module] | None:
    """Return the class of the layer whose forward calls the operator of a node on its weights, or None."""
    if not isinstance(node.target, OpOverload):
        return None
    target, _, _ = in_python(node.target, node.args, node.kwargs)
    layers = OPERATORS.of(target).layers
    kinds = [kind for kind, form in layers.items() if form.leaf and form.sizes is not None and "weight" in form.tensors]
    return kinds[0] if kinds else None


def settings_of_call(kind: type[nn.Module], tensors: Shapes, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments with which the constructor of a layer makes this call; None if no layer makes it."""
    first = tensors["weight"] if tensors["weight"] is not None else tensors["running_mean"]
    sizes = OPERATORS.sizes(kind)
    of_the_batch = given.get("training") or ("running_mean" in given and tensors["running_mean"] is None)
    if first is None or sizes is None or of_the_batch:
        return None
    taken = inspect.signature(kind).parameters
    scaled = tensors["weight"] is not None
    known = {
        "kernel_size": tuple(first.shape[2:]),
        "affine": scaled,
        "elementwise_affine": scaled,
        "bias": tensors["bias"] is not None,
        **{name: value for name, value in given.items() if name not in ("input", *TENSORS)},
        **sizes(SimpleNamespace(**given), tuple(first.shape)),
    }
    if known.get("padding_idx", 0) < 0:
        known["padding_idx"] = None
    return {name: value for name, value in known.items() if name in taken}


@dataclass(frozen=True)
class _Layer:
    """A layer that makes a call."""

    path: str
    kind: type[nn.Module]
    settings: dict[str, Any]
    reads: frozenset[Node]


def layers_of(module: fx.GraphModule) -> dict[Node, str]:
    """Turn calls in the graph of a program into layers of `module`; return the calls with the paths of their layers.

    A submodule becomes a layer if its tensors are read only by calls of one layer with the same settings. The layer
    has the very same parameters and buffers.
    """
    calls: dict[str, dict[Node, _Layer]] = {}
    for node in module.graph.nodes:
        layer = _layer(module, node)
        if layer is not None:
            calls.setdefault(layer.path, {})[node] = layer
    found = {}
    for path, layers in calls.items():
        first = next(iter(layers.values()))
        readers = {user for layer in layers.values() for tensor in layer.reads for user in tensor.users}
        alike = all((one.kind, one.settings) == (first.kind, first.settings) for one in layers.values())
        if alike and readers == set(layers):
            _put(module, first)
            found.update(dict.fromkeys(layers, path))
    return found


def _layer(module: fx.GraphModule, node: Node) -> _Layer | None:
    """Return the layer of a call whose tensors are exactly the tensors of one submodule, or None."""
    kind = kind_of(node)
    if kind is None:
        return None
    given = arguments(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
    refs = {name: given[name] for name in TENSORS if given.get(name) is not None}
    owners = {str(ref.target).rpartition(".")[::2] for ref in refs.values() if ref.op == "get_attr"}
    paths = {path for path, _ in owners}
    if len(paths) != 1 or "" in paths or {name for _, name in owners} != set(refs) or len(owners) != len(refs):
        return None
    path = paths.pop()
    tensors = {**dict.fromkeys(TENSORS), **_tensors(module.get_submodule(path))}
    if {name for name, one in tensors.items() if one is not None} - {"num_batches_tracked"} != set(refs):
        return None
    if "running_mean" in given:
        kind = NORM_OF_RANK.get(node.meta["val"].ndim, kind)
    found = settings_of_call(kind, tensors, given)
    return None if found is None else _Layer(path, kind, _plain(found), frozenset(refs.values()))


def _tensors(owner: nn.Module) -> dict[str, Any]:
    return {**owner._parameters, **owner._buffers}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a layer with tuples instead of lists."""
    return {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in settings.items()}


def _put(module: fx.GraphModule, layer: _Layer) -> None:
    """Replace the submodule that holds the layer's tensors by the layer."""
    owner = module.get_submodule(layer.path)
    with torch.random.fork_rng(devices=[]):
        made = layer.kind(**layer.settings, device="meta")
    for name in made._parameters:
        made._parameters[name] = owner._parameters.get(name)
    for name in made._buffers:
        made._buffers[name] = owner._buffers.get(name)
    if "num_batches_tracked" in made._buffers and made._buffers["num_batches_tracked"] is None:
        made._buffers["num_batches_tracked"] = torch.tensor(0)
    parent, _, name = layer.path.rpartition(".")
    module.get_submodule(parent).add_module(name, made)


# The axes of the inputs of an exported program: which may change, which change together, and within which limits.

FIXED = "it was exported with a fixed size"
LIMITED = "the program was exported for such sizes only"
TIED = "it was exported with a size that is computed from that of another axis"

Limits = tuple[int, int | None]
"""The least and the largest size of an axis; None if there is no largest size."""

SMALLEST = 2
"""Programs are exported as if each size were at least this, and do not check it."""


@dataclass(frozen=True)
class ExportedAxes:
    """The axes of the tensors among the inputs of a program, by name of the input and the path inside it."""

    sizes: Mapping[Path, tuple[int | str, ...]]
    """The size of each axis: a number, or a name if it may change; axes of equal size share a name."""
    tied: frozenset[str]
    """Names of sizes that cannot change alone."""
    limits: Mapping[str, Limits]
    """The limits of sizes, by name, if there are any."""
    plain: Mapping[Path, Any]
    """Inputs that are not tensors: the program was exported for these values."""

    def size(self, path: Path, place: int) -> str | None:
        """Return the name of an axis's size; None if the size may not change."""
        found = self.sizes[path][place]
        return found if isinstance(found, str) and found not in self.tied else None

    def why_fixed(self, path: Path, place: int) -> str:
        """Return the reason why the size of an axis may not change."""
        return TIED if isinstance(self.sizes[path][place], str) else FIXED

    @property
    def checks(self) -> list[Check]:
        """The checks that the program makes of its inputs."""
        return [
            Check.of(path[0], tuple(map(self._allowed, sizes)), (LIMITED,) * len(sizes), path[1:])
            for path, sizes in self.sizes.items()
        ]

    def _allowed(self, size: int | str) -> Allowed:
        limits = self.limits.get(size) if isinstance(size, str) else None
        return size if isinstance(size, int) else None if limits is None else (0, 1, *limits)


def axes_of(program: ExportedProgram, names: tuple[str, ...]) -> ExportedAxes:
    """Return the axes of the inputs of `program`; `names` are the names of the inputs in order."""
    leaves = dict(leaves_of(_inputs(program, names)))
    shapes = {path: leaf.shape for path, leaf in leaves.items() if isinstance(leaf, Tensor)}
    terms = {str(term): term for shape in shapes.values() for size in shape if (term := _term(size)) is not None}
    limits = {name: found for name, term in terms.items() if (found := _limits(term, program)) is not None}
    plain = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, bool | int | float | str)}
    sizes = {path: tuple(_size(size) for size in shape) for path, shape in shapes.items()}
    return ExportedAxes(sizes, _tied(terms), limits, plain)


def _inputs(program: ExportedProgram, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the inputs that `program` was exported with, by name: meta tensors and plain values."""
    known = {node.name: node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")}
    values = [known.get(name) if isinstance(name, str) else name for name in program.graph_signature.user_inputs]
    assert program.call_spec.in_spec is not None
    args, kwargs = tree_unflatten(values, program.call_spec.in_spec)
    return dict(zip(names, (*args, *kwargs.values()), strict=False))


def _tied(terms: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of sizes that share a symbol with other sizes, or have several symbols."""
    uses = Counter(symbol for term in terms.values() for symbol in term.free_symbols)
    alone = {name for name, term in terms.items() if [uses[symbol] for symbol in term.free_symbols] == [1]}
    return frozenset(terms) - alone


def _size(size: Any) -> int | str:
    term = _term(size)
    return int(size) if term is None else str(term)


def _term(size: Any) -> Any:
    """Return the expression of a size that may change; None for a fixed number."""
    term = None if isinstance(size, int) else size.node.expr
    return term if term is not None and term.free_symbols else None


def _limits(term: Any, program: ExportedProgram) -> Limits | None:
    """Return the limits of the size `term`, which has one symbol; None if there are no limits."""
    (symbol, *others) = term.free_symbols
    known = program.range_constraints.get(symbol)
    if others or known is None:
        return None
    ends = [int(term.subs(symbol, int(end))) if end.is_Integer else None for end in (known.lower, known.upper)]
    least = (ends[0] or 0) if int(known.lower) > SMALLEST else 0
    return None if least == 0 and ends[1] is None else (least, ends[1])
