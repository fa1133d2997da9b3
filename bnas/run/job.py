"""What a run needs: model, data and settings as one value, and who is told while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from bnas.loggers import TensorBoard
from bnas.passes import Elasticity
from bnas.runtime import (
    EpochRecord,
    FineTune,
    Int8,
    LatencySettings,
    Progress,
    Recipe,
    Stage,
    SuperNetwork,
    TrainingError,
)
from bnas.runtime.evaluate.evaluation import Loader
from bnas.runtime.train.callbacks import checked_callbacks
from bnas.runtime.train.stages import STAGES
from bnas.search import Callback, Constraint, Evaluation, Objective, SearchError, SearchRecord, SearchSettings

from .budget import Plan, seconds_of
from .latencies import INT8_ACCURACY, LATENCY, check_clocks, of_objectives
from .winners import checked_targets

if TYPE_CHECKING:
    import os

    from .output import Output


@dataclass(frozen=True)
class Splits:
    """The data of a job."""

    train: Loader
    """Batches through the training transform: for training and for BatchNorm statistics."""
    validation: Loader
    """Held out from training: what the search measures on."""
    test: Loader
    """Seen by neither training nor search: what is reported."""
    record: Mapping[str, Any] | None = None
    """What the data are and what was held out, as plain data; a run keeps it as ``data.json``."""


def sought(bounded: Iterable[str]) -> tuple[Objective, ...]:
    """What is searched for where nobody says it: the most accuracy, and the least of what is bounded, or of MACs."""
    costs = list(bounded) or ["macs"]
    return (Objective("accuracy", "max"), *(Objective(name, "min") for name in costs))


@dataclass(frozen=True)
class Job:
    """All that a run needs: `bnas.run_job` runs it. `from_config` makes one of a configuration file."""

    model: nn.Module
    """The pre-trained model, on the device that is to be computed on; training changes its parameters in place."""
    data: Splits
    example_inputs: Any
    """A tensor, or a tuple or dict of inputs, with the batch as axis 0."""
    elasticity: Elasticity = field(default_factory=Elasticity)
    stages: Sequence[Stage] = STAGES
    recipe: Recipe = field(default_factory=Recipe)
    """How the stages are trained."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of `bnas.Trainer`."""
    search: SearchSettings = field(default_factory=SearchSettings)
    """How sub-networks are searched for; its seed also fixes what is random in a training beside the recipe."""
    objectives: Sequence[Objective] | None = None
    """What is searched for: accuracy, which winners are chosen by, or "int8_accuracy", which then they are chosen by,
    and any others. By default the most accuracy and the least of what the targets bound, or without targets the fewest
    MACs. Where an objective, a constraint or a target is
    "latency", or one of `latencies`, a latency model is fitted to the trained super-network and kept as
    ``latency.json``, or ``latencies/NAME.json``."""
    targets: Mapping[str, Constraint] = field(default_factory=dict)
    """Winners by their names, such as {"half": "macs <= 50 %"}: each is the most accurate sub-network of the search
    within its bound. A bound in percent is of the original. A latency is measured before a winner is chosen. Without
    targets the winners are "best" and "smallest"."""
    num_bn_adaptation_samples: int = 2000
    """Training samples for the BatchNorm statistics of each sub-network that is searched."""
    fine_tune: FineTune | None = None
    """How the winners are fine-tuned before they are exported; by default they are not."""
    budget: float | None = None
    """Seconds of the wall clock for the whole run, or a text such as "30m": the epochs of the stages and of `fine_tune`
    and the evaluations are planned by it. Stages keep their proportions; a search has no more than its `num_evals`."""
    acc_delta: float = 0.01
    """How much accuracy a winner may lose against the original, as a fraction, where there are no targets."""
    reference: float | Literal["original", "maximal"] = "original"
    """What winners are held against: an accuracy as a fraction, or that of the original or the trained maximal network.

    An original that was trained on the validation data too does too well there: then say "maximal".
    """
    latency: LatencySettings = field(default_factory=LatencySettings)
    """How the value "latency" is measured."""
    latencies: Mapping[str, LatencySettings] = field(default_factory=dict)
    """Further latencies by the names of their values, such as {"phone": LatencySettings(target=...)}, each measured in
    its own way. Objectives, constraints and targets take their names."""
    int8: Int8 | None = field(default_factory=Int8)
    """Each ONNX file gets an int8 one beside it, calibrated on the training data unless it says otherwise; None: it
    does not."""
    tensorboard: bool = False
    """Write scalars of training and search for TensorBoard."""
    callbacks: Sequence[Callback] = ()
    """Told of the training, the search and each fine-tuning of a winner, whose name a `Training` has; such as the
    loggers of `bnas.loggers`. They may be others when the run is resumed."""
    dynamic: Mapping[str, Mapping[int, str]] | None = None
    """Names of axes whose size may change, as `bnas.SuperNetwork.from_model` takes them; by default all that can."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", checked_targets(self.targets))
        if "callbacks" in self.training:
            raise TrainingError("training: 'callbacks' is a setting of the job; give Job(callbacks=[...])")
        object.__setattr__(self, "callbacks", checked_callbacks(self.callbacks, Callback, TrainingError))
        check_clocks(self.latency, self.latencies, self.objectives)
        if self.int8 is None and self.chosen_by == INT8_ACCURACY:
            raise SearchError(f"objective {INT8_ACCURACY!r}: int8 files are not asked for; give int8=Int8()")
        object.__setattr__(self, "budget", None if self.budget is None else seconds_of(self.budget))
        if self.chosen_by not in (names := [one.name for one in self.sought]):
            raise SearchError(f"objectives {names}: 'accuracy' must be one of them, winners are chosen by it")

    @property
    def tuning(self) -> FineTune | None:
        """How winners are fine-tuned: with a budget they are, whatever else is said."""
        return self.fine_tune or (None if self.budget is None else FineTune(epochs=1))

    @property
    def chosen_by(self) -> str:
        """The value that winners are chosen by: the accuracy in int8 where that is an objective."""
        asked = [one.name for one in self.objectives or ()]
        return INT8_ACCURACY if INT8_ACCURACY in asked else "accuracy"

    @property
    def sought(self) -> tuple[Objective, ...]:
        """The objectives, and what the targets bound, so that the search looks near the bounds."""
        bounded = dict.fromkeys(one.name for one in self.targets.values())
        given = tuple(sought(bounded) if self.objectives is None else self.objectives)
        names = {one.name for one in given}
        return (*given, *(Objective(name, "min") for name in bounded if name not in names))

    @property
    def clocks(self) -> dict[str, LatencySettings]:
        """How each value that is a latency is measured: "latency", `latencies`, and objectives that have a target."""
        return {LATENCY: self.latency, **self.latencies, **of_objectives(self.latency, self.objectives)}

    @staticmethod
    def from_config(path: str | os.PathLike[str], changes: Sequence[str] = (), *, trust: bool = False) -> Job:
        """Return the job that a configuration file describes, with its model and data loaded.

        Args:
            path: A file in JSON, JSON5 or YAML. Names of files in it are relative to its folder.
            changes: ``KEY=VALUE``, as ``--set`` of the command line takes them.
            trust: Also import code that the file names where it is the ``config.json`` of a run that another person
                made. Read the code first.

        Raises:
            TrustError: The file is that of a run, and names code that you have not named before.
            ConfigurationError: The file says something that is not allowed; names all keys.
            BnasError: Model, weights, data or device are not there, or do not fit one another.
        """
        from bnas.config.file import load_config

        from .runner import job_of
        from .trust import admit

        configuration = load_config(Path(path), changes)
        admit(Path(path), configuration, changes, trust=trust)
        return job_of(configuration, Path(path).parent)


@dataclass(frozen=True)
class Watch(Callback):
    """The functions that are called while a job runs, to show its progress; each may be replaced."""

    phase: Callable[[str], None] = lambda _: None
    on_supernet: Callable[[SuperNetwork], None] = lambda _: None
    """Gets the super-network when it is made or loaded, with what the passes found and refused."""
    on_step: Callable[[Progress], None] = lambda _: None
    on_epoch: Callable[[EpochRecord], None] = lambda _: None
    on_evaluation: Callable[[Evaluation, int], None] = lambda _, __: None
    """Gets the evaluation and how many there will be."""
    on_plan: Callable[[Plan], None] | None = None
    """Gets the plan of a run before its first phase, and with a budget again before each later one. Without a budget a
    plan is only made where somebody asks for it in this way: steps are measured for it, for a few seconds."""

    def on_step_end(self, progress: Progress) -> None:
        """Call `on_step`."""
        self.on_step(progress)

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Call `on_epoch`."""
        self.on_epoch(record)

    def on_evaluation_end(self, record: SearchRecord) -> None:
        """Call `on_evaluation`."""
        self.on_evaluation(record.evaluation, record.planned)


def callbacks_of(job: Job, watch: Watch, output: Output, phase: Literal["training", "search"]) -> tuple[Callback, ...]:
    """All callbacks of the training or the search of a run.

    Raises:
        LoggerError: TensorBoard is asked for, and not installed.
        OutputError: the folder of its files is a symbolic link.
    """
    if not job.tensorboard:
        return (watch, *job.callbacks)
    return (watch, *job.callbacks, TensorBoard(output.path(f"{phase}/tensorboard")))
