"""`SearchSpace`, the set of all sub-networks, and `Variable`, one decision in it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bnas.passes.errors import SubnetError
from bnas.passes.wording import count, counted, indented, listed, ranges

from .subnet import Subnet

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Variable:
    """One decision of a search space, with ascending `choices`; the maximal sub-network has the last one."""

    name: str
    kind: str
    """"width", "depth" (0 skips the block, 1 keeps it) or "kernel"."""
    choices: tuple[int, ...]


@dataclass(frozen=True)
class SearchSpace:
    """All sub-networks of a super-network: choices for widths and kernels, and blocks that may be skipped."""

    widths: Mapping[str, tuple[int, ...]]
    """Ascending sizes of each elastic width; the last is the full size."""
    blocks: tuple[str, ...]
    """Names of the blocks that may be skipped, in network order."""
    inside: Mapping[str, tuple[frozenset[str], ...]] = field(default_factory=dict)
    """For widths used only inside blocks: the blocks around each use. A width matters while one of its uses is kept."""
    kernels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Ascending sizes for each elastic kernel, named by its convolution; the last is its full size."""
    kernels_inside: Mapping[str, tuple[frozenset[str], ...]] = field(default_factory=dict)
    """For kernels used only inside blocks: the blocks around each use, as for `inside`."""
    chains: tuple[tuple[str, ...], ...] = ()
    """Blocks that follow one another; a block in none of them is a chain of its own."""
    depth_limit: int | None = None
    """Largest number of skipped blocks in each chain; None: no limit."""

    @property
    def size(self) -> int:
        """Number of sub-networks; it may be very large."""
        sizes = (len(choices) for choices in (*self.widths.values(), *self.kernels.values()))
        return math.prod(sizes) * math.prod(sum(_counts(*chain)) for chain in self.limits())

    def limits(self) -> Iterator[tuple[tuple[str, ...], int]]:
        """Each chain of blocks, with the number of its blocks that may be skipped."""
        single = ((name,) for name in self.blocks if not any(name in chain for chain in self.chains))
        for chain in (*self.chains, *single):
            yield chain, len(chain) if self.depth_limit is None else min(self.depth_limit, len(chain))

    def __len__(self) -> int:
        """Number of sub-networks, where Python's `len` can say it; `size` always can.

        Raises:
            OverflowError: there are more than ``sys.maxsize``.
        """
        if self.size > sys.maxsize:
            raise OverflowError(
                f"this space has {count(self.size)} sub-networks, and len() ends at sys.maxsize; read `space.size`"
            )
        return self.size

    def __bool__(self) -> bool:
        """True: every space has its maximal sub-network. Without this, `bool` would ask `len`."""
        return True

    def __repr__(self) -> str:
        """How many sub-networks there are, and what may change."""
        return indented(f"SearchSpace with {counted(self.size, 'sub-network')}", self.described())

    def described(self) -> Iterator[str]:
        """Describe each kind of choice in a line."""
        limit = "" if self.depth_limit is None else f", at most {self.depth_limit} of a chain"
        if self.widths:
            yield f"{counted(len(self.widths), 'width')}: {ranges(self.widths)}"
        if self.blocks:
            names = listed(self.blocks, len(self.blocks))
            yield f"{counted(len(self.blocks), 'skippable block')}{limit}: {names}"
        if self.kernels:
            yield f"{counted(len(self.kernels), 'kernel')}: {ranges(self.kernels)}"

    def variables(self) -> tuple[Variable, ...]:
        """Return the decisions in the order of `encode` and `decode`."""
        depth = (Variable(name, "depth", (0, 1)) for name in self.blocks)
        widths = (Variable(name, "width", choices) for name, choices in self.widths.items())
        return (*depth, *widths, *(Variable(name, "kernel", choices) for name, choices in self.kernels.items()))

    def decode(self, vector: Sequence[int]) -> Subnet:
        """Return the sub-network with choice ``vector[i]`` of ``variables()[i]``, after `repair`.

        Raises:
            SubnetError: the vector is too long or short, or an entry is out of its bounds.
        """
        variables = self.variables()
        if len(vector) != len(variables):
            raise SubnetError(f"a vector of {len(vector)} genes; this space has {len(variables)} variables")
        for gene, variable in zip(vector, variables, strict=True):
            if not 0 <= gene < len(variable.choices):
                raise SubnetError(f"{variable.name}: gene {gene} is not one of 0..{len(variable.choices) - 1}")
        chosen = {v: v.choices[gene] for v, gene in zip(variables, vector, strict=True)}
        widths = {v.name: size for v, size in chosen.items() if v.kind == "width"}
        kernels = {v.name: size for v, size in chosen.items() if v.kind == "kernel"}
        return Subnet(
            widths, frozenset(v.name for v, keep in chosen.items() if v.kind == "depth" and not keep), kernels
        )

    def encode(self, subnet: Subnet) -> tuple[int, ...]:
        """Return the vector that `decode` turns into `subnet`. Widths and kernels that `subnet` does not name are full.

        Raises:
            SubnetError: the sub-network is not of this space.
        """
        self.check(subnet)
        blocks = tuple(int(name not in subnet.skipped) for name in self.blocks)
        widths = (c.index(subnet.widths.get(name, c[-1])) for name, c in self.widths.items())
        return (*blocks, *widths, *(c.index(subnet.kernels.get(name, c[-1])) for name, c in self.kernels.items()))

    def check(self, subnet: Subnet) -> None:
        """Raise `SubnetError` if `subnet` does not belong to this space; the message says what is allowed."""
        for kind, chosen, known in (("width", subnet.widths, self.widths), ("kernel", subnet.kernels, self.kernels)):
            for name, size in chosen.items():
                choices = known.get(name)
                if choices is None:
                    raise SubnetError(f"there is no elastic {kind} {name!r}; there are {', '.join(known) or 'none'}")
                if size not in choices:
                    raise SubnetError(f"{name}: {kind} {size} is not one of {choices}")
        unknown = sorted(subnet.skipped - set(self.blocks))
        if unknown:
            raise SubnetError(f"{unknown[0]!r} is not a skippable block; there are {', '.join(self.blocks) or 'none'}")
        for chain, limit in self.limits():
            many = [name for name in chain if name in subnet.skipped]
            if len(many) > limit:
                raise SubnetError(f"{len(many)} blocks of a chain are skipped ({', '.join(many)}); allowed are {limit}")

    def maximal(self) -> Subnet:
        """Return the sub-network that keeps everything: the original model."""
        return self.decode([len(v.choices) - 1 for v in self.variables()])

    def minimal(self) -> Subnet:
        """Return the sub-network with the smallest choice everywhere; with a depth limit, it skips the last blocks."""
        return self.repair(self.decode([0] * len(self.variables())))

    def repair(self, subnet: Subnet) -> Subnet:
        """Return the sub-network within depth_limit: of too many skipped blocks in a chain, the first are kept."""
        kept: set[str] = set()
        for chain, limit in self.limits():
            skipped = [name for name in chain if name in subnet.skipped]
            kept.update(skipped[: max(0, len(skipped) - limit)])
        return Subnet(subnet.widths, subnet.skipped - kept, subnet.kernels) if kept else subnet

    def sample(self, generator: int | np.random.Generator | torch.Generator, full: float = 0.0) -> Subnet:
        """Return a random sub-network; all sub-networks of this space are equally likely.

        Args:
            generator: a seed, which gives the same sub-network each time, or a random generator of NumPy or PyTorch,
                which advances.
            full: the probability with which each choice is afterwards set to its largest value.

        Raises:
            SubnetError: `generator` is neither a seed nor a generator.
        """
        generator = _generator(generator)
        subnet = self.decode([int(generator.integers(len(v.choices))) for v in self.variables()])
        if self.depth_limit is not None:
            skipped = {name for chain, limit in self.limits() for name in _sample_chain(chain, limit, generator)}
            subnet = Subnet(subnet.widths, frozenset(skipped), subnet.kernels)
        return self._enlarged(subnet, generator, full) if full else subnet

    def _enlarged(self, subnet: Subnet, generator: np.random.Generator, full: float) -> Subnet:
        """Set every choice to its largest value with probability `full`."""

        def of(known: Mapping[str, tuple[int, ...]], chosen: Mapping[str, int]) -> dict[str, int]:
            return {name: known[name][-1] if generator.random() < full else size for name, size in chosen.items()}

        skipped = frozenset(name for name in sorted(subnet.skipped) if generator.random() >= full)
        return Subnet(of(self.widths, subnet.widths), skipped, of(self.kernels, subnet.kernels))

    def canonical(self, subnet: Subnet) -> Subnet:
        """Return the same network in canonical form: widths and kernels used only by skipped blocks are full."""
        widths = _with_unused_full(self.widths, subnet.widths, self.inside, subnet.skipped)
        kernels = _with_unused_full(self.kernels, subnet.kernels, self.kernels_inside, subnet.skipped)
        return Subnet(widths, subnet.skipped, kernels)

    def restrict(
        self,
        *,
        depth: bool = True,
        width: bool = True,
        kernel: bool = True,
        width_indicator: int | None = None,
        depth_indicator: int | None = None,
    ) -> SearchSpace:
        """Return the part of the space that a training stage uses.

        Args:
            depth: whether blocks may be skipped.
            width: whether widths may be smaller.
            kernel: whether kernels may be smaller.
            width_indicator: keep only this number of widths, the largest ones.
            depth_indicator: largest number of skipped blocks in each chain.
        """
        widths = {
            name: choices[-1:] if not width else choices[-width_indicator:] if width_indicator else choices
            for name, choices in self.widths.items()
        }
        kernels = {name: choices if kernel else choices[-1:] for name, choices in self.kernels.items()}
        limits = [limit for limit in (self.depth_limit, depth_indicator) if limit is not None]
        blocks, chains = (self.blocks, self.chains) if depth else ((), ())
        limit = min(limits, default=None)
        return SearchSpace(widths, blocks, self.inside, kernels, self.kernels_inside, chains, limit)


