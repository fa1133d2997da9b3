"""Which random sub-networks a step trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from bnas.passes import SearchSpace, Subnet
from bnas.runtime.errors import TrainingError

Sampling: TypeAlias = Literal["uniform", "spread", "attentive"]
POOL = 8
"""Candidates of about one size, of which an attentive sampler takes the most promising."""
SMALLER = 1.5
"""Exponent of the probability that attentive sampling draws: above 1 there are more small ones, which learn slower."""
MINIMAL = 1 / 64
"""Share of draws in which an attentive sampler gives the smallest sub-network, which promises nothing."""
RATE = 0.5
"""How far an estimate follows a loss; above 1 it would overshoot (Widrow and Hoff 1960, normalised)."""

Costs = Callable[[Sequence[Subnet]], ArrayLike]
"""What sub-networks cost, such as their MACs."""


class Estimate:
    """How much more a sub-network loses than the largest: a sum over its choices, learned from losses as they come."""

    def __init__(self) -> None:
        self.weights: dict[str, float] = {}
        """By choice."""

    def __call__(self, subnet: Subnet) -> float:
        """What is expected; 0 before anything was told."""
        return sum(self.weights.get(choice, 0.0) for choice in _choices(subnet))

    def tell(self, subnet: Subnet, loss: float) -> None:
        """What was found."""
        choices = list(_choices(subnet))
        step = RATE * (loss - self(subnet)) / len(choices)
        for choice in choices:
            self.weights[choice] = self.weights.get(choice, 0.0) + step


class Sampler:
    """Draws random sub-networks.

    Args:
        sampling: "uniform" any with the same probability, of which few are large; "spread" of all sizes from those to
            the maximal: every choice is set to its largest with a probability that is itself drawn for each of them;
            "attentive" the same with more small ones, but of `POOL` with one such probability the one that promises
            the smallest loss for its costs (Wang et al. 2021, AttentiveNAS, section 4, "BestUp", with an estimate from
            the losses so far); and now and then the smallest, which bounds the others from below (Yu and Huang 2019,
            the sandwich rule).
        costs: what attentive sampling holds promises against.
        seed: fixes the sub-networks, together with the losses that are told.
    """

    def __init__(self, sampling: Sampling, costs: Costs, seed: int) -> None:
        self.sampling, self.costs = sampling, costs
        self._generator = np.random.default_rng(seed)
        self._estimate = Estimate()

    @property
    def attentive(self) -> bool:
        """It wants to be told losses."""
        return self.sampling == "attentive"

    def draw(self, space: SearchSpace) -> Subnet:
        """A sub-network of `space`, which may change from one call to the next."""
        if self.sampling == "uniform":
            return space.sample(self._generator)
        full = self._generator.random()
        if not self.attentive:
            return space.sample(self._generator, full)
        if self._generator.random() < MINIMAL:
            return space.minimal()
        pool = [space.canonical(space.sample(self._generator, full**SMALLER)) for _ in range(POOL)]
        return pool[int(np.argmin(self._excess(pool)))]

    def _excess(self, pool: Sequence[Subnet]) -> Any:
        """What each is expected to lose above the line through all of them, over the logarithm of the costs."""
        sizes = np.log(np.maximum(np.asarray(self.costs(pool), dtype=float), 1.0))
        expected = np.array([self._estimate(subnet) for subnet in pool])
        across = sizes - sizes.mean()
        spread = float(across @ across)
        slope = float(across @ expected) / spread if spread > 0 else 0.0
        return expected - slope * across

    def tell(self, subnets: Sequence[Subnet], losses: Sequence[float]) -> None:
        """The losses of the sub-networks of a step, the first of which the others are held against.

        Raises:
            TrainingError: there are fewer or more losses than sub-networks.
        """
        if len(losses) != len(subnets):
            raise TrainingError(f"got {len(losses)} losses for {len(subnets)} sub-networks")
        if self.attentive:
            for subnet, loss in zip(subnets[1:], losses[1:], strict=True):
                if math.isfinite(excess := loss - losses[0]):
                    self._estimate.tell(subnet, excess)

    def state_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {"generator": self._generator.bit_generator.state, "estimate": dict(self._estimate.weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was asked for."""
        self._generator.bit_generator.state = state["generator"]
        self._estimate.weights = dict(state["estimate"])


def _choices(subnet: Subnet) -> Iterable[str]:
    for name, size in (*subnet.widths.items(), *subnet.kernels.items()):
        yield f"{name}: {size}"
    for block in sorted(subnet.skipped):
        yield f"skipped: {block}"
