"""The settings of a search space: what may change, and in which steps."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from .errors import ElasticityError

DIMENSIONS = ("depth", "width", "kernel")
MULTIPLIERS = (1.0, 0.75, 0.5)
"""Sizes of a width, as fractions of the full one, where the settings give neither fractions nor a step."""
IMPORTANCES = ("L1", "L2", "geometric_median", "external")
_OTHER_SPELLINGS = dict.fromkeys(("geometric median", "geometric mean", "geometric_mean"), "geometric_median")


@dataclass(frozen=True)
class Elasticity:
    """What may change, and in which steps.

    A name of a module is a glob on module paths or a scope as BootstrapNAS spells it: see `bnas.passes.find_scopes`.
    """

    dimensions: tuple[str, ...] = DIMENSIONS
    """Elastic dimensions: "depth", "width" and "kernel"."""
    width_multipliers: tuple[float, ...] | None = None
    """Sizes as fractions of the full one, which is always a choice itself; by default `MULTIPLIERS`."""
    min_width: int = 8
    """No choice is smaller, except where the full size is."""
    divisor: int = 8
    """Choices are rounded down to a multiple of this; the full size is left as it is."""
    max_num_widths: int | None = None
    """At most so many choices, counted from the largest."""
    min_kernel: int = 3
    """No kernel gets smaller."""
    max_num_kernels: int | None = None
    """At most so many choices for a kernel, counted from the largest."""
    width_step: int | None = None
    """Sizes are the full one less once, twice, ... so many entries; `width_multipliers` come first, as in the peer."""
    widths: Mapping[str, Sequence[int]] | tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Sizes of single widths, by name or glob as the search space names them (a name comes before a glob, an earlier
    glob before a later one). The inner size of a product, ``NAME:inner``, becomes elastic only so."""
    overwrite_groups: tuple[tuple[str, ...], ...] | None = None
    """Only these layers have an elastic width; those of one group have the same."""
    overwrite_groups_widths: tuple[tuple[int, ...], ...] | None = None
    """Sizes of each group in channels, the full one among them."""
    ignored_scopes: tuple[str, ...] = ()
    """Modules whose own channels stay as they are, and which no skipped block contains."""
    target_scopes: tuple[str, ...] = ()
    """If any are given, a width changes only where all layers that make it are inside, a block only where it is."""
    pin: tuple[str, ...] = ()
    """Modules and parameters that stay whole altogether: inputs too, and never skipped."""
    filter_importance: str = "L2"
    """What brings an entry to the front: one of `IMPORTANCES`."""
    external_importance_path: str | None = None
    """Scores by parameter name (JSON or safetensors), for the importance "external"."""
    min_block_size: int | None = None
    """Smallest `Block.size`; if None, residual blocks have any and other regions 5, BootstrapNAS's default."""
    max_block_size: int | None = None
    """Largest `Block.size`; if None, residual blocks have any and other regions 50, BootstrapNAS's default."""
    hw_fused_ops: bool = True
    """No region cuts between a linear operator, its BatchNorm and its activation."""
    skipped_blocks: tuple[str | tuple[str, str], ...] | None = None
    """These blocks only: names of blocks, or pairs of values, of which the first stays (see `scopes.find_value`)."""

    def __post_init__(self) -> None:
        """Bring lists and mappings into one form, and check the bounds of every setting."""
        for field in fields(self):
            object.__setattr__(self, field.name, _frozen(getattr(self, field.name)))
        for name in ("ignored_scopes", "target_scopes", "pin"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))
        importance = _OTHER_SPELLINGS.get(self.filter_importance, self.filter_importance)
        object.__setattr__(self, "filter_importance", importance)
        if not all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], tuple) for pair in self.widths):
            raise ElasticityError(f"widths: {self.widths!r} is no mapping of names to lists of sizes")
        for problem in self._problems():
            raise ElasticityError(problem)

    def _problems(self) -> Iterator[str]:
        for unknown in (d for d in self.dimensions if d not in DIMENSIONS):
            yield f"dimensions: {unknown!r} is not one of {', '.join(DIMENSIONS)}"
        for wrong in (m for m in self.width_multipliers or () if not 0 < m <= 1):
            yield f"width_multipliers: {wrong} is not in (0, 1]"
        for name in ("min_width", "divisor", "max_num_widths", "min_kernel", "max_num_kernels", "width_step"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name}: {value} is smaller than 1"
        for name, sizes in self.sizes.items():
            if not sizes or min(sizes) < 1:
                yield f"widths: {name!r} has the sizes {list(sizes)}; allowed are 1 up to the full size"
        if self.overwrite_groups_widths is not None:
            groups, given = len(self.overwrite_groups or ()), len(self.overwrite_groups_widths)
            if groups != given:
                yield f"overwrite_groups_widths: {given} lists for {groups} groups of overwrite_groups"
        if self.filter_importance not in IMPORTANCES:
            yield f"filter_importance: {self.filter_importance!r} is not one of {', '.join(IMPORTANCES)}"
        if (self.filter_importance == "external") != (self.external_importance_path is not None):
            yield "filter_importance: 'external' and external_importance_path need each other"
        yield from self._depth_problems()

    def _depth_problems(self) -> Iterator[str]:
        least, most = self.min_block_size, self.max_block_size
        for name, size in (("min_block_size", least), ("max_block_size", most)):
            if size is not None and size < 0:
                yield f"{name}: {size} is smaller than 0"
        if least is not None and most is not None and least > most:
            yield f"min_block_size: {least} is larger than max_block_size {most}"
        for entry in self.skipped_blocks or ():
            pair = isinstance(entry, tuple) and len(entry) == 2 and all(isinstance(end, str) for end in entry)
            if not pair and not isinstance(entry, str):
                yield f"skipped_blocks: {entry!r} is neither a name nor a pair of a start and an end"

    def block_sizes(self, *, residual: bool) -> range:
        """The allowed `Block.size` of residual blocks, or of other regions."""
        least, most = (0, sys.maxsize - 1) if residual else (5, 50)
        least = least if self.min_block_size is None else self.min_block_size
        return range(least, (most if self.max_block_size is None else self.max_block_size) + 1)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Elasticity:
        """From plain settings, as they come from a file: lists become tuples.

        Raises:
            ElasticityError: there is no such setting, or it is out of its bounds.
        """
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(settings) - set(names))
        if unknown:
            raise ElasticityError(f"there is no setting {unknown[0]!r}; there are {', '.join(names)}")
        return cls(**settings)

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """`widths` as a mapping."""
        return dict(self.widths)  # type: ignore[arg-type]

    def choices(self, full: int, unit: int = 1) -> tuple[int, ...]:
        """Ascending sizes for a symbol of `full` entries, each standing for `unit` entries of its axis."""
        step = self.divisor // math.gcd(self.divisor, unit)
        least = min(full, -(-self.min_width // unit))
        sizes = {max(least, size // step * step) for size in self._candidates(full, unit)} | {full}
        largest = sorted((s for s in sizes if s > 0), reverse=True)[: self.max_num_widths]
        return tuple(sorted(largest))

    def _candidates(self, full: int, unit: int) -> Iterator[int]:
        """Sizes before rounding, all smaller than the full one."""
        if self.width_multipliers is None and self.width_step is not None:
            smaller = range(full * unit - self.width_step, self.min_width - 1, -self.width_step)
            yield from (entries // unit for entries in smaller)
        else:
            multipliers = MULTIPLIERS if self.width_multipliers is None else self.width_multipliers
            yield from (int(full * m + 1e-9) for m in multipliers if m < 1)


def _frozen(value: Any) -> Any:
    """Lists, ranges and mappings as tuples, so that settings can be compared and hashed."""
    if isinstance(value, Mapping):
        return tuple((key, _frozen(item)) for key, item in value.items())
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple | range) else value
