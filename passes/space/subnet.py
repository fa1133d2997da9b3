"""One choice in a search space, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bnas.passes.errors import SubnetError
from bnas.passes.wording import braced

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, eq=False)
class Subnet:
    """One choice in a `SearchSpace`: hashable, sortable, convertible to JSON, without tensors or modules."""

    widths: Mapping[str, int] = field(default_factory=dict)
    """Entries kept of each elastic symbol."""
    skipped: frozenset[str] = frozenset()
    """Names of the skipped blocks."""
    kernels: Mapping[str, int] = field(default_factory=dict)
    """Size of each elastic kernel."""

    def __post_init__(self) -> None:
        """Freeze the mappings in a fixed order."""
        for name in ("widths", "kernels"):
            object.__setattr__(self, name, MappingProxyType(dict(sorted(getattr(self, name).items()))))
        object.__setattr__(self, "skipped", frozenset(self.skipped))

    def _key(self) -> tuple[Any, ...]:
        return tuple(self.widths.items()), tuple(sorted(self.skipped)), tuple(self.kernels.items())

    def __eq__(self, other: object) -> bool:
        """By value."""
        return isinstance(other, Subnet) and self._key() == other._key()

    def __hash__(self) -> int:
        """By value."""
        return hash(self._key())

    def __lt__(self, other: Subnet) -> bool:
        """Compare in a fixed but arbitrary order, for sorting."""
        return bool(self._key() < other._key())

    def __reduce__(self) -> tuple[Any, ...]:
        """Mapping proxies do not pickle by themselves."""
        return Subnet, (dict(self.widths), self.skipped, dict(self.kernels))

    def __repr__(self) -> str:
        """Return the choices as Python code, abbreviated if long."""
        widths, kernels = ([f"{name!r}: {size}" for name, size in one.items()] for one in (self.widths, self.kernels))
        parts = {"widths": widths, "skipped": [repr(name) for name in sorted(self.skipped)], "kernels": kernels}
        return f"Subnet({', '.join(f'{name}={braced(entries)}' for name, entries in parts.items() if entries)})"

    def to_json(self) -> dict[str, Any]:
        """Return the choice as plain data for a JSON file; `from_json` reads it back."""
        return {"widths": dict(self.widths), "skipped": sorted(self.skipped), "kernels": dict(self.kernels)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Subnet:
        """Return the sub-network that `to_json` wrote, or that a run wrote to ``subnets/NAME.json``.

        Such a file has the costs of the sub-network beside it, by the key "costs"; these are not read.

        Raises:
            SubnetError: a key is unknown, or a value has the wrong kind. (Keys may be missing: their choices are full.)
        """
        if not isinstance(data, Mapping):
            raise SubnetError(f"a sub-network is a mapping with the keys widths, skipped, kernels, not {data!r}")
        unknown = sorted(set(data) - {"widths", "skipped", "kernels", "costs"})
        if unknown:
            raise SubnetError(f"a sub-network has no {unknown[0]!r}; its keys are widths, skipped, kernels")
        widths, kernels, skipped = data.get("widths", {}), data.get("kernels", {}), data.get("skipped", ())
        for sizes in (widths, kernels):
            if not isinstance(sizes, Mapping) or not all(type(v) is int for v in sizes.values()):
                raise SubnetError(f"widths and kernels of a sub-network map names to whole numbers, not {sizes!r}")
        if not isinstance(skipped, list | tuple | frozenset) or not all(isinstance(s, str) for s in skipped):
            raise SubnetError(f"skipped of a sub-network is a list of block names, not {skipped!r}")
        return cls(dict(widths), frozenset(skipped), dict(kernels))
