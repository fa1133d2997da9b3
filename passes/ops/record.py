"""The record of an operator: everything that bnas knows about it, in one place.

A record is like a primitive in JAX, or an OpInfo in PyTorch's tests. Omitted fields have a safe default: without an
axis rule the operator is rigid, without an ONNX rule it is not lowered, and without a zero rule it is assumed not to
keep zeros. `samples` are example calls from which the tests of all facts are generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor, nn

if TYPE_CHECKING:
    from bnas.passes.axes.terms import Term
    from bnas.passes.axes.types import AxisTypes
    from bnas.passes.onnx.site import Site

    from .calls import Call

Target: TypeAlias = Callable[..., Any] | str
"""The target of a graph node: a function, or the name of a tensor method."""

AxisRule: TypeAlias = "Callable[[AxisTypes, Call], Any]"
"""An axis rule: states the equations of a call and returns the type of its result, nested like the result."""

ZeroRule: TypeAlias = "Callable[[AxisTypes, Call, Sequence[Term], int], bool]"
"""A zero rule: whether removed entries along one axis of the result would be zero."""

ShapeRule: TypeAlias = Callable[[tuple[Any, ...], Mapping[str, Any]], Tensor | None]
"""The result of a call on meta tensors; None where PyTorch is to compute it."""

OnnxRule: TypeAlias = "Callable[[Site], str | Sequence[str]]"
"""An ONNX rule: emits the ONNX nodes of a call and returns the names of its results."""

NumberRule: TypeAlias = "Callable[..., Any]"
"""An ONNX rule for a call on sizes: returns the result, computed in the ONNX graph."""

Spelled: TypeAlias = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""A function with its positional and keyword arguments."""

AtenRule: TypeAlias = Callable[..., Spelled | None]
"""The Python call of an ATen operator, from its arguments by name; None for an overload that the schema explains."""


class Trait(Enum):
    """A yes-or-no property of an operator, for passes that need no rule."""

    ACTIVATION = auto()
    """Runs fused with the operator before it."""
    FUSES_NORM = auto()
    """A batch norm behind it is folded into its weights."""
    FUSES_ACTIVATION = auto()
    """An activation behind it runs in the same kernel."""
    BATCH_NORM = auto()
    CONVOLUTION = auto()
    TRANSPOSED_CONVOLUTION = auto()
    LOOKUP = auto()
    """Reads rows of a weight by numbers."""
    SUM = auto()
    """Adds two values: the end of a residual block."""
    JOIN = auto()
    """Branches end here: a region that may be skipped is looked for before it."""
    SCALE = auto()
    """Scales or shifts a stream entry by entry."""
    STREAM_NORM = auto()
    """Normalises a stream; whoever reads the stream afterwards needs it."""
    SAME_ENTRIES = auto()
    """A view of all entries in their order."""
    PERMUTATION = auto()
    """A view of all entries with the axes in another order."""
    FLAT = auto()
    """Gives the same value for many inputs, as ``relu`` does below zero."""
    OWNS_MEMORY = auto()
    """The result never shares memory with an argument."""
    OVERWRITES = auto()
    """Takes ``inplace=True`` and then writes into its first argument only, to the same numbers."""
    HANDS_ON = auto()
    """Returns its input itself in evaluation mode."""
    PICKS = auto()
    """Takes the entries that a mask names: how many, only the numbers of the mask tell."""
    POOL = auto()
    """Takes windows of a size that is given."""
    WINDOW = auto()
    """A pool over several axes, which may have one number for the windows along all of them."""


@dataclass(frozen=True)
class Layer:
    """How a layer becomes a call of its operator: its tensors and settings are keyword arguments.

    They are attributes of the layer, with the names of the function's arguments. A layer needs an entry if a graph
    should keep it as a layer (`leaf`), or if it has attributes with sizes that a sub-network changes.
    """

    tensors: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    names: Callable[[nn.Module], tuple[str, ...] | None] | None = None
    """Returns the tensor names of a layer if they depend on its settings; None for unsupported settings."""
    sizes: Callable[[Any, tuple[int, ...]], Mapping[str, Any]] | None = None
    """Function that returns the attributes of a layer that follow from the shape of its weight or running mean."""
    leaf: bool = True
    """Whether a graph calls the layer as a whole; otherwise the tracer enters it and finds the operator inside."""
    op: Any = None
    """The operator, filled in by the registry."""

    def of(self, module: nn.Module) -> Layer | None:
        """The form with the tensors of `module`; None where its settings have no functional form."""
        if self.names is None:
            return self
        found = self.names(module)
        return None if found is None else replace(self, tensors=found, names=None)


