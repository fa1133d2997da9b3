"""Finds the record of an operator by any of its spellings, by a layer's type, or by an ATen name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload

from bnas.passes.errors import RuleError

from .record import UNKNOWN, AtenRule, Layer, Operator, Target

FAMILIES = (
    *("activations", "arithmetic", "casts", "convolutions", "factories", "gathers", "indexing", "linear", "norms"),
    *("numbers", "order", "parts", "pools", "products", "recurrent", "reductions", "resizes", "shuffles"),
    *("spectral", "views"),
)
"""The modules of this package with a tuple ``RECORDS``."""


def packet_of(target: Any) -> Any:
    """The operator ``torch.ops.NAMESPACE.NAME`` behind its only overload or its `torch.library` definition, or None."""
    target = target._opoverload if isinstance(target, CustomOpDef) else target
    packet = target.overloadpacket if isinstance(target, OpOverload) else None
    return packet if packet is not None and len(packet.overloads()) == 1 else None


Sizes: TypeAlias = Callable[[Any, tuple[int, ...]], Mapping[str, Any]]


@dataclass
class _Table:
    """The records, with the tables by which they are found."""

    records: dict[Target, Operator] = field(default_factory=dict)
    canonical: dict[Target, Target] = field(default_factory=dict)
    writing: set[Target] = field(default_factory=set)
    reordered: dict[Target, tuple[str, ...]] = field(default_factory=dict)
    layers: dict[type[nn.Module], Layer] = field(default_factory=dict)
    sizes: dict[type[nn.Module], Sizes] = field(default_factory=dict)
    aten: dict[str, AtenRule] = field(default_factory=dict)

    def add(self, record: Operator) -> None:
        """Add a record under all its names.

        Raises:
            RuleError: a name, layer or ATen operator has a record already.
        """
        for name in record.names():
            owner = getattr(name, "__self__", None)
            if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
                one = owner.__name__
                raise RuleError(f"{one}.apply is how {one} is called: register the class itself, Operator({one}, ...)")
        names = dict.fromkeys([*record.names(), *filter(None, map(packet_of, record.names()))])
        taken = [name for name in names if name in self.canonical]
        taken += [kind for kind in record.layers if kind in self.layers or kind in self.sizes]
        taken += [name for name in record.aten if name in self.aten]
        if taken:
            known = self.canonical.get(taken[0], taken[0])
            raise RuleError(
                f"{operator_name(taken[0])} already has a record, that of {operator_name(known)}: register one record "
                "for each operator, or change it temporarily with OPERATORS.changed"
            )
        self.records[record.op] = record
        self.canonical.update(dict.fromkeys(names, record.op))
        self.writing.update(record.in_place)
        self.reordered.update(record.reordered)
        self.layers.update({kind: replace(form, op=record.op) for kind, form in record.layers.items() if form.leaf})
        self.sizes.update({kind: form.sizes for kind, form in record.layers.items() if form.sizes is not None})
        self.aten.update(record.aten)

    def copy(self) -> _Table:
        """Return a separate table with the same records."""
        return _Table(*(type(part)(part) for part in vars(self).values()))


class Operators(Mapping[Target, Operator]):
    """The records of all operators by canonical operator.

    The families are imported at the first look-up, so that a rule may use whatever part of bnas it needs.
    """

    def __init__(self, families: tuple[str, ...] = FAMILIES) -> None:
        self._families, self._loaded = families, False
        self._own = _Table()
        self._overlay: ContextVar[_Table | None] = ContextVar("operators", default=None)

    @property
    def _table(self) -> _Table:
        overlay = self._overlay.get()
        if overlay is not None:
            return overlay
        if not self._loaded:
            self._loaded = True
            for family in self._families:
                for record in importlib.import_module(f"{__package__}.{family}").RECORDS:
                    self._own.add(record)
        return self._own

    def __getitem__(self, op: Target) -> Operator:
        return self._table.records[op]

    def __iter__(self) -> Iterator[Target]:
        return iter(self._table.records)

    def __len__(self) -> int:
        return len(self._table.records)

    def of(self, target: Target) -> Operator:
        """Return the record of a function or method in any spelling; the record `UNKNOWN` if there is none."""
        return self._table.records.get(self.canonical(target), UNKNOWN)

    def canonical(self, target: Target) -> Target:
        """Return the canonical operator of a function or method; for an in-place method that of the plain one.

        A target without a record is its own canonical operator.
        """
        table = self._table.canonical
        if target in table:
            return table[target]
        if (packet := packet_of(target)) in table:
            return table[packet]
        if not isinstance(target, str):
            return target
        name = target[:-1] if target.endswith("_") and not target.endswith("__") else target
        if name in table:
            return table[name]
        function = getattr(torch, name, None)
        return table.get(function, function) if callable(function) else name

    def writes(self, target: Target) -> bool:
        """Whether a record says that the function writes into its first argument."""
        return target in self._table.writing

    def arguments(self, target: Target, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call in the order of the canonical operator; those in another order by name."""
        names = self._table.reordered.get(target)
        return (args, {}) if names is None else ((), dict(zip(names, args, strict=False)))

    def layer(self, kind: type[nn.Module]) -> Layer | None:
        """Return the functional form of layers of exactly the type `kind`; None for other types."""
        return self._table.layers.get(kind)

    def sizes(self, kind: type[nn.Module]) -> Sizes | None:
        """Return the function that computes the size attributes of layers of `kind` or a derived class, or None."""
        return next((self._table.sizes[base] for base in kind.__mro__ if base in self._table.sizes), None)

    def aten(self, name: str) -> AtenRule | None:
        """Return the Python spelling of the ATen operator `name` if its schema does not determine it, or None."""
        return self._table.aten.get(name)

    def register(self, record: Operator) -> None:
        """Add the record of an operator.

        Raises:
            RuleError: one of its spellings, layers or ATen names has a record already.
        """
        self._table.add(record)

    @contextmanager
    def changed(self, op: Target, **facts: Any) -> Iterator[Operator]:
        """Inside, and in this context only, the record of `op` has other `facts`; an unknown operator gets one."""
        with self.copied():
            table = self._table
            before = table.records.pop(op, None)
            record = Operator(op, **facts) if before is None else replace(before, **facts)
            parts: tuple[dict[Any, Any], ...] = (table.canonical, table.layers, table.sizes, table.aten)
            for part in parts:
                for key in [key for key, value in part.items() if before is not None and _is_of(key, value, before)]:
                    del part[key]
            table.add(record)
            yield record

    @contextmanager
    def copied(self) -> Iterator[None]:
        """Inside, and in this context only, records are added to a copy of the registry."""
        token = self._overlay.set(self._table.copy())
        try:
            yield
        finally:
            self._overlay.reset(token)


