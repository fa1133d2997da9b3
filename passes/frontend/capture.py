"""Record a model at several sizes and in both modes, and make one graph from the recordings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from bnas.passes.errors import CaptureError, Diagnostic
from bnas.passes.ops.calls import form_of

from .candidates import Dynamic, batch_axis, note
from .dynamic import dynamic_axes, emitted, planned
from .emission import Emitter
from .ends import ended
from .entry import Allowed, Axis, Check, Sizes
from .exported.parts import LIMITED
from .functions import BATCH, hooked
from .merging import Differs
from .places import at_other_size
from .recording import Recording
from .session import Session
from .state import set_modes
from .structure import Path, at, spelled_path


@dataclass(frozen=True)
class Captured:
    """The graph of a model, made from its recordings."""

    graph: fx.Graph
    constants: Mapping[str, Tensor]
    own: Mapping[str, nn.Module]
    """Leaf modules that the model does not have."""
    plain: Mapping[str, type[nn.Module]]
    """Layers of a user's class that are called as a plain layer of this class."""
    sizes: Sizes
    diagnostics: tuple[Diagnostic, ...]
    names: Mapping[Path, str]
    """The placeholder of each argument that holds a tensor, by its path in ``(args, kwargs)``."""
    checks: tuple[Check, ...] = ()
    """The checks of input sizes at the beginning of the graph."""
    trained: fx.Graph | None = None
    """The graph of training mode, if the model calls other operators in training mode."""
    training: str = ""
    """Why the graph's training mode differs from the model's; empty if it does not."""


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic: Dynamic | None = None,
    fixed: Mapping[str, str] = MappingProxyType({}),
    *,
    apart: bool = True,
    wrong_at: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> Captured:
    """Return the graph of ``model(*args, **kwargs)`` for all sizes of its dynamic axes; the model does not change.

    Args:
        model: The model.
        args: Positional inputs.
        kwargs: Keyword inputs.
        dynamic: Axes that must be dynamic besides the batch; by default all that can be.
        fixed: Names of axes that must be static, with the reason.
        apart: Whether an axis may be recorded without the example's size, if the model takes a short cut at that size.
        wrong_at: Sizes of axes, by name, at which the graph of an earlier capture differed from the model.

    Raises:
        CaptureError: The forward cannot be recorded, or an axis named in `dynamic` cannot be dynamic.
    """
    _check_ready(model)
    session = Session(model, args, kwargs, apart=apart, wrong_at=wrong_at)
    session.modes = modes_in_training(model)
    session.norms = _norms(session)
    axes, static = dynamic_axes(session, dynamic, fixed)
    found = _captured(session, axes, static)
    limits = _limits_of_training(session, axes) if found.training and dynamic is None else {}
    told = dict(static)
    for axis, why in limits.items():
        note(session, told, axis, f"in training mode, {why}")
    try:
        found = _captured(session, [axis for axis in axes if axis not in limits], told) if limits else found
    except CaptureError:  # without these axes there is no graph of both modes either
        pass
    return _with_ends(session, found)


def _with_ends(session: Session, found: Captured) -> Captured:
    """Return what was captured with the ends of its axes, beyond which the model runs other code, and its checks."""
    sizes = replace(found.sizes, axes=tuple(ended(session, found.sizes.axes)))
    return replace(found, sizes=sizes, checks=tuple(_checks(session, sizes)))


def _limits_of_training(session: Session, axes: Sequence[Axis]) -> dict[Axis, str]:
    """Return the axes at which forward fails only in training mode, with the reason; none if it always fails there.

    If these axes are static, the graph has a training mode, which is worth more. Example: a head that is used only in
    training may take a single size.
    """
    batch = [axis for axis in axes if axis.name == "batch"]

    def failure(others: Sequence[Axis]) -> str:
        try:
            session.all(planned(session, batch, others), training=True)
        except Differs:
            return ""
        except CaptureError as error:
            return at_other_size(error)
        return ""

    if failure([]):
        return {}
    alone = {axis: failure([axis]) for axis in axes if axis not in batch}
    return {axis: why for axis, why in alone.items() if why}


def _norms(session: Session) -> Set[nn.Module]:
    """Return modules of a user's class, or with hooks, whose forward computes a batch norm in training mode."""
    if not any(isinstance(one, _BatchNorm) and (form_of(one) is None or hooked(one)) for one in session.modes):
        return frozenset()
    batch = batch_axis(session)
    tries: list[dict[Axis, int]] = [{batch: BATCH}, {}] if batch is not None else [{}]
    for sizes in tries:
        try:
            return session.recorded(sizes, training=True).recorder.norms
        except CaptureError:
            continue
    return frozenset()


