"""One call of a recording: what a node of the graph will be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .structure import Leaf


@dataclass(eq=False, slots=True)
class Step(Leaf):
    """One call that was noted: what a node of the graph will be."""

    op: str
    """As in torch.fx; "cold" for a call that was computed for real, "given" for a tensor that was there before."""
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    value: Any = None
    """What it gave: meta tensors, or real ones where it is cold."""
    stack: Mapping[str, Any] = field(default_factory=dict)
    """The calls of modules around it, as torch.fx notes them."""
    scope: str = ""
    line: tuple[str, int] | None = None
    """File and line of the user's code."""
    grad: bool = True
    """Whether gradients were enabled."""
    index: int = -1
    writes: bool = False
    returned: tuple[str, ...] = ()
    """The calls of modules that returned its value, from the innermost."""

    @property
    def cold(self) -> bool:
        """Whether its value does not depend on inputs and tensors of the model."""
        return self.op in ("cold", "given")

    def place(self) -> str:
        """Where it is in the user's code, for messages."""
        where = f"{self.line[0]}:{self.line[1]}" if self.line else "forward"
        return f"{where}, in module {self.scope!r}" if self.scope else where


def has_gradients(step: Step) -> bool:
    """Whether gradients may go back through a step."""
    if step.op == "get_attr":
        return True
    return step.grad and step.op in ("call_function", "call_method", "call_module") and isinstance(step.value, Tensor)


@dataclass(frozen=True)
class _DeviceOfModel(Leaf):
    """Stands among arguments for the device that the model is on."""


DEVICE_OF_MODEL = _DeviceOfModel()
