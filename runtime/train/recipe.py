"""`Recipe` and `Distillation`: the settings of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from torch import Tensor

from bnas.passes.settings import Count, Dimension, Fraction, NotNegative, Positive, Seed, Whole, settings
from bnas.runtime.errors import TrainingError

from .imitation import float_tensors
from .sampler import Sampling
from .stages import PROGRESSIVITY, CosineSchedule

# Knowledge distillation: a sub-network learns from the outputs of a teacher.


@settings(TrainingError)
class Distillation:
    """Settings of knowledge distillation: sub-networks learn from a teacher, besides or instead of the targets.

    Raises:
        TrainingError: names every setting that is out of its bounds.
    """

    teacher: Literal["maximal", "original"] = "maximal"
    """"maximal": all others learn from the maximal sub-network's outputs in the same step (in-place distillation, Yu et
    al. 2020, BigNAS, section 3.1). "original": all learn from a frozen copy of the original, in evaluation mode."""
    type: Literal["softmax", "mse"] = "softmax"
    """"softmax": cross-entropy against the softmax over the classes (Hinton et al. 2015). With your own loss, the first
    batch shows how to compare outputs: class scores by the softmax over the axis from which your loss reads them; and
    where your loss is a distance, by your loss, with the teacher's outputs as targets. All other outputs, such as boxes
    or embeddings, are learned from the targets alone. "mse": the mean squared error of all outputs."""
    scale: Positive = 1.0
    """Factor of the distillation loss."""
    temperature: Positive = 1.0
    """Temperature of the softmax; the loss is multiplied by its square, so that gradients keep their size."""
    hard: NotNegative = 0.0
    """Factor of the loss against the targets, which is added; BootstrapNAS uses 1."""

    @field_validator("temperature")
    @classmethod
    def _of_softmax(cls, temperature: float, known: ValidationInfo) -> float:
        if known.data.get("type") == "mse" and temperature != 1:
            raise ValueError("temperature is only for the type softmax, not for mse: remove it")
        return temperature

    def loss(self, outputs: Any, teacher: Any, class_axes: Mapping[str, int] | None = None) -> Tensor:
        """Return the scaled distillation loss of `outputs`; nested outputs are matched by place and summed up.

        Args:
            outputs: Outputs of the sub-network.
            teacher: Outputs of the teacher.
            class_axes: The outputs to compare, with the axis of their class scores; by default all, and axis 1.

        Raises:
            TrainingError: outputs and teacher differ in structure or shape; names the place.
        """
        mine, theirs = dict(float_tensors(outputs)), dict(float_tensors(teacher))
        for place in sorted(mine.keys() ^ theirs.keys()):
            raise TrainingError(
                f"distillation: {place} is not among the outputs of both teacher and sub-network; "
                "give a teacher with the same outputs, or distillation=None"
            )
        if not mine:
            raise TrainingError(
                "distillation: there is no floating-point tensor among the outputs; set distillation=None"
            )
        axes = dict.fromkeys(mine, 1) if class_axes is None else class_axes
        return self.scale * sum((self._distance(one, mine[one], theirs[one], axes[one]) for one in axes), start=_ZERO)

    def _distance(self, place: str, output: Tensor, target: Tensor, axis: int) -> Tensor:
        output, target = output.float(), target.detach().float()
        if output.shape != target.shape:
            shapes = f"{tuple(output.shape)} and the teacher's {tuple(target.shape)}"
            raise TrainingError(f"distillation: {place} has shape {shapes}; they must be equal: give another teacher")
        if self.type == "mse" or output.ndim < 2 or output.shape[axis] == 1:
            return F.mse_loss(output, target)
        soft = (target.movedim(axis, 1) / self.temperature).softmax(1)
        return F.cross_entropy(output.movedim(axis, 1) / self.temperature, soft) * self.temperature**2


_ZERO: Any = 0.0


Kind = Annotated[
    Literal["sgd", "adam", "adamw", "rmsprop"],
    BeforeValidator(
        lambda value: value.lower() if isinstance(value, str) else value,
        json_schema_input_type=Literal["sgd", "adam", "adamw", "rmsprop", "SGD", "Adam", "AdamW", "RMSprop"],
    ),
]

RULES: Mapping[str, tuple[str, ...]] = {"random": (), "maximal": ("maximal",), "sandwich": ("maximal", "minimal")}
"""For each rule, the sub-networks that every step trains besides random ones."""

OWN = {"momentum": ("sgd", "rmsprop"), "nesterov": ("sgd",), "betas": ("adam", "adamw")}
"""For each setting that not all optimizers have: the optimizers that have it."""


def _taught(known: dict[str, Any]) -> Distillation | None:
    """Default distillation: from the maximal sub-network, if the rule trains it."""
    return None if known.get("rule") == "random" else Distillation()


@settings(TrainingError)
class Recipe:
    """Settings of a training, the same for all stages; an argument of `bnas.Trainer`.

    Raises:
        TrainingError: names every setting that is out of its bounds.
    """

    rule: Literal["random", "maximal", "sandwich"] = "maximal"
    """What a step trains besides random sub-networks: "random": nothing; "maximal"; "sandwich": maximal and minimal."""
    subnets_per_step: Count | None = None
    """Number of sub-networks of a step, in total; by default those of the rule plus one random one. All see the same
    batch, and their gradients add up."""
    sampling: Sampling = "uniform"
    """How random sub-networks are drawn. "uniform": all equally likely (few large ones); "spread": all sizes equally
    likely; "attentive": all sizes, preferring promising ones by the losses so far."""
    distillation: Distillation | None = Field(default_factory=_taught)
    """Knowledge distillation. By default from the maximal sub-network, if the rule trains it; null: learn from the
    targets alone."""
    optimizer: Kind = "sgd"
    """Optimizer of `torch.optim`: "sgd", "adam", "adamw" or "rmsprop". In Python, pass any other one to the trainer."""
    learning_rate: Positive = 0.01
    """Learning rate at the start of a stage without ``init_lr``. An optimizer passed to the trainer has its own."""
    momentum: Fraction | None = None
    """Momentum of sgd (default 0.9) and rmsprop (default 0)."""
    nesterov: bool | None = None
    """Nesterov momentum of sgd; by default on if there is a momentum."""
    betas: tuple[Fraction, Fraction] | None = None
    """Betas of adam and adamw; by default 0.9 and 0.999."""
    weight_decay: NotNegative = 1e-4
    """Weight decay: added to the gradients; with adamw applied to the weights directly."""
    no_decay_keys: str | None = None
    """Parameters without weight decay: parts of their names, separated by #, such as "bn#bias"."""
    lr_schedule: CosineSchedule | None = None
    """One cosine for the whole training instead of one for each stage."""
    label_smoothing: Fraction = 0.0
    """Label smoothing of the cross-entropy against the targets, as in `torch.nn.CrossEntropyLoss`."""
    clip_norm: Positive | None = None
    """Largest norm of the gradients of a step, over all parameters; by default not limited."""
    ema_decay: Fraction | None = None
    """Decay of running averages of the shared weights. Validation uses the averages, and the training ends with them.
    By default off."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """"bfloat16": forward passes under `torch.autocast`; parameters, gradients and losses stay in float32."""
    checkpoint_activations: bool = False
    """Keep fewer activations of the forward pass, and recompute them in the backward pass: for networks that do not fit
    into memory. The gradients are the same; a step takes up to a third longer."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """Memory layout of images; "auto": the faster one in a short measurement before the first step."""
    accumulate: Count = 1
    """Number of batches of a step. All train the same sub-networks, and their losses are averaged."""
    train_steps: Count | None = None
    """Number of samples of an epoch, in whole batches; by default all. A loader without a length needs it.
    (BootstrapNAS documents this and ignores it.)"""
    num_bn_adaptation_samples: Whole = 2000
    """Training samples (with the training transform) for BatchNorm statistics; 0: never recalibrate."""
    progressivity_of_elasticity: tuple[Dimension, ...] = PROGRESSIVITY
    """The order in which stages add dimensions."""
    seed: Seed = 0
    """Seed of the random sub-networks; the loader decides the order of the data."""

    @field_validator("subnets_per_step")
    @classmethod
    def _room_for_the_rule(cls, count: int | None, known: ValidationInfo) -> int | None:
        rule = known.data.get("rule")
        if rule is not None and count is not None and count < max(1, len(RULES[rule])):
            raise ValueError(f"too few for the rule {rule!r}, which needs at least {len(RULES[rule])}")
        return count

    @field_validator("sampling")
    @classmethod
    def _served_by_the_rule(cls, sampling: str, known: ValidationInfo) -> str:
        rule = known.data.get("rule")
        if rule is not None and sampling == "attentive" and "maximal" not in RULES[rule]:
            raise ValueError(
                f"attentive sampling needs losses of the maximal sub-network, which the rule {rule!r} does not train; "
                'use the rule "maximal" or "sandwich"'
            )
        return sampling

    @field_validator("distillation")
    @classmethod
    def _teacher_is_trained(cls, distillation: Distillation | None, known: ValidationInfo) -> Distillation | None:
        rule = known.data.get("rule")
        taught = distillation is not None and distillation.teacher == "maximal"
        if rule is not None and taught and "maximal" not in RULES[rule]:
            raise ValueError(
                f"the teacher is the maximal sub-network, which the rule {rule!r} does not train; "
                'use the rule "maximal" or "sandwich", the teacher "original", or no distillation'
            )
        return distillation

    @field_validator(*OWN)
    @classmethod
    def _of_the_optimizer(cls, value: Any, known: ValidationInfo) -> Any:
        check_of_optimizer(known.data.get("optimizer"), str(known.field_name), value)
        return value

    @field_validator("nesterov")
    @classmethod
    def _along_a_momentum(cls, nesterov: bool | None, known: ValidationInfo) -> bool | None:
        if nesterov and known.data.get("momentum") == 0:
            raise ValueError("nesterov needs a momentum above 0: set momentum, or turn nesterov off")
        return nesterov


def check_of_optimizer(kind: str | None, name: str, value: Any) -> None:
    """Raise ValueError if an optimizer of this kind does not have the setting."""
    if value is not None and kind is not None and kind not in OWN[name]:
        raise ValueError(f"{name} is only for {' and '.join(OWN[name])}; with {kind} remove it or set it to null")