def modes_in_training(model: nn.Module) -> dict[nn.Module, bool]:
    """Return the mode of every module after ``model.train()``, which a user may have overridden; restore the modes."""
    before = {module: module.training for module in model.modules()}
    try:
        model.train()
        return {module: module.training for module in before}
    except NotImplementedError as error:  # so does the module that an exported program gives
        raise CaptureError(
            f"the model has no training mode: {error} Give the exported program itself, not its module"
        ) from error
    finally:
        set_modes(before)


def _check_ready(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise CaptureError(f"{name} has no shape yet: run the lazy model once on the example inputs first")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("a scripted model has no Python code to record: give the original module")


def _captured(session: Session, axes: Sequence[Axis], static: Mapping[str, str]) -> Captured:
    batch = [axis for axis in axes if axis.name == "batch"]
    others = [axis for axis in axes if axis.name != "batch"]
    plan = planned(session, batch, others)
    recordings = session.all(plan)
    emitter, training = _in_both_modes(session, recordings, plan[0])
    trained = None
    if training:
        trained, training = _of_training(session, plan, training)
    base = recordings[0]
    return Captured(
        emitter.graph,
        {**emitter.constants, **(trained.constants if trained is not None else {})},
        {**emitter.own, **(trained.own if trained is not None else {})},
        base.plain,
        Sizes(tuple(axes), dict(static)),
        (*base.diagnostics, *_dropped(base)),
        dict(session.names),
        trained=None if trained is None else trained.graph,
        training=training,
    )


def _dropped(base: Recording) -> list[Diagnostic]:
    """Return the parts of the model's result that a graph cannot return."""
    names = [spelled_path(path) or "all" for path in base.dropped]
    return [
        Diagnostic(f"output {name}", "an object that is neither a tensor nor a plain value: None is returned instead")
        for name in names
    ]


def _in_both_modes(session: Session, recordings: Sequence[Recording], sizes: Mapping[Axis, int]) -> tuple[Emitter, str]:
    """Return a graph whose flags follow the mode; if training differs in its calls, evaluation's graph and why."""
    try:
        return _following_types(session, sizes, recordings, session.recorded(sizes, training=True)), ""
    except CaptureError as error:
        why = str(error)
    return _following_types(session, sizes, recordings), why


def _following_types(
    session: Session,
    sizes: Mapping[Axis, int],
    recordings: Sequence[Recording],
    training: Recording | None = None,
    *,
    prefix: str = "",
    mode: bool = False,
) -> Emitter:
    """Return the graph. Its type arguments follow the types of tensors if one more recording shows that they do."""
    emitter = emitted(recordings, training, prefix=prefix)
    if not emitter.types:
        return emitter
    try:
        return emitted(recordings, training, session.recorded(sizes, training=mode, typed=True), prefix=prefix)
    except CaptureError:  # some models work in one type only
        return emitter


def _of_training(session: Session, plan: Sequence[Mapping[Axis, int]], differs: str) -> tuple[Emitter | None, str]:
    """Return the graph of training mode alone, or None and the reason if it cannot be recorded at all sizes."""
    try:
        recordings = session.all(plan, training=True)
        return _following_types(session, plan[0], recordings, prefix="_training", mode=True), ""
    except CaptureError as error:
        return None, f"{differs}; by itself: {error}"


def _checks(session: Session, sizes: Sizes) -> Iterator[Check]:
    """Yield the checks of the lists among the inputs, and of the tensors that have a static axis."""
    for place in dict.fromkeys(path[:end] for path in session.tensors for end in range(2, len(path))):
        found = at(session.inputs, place)
        if isinstance(found, list | tuple):
            yield Check.of_list(session.names[place[:2]], len(found), place[2:])
    for path, tensor in session.tensors.items():
        allowed = tuple(_allowed(session, path, sizes))
        if all(one is None for one in allowed):
            continue
        reasons = {(path, place): axis.why for axis in sizes.axes for path, place in axis.places}
        named = ((place, f"{session.name_of(path)}[{place}]") for place in range(tensor.ndim))
        static = (sizes.static.get(name) or reasons.get((path, place)) for place, name in named)
        others = "" if session.exported is None else LIMITED
        why = tuple(one.splitlines()[0][:200] if one else others for one in static)
        yield Check.of(session.names[path[:2]], allowed, why, path[2:])


def _allowed(session: Session, path: Path, sizes: Sizes) -> Iterator[Allowed]:
    for place, size in enumerate(session.tensors[path].shape):
        axis = next((one for one in sizes.axes if (path, place) in one.places), None)
        if axis is None:
            yield int(size)
        else:
            limits = session.limits(path, place)
            ends = limits or ((axis.least, axis.most) if axis.ends else ())
            yield (axis.size, axis.step, *ends) if axis.step > 1 or ends else None
