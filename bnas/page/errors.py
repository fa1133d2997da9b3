"""What can go wrong with the report of a run."""

from __future__ import annotations

from bnas.passes.errors import BnasError


class ReportError(BnasError):
    """The report of a run cannot be made; names the file and what is wrong with it."""
