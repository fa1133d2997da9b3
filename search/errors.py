"""What can be wrong with a search, apart from the sub-networks themselves."""

from __future__ import annotations

from bnas.passes import BnasError


class SearchError(BnasError, ValueError):
    """A setting of a search is out of its bounds, or an objective is not known."""


class MetricError(BnasError, ValueError):
    """An evaluation gave no number for an objective, or one that cannot be compared (NaN, infinity)."""


class RecordError(BnasError, ValueError):
    """An evaluation does not fit its log, or a file of evaluations is malformed."""
