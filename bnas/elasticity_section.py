"""The keys of what may change in a model: ``bootstrapNAS.training.elasticity``."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from bnas.section import Count, Dimension, Scopes, Section, Whole, no_limit


class Width(Section):
    """``elasticity.width``; see `bnas.Elasticity`."""

    other_names: ClassVar[dict[str, str]] = {"width_multiplier": "width_multipliers", "min_out_channels": "min_width"}
    warned: ClassVar[dict[str, str]] = {
        "min_out_channels": "width.min_out_channels is read as min_width: BootstrapNAS ignored it"
    }
    unneeded: ClassVar[dict[str, str]] = {
        "add_dynamic_inputs": "width.add_dynamic_inputs needs nothing here: input widths follow from the model itself"
    }

    min_width: Count = 8
    """No choice is smaller, except where the full size is."""
    max_num_widths: no_limit(Count) = None  # type: ignore[valid-type]
    """At most so many choices, counted from the largest; -1: all."""
    width_step: Count | None = None
    """Sizes are the full one less once, twice, ... so many channels; width_multipliers come first."""
    width_multipliers: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = None
    """Sizes as fractions of the full one; by default 1, 0.75 and 0.5."""
    divisor: Count = 8
    """Choices are rounded down to a multiple of this; the full size is left as it is."""
    widths: dict[str, tuple[Count, ...]] = Field(default={})
    """Sizes of single widths, by name or glob as ``bnas inspect`` names them."""
    overwrite_groups: tuple[tuple[str, ...], ...] | None = None
    """Only these layers have an elastic width; those of one group have the same."""
    overwrite_groups_widths: tuple[tuple[Count, ...], ...] | None = None
    """Sizes of each group in channels, the full one among them."""
    filter_importance: str = "L2"
    """What brings a channel to the front: L1, L2, geometric_median or external."""
    external_importance_path: str | None = None
    """Scores for the importance "external" (JSON or safetensors), relative to the configuration file's folder."""


class Kernel(Section):
    """``elasticity.kernel``; see `bnas.Elasticity`."""

    max_num_kernels: no_limit(Count) = None  # type: ignore[valid-type]
    """At most so many choices for a kernel, counted from the largest; -1: all."""
    min_kernel: Count = 3
    """No kernel gets smaller."""


class Depth(Section):
    """``elasticity.depth``; see `bnas.Elasticity`."""

    unneeded: ClassVar[dict[str, str]] = {
        "mode": "depth.mode says nothing here: blocks are found unless skipped_blocks lists them"
    }

    min_block_size: Whole | None = None
    """Operators of the smallest block beyond the first; by default any for residual blocks, 5 for other regions."""
    max_block_size: Whole | None = None
    """Operators of the largest block beyond the first; by default any for residual blocks, 50 for other regions."""
    hw_fused_ops: bool = True
    """No region begins or ends between a linear operator, its BatchNorm and its activation."""
    skipped_blocks: tuple[str | tuple[str, str], ...] | None = None
    """These blocks only: names, or pairs of a start and an end, as modules or as BootstrapNAS spells them."""


class ElasticitySection(Section):
    """``elasticity``."""

    available_elasticity_dims: tuple[Dimension, ...] = ("depth", "width", "kernel")
    """What may change."""
    width: Width = Width()
    kernel: Kernel = Kernel()
    depth: Depth = Depth()
    ignored_scopes: Scopes = ()
    """Modules whose own channels stay as they are, and which no skipped block contains."""
    target_scopes: Scopes = ()
    """If any are given, only what is inside of these modules changes."""
    pin: Scopes = ()
    """Modules and parameters that stay whole altogether."""
