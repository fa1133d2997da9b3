"""Records a model at several sizes and in both modes, and makes one graph of it; finds which axes may change."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from difflib import SequenceMatcher
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from bnas.passes.calls import form_of
from bnas.passes.errors import CaptureError, Diagnostic

from .emission import Emitter
from .entry import Allowed, Axis, Check, Sizes
from .exported_axes import LIMITED
from .merging import Differs, Merger
from .on_meta import BATCH
from .recording import Recording
from .session import Session
from .structure import Path, at, spelled_path, tensor_name

NEXT = (1013, 1019)
"""Batches of the other recordings: primes too."""

STEPS = (1, 2, 4, 8, 16, 32, 64)
"""Steps between sizes that are tried: a U-Net takes multiples of a power of two."""

STEPS_APART = (1, 16, 32)
"""Those that are tried where the example's size is left out: such models are few, and each try takes recordings."""

DRAWS = Axis("(draws)", (), 0)
"""Stands for what differs between recordings of one size: numbers that depend on values, such as how many boxes."""

Dynamic = Mapping[str, Mapping[int, str]]
"""Names of axes that may change: by input, then by axis, as ``dynamic_axes`` of ``torch.onnx.export``."""


@dataclass(frozen=True)
class Captured:
    """A graph that computes what a model computes, as far as it was recorded."""

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
    """What is checked where the graph is entered."""
    trained: fx.Graph | None = None
    """The graph of training mode, where it calls something else than evaluation mode does."""
    training: str = ""
    """Why the training mode is not that of the model, if it is not."""


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic: Dynamic | None = None,
    fixed: Mapping[str, str] = MappingProxyType({}),
    *,
    apart: bool = True,
) -> Captured:
    """The graph of ``model(*args, **kwargs)`` for any size of its dynamic axes; the model is left as it was.

    Args:
        model: the model.
        args: positional inputs.
        kwargs: keyword inputs.
        dynamic: axes that must be dynamic beside the batch; by default all that can be.
        fixed: names of axes that must be static, with the reason.
        apart: whether axes may be recorded at other sizes than the example's only, where these are a short cut.

    Raises:
        CaptureError: the forward cannot be recorded, or an axis named in `dynamic` cannot be dynamic.
    """
    _check_ready(model)
    session = Session(model, args, kwargs, apart=apart)
    session.modes = modes_in_training(model)
    session.norms = _norms(session)
    axes, static = _dynamic_axes(session, dynamic, fixed)
    return _captured(session, axes, static)


def _norms(session: Session) -> Set[nn.Module]:
    """The modules of a user's own class that are batch norms in training mode."""
    if not any(isinstance(one, _BatchNorm) and form_of(one) is None for one in session.modes):
        return frozenset()
    batch = _batch_axis(session)
    tries: list[dict[Axis, int]] = [{batch: BATCH}, {}] if batch is not None else [{}]
    for sizes in tries:
        try:
            return session.recorded(sizes, training=True).recorder.norms
        except CaptureError:
            continue
    return frozenset()


def modes_in_training(model: nn.Module) -> dict[nn.Module, bool]:
    """The mode of every module after ``model.train()``, which a user may have overridden; the modes stay."""
    before = {module: module.training for module in model.modules()}
    try:
        model.train()
        return {module: module.training for module in before}
    except NotImplementedError as error:  # so does the module that an exported program gives
        raise CaptureError(
            f"the model has no modes: {error} Give an exported program itself, not its module"
        ) from error
    finally:
        for module, mode in before.items():
            module.training = mode