def _is_of(key: Any, value: Any, record: Operator) -> bool:
    """Whether an entry of a table belongs to a record."""
    return value == record.op or key in record.layers or (isinstance(key, str) and key in record.aten)


OPERATORS = Operators()
"""The registry that all passes use."""


def canonical(target: Target) -> Target:
    """The canonical operator of a function or method, see `Operators.canonical`."""
    return OPERATORS.canonical(target)


def register(record: Operator) -> None:
    """Add the record of an operator of your own, see `Operators.register`."""
    OPERATORS.register(record)


def family_of(op: Target) -> str:
    """The module of this package that has the record of an operator; "own" for one that a user registered."""
    modules = {name: importlib.import_module(f"{__package__}.{name}") for name in FAMILIES}
    return next((name for name, module in modules.items() if any(one.op == op for one in module.RECORDS)), "own")


def operator_name(op: Any) -> str:
    """A short name of an operator for messages and pictures."""
    return op if isinstance(op, str) else str(getattr(packet_of(op) or op, "__name__", op))


def qualified_name(op: Any) -> str:
    """A name of an operator that says where it is from: ``torch.relu``, ``Tensor.expand``."""
    if isinstance(op, str):
        return f"Tensor.{op}"
    module = str(getattr(op, "__module__", None) or "torch")
    # PyTorch's built-in functions say that they belong to some private module.
    name = str(getattr(op, "__name__", op))
    if module == "torch._C._fft":
        return f"torch.fft.{name.removeprefix('fft_')}"
    public = name.lstrip("_")
    name = public if getattr(F, public, None) is op else name  # F.threshold says that it is _threshold
    return f"{'torch' if module.startswith('torch._') else module}.{name}"
