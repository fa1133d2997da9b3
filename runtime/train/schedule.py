"""The schedule of progressive shrinking: which sub-networks a step trains, at which learning rate."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bnas.passes import SearchSpace, Subnet
from bnas.passes.frontend.state import with_statistics
from bnas.runtime.errors import TrainingError
from bnas.runtime.supernetwork import SuperNetwork

from .recipe import RULES, Recipe
from .sampler import Sampler
from .stages import STAGES, Stage, check_stages, rate_of

EVALUATING = (
    "the super-network is in evaluation mode at the first step: BatchNorm then uses the statistics of the original for "
    "every sub-network, and small ones diverge; call supernet.train() before the training"
)


@dataclass(frozen=True)
class Place:
    """Position of a step in the training; all numbers count from 0."""

    stage: int
    epoch: int
    """Of the whole training."""
    step: int
    """Of the whole training."""
    since: int
    """Steps since the stage began."""


class Schedule:
    """The sub-networks that each step trains, for `bnas.Trainer` or for your own training loop.

        optimizer = torch.optim.SGD(supernet.parameters(), lr=0.01, momentum=0.9)
        schedule = bnas.Schedule(supernet, stages, steps_per_epoch=len(loader), optimizer=optimizer)
        supernet.train()
        for epoch in range(schedule.epochs):
            for x, y in loader:
                for subnet in schedule.step():
                    criterion(supernet.program(subnet)(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()

    Args:
        supernet: the super-network to train.
        stages: the stages, in order.
        recipe: the schedule uses its ``rule`` ("random" as in BootstrapNAS; "sandwich" after Yu et al. 2019,
            Universally Slimmable Networks, section 3.1), ``subnets_per_step``, ``sampling`` ("attentive" needs the
            losses of each step: call `tell`), ``lr_schedule``, ``progressivity_of_elasticity`` and ``seed``, and
            without an `optimizer` also its ``learning_rate``.
        steps_per_epoch: number of optimizer steps of an epoch.
        optimizer: the schedule sets its learning rate at every step, and reorders its state with the weights. Its
            present rate is the initial rate of stages without ``init_lr``. If its parameter groups have different
            rates, the ratios to the largest rate stay the same.
        subnet: train only this sub-network in every step.
        importance: a function that returns the scores for reordering, needed if the settings name the importance
            "taylor": ``lambda: bnas.runtime.taylor(supernet, batches)``.

    Raises:
        TrainingError: settings are out of bounds or contradict each other.
    """

    def __init__(
        self,
        supernet: SuperNetwork,
        stages: Sequence[Stage] = STAGES,
        recipe: Recipe | None = None,
        *,
        steps_per_epoch: int,
        optimizer: Optimizer | None = None,
        subnet: Subnet | None = None,
        importance: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        recipe = recipe or Recipe()
        check_stages(stages, supernet.elasticity.dimensions, recipe.progressivity_of_elasticity)
        if steps_per_epoch < 1:
            raise TrainingError(f"steps_per_epoch: {steps_per_epoch} is smaller than 1; give the number of batches")
        self.supernet, self.stages, self.steps_per_epoch = supernet, tuple(stages), steps_per_epoch
        self.optimizer, self.rule, self.subnet, self._importance = optimizer, recipe.rule, subnet, importance
        if subnet is not None:
            supernet.space.check(subnet)
        if self.scored and importance is None:
            raise TrainingError(
                "filter_importance 'taylor' is measured on data: give Schedule the scores, "
                "importance=lambda: bnas.runtime.taylor(supernet, batches)"
            )
        for group in self._groups:
            group.setdefault("initial_lr", float(group["lr"]))  # the key of PyTorch's own schedulers
        self._largest = max((group["initial_lr"] for group in self._groups), default=recipe.learning_rate)
        if not self._largest > 0:
            raise TrainingError(
                "the learning rate of the optimizer is 0: set it to the rate at the start of the training"
            )
        self.rate = rate_of(self.stages, steps_per_epoch, self._largest, recipe.lr_schedule)
        self.taken = 0
        """Steps so far."""
        self._random = 1 if recipe.subnets_per_step is None else recipe.subnets_per_step - len(RULES[recipe.rule])
        self._sampler = Sampler(recipe.sampling, lambda some: supernet.cost_model.many(some)["macs"], recipe.seed)
        self._drawn: tuple[Subnet, ...] = ()
        self._step: tuple[Subnet, ...] = ()

    @property
    def _groups(self) -> list[dict[str, Any]]:
        """The current parameter groups, since an optimizer's ``load_state_dict`` replaces them."""
        return [] if self.optimizer is None else self.optimizer.param_groups

    @property
    def scored(self) -> bool:
        """Whether a stage starts with a reordering by scores that are measured on data."""
        from_data = self.supernet.elasticity.filter_importance == "taylor"
        return from_data and any(stage.reorg_weights for stage in self.stages)

    @property
    def attentive(self) -> bool:
        """Whether the sampling uses the losses given to `tell`."""
        return self._sampler.attentive

    @property
    def epochs(self) -> int:
        """Number of epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def steps(self) -> int:
        """Number of steps of all stages."""
        return self.epochs * self.steps_per_epoch

    @property
    def done(self) -> bool:
        """Whether all steps are done."""
        return self.taken == self.steps

    @property
    def place(self) -> Place:
        """Position of the next step."""
        return self.at(self.taken)

    def at(self, step: int) -> Place:
        """Return the position of a step."""
        ends = list(accumulate(stage.epochs * self.steps_per_epoch for stage in self.stages))
        stage = sum(step >= end for end in ends[:-1])
        return Place(stage, step // self.steps_per_epoch, step, step - (ends[stage - 1] if stage else 0))

    @cached_property
    def spaces(self) -> tuple[SearchSpace, ...]:
        """The part of the search space that each stage samples; the last one is the part to search."""
        return tuple(stage.space(self.supernet.space) for stage in self.stages)

    def step(self, alike: Iterable[Mapping[str, Tensor]] = ()) -> tuple[Subnet, ...]:
        """Return the sub-networks of the next step; the maximal one is first if the rule trains it.

        Before the first step of a stage with ``reorg_weights``, this reorders the shared weights, the state of the
        optimizer and the tensors `alike`, such as running averages by parameter name.

        Warns:
            UserWarning: at the first step, a super-network with BatchNorm is in evaluation mode.

        Raises:
            TrainingError: all steps were taken.
        """
        if self.done:
            raise TrainingError(
                f"the schedule is finished: all {self.steps} steps were taken; "
                "stop when schedule.done is true, or give the stages more epochs"
            )
        if self.taken == 0 and not self.supernet.training and with_statistics(self.supernet):
            warnings.warn(EVALUATING, stacklevel=2)
        place = self.place
        stage, space = self.stages[place.stage], self.spaces[place.stage]
        if place.since == 0 and stage.reorg_weights:
            scores: dict[str, Any] = {}
            if self.scored and self._importance is not None:
                scores = {"scores": self._importance()}
            self.supernet.reorder(alike=[*alike, *optimizer_tensors(self.optimizer, self.supernet)], **scores)
        sizes = {"maximal": space.maximal, "minimal": space.minimal}
        fixed = tuple(sizes[name]() for name in RULES[self.rule])
        if place.since % stage.sample_rate == 0:
            self._drawn = tuple(self._sampler.draw(space, fixed) for _ in range(self._random))
        for group in self._groups:
            group["lr"] = self.rate(self.taken) * (group["initial_lr"] / self._largest)
        self.taken += 1
        if self.subnet is not None:
            self._step = (self.subnet,)
            return self._step
        self._step = (*fixed, *self._drawn)
        return self._step

    def tell(self, losses: Sequence[float]) -> None:
        """Take the losses of the sub-networks of the last step, in the same order and equal on all processes.

        Only attentive sampling uses them.

        Raises:
            TrainingError: there are fewer or more losses than sub-networks.
        """
        self._sampler.tell(self._step, losses)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the schedule as plain data for a JSON file."""
        drawn = [subnet.to_json() for subnet in self._drawn]
        return {"taken": self.taken, "sampler": self._sampler.state_dict(), "drawn": drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at the position that `state_dict` returned."""
        self.taken = state["taken"]
        self._sampler.load_state_dict(state["sampler"])
        self._drawn = tuple(Subnet.from_json(one) for one in state["drawn"])


def optimizer_tensors(optimizer: Optimizer | None, supernet: SuperNetwork) -> list[dict[str, Tensor]]:
    """Return the state tensors of `optimizer` that have the shape of a parameter (momenta), by parameter name."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, parameter in supernet.model.named_parameters():
        for key, value in ({} if optimizer is None else optimizer.state.get(parameter, {})).items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                found.setdefault(key, {})[name] = value
    return list(found.values())
