"""The settings of a search space: what may change, and in which steps."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationInfo, field_validator

from bnas.passes.errors import ElasticityError
from bnas.passes.settings import Count, Dimension, Names, Share, Whole, settings

DIMENSIONS: tuple[Dimension, ...] = ("depth", "width", "kernel")
MULTIPLIERS = (1.0, 0.75, 0.5)
"""Sizes of a width, as fractions of the full one, where the settings give neither fractions nor a step."""
IMPORTANCES = ("L1", "L2", "geometric_median", "taylor", "external")
_OTHER_SPELLINGS = dict.fromkeys(("geometric median", "geometric mean", "geometric_mean"), "geometric_median")


def _mapping(value: Any) -> Any:
    """Pairs of a name and its sizes, as settings are stored, as a mapping."""
    pairs = isinstance(value, list | tuple) and all(isinstance(one, list | tuple) and len(one) == 2 for one in value)
    return dict(value) if pairs else value


if TYPE_CHECKING:
    GivenSizes: TypeAlias = Mapping[str, Sequence[int]] | tuple[tuple[str, tuple[int, ...]], ...]
else:
    GivenSizes = Mapping[str, Annotated[tuple[Count, ...], Field(min_length=1)]]


SizesByName: TypeAlias = Annotated[
    GivenSizes,
    BeforeValidator(_mapping),
    AfterValidator(lambda value: tuple(value.items())),
    PlainSerializer(dict),
]
"""Sizes of single widths; stored as pairs, so that settings can be compared and hashed."""

Importance: TypeAlias = Annotated[
    Literal["L1", "L2", "geometric_median", "taylor", "external"],
    BeforeValidator(lambda value: _OTHER_SPELLINGS.get(value, value) if isinstance(value, str) else value),
]


@settings(ElasticityError)
class Elasticity:
    """Settings of the search space: what may change in a model, and in which steps.

    A name of a module is a glob on module paths or a scope as BootstrapNAS spells it: see `bnas.passes.find_scopes`.

    Raises:
        ElasticityError: names every setting that is out of its bounds.
    """

    dimensions: tuple[Dimension, ...] = DIMENSIONS
    """Elastic dimensions: "depth", "width" and "kernel"."""
    width_multipliers: tuple[Share, ...] | None = None
    """Widths on offer, as fractions of the full width (always a choice itself); by default 1, 0.75 and 0.5."""
    min_width: Count = 8
    """Smallest width on offer; a layer whose full width is smaller keeps that."""
    divisor: Count = 8
    """Widths are rounded down to a multiple of this; the full width is not rounded."""
    max_num_widths: Count | None = None
    """Largest number of widths for a layer, counted from the full one; by default all."""
    min_kernel: Count = 3
    """Smallest kernel size on offer."""
    max_num_kernels: Count | None = None
    """Largest number of sizes for a kernel, counted from the full one; by default all."""
    width_step: Count | None = None
    """Widths are full, full - step, full - 2 * step, ...; if `width_multipliers` are given, they are used instead."""
    widths: SizesByName = ()
    """Sizes of certain widths, by name or glob as ``bnas inspect`` prints them. A name takes precedence over a glob, an
    earlier glob over a later one. The inner size of a product, ``NAME:inner``, is elastic only if it is named here."""
    overwrite_groups: tuple[tuple[str, ...], ...] | None = None
    """Only the layers in these groups have an elastic width; all layers of a group have the same width."""
    overwrite_groups_widths: tuple[tuple[Count, ...], ...] | None = None
    """Sizes of each group in channels, including the full one."""
    ignored_scopes: Names = ()
    """Modules that keep their own channels, and that no skipped block contains."""
    target_scopes: Names = ()
    """If given, only these modules change: widths that are made inside them entirely, and blocks inside them."""
    pin: Names = ()
    """Modules and parameters that are not changed at all: they keep their inputs and outputs, and are never skipped."""
    filter_importance: Importance = "L2"
    """The importance by which channels are sorted: "L1", "L2" or "geometric_median" of the weights; "taylor" (change of
    the loss on training data without the channel, to first order); or "external"."""
    external_importance_path: Annotated[str | None, Field(validate_default=True)] = None
    """File of scores by parameter name (JSON or safetensors) for the importance "external"; in a configuration file
    relative to its folder."""
    importance_samples: Count = 2000
    """Training samples for the importance "taylor", in the batches of the training."""
    min_block_size: Whole | None = None
    """Size of the smallest block: its number of operators minus one. By default any size for residual blocks, and 5 for
    other regions, as in BootstrapNAS."""
    max_block_size: Whole | None = None
    """Size of the largest block: its number of operators minus one. By default any size for residual blocks, and 50 for
    other regions, as in BootstrapNAS."""
    hw_fused_ops: bool = True
    """Do not let a region start or end between a linear operator, its BatchNorm and its activation."""
    skipped_blocks: tuple[str | tuple[str, str], ...] | None = None
    """Only these blocks may be skipped: names of blocks, or pairs (start, end) of modules or BootstrapNAS scopes; the
    start itself stays."""

    @field_validator("overwrite_groups_widths")
    @classmethod
    def _of_groups(cls, widths: Any, known: ValidationInfo) -> Any:
        if widths is not None and "overwrite_groups" in known.data:
            groups = len(known.data["overwrite_groups"] or ())
            if groups != len(widths):
                raise ValueError(
                    f"has {len(widths)} lists for {groups} groups of overwrite_groups; give one list for each group"
                )
        return widths

    @field_validator("external_importance_path")
    @classmethod
    def _of_external(cls, path: str | None, known: ValidationInfo) -> str | None:
        importance = known.data.get("filter_importance")
        if importance is not None and (importance == "external") != (path is not None):
            raise ValueError("filter_importance 'external' and external_importance_path need each other")
        return path

    @field_validator("max_block_size")
    @classmethod
    def _not_below_least(cls, most: int | None, known: ValidationInfo) -> int | None:
        least = known.data.get("min_block_size")
        if least is not None and most is not None and least > most:
            raise ValueError(f"must not be smaller than min_block_size {least}")
        return most

    def block_sizes(self, *, residual: bool) -> range:
        """Return the allowed `Block.size` of residual blocks, or of other regions."""
        least, most = (0, sys.maxsize - 1) if residual else (5, 50)
        least = least if self.min_block_size is None else self.min_block_size
        return range(least, (most if self.max_block_size is None else self.max_block_size) + 1)

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """`widths` as a mapping."""
        return dict(self.widths)  # type: ignore[arg-type]

    def choices(self, full: int, unit: int = 1) -> tuple[int, ...]:
        """Return ascending sizes for a symbol of `full` entries; each entry stands for `unit` entries of its axis."""
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
