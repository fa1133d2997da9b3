"""Names of a package that are imported at their first use: what needs no torch does not wait for it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def attach(package: str, homes: Mapping[str, Iterable[str]]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package whose names stand in the modules of `homes`.

    A name must not be that of a module of the package: once imported, the module would hide it.
    """
    known = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in known:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(known[name]), name)
        setattr(sys.modules[package], name, value)  # found without this function from now on
        return value

    return get
