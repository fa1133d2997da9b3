"""Candidates for dynamic axes: the batch, the axes that a user names, and all other axes that may be able to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bnas.passes.errors import CaptureError

from .entry import Axis
from .session import Session
from .structure import Path, tensor_name

Dynamic = Mapping[str, Mapping[int, str]]
"""Names of axes that may change: by input, then by axis, as ``dynamic_axes`` of ``torch.onnx.export``."""


def note(session: Session, static: dict[str, str], axis: Axis, why: str) -> None:
    """Record in `static`, by input and position, that an axis is static and why."""
    for path, place in axis.places:
        static[f"{session.name_of(path)}[{place}]"] = why


def batch_axis(session: Session) -> Axis | None:
    """Return the batch axis: axis 0 of all tensors that have the same size there as the first tensor."""
    tensors = {path: tensor for path, tensor in session.tensors.items() if tensor.ndim}
    first = next(iter(tensors.values()), None)
    if first is None:
        return None
    size = session.size(next(iter(tensors)), 0)
    if size is None:
        return None
    axes = [(path, axis) for path, tensor in tensors.items() for axis in range(tensor.ndim if session.exported else 1)]
    return Axis("batch", tuple(place for place in axes if session.size(*place) == size), first.shape[0])


def fixed_by_export(session: Session) -> dict[str, str]:
    """Return the axes that an exported program cannot change, with the reason, except the channels of images."""
    axes = ((path, axis) for path, tensor in session.tensors.items() for axis in range(tensor.ndim))
    named = ((path, axis, session.why_fixed(path, axis)) for path, axis in axes)
    return {
        f"{session.name_of(path)}[{axis}]": why
        for path, axis, why in named
        if why and not _is_channels(session.tensors[path], axis)
    }


def _is_channels(tensor: Tensor, axis: int) -> bool:
    """Whether an axis is the channel axis of images, which is not expected to change."""
    return tensor.is_floating_point() and tensor.ndim in IMAGE_AXES and axis == 1


IMAGE_AXES = {4: {2: "height", 3: "width"}, 5: {2: "frames", 3: "height", 4: "width"}}


def candidates(session: Session) -> list[Axis]:
    """Return the axes that may be dynamic: spatial axes of images, and all axes except the first of other tensors."""
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
    """Return the name of an axis that does not belong to an image: "length", then "length_2", ...

    Axes with the same size at the same place share a name. At different places they may change independently, unless
    a program was exported with the same size for both.
    """
    same = ((name, places) for (known, name), places in groups.items() if known == size)
    taken = [name for name, places in same if isinstance(size, str) or all(one == place for _, one in places)]
    if taken:
        return taken[0]
    count = len({name for _, name in groups if name.startswith("length")})
    return "length" if not count else f"length_{count + 1}"


def named(session: Session, dynamic: Dynamic) -> list[Axis]:
    """Return the axes that a user names.

    Raises:
        CaptureError: There is no such input or axis, or axes of one name differ in size.
    """
    paths = {session.name_of(path): path for path in session.tensors}
    groups: dict[str, list[tuple[Path, int]]] = {}
    for name, axes in dynamic.items():
        if name not in paths:
            raise CaptureError(f"dynamic: there is no input {name!r}; there are {', '.join(paths)}")
        tensor = session.tensors[paths[name]]
        for place, title in axes.items():
            if not -tensor.ndim <= int(place) < tensor.ndim:
                raise CaptureError(f"dynamic: input {name!r} has {tensor.ndim} axes, so it has no axis {place}")
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