def _generator(given: int | np.random.Generator | torch.Generator) -> np.random.Generator:
    """Return a NumPy generator from a seed, or from a PyTorch generator, which advances by one draw."""
    if isinstance(given, np.random.Generator):
        return given
    if isinstance(given, int | np.integer) and not isinstance(given, bool) and given >= 0:
        return np.random.default_rng(int(given))
    torch = sys.modules.get("torch")  # only if torch is imported already can `given` be one of its generators
    if torch is not None and isinstance(given, torch.Generator):
        seed = torch.randint(2**63 - 1, (), generator=given, device=given.device)
        return np.random.default_rng(int(seed))
    raise SubnetError(
        f"cannot draw with {given!r}; give a seed (a whole number from 0), or a generator: "
        "numpy.random.default_rng(0), torch.Generator()"
    )


def _with_unused_full(
    known: Mapping[str, tuple[int, ...]],
    chosen: Mapping[str, int],
    inside: Mapping[str, tuple[frozenset[str], ...]],
    skipped: frozenset[str],
) -> dict[str, int]:
    """Return the choices, with the full size for those not chosen or used only in skipped blocks."""

    def unused(name: str) -> bool:
        return bool(uses := inside.get(name)) and all(around & skipped for around in uses or ())

    return {name: c[-1] if unused(name) else chosen.get(name, c[-1]) for name, c in known.items()}


def _counts(chain: Sequence[str], limit: int) -> list[int]:
    """Return the number of ways to skip 0, 1, ... `limit` blocks of a chain."""
    return [math.comb(len(chain), number) for number in range(limit + 1)]


def _sample_chain(chain: Sequence[str], limit: int, generator: np.random.Generator) -> list[str]:
    """Draw the skipped blocks of a chain; all allowed subsets are equally likely."""
    counts = _counts(chain, limit)
    total = sum(counts)
    number = generator.choice(len(counts), p=[count / total for count in counts])
    return [chain[place] for place in generator.choice(len(chain), number, replace=False)]
