"""The command line; nothing heavy is imported before a command runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnas.passes.lazy import attach

if TYPE_CHECKING:
    from bnas.cli.app import main

__getattr__, __dir__ = attach(__name__, {"bnas.cli.app": ("main",)})

__all__ = ["main"]
