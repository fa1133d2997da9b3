"""Compare a graph with its model: both run in both modes and at several sizes, and must give the same results."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnas.passes.alone import unfused
from bnas.passes.assembly.frames import GraphInterpreter
from bnas.passes.errors import CaptureError
from bnas.passes.ops.aten import in_python

from .capture import modes_in_training
from .differences import distance, failing_node, first_node
from .entry import Axis
from .ir import IR
from .places import described
from .recording import exporting, inner_of
from .state import ModelState, preserved, set_modes
from .structure import holds_tensors, map_leaves
from .trials import other_sizes, repeated, resize


@dataclass
class Fidelity:
    """The result of a comparison."""

    wrong: dict[str, str] = field(default_factory=dict)
    """Dynamic axes at which the graph differs from the model at other sizes, with the reason."""
    sizes: dict[str, int] = field(default_factory=dict)
    """A size of such an axis at which the graph differs if only this axis changes."""
    notes: list[str] = field(default_factory=list)


class Stateful(CaptureError):
    """A second call of the model differs from the first one, because forward keeps state in Python."""


@dataclass(frozen=True)
class Bench:
    """Runs a graph and its model one after the other, each from the same state of the model."""

    ir: IR
    state: ModelState
    modes: Mapping[nn.Module, bool]
    """The mode of each module when the model is in training mode."""
    training: bool
    """Whether they run in training mode. Dropout is then switched off, and the buffers are compared afterwards."""
    dropout: bool = False
    """Whether dropout stays on in training mode, with the same masks in the graph and in the model."""
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    """The buffers to compare, except those that forward creates in its first call."""

    def difference(self, inputs: Any, *, fails: bool = True, again: bool = True) -> float | str | None:
        """Return the relative error of the graph, or a text if the results differ, or None if the model fails.

        Args:
            inputs: Positional and keyword inputs.
            fails: Whether the model may fail.
            again: Whether a second call is compared too, if forward keeps values.

        Raises:
            CaptureError: The model fails although `fails` is not set.
            Stateful: With `again`: the second call of the graph differs from that of the model.
        """
        try:
            expected, changed, kept = self.run(self.model(inputs))
        except Exception as error:
            if not fails:
                raise described(self.ir.root, "", error) from error
            return None
        try:
            result, changed_too, _ = self.run(self._graph(inputs))
        except Exception as error:
            told = str(error).partition("\n")[0]
            where = place_of(failing_node, self.ir, inputs, self._now)
            return f"it fails where the model does not: {type(error).__name__}: {told}{where}"
        worst = 0.0
        for label, left, right in (("output", expected, result), ("buffer", changed, changed_too)):
            far = distance(left, right, label)
            if isinstance(far, str):
                return far + place_of(first_node, self.ir, inputs, self._now)
            worst = max(worst, far)
        if kept and again:
            self._check_second_call(inputs, kept)
        return worst

    def _check_second_call(self, inputs: Any, kept: Sequence[str]) -> None:
        """Compare a second call with other numbers: forward may read values that it kept in the first call.

        Raises:
            Stateful: The second calls differ.
        """
        benches = (self, replace(self, dropout=True)) if self.training else (self,)  # masks may be kept, too
        if any(bench.forgets(inputs, resize(inputs, {})) for bench in benches):
            raise Stateful(
                f"forward computes something else in its second call{' in training mode' if self.training else ''}, "
                f"since it keeps values in {', '.join(kept[:3])}; the graph always computes the first call. If forward "
                "prepares itself in its first call, call the model once before. Else keep a number that changes in a "
                "registered buffer, and a tensor from call to call as an input and output of forward"
            )

    def forgets(self, inputs: Any, others: Any) -> bool:
        """Whether the graph computes the first call of the model correctly, and the second one not."""
        try:
            expected = self.run(self.model(inputs), self.model(others))[0]
        except Exception:  # the model does not accept random inputs
            return False
        result = self.run(self._graph(inputs), self._graph(others))[0]
        other = isinstance(distance(expected, result, "output"), str)
        return other and not isinstance(self.difference(others, again=False), str)

    @property
    def _now(self) -> dict[nn.Module, bool]:
        return {module: mode and self.training for module, mode in self.modes.items()}

    def model(self, inputs: Any) -> Callable[[], Any]:
        """Return a function that calls the model on copies of the inputs."""
        args, kwargs = copied(inputs)
        return lambda: inner_of(self.ir.root)(*args, **kwargs)

    def _graph(self, inputs: Any) -> Callable[[], Any]:
        args, kwargs = copied(inputs)
        leaves = [one for one in (*args, *kwargs.values()) if holds_tensors(one)]
        return lambda: GraphInterpreter(self.ir, self.ir.root).run(*leaves)

    def run(self, *runs: Callable[[], Any]) -> tuple[Any, Any, list[str]]:
        """Return the result of the last of `runs`, the buffers after it, and changed attributes; restore the model."""
        try:
            set_modes(self.modes, self.training)
            self.state.seed()
            with NoDropout() if self.training and not self.dropout else nullcontext():
                *_, result = (run() for run in runs)
            return copied(result), self._contents(), self.state.changed()
        finally:
            self.state.restore()

    def _contents(self) -> dict[str, Tensor]:
        """Return copies of the buffers, also of tensors of the same shape and type that forward put in their place."""
        now = dict(self.ir.root.named_buffers())
        return {name: (now[name] if _alike(now.get(name), one) else one).clone() for name, one in self.buffers.items()}


def _alike(now: Tensor | None, before: Tensor) -> bool:
    return now is not None and (now.shape, now.dtype) == (before.shape, before.dtype)


def compare(ir: IR, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Fidelity:
    """Compare a graph with its model on the example inputs, at other sizes of its dynamic axes, and in training mode.

    If one graph serves both modes, other sizes are compared in training mode only, because the nodes are the same.

    Raises:
        CaptureError: They differ on the example inputs; names the first node that differs.
    """
    found, inputs = Fidelity(), (args, kwargs)
    with preserved(ir.root, inputs, data=True) as state, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the model would repeat its warnings at every comparison
        evaluation = Bench(ir, state, modes_in_training(ir.root), False)
        buffers = {name: one for name, one in ir.root.named_buffers() if not one.is_meta}
        training = replace(evaluation, ir=ir.trained or ir, training=True, buffers=buffers)
        _at_example(evaluation, inputs, found)
        both = ir.trained is None and not ir.training
        try:
            if both and (_at_other_sizes(training, inputs, found) is not None or found.wrong):
                return found
            others = _at_other_sizes(evaluation, inputs, found)
            if not found.wrong and not ir.training:
                _in_training(training, others or inputs)
        except Stateful as error:  # in training mode only: evaluation mode was compared on the example inputs
            found.notes.append(str(error))
            others = _at_other_sizes(evaluation, inputs, found)
        if others is None and not found.wrong and ir.sizes.axes:
            found.notes.append(ONE_SIZE)
    return found


ONE_SIZE = (
    "the model accepts none of the other sizes that were tried: its graph was compared only at the example's size"
)


def _at_example(bench: Bench, inputs: Any, found: Fidelity) -> None:
    error = bench.difference(inputs, fails=False)
    if isinstance(error, str):
        raise CaptureError(f"the graph differs from the model: {error}. {_advice(bench, inputs)}")
    if error:
        found.notes.append(f"the graph equals the model up to rounding: {error:.1e} of the largest output")


def _advice(bench: Bench, inputs: Any) -> str:
    """Return the remedy for a graph that differs from its model; causes in the model's own code come first."""
    expected = bench.run(bench.model(inputs))[0]
    for around, cause in ((nullcontext, UNSTEADY), (exporting, EXPORTED), (unfused, FUSED)):
        with around():
            other = bench.run(bench.model(inputs))[0]
        if isinstance(distance(expected, other), str):
            return cause
    return KEPT.format(", ".join(bench.ir.kept[:3])) if bench.ir.kept else REPORT


