"""A layer that calls a method of the model which cannot be recorded, on a copy of its module without tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from bnas.passes.errors import CaptureError

from .state import ModelState, deep_copy
from .structure import leaves_of, parts_of


class OpaqueMethod(nn.Module):
    """A layer of the graph that calls a method of a module, on a copy without parameters and buffers."""

    def __init__(self, holder: nn.Module, place: str, method: str, modes: Mapping[nn.Module, bool]) -> None:
        super().__init__()
        self.place, self.method = place, method
        self._holder = (stripped(holder),)  # no submodule: nobody is to look for layers in it
        self._modes = tuple(modes.get(one, True) for one in holder.modules())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method in the mode of this layer."""
        (holder,) = self._holder
        for module, mode in zip(holder.modules(), self._modes, strict=True):
            module.training = self.training and mode
        given = [_changeable(args), _changeable(kwargs)]
        before = [_content(one) for one in (*given[0], *given[1].values())]
        result = getattr(holder, self.method)(*given[0], **given[1])
        _check_unchanged((*given[0], *given[1].values()), before, result)
        return result

    def extra_repr(self) -> str:
        """The place of the module and the name of the method."""
        return self.place


def stripped(module: nn.Module) -> nn.Module:
    """A deep copy of a module without the parameters and buffers inside: code that reads one fails there."""
    held = ModelState(module).tensors
    own = {id(one) for one in (*module.parameters(), *module.buffers())}
    gone = {id(one): None for one in held if isinstance(one, nn.Parameter) or id(one) in own}
    twin = deep_copy(module, gone)
    for source, made in zip(module.modules(), twin.modules(), strict=True):
        for table, without in ((source._parameters, made._parameters), (source._buffers, made._buffers)):
            for name in [name for name, tensor in table.items() if tensor is not None]:
                del without[name]
    return twin


def _changeable(value: Any) -> Any:
    """Arguments as the method may change them: a graph that is interpreted gives lists and dicts that are read-only."""
    if isinstance(value, list):
        return [_changeable(one) for one in value]
    if type(value) is tuple:
        return tuple(_changeable(one) for one in value)
    if isinstance(value, dict) and type(value).__module__.startswith("torch.fx"):
        return {key: _changeable(one) for key, one in value.items()}
    if isinstance(value, dict):
        made = copy.copy(value)
        made.update({key: _changeable(one) for key, one in value.items()})
        return made
    return value


def _content(value: Any) -> list[tuple[Any, int]]:
    return [(path, id(leaf)) for path, leaf in leaves_of(value)]


def _check_unchanged(given: Sequence[Any], before: Sequence[Any], result: Any) -> None:
    """Raise where a method filled a list or dict that it was given and does not return: the caller has another one."""
    returned = [result, *(part for _, part in parts_of(result) or ())]
    for one, content in zip(given, before, strict=True):
        if _content(one) != content and not any(one is part for part in returned):
            raise CaptureError("it changes a list or dict that it is given, and does not return it")
