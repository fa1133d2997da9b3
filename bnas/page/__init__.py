"""The report of a run: one self-contained HTML page, with every plot also as a picture and as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnas.passes.lazy import attach

if TYPE_CHECKING:
    from .comparison import write_comparison
    from .page import write_page

__getattr__, __dir__ = attach(
    __name__, {"bnas.page.comparison": ("write_comparison",), "bnas.page.page": ("write_page",)}
)

__all__ = ["write_comparison", "write_page"]