def _check_ready(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise CaptureError(f"{name} has no shape yet: run the lazy model once on the example inputs first")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("a scripted model has no Python code to record: give the module that it was made of")


# Axes ---------------------------------------------------------------------------------------------------------------


def _dynamic_axes(
    session: Session, dynamic: Dynamic | None, fixed: Mapping[str, str]
) -> tuple[list[Axis], dict[str, str]]:
    """The axes that the recordings survive, and the others with the reason."""
    static = _fixed_by_export(session)
    batch = _batch_axis(session)
    found: list[Axis] = []
    if batch is not None and "batch" in fixed:
        _note(session, static, batch, fixed["batch"])
    elif batch is not None:
        try:
            _agree(session, *({batch: size} for size in (BATCH, NEXT[0])))
            found = [batch]
        except CaptureError as error:
            _note(session, static, batch, f"the batch is fixed: {error}")
            session.recorded({})  # raises what the example itself raises
    session.keep_preparing(dict.fromkeys(found, BATCH))
    wanted = candidates(session) if dynamic is None else named(session, dynamic)
    for axis in (one for one in wanted if one.name in fixed):
        if dynamic is not None:
            raise CaptureError(f"the axis {axis.name!r} cannot be dynamic: {fixed[axis.name]}")
        _note(session, static, axis, fixed[axis.name])
    wanted = [axis for axis in wanted if axis.name != "batch" and axis.name not in fixed]
    if wanted and _survives(session, found, wanted):
        return [*found, *wanted], static
    alone: list[Axis] = []
    for axis in wanted:
        stepped, why = _alone(session, found, axis)
        if stepped is not None:
            alone.append(stepped)
            continue
        if dynamic is not None:
            raise CaptureError(f"the axis {axis.name!r} cannot be dynamic: {why}")
        _note(session, static, axis, why)
    while alone and not _survives(session, found, alone):
        _note(session, static, alone.pop(), "it can change by itself, not together with others")
    return [*found, *alone], static


def _note(session: Session, static: dict[str, str], axis: Axis, why: str) -> None:
    for path, place in axis.places:
        static[f"{session.name_of(path)}[{place}]"] = why


def _batch_axis(session: Session) -> Axis | None:
    """Axis 0 of all tensors that have as many entries there as the first one."""
    tensors = {path: tensor for path, tensor in session.tensors.items() if tensor.ndim}
    first = next(iter(tensors.values()), None)
    if first is None:
        return None
    size = session.size(next(iter(tensors)), 0)
    if size is None:
        return None
    axes = [(path, axis) for path, tensor in tensors.items() for axis in range(tensor.ndim if session.exported else 1)]
    return Axis("batch", tuple(place for place in axes if session.size(*place) == size), first.shape[0])


def _fixed_by_export(session: Session) -> dict[str, str]:
    """The axes that the program of an exported model cannot change, with the reason; not the channels of images."""
    axes = ((path, axis) for path, tensor in session.tensors.items() for axis in range(tensor.ndim))
    named = ((path, axis, session.why_fixed(path, axis)) for path, axis in axes)
    return {
        f"{session.name_of(path)}[{axis}]": why
        for path, axis, why in named
        if why and not _is_channels(session.tensors[path], axis)
    }


def _is_channels(tensor: Tensor, axis: int) -> bool:
    """Whether an axis is that of the channels of images, which nobody expects to change."""
    return tensor.is_floating_point() and tensor.ndim in IMAGE_AXES and axis == 1


IMAGE_AXES = {4: {2: "height", 3: "width"}, 5: {2: "frames", 3: "height", 4: "width"}}


def candidates(session: Session) -> list[Axis]:
    """Axes that may turn out to be dynamic: those of images behind the channels, all but the first of others."""
    groups: dict[tuple[int | str, str], list[tuple[Path, int]]] = {}
    for path, tensor in session.tensors.items():
        if session.opaque and path[2:] and tensor.ndim in (1, 2):  # such as the boxes of an image, and their labels
            if tensor.shape[0] > 1:
                name = f"{tensor_name(session.names, path[:-1])}_0"
                groups.setdefault((tensor.shape[0], name), []).append((path, 0))
            continue
        images = IMAGE_AXES.get(tensor.ndim) if tensor.is_floating_point() else None
        for place in range(1, tensor.ndim):
            if images is not None and place not in images:
                continue
            size = session.size(path, place)
            if size is None or tensor.shape[place] < 2:
                continue
            name = images[place] if images else _name(groups, size, place)
            if session.opaque and path[2:]:  # the images of a list: each has a size of its own
                name = f"{session.name_of(path)}_{place}"
            groups.setdefault((size, name), []).append((path, place))
    return [
        Axis(name, tuple(places), session.tensors[places[0][0]].shape[places[0][1]])
        for (_, name), places in groups.items()
    ]


def _name(groups: Mapping[tuple[int | str, str], Any], size: int | str, place: int) -> str:
    """The name of an axis that is none of an image: "length" for the first, then "length_2", ...

    Axes of one size at the same place have one name; at another place they may change by themselves, unless a program
    was exported with the same size for both.
    """
    same = ((name, places) for (known, name), places in groups.items() if known == size)
    taken = [name for name, places in same if isinstance(size, str) or all(one == place for _, one in places)]
    if taken:
        return taken[0]
    count = len({name for _, name in groups if name.startswith("length")})
    return "length" if not count else f"length_{count + 1}"


def named(session: Session, dynamic: Dynamic) -> list[Axis]:
    """The axes that a user names.

    Raises:
        CaptureError: there is no such input or axis, or axes of one name differ in size.
    """
    paths = {session.name_of(path): path for path in session.tensors}
    groups: dict[str, list[tuple[Path, int]]] = {}
    for name, axes in dynamic.items():
        if name not in paths:
            raise CaptureError(f"dynamic: there is no input {name!r}; there are {', '.join(paths)}")
        tensor = session.tensors[paths[name]]
        for place, title in axes.items():
            if not -tensor.ndim <= int(place) < tensor.ndim:
                raise CaptureError(f"dynamic: input {name!r} has {tensor.ndim} axes, none is {place}")
            if why := session.why_fixed(paths[name], int(place) % tensor.ndim):
                raise CaptureError(f"dynamic: axis {place} of input {name!r} cannot be dynamic: {why}")
            groups.setdefault(str(title), []).append((paths[name], int(place) % tensor.ndim))
    made = []
    for title, places in groups.items():
        sizes = {session.tensors[path].shape[place] for path, place in places}
        if len(sizes) > 1:
            raise CaptureError(f"dynamic: axes called {title!r} have different sizes in the example: {sorted(sizes)}")
        made.append(Axis(title, tuple(places), sizes.pop()))
    return made


def plans(batch: Sequence[Axis], axes: Sequence[Axis], more: bool = False) -> list[dict[Axis, int]]:
    """Sizes of the base recording and of two others, each axis in a way of its own; with `more`, of four others.

    The near ones are one step away: halves of halves that are rounded up and down differ then.
    """
    sizes = {axis: _sizes(axis, place) for place, axis in enumerate(axes)}
    for axis, size in _far([axis for axis in axes if not axis.apart]).items():
        sizes[axis][2] = size
    made = []
    for turn, count in enumerate((BATCH, *NEXT, NEXT[0], NEXT[0])[: 5 if more else 3]):
        fixed = dict.fromkeys(batch, count)
        made.append(fixed | {axis: one[turn] for axis, one in sizes.items()})
    return made


def _plan_by_axis(batch: Sequence[Axis], axes: Sequence[Axis]) -> list[dict[Axis, int]]:
    """Sizes of a model whose inputs are resized by an opaque step: one axis changed, and all of them.

    Such a step keeps the form of an image, and gives the same for many sizes.
    """
    base = {axis: axis.size for axis in axes} | dict.fromkeys(batch, BATCH)
    alone = [base | {axis: axis.between(2, quarters)} for axis in axes for quarters in (1, 3)]
    together = {axis: axis.between(2, QUARTERS[place % 3]) + place * axis.step for place, axis in enumerate(axes)}
    return [base, *alone, together | dict.fromkeys(batch, NEXT[0])]


def _sizes(axis: Axis, place: int) -> list[int]:
    """The sizes of an axis in the recordings; where the example's is a short cut, none that it may hold at too."""
    turns = [QUARTERS[(place + turn) % 3] for turn in (0, 1)]
    if axis.apart:
        far = [axis.size * times + axis.step for times in (place + 2, turns[0] + 4, turns[1] + 4)]
        half = (axis.size // 2) // axis.step
        return [axis.near(half + 2 * place + 1), axis.near(half + 2 * place + 4), *far]
    between = [axis.between(place + 2, turn) for turn in turns]
    return [axis.size, axis.near(1), axis.far(place + 2), *between]


def _far(axes: Sequence[Axis]) -> dict[Axis, int]:
    """Far sizes in the opposite order, where these are no large ones: which of two is larger is no constant."""
    found: dict[Axis, int] = {}
    above = 0
    for place, axis in enumerate(sorted(reversed(axes), key=lambda axis: -axis.size)):
        least = max(place + 2, above // axis.size + 1)
        above = found[axis] = axis.far(least if least <= 8 else place + 2)
    return found


QUARTERS = (2, 3, 1)
"""How many quarters of the way to its far size an axis goes: others than its neighbours, so that no size is a multiple
of another by accident."""


def _survives(session: Session, batch: Sequence[Axis], axes: Sequence[Axis]) -> bool:
    try:
        _planned(session, batch, axes)
    except CaptureError:
        return False
    return True


def _planned(session: Session, batch: Sequence[Axis], axes: Sequence[Axis]) -> list[dict[Axis, int]]:
    """The sizes to record at: more of them where numbers are guessed by what they are at each.

    Raises:
        CaptureError: the recordings are not one graph.
    """
    if not batch and not axes:
        return _of_one_size(session)
    known = session.plans.get((*batch, *axes))
    if known is not None:
        return known
    for more in (False, True):
        plan = _plan_by_axis(batch, axes) if session.opaque else plans(batch, axes, more)
        if not _emitted(session.all(plan)).guesses:
            break
    key = (*batch, *axes)
    session.plans[key] = plan
    return plan


def _of_one_size(session: Session) -> list[dict[Axis, int]]:
    """One recording; three where some numbers depend on values, which are no constants then.

    Raises:
        CaptureError: these recordings are not one graph.
    """
    if not session.recorded({}).recorder.draws.count:
        return [{}]
    plan: list[dict[Axis, int]] = [{DRAWS: turn} for turn in range(3)]
    _emitted(session.all(plan))
    return plan


def _alone(session: Session, batch: Sequence[Axis], axis: Axis) -> tuple[Axis | None, str]:
    """The axis with the least step between sizes that works, or None and why none does."""
    ways, why = list(_ways(session, batch, axis)), ""
    for step in STEPS:
        for way in ways:
            if way.apart and step not in STEPS_APART:
                continue
            stepped = dataclasses.replace(way, step=step)
            try:
                _agree(session, *({one: BATCH for one in batch} | {axis: size} for size in _sizes(stepped, 0)[:3]))
                return stepped, ""
            except CaptureError as error:
                why = why or str(error)
    if not ways:
        why = _why_not(session, batch, axis)
    return None, why


def _ways(session: Session, batch: Sequence[Axis], axis: Axis) -> Iterator[Axis]:
    """How the axis may be recorded: at its size and larger or smaller ones; else at others than its size."""
    base = {one: BATCH for one in batch}
    for shorter in (False, True):
        way = dataclasses.replace(axis, shorter=shorter)
        try:
            _agree(session, base | {axis: axis.size}, base | {axis: way.far(2)})
            yield way
            break
        except Differs:
            break  # the model takes that size, and is another graph there, whatever it is at smaller ones
        except CaptureError:
            continue
    if session.apart:
        yield from _apart(session, base, axis)


def _apart(session: Session, base: Mapping[Axis, int], axis: Axis) -> Iterator[Axis]:
    """The axis recorded at other sizes than the example's, if the model takes much larger ones at all."""
    try:
        here, there = session.recorded({**base, axis: axis.size}), session.recorded({**base, axis: 2 * axis.size})
    except CaptureError:
        return
    calls = [[(step.op, step.target) for step in one.hot] for one in (here, there)]
    runs = SequenceMatcher(None, calls[0], calls[1], autojunk=False).get_opcodes()
    if sum(tag != "equal" for tag, *_ in runs) == 1:  # a short cut is left out in one place
        yield dataclasses.replace(axis, apart=True)


def _why_not(session: Session, batch: Sequence[Axis], axis: Axis) -> str:
    base = {one: BATCH for one in batch}
    try:
        _agree(session, base | {axis: axis.size}, base | {axis: axis.far(2)})
    except CaptureError as error:
        return str(error)
    return ""


def _agree(session: Session, *sizes: Mapping[Axis, int]) -> None:
    """Raise unless the recordings of these sizes are one graph."""
    _emitted(session.all(sizes))


def _emitted(
    recordings: Sequence[Recording],
    training: Recording | None = None,
    typed: Recording | None = None,
    *,
    prefix: str = "",
) -> Emitter:
    """The one graph of several recordings."""
    emitter = Emitter(Merger(recordings, training, typed), prefix)
    emitter.emit()
    return emitter


# The graph ----------------------------------------------------------------------------------------------------------


def _captured(session: Session, axes: Sequence[Axis], static: Mapping[str, str]) -> Captured:
    batch = [axis for axis in axes if axis.name == "batch"]
    others = [axis for axis in axes if axis.name != "batch"]
    plan = _planned(session, batch, others)
    recordings = session.all(plan)
    emitter, training = _in_both_modes(session, recordings, plan[0])
    trained = None
    if training:
        trained, training = _of_training(session, plan, training)
    base = recordings[0]
    sizes = Sizes(tuple(axes), dict(static))
    return Captured(
        emitter.graph,
        {**emitter.constants, **(trained.constants if trained is not None else {})},
        {**emitter.own, **(trained.own if trained is not None else {})},
        base.plain,
        sizes,
        (*base.diagnostics, *_dropped(base)),
        dict(session.names),
        tuple(_checks(session, sizes)),
        None if trained is None else trained.graph,
        training,
    )


def _dropped(base: Recording) -> list[Diagnostic]:
    """What a graph does not return of what the model returns."""
    names = [spelled_path(path) or "all" for path in base.dropped]
    return [
        Diagnostic(f"output {name}", "an object that is no tensor or plain value: None is returned") for name in names
    ]


def _in_both_modes(session: Session, recordings: Sequence[Recording], sizes: Mapping[Axis, int]) -> tuple[Emitter, str]:
    """The graph whose flags follow the mode; where training calls something else, that of evaluation and why."""
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
    """The graph; types among its arguments follow those of its tensors, where one more recording shows that they do."""
    emitter = _emitted(recordings, training, prefix=prefix)
    if not emitter.types:
        return emitter
    try:
        return _emitted(recordings, training, session.recorded(sizes, training=mode, typed=True), prefix=prefix)
    except CaptureError:  # some models work in one type only
        return emitter


def _of_training(session: Session, plan: Sequence[Mapping[Axis, int]], differs: str) -> tuple[Emitter | None, str]:
    """The graph of training mode by itself; None, and why, where it cannot be recorded at all of these sizes."""
    try:
        recordings = session.all(plan, training=True)
        return _following_types(session, plan[0], recordings, prefix="_training", mode=True), ""
    except CaptureError as error:
        return None, f"{differs}; by itself: {error}"


def _checks(session: Session, sizes: Sizes) -> Iterator[Check]:
    """What is checked of each list among the inputs, and of each tensor that has a static axis."""
    for place in dict.fromkeys(path[:end] for path in session.tensors for end in range(2, len(path))):
        found = at(session.inputs, place)
        if isinstance(found, list | tuple):
            yield Check.of_list(session.names[place[:2]], len(found), place[2:])
    for path, tensor in session.tensors.items():
        allowed = tuple(_allowed(session, path, sizes))
        if all(one is None for one in allowed):
            continue
        full = session.name_of(path)
        static = {f"axis {place}": sizes.static.get(f"{full}[{place}]") for place in range(tensor.ndim)}
        why = _first_lines([f"{axis}: {why}" for axis, why in static.items() if why])
        why = why or ("" if session.exported is None else LIMITED)
        yield Check.of(session.names[path[:2]], allowed, why, path[2:])


def _first_lines(reasons: Sequence[str]) -> str:
    return "; ".join(one.splitlines()[0][:200] for one in reasons[:2])


def _allowed(session: Session, path: Path, sizes: Sizes) -> Iterator[Allowed]:
    for place, size in enumerate(session.tensors[path].shape):
        axis = next((one for one in sizes.axes if (path, place) in one.places), None)
        if axis is None:
            yield int(size)
        else:
            limits = session.limits(path, place)
            steps = None if axis.step == 1 else (axis.size, axis.step)
            yield steps if limits is None else (axis.size, axis.step, *limits)


__all__ = ["Captured", "Dynamic", "capture"]
