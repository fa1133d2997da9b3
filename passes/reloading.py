"""A saved graph module is loaded by a symbolic trace of its code: what proxies of torch.fx cannot write stays in it."""

from __future__ import annotations

import operator
from typing import Any

from torch.fx import Node, Proxy, Tracer


class Reloading(Tracer):
    """The tracer that PyTorch loads our graph modules with."""

    def proxy(self, node: Node) -> Proxy:
        """As in fx, for a value that can be written into."""
        return _Written(node, self)


class _Written(Proxy):
    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _in_place(function: Any) -> Any:
    def write(self: Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return write


for _name in (
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ifloordiv",
    "imod",
    "ipow",
    "iand",
    "ior",
    "ixor",
    "ilshift",
    "irshift",
):
    setattr(_Written, f"__{_name}__", _in_place(getattr(operator, _name)))