UNSTEADY = (
    "The model itself gives other outputs in a second call on the same inputs with the same random state. Make what "
    "changes between the calls, such as a clock or numbers of a generator of its own, an input of forward"
)
EXPORTED = (
    "Forward computes something else while torch.compiler.is_exporting() or is_compiling() is true, as it is during a "
    "capture. Make both branches compute the same"
)
FUSED = (
    "In evaluation mode without gradients, PyTorch runs nn.TransformerEncoderLayer by a fused path, which leaves out a "
    "replaced forward of a module inside of it. Call torch.backends.mha.set_fastpath_enabled(False) before"
)
KEPT = (
    "The graph calls {} unchanged, since bnas cannot record it. The graph has the sizes that it returned for zeros and "
    "for random numbers. Let it return tensors whose sizes do not depend on values: pad them to the largest size"
)
REPORT = "This is a bug in bnas: please report it with the model. To avoid it, rewrite the code around that line"


def _at_other_sizes(bench: Bench, inputs: Any, found: Fidelity) -> Any:
    """Return inputs of other sizes at which model and graph agree; None if the model accepts none, or if they differ.

    One accepted set of sizes is enough, unless an opaque step computes sizes: then each axis is also changed alone.
    """
    good, axes = None, bench.ir.sizes.axes
    alone = [{axis: axis.stepped(axis.size * 3 // 2 - 5)} for axis in axes] if bench.ir.opaque else []
    for sizes in [*alone, *other_sizes(axes)] if axes else ():
        resized = resize(inputs, sizes)
        error = bench.difference(resized)
        if error is None and bench.ir.opaque:
            resized = resize(inputs, sizes, repeated)
            error = bench.difference(resized)
        if error is None:
            continue  # the model itself does not accept these sizes
        if not isinstance(error, str):
            good = resized
            if sizes in alone:
                continue
            return good
        culprits = _culprits(bench, inputs, sizes)
        found.sizes |= {axis.name: sizes[axis] for axis in culprits}
        told = f"if other axes change too, the graph differs from the model: {error}"
        found.wrong |= {axis.name: why for axis, why in culprits.items()} or {axis.name: told for axis in sizes}
        return None
    return good


def _culprits(bench: Bench, inputs: Any, sizes: Mapping[Axis, int]) -> dict[Axis, str]:
    """Return the axes at which the graph differs from the model if only this axis changes, with the reason."""
    errors = {axis: bench.difference(resize(inputs, {axis: size})) for axis, size in sizes.items()}
    told = "at the size {} the graph differs from the model: {}"
    return {axis: told.format(sizes[axis], error) for axis, error in errors.items() if isinstance(error, str)}


def _in_training(bench: Bench, inputs: Any) -> None:
    error = bench.difference(inputs)
    if isinstance(error, str):
        raise CaptureError(f"in training mode the graph differs from the model: {error}. {_advice(bench, inputs)}")


class NoDropout(TorchFunctionMode):
    """Inside, dropout is switched off."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every function of torch."""
        func, args, kwargs = in_python(func, args, kwargs or {})
        name = getattr(func, "__name__", "")
        if "dropout" in name and args and isinstance(args[0], Tensor):
            return args[0].clone()
        if func is F.scaled_dot_product_attention:
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
        if func is F.multi_head_attention_forward:
            args = (*args[:10], 0.0, *args[11:]) if len(args) > 10 else args
        kwargs |= {"dropout_p": 0.0} if "dropout_p" in kwargs else {}
        return func(*args, **kwargs)


def copied(inputs: Any) -> Any:
    """Return copies of the inputs, which a forward may write into."""
    return map_leaves(inputs, lambda _, leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)


def place_of(search: Callable[..., str], ir: IR, inputs: Any, modes: Mapping[nn.Module, bool]) -> str:
    """Return a text with the place that `search` finds: the first difference, or the failing node."""
    try:
        return search(ir, copied(inputs), modes)
    except Exception as error:  # an error of the search must not hide the difference
        return f" (the place was not found: {type(error).__name__})"
