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
    """What may change, and in which steps.

    A name of a module is a glob on module paths or a scope as BootstrapNAS spells it: see `bnas.passes.find_scopes`.

    Raises:
        ElasticityError: names every setting that is out of its bounds.
    """

    dimensions: tuple[Dimension, ...] = DIMENSIONS
    """Elastic dimensions: "depth", "width" and "kernel"."""
    width_multipliers: tuple[Share, ...] | None = None
    """Sizes as fractions of the full one, which is always a choice itself; by default 1, 0.75 and 0.5."""
    min_width: Count = 8
    """No choice is smaller, except where the full size is."""
    divisor: Count = 8
    """Choices are rounded down to a multiple of this; the full size is left as it is."""
    max_num_widths: Count | None = None
    """At most so many choices, counted from the largest; by default all."""
    min_kernel: Count = 3
    """No kernel gets smaller."""
    max_num_kernels: Count | None = None
    """At most so many choices for a kernel, counted from the largest; by default all."""
    width_step: Count | None = None
    """Sizes are full, full - step, full - 2 * step, ...; `width_multipliers` come first, as in BootstrapNAS."""
    widths: SizesByName = ()
    """Sizes of single widths, by name or glob as ``bnas inspect`` names them (a name comes before a glob, an earlier
    glob before a later one). The inner size of a product, ``NAME:inner``, becomes elastic only so."""
    overwrite_groups: tuple[tuple[str, ...], ...] | None = None
    """Only these layers have an elastic width; those of one group have the same."""
    overwrite_groups_widths: tuple[tuple[Count, ...], ...] | None = None
    """Sizes of each group in channels, the full one among them."""
    ignored_scopes: Names = ()
    """Modules whose own channels stay as they are, and which no skipped block contains."""
    target_scopes: Names = ()
    """If any are given, a width changes only where all layers that make it are inside, a block only where it is."""
    pin: Names = ()
    """Modules and parameters that stay whole altogether: inputs too, and never skipped."""
    filter_importance: Importance = "L2"
    """What brings an entry to the front: "L1", "L2" or "geometric_median" of the weights, "taylor" (what the loss on
    training data would change by without the entry, to first order), or "external"."""
    external_importance_path: Annotated[str | None, Field(validate_default=True)] = None
    """Scores by parameter name for the importance "external" (JSON or safetensors); in a configuration file relative
    to its folder."""
    importance_samples: Count = 2000
    """Training samples that the importance "taylor" is measured on, in the batches of the training."""
    min_block_size: Whole | None = None
    """Operators of the smallest block beyond the first; by default residual blocks have any size and other regions 5,
    BootstrapNAS's default."""
    max_block_size: Whole | None = None
    """Operators of the largest block beyond the first; by default residual blocks have any size and other regions 50,
    BootstrapNAS's default."""
    hw_fused_ops: bool = True
    """No region begins or ends between a linear operator, its BatchNorm and its activation."""
    skipped_blocks: tuple[str | tuple[str, str], ...] | None = None
    """These blocks only: names of blocks, or pairs of a start, which stays, and an end, as modules or as BootstrapNAS
    spells them."""

    @field_validator("overwrite_groups_widths")
    @classmethod
    def _of_groups(cls, widths: Any, known: ValidationInfo) -> Any:
        if widths is not None and "overwrite_groups" in known.data:
            groups = len(known.data["overwrite_groups"] or ())
            if groups != len(widths):
                raise ValueError(f"{len(widths)} lists for {groups} groups of overwrite_groups")
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
        """The allowed `Block.size` of residual blocks, or of other regions."""
        least, most = (0, sys.maxsize - 1) if residual else (5, 50)
        least = least if self.min_block_size is None else self.min_block_size
        return range(least, (most if self.max_block_size is None else self.max_block_size) + 1)

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
