"""The settings of a training, as a value that JSON can hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .distillation import Distillation
from .errors import TrainingError
from .layout import LAYOUTS
from .rate import CosineSchedule
from .schedule import RULES, check_rule
from .stage import PROGRESSIVITY

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """How the stages are trained; `bnas.Trainer` takes one."""

    rule: str = "maximal"
    """What a step trains besides random sub-networks: "random" nothing, "maximal", or "sandwich" (maximal, minimal)."""
    subnets_per_step: int | None = None
    """All sub-networks of a step, those of the rule included; by default one random one beside those of the rule.
    Each sees the same batch; their gradients add up."""
    sampling: str = "uniform"
    """Which random sub-networks: "uniform" any with the same probability, of which few are large; "spread" of all
    sizes from those to the maximal; "attentive" the most promising ones of all sizes, by the losses so far."""
    distillation: Distillation | None = field(default_factory=Distillation)
    """What sub-networks learn from a teacher; all learn from the targets alone if None."""
    learning_rate: float = 0.01
    """At the start of a stage that has no ``init_lr``; that of the optimizer, where the trainer gets one."""
    lr_schedule: CosineSchedule | None = None
    """One rate for the whole training instead."""
    momentum: float = 0.9
    """This and the next two are those of `torch.optim.SGD`, where the trainer gets no optimizer."""
    weight_decay: float = 1e-4
    nesterov: bool = True
    label_smoothing: float = 0.0
    """Of the cross-entropy against the targets, as in `torch.nn.CrossEntropyLoss`."""
    clip_norm: float | None = None
    """Largest norm of all gradients of a step together; not limited if None."""
    ema_decay: float | None = None
    """Decay of averages of the shared weights, which validation uses and which the training ends with; none if None."""
    precision: str = "float32"
    """"bfloat16": forward passes under `torch.autocast`; parameters, gradients and losses stay in float32."""
    memory_format: str = "auto"
    """"contiguous", "channels_last", or "auto": the faster one in a short measurement before the first step."""
    accumulate: int = 1
    """Batches of one step; all of them train the same sub-networks, and their losses are averaged."""
    train_steps: int | None = None
    """Samples of an epoch, in whole batches (BootstrapNAS documents it so, and ignores it); all if None."""
    num_bn_adaptation_samples: int = 2000
    """Training samples, through the training transform, for BatchNorm statistics; 0: never recalibrated."""
    progressivity_of_elasticity: tuple[str, ...] = PROGRESSIVITY
    """The order in which stages add dimensions."""
    seed: int = 0
    """Fixes the sub-networks; the order of the data is the loader's."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check_rule(self.rule, self.subnets_per_step, self.sampling)
        taught = self.distillation is not None and self.distillation.teacher == "maximal"
        if taught and "maximal" not in RULES[self.rule]:
            raise TrainingError(
                f"the teacher is the maximal sub-network, which the rule {self.rule!r} does not train; "
                'take the rule "maximal" or "sandwich", the teacher "original", or no distillation'
            )
        for name, allowed in (("precision", PRECISIONS), ("memory_format", ("auto", *LAYOUTS))):
            if getattr(self, name) not in allowed:
                raise TrainingError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name in ("learning_rate", "clip_norm"):
            number = getattr(self, name)
            if number is not None and not 0 < number < math.inf:
                raise TrainingError(f"{name}: {number} is not a positive number")
        for name in ("accumulate", "train_steps"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise TrainingError(f"{name}: {number} is smaller than 1")
        for name in ("label_smoothing", "ema_decay"):
            number = getattr(self, name)
            if number is not None and not 0 <= number < 1:
                raise TrainingError(f"{name}: {number} is not in [0, 1)")
        if self.num_bn_adaptation_samples < 0:
            raise TrainingError(f"num_bn_adaptation_samples: {self.num_bn_adaptation_samples} is negative")