def called(x: Tensor, layer: nn.Module) -> Any:
    """The layer of a sample on its input."""
    return layer(x)


@dataclass(frozen=True)
class Sample:
    """An example call, from which the tests of a record are generated.

    ``call(x, layer, *weights)`` gets a batch ``x`` of shape (batch, *shape) whose axis 1 is elastic, the layer if
    there is one, and parameters. The call returns a tensor, or a tuple of tensors, of two to five axes, of which the
    first is the batch and the second has a layer behind it. It may use other operators beside the one it is of.

    Tests call it in float64 and in float32: a tensor that it makes takes the dtype of ``x``. What it computes without
    ``x`` is stored in an ONNX file, so that the ONNX rule of the operator is tested only on what follows ``x``.
    """

    call: Callable[..., Any] = called
    layer: Callable[[], nn.Module] | None = None
    """Function that creates the layer when a test needs it."""
    weights: tuple[tuple[int, ...], ...] = ()
    """The shapes of the parameters."""
    shape: tuple[int, ...] = (8, 4, 6)
    """Only the number of channels, the first one, may be another: the tests' images are 4 x 6."""
    rigid: str = ""
    """If the channels of ``x`` must become rigid in this example: a pattern that one of the reasons matches. Empty if
    they stay elastic."""
    onnx: str = ""
    """If this call cannot be lowered although the operator has an ONNX rule: a pattern that the error matches."""


@dataclass(frozen=True)
class Operator:
    """The record of one operator: everything that bnas knows about it.

    Register your own operator with `bnas.passes.register`. An operator or spelling that is already known raises
    `RuleError`.
    """

    op: Target
    """The canonical function, or the name of a tensor method that has no function of its own; of a
    `torch.autograd.Function` the class. A record knows the forward: the graph applies the function itself."""
    spellings: tuple[Target, ...] = ()
    """Other functions and methods that do the same with the same arguments. A method without an entry is looked up in
    ``torch`` under its own name; a method with a trailing underscore stands for the plain one. One function under two
    names, as ``torch.pixel_unshuffle``, needs no entry."""
    reordered: Mapping[Target, tuple[str, ...]] = field(default_factory=dict)
    """Other functions that do the same with arguments in another order: the canonical name of each argument."""
    in_place: tuple[Target, ...] = ()
    """Functions that do the same and write the result into their first argument."""
    aten: Mapping[str, AtenRule] = field(default_factory=dict)
    """ATen operators whose arguments differ from the function's, by name; all others follow from their schema."""
    layers: Mapping[type[nn.Module], Layer] = field(default_factory=dict)
    """Layers by their exact type: a subclass may have changed ``forward``, so the tracer goes into it instead."""
    trained: type[nn.Module] | None = None
    """For an operator that is random in training mode: the layer that does the same there."""
    traits: Set[Trait] = frozenset()
    axes: AxisRule | None = None
    """Gets `AxisTypes` and the call with its arguments by canonical position and name. What it raises, such as
    `RuleError`, makes everything around the call rigid; ``types.pin`` does so to one axis."""
    zeros: ZeroRule | None = None
    """The zero rule, which is called for one axis of the result at a time; common rules are in `zeros.py`."""
    shape: ShapeRule | None = None
    """Computes shapes quickly; without it, PyTorch computes them."""
    onnx: OnnxRule | None = None
    """Gets a `Site`; raises ``site.refuse(reason)`` for a call that it was not written for."""
    number: NumberRule | None = None
    kept: str = ""
    """The method of `bnas.passes.oracle.norms.OverKept` that computes it over the entries that a sub-network keeps."""
    samples: tuple[Sample, ...] = ()

    def names(self) -> Iterator[Target]:
        """Every spelling, the canonical one first."""
        yield self.op
        yield from self.spellings
        yield from self.reordered
        yield from self.in_place

    def has(self, *traits: Trait) -> bool:
        """Whether the operator has one of `traits`."""
        return not self.traits.isdisjoint(traits)


UNKNOWN = Operator("")
"""The record of an unknown operator."""

NONE: Mapping[Any, Any] = MappingProxyType({})
