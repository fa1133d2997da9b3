"""Lazy imports: names of a package are imported at first use, so that code without torch starts fast."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def attach(package: str, homes: Mapping[str, Iterable[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package whose names stand in the modules of `homes`.

    The home of a sub-package is the package itself: ``{"bnas": ("search",)}``. `dir` lists ``__all__``, sub-packages
    and names with double underscores, but not the package's own imports.

    No other name may equal the name of a module of the package: the module, once imported, would hide it.
    """
    known = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in known:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if known[name] == package:
            return importlib.import_module(f"{package}.{name}")
        value = getattr(importlib.import_module(known[name]), name)
        setattr(sys.modules[package], name, value)  # found without this function from now on
        return value

    def names() -> list[str]:
        there = vars(sys.modules[package])
        return sorted({*known, *there["__all__"], *(name for name in there if name.startswith("__"))})

    return get, names
