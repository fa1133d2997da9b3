"""Sampling of the random sub-networks of each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from bnas.passes import SearchSpace, Subnet
from bnas.runtime.errors import TrainingError

Sampling: TypeAlias = Literal["uniform", "spread", "attentive"]
POOL = 8
"""Number of candidates of about equal size, of which an attentive sampler takes the most promising one."""
SMALLER = 1.5
"""Exponent of the probability in attentive sampling. Above 1, small sub-networks (slower to learn) are more likely."""
MINIMAL = 1 / 64
"""Share of draws in which an attentive sampler returns the smallest sub-network, whatever its promise."""
DRAWS = 16
"""Largest number of draws for one other than the sub-networks that a step trains anyway."""
RATE = 0.5
"""Step of an estimate towards a new loss; above 1 it would overshoot (normalised Widrow-Hoff rule, 1960)."""

Costs = Callable[[Sequence[Subnet]], ArrayLike]
"""Function that returns a cost of sub-networks, such as MACs."""


class Estimate:
    """Online estimate of a sub-network's loss above that of the largest one, as a sum over its choices."""

    def __init__(self) -> None:
        self.weights: dict[str, float] = {}
        """By choice."""

    def __call__(self, subnet: Subnet) -> float:
        """Return the expected excess loss; 0 at first."""
        return sum(self.weights.get(choice, 0.0) for choice in _choices(subnet))

    def tell(self, subnet: Subnet, loss: float) -> None:
        """Update the estimate with an observed excess loss."""
        choices = list(_choices(subnet))
        step = RATE * (loss - self(subnet)) / len(choices)
        for choice in choices:
            self.weights[choice] = self.weights.get(choice, 0.0) + step


class Sampler:
    """Draws random sub-networks.

    Args:
        sampling: How to draw.

            - "uniform": all sub-networks are equally likely (few of them are large).
            - "spread": all sizes are equally likely. For each sub-network a probability is drawn, with which each of
              its choices is set to the largest value.
            - "attentive": like "spread", with more small sub-networks. Of `POOL` candidates with the same probability,
              the one with the smallest expected loss for its cost is taken (Wang et al. 2021, AttentiveNAS, section 4,
              "BestUp", with an estimate from the losses so far). Sometimes the smallest sub-network is drawn, which
              bounds the others from below (Yu and Huang 2019, the sandwich rule).
        costs: The cost that attentive sampling relates losses to.
        seed: Determines the sub-networks, together with the losses given to `tell`.
    """

    def __init__(self, sampling: Sampling, costs: Costs, seed: int) -> None:
        self.sampling, self.costs = sampling, costs
        self._generator = np.random.default_rng(seed)
        self._estimate = Estimate()

    @property
    def attentive(self) -> bool:
        """Whether the sampler needs the losses of each step (`tell`)."""
        return self.sampling == "attentive"

    def draw(self, space: SearchSpace, trained: Collection[Subnet] = ()) -> Subnet:
        """Draw a sub-network of `space`, which may differ from call to call.

        Unless sampling is uniform, sub-networks that the step trains anyway (`trained`) are drawn only if there are
        hardly any others: with three choices of two sizes each, 47 % of all draws would be the largest one.
        """
        if self.sampling == "uniform":
            return space.sample(self._generator)
        for _ in range(DRAWS):
            subnet = self._drawn(space)
            if space.canonical(subnet) not in trained:
                break
        return subnet

    def _drawn(self, space: SearchSpace) -> Subnet:
        full = self._generator.random()
        if not self.attentive:
            return space.sample(self._generator, full)
        if self._generator.random() < MINIMAL:
            return space.minimal()
        pool = [space.canonical(space.sample(self._generator, full**SMALLER)) for _ in range(POOL)]
        return pool[int(np.argmin(self._excess(pool)))]

    def _excess(self, pool: Sequence[Subnet]) -> Any:
        """Return each candidate's expected loss above a line fitted to all of them, over the logarithm of the costs."""
        sizes = np.log(np.maximum(np.asarray(self.costs(pool), dtype=float), 1.0))
        expected = np.array([self._estimate(subnet) for subnet in pool])
        across = sizes - sizes.mean()
        spread = float(across @ across)
        slope = float(across @ expected) / spread if spread > 0 else 0.0
        return expected - slope * across

    def tell(self, subnets: Sequence[Subnet], losses: Sequence[float]) -> None:
        """Take the losses of the sub-networks of a step; those of the others are compared with the first one.

        Raises:
            TrainingError: The number of losses differs from the number of sub-networks.
        """
        if len(losses) != len(subnets):
            raise TrainingError(
                f"tell: got {len(losses)} losses for {len(subnets)} sub-networks; "
                "give one loss for each sub-network of the last step, in the same order"
            )
        if self.attentive:
            for subnet, loss in zip(subnets[1:], losses[1:], strict=True):
                if math.isfinite(excess := loss - losses[0]):
                    self._estimate.tell(subnet, excess)

    def state_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {"generator": self._generator.bit_generator.state, "estimate": dict(self._estimate.weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._generator.bit_generator.state = state["generator"]
        self._estimate.weights = dict(state["estimate"])


def _choices(subnet: Subnet) -> Iterable[str]:
    for name, size in (*subnet.widths.items(), *subnet.kernels.items()):
        yield f"{name}: {size}"
    for block in sorted(subnet.skipped):
        yield f"skipped: {block}"
