"""The fine-tuning of a run: its winners one after another, each from its own checkpoint where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bnas.passes import Subnet
from bnas.passes.frontend.state import deep_copy
from bnas.runtime import Epochs, Evaluator, FineTune, Recipe, Stage, SuperNetwork, Trainer
from bnas.runtime.storage.archive import tensor_bytes
from bnas.runtime.storage.checkpoint import TRAINING, check_state
from bnas.runtime.storage.files import there, write_bytes, write_json
from bnas.runtime.train import parallel, random_state
from bnas.runtime.train.batches import Batches
from bnas.runtime.train.share import shared_out
from bnas.runtime.train.tuning import alone, shared_lengths

from . import team
from .job import Job, Watch
from .mark import OutputError
from .output import TUNING, Output
from .winners import Winners, check_name

FORMAT = 1

# What a fine-tuning does and has done, and its file.


@dataclass(frozen=True)
class Tuned:
    """A sub-network that is fine-tuned, and its accuracy, or the metric of the job, on the validation data."""

    name: str
    """Of the winner; the first of its names, where it has several."""
    subnet: Subnet
    before: float
    after: float | None = None
    """None before the end of the whole fine-tuning."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file; `from_json` reads it."""
        numbers = {"before": self.before, "after": self.after}
        return {"name": self.name, "subnet": self.subnet.to_json(), "validation_accuracy": numbers}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], place: str) -> Tuned:
        """What `to_json` told, in the file `place`."""
        numbers = data["validation_accuracy"]
        return cls(check_name(data["name"], place), Subnet.from_json(data["subnet"]), **numbers)


@dataclass(frozen=True)
class Record:
    """The file ``tuning.json``."""

    settings: Mapping[str, Any]
    winners: tuple[Tuned, ...]

    @property
    def finished(self) -> bool:
        """Whether all winners are fine-tuned."""
        return all(one.after is not None for one in self.winners)

    def same(self, other: Record) -> bool:
        """Whether both are of the same winners and settings, so that the one goes on with the other."""
        names = [[(one.name, one.subnet) for one in record.winners] for record in (self, other)]
        return self.settings == other.settings and names[0] == names[1]

    def write(self, path: Path) -> None:
        """Write the file, atomically."""
        winners = [one.to_json() for one in self.winners]
        write_json(path, {"format": FORMAT, "settings": dict(self.settings), "winners": winners})


def _weights(name: str) -> str:
    """Where the folder of a run has the weights of a fine-tuned winner."""
    return f"tuning/{name}.safetensors"


def read_record(output: Output) -> Record | None:
    """What ``tuning.json`` says; None where it is not there.

    Raises:
        OutputError: it is damaged, or of another format.
    """
    path = output.folder / TUNING
    if not there(path):
        return None
    data = output.ledger.json(TUNING)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise OutputError(f"{path} has an unknown format; this version of bnas reads format {FORMAT}")
    try:
        return Record(data["settings"], tuple(Tuned.from_json(one, str(path)) for one in data["winners"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OutputError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def read_module(supernet: SuperNetwork, subnet: Subnet, file: Path) -> GraphModule:
    """The extracted sub-network with the weights and statistics in `file`.

    Raises:
        OutputError: the file cannot be read.
        CheckpointError: it is of another sub-network.
    """
    try:
        state: dict[str, Tensor] = safetensors.torch.load_file(file)
    except Exception as error:
        raise OutputError(f"{file}: cannot be read: {error}") from error
    module = supernet.extract(subnet)
    check_state(module.state_dict(), state, str(file))
    module.load_state_dict(state)
    return module


def tuned_modules(output: Output, supernet: SuperNetwork, winners: Winners) -> dict[Subnet, GraphModule]:
    """The winners after a finished fine-tuning, in evaluation mode.

    Raises:
        OutputError: the folder holds no such fine-tuning of these winners; says which command makes it.
    """
    record = read_record(output)
    subnets = {one.subnet for one in winners.found.values()}
    if record is None or not record.finished or {one.subnet for one in record.winners} != subnets:
        told = f"bnas tune {output.folder}{' --resume' if record else ''}"
        raise OutputError(f"{output.folder} holds no finished fine-tuning of its winners; run it with `{told}`")
    files = {one.subnet: output.ledger.check(_weights(one.name)) for one in record.winners}
    return {subnet: read_module(supernet, subnet, file).eval() for subnet, file in files.items()}


def in_order(winners: Winners, supernet: SuperNetwork) -> dict[Subnet, str]:
    """The sub-networks to fine-tune, the largest first, each once by the first of its names."""
    named = {one.subnet: name for name, one in reversed(tuple(winners.found.items()))}
    return {subnet: named[subnet] for subnet in sorted(named, key=lambda one: -supernet.costs(one)["macs"])}


# The fine-tuning at work.


def as_planned(_: int) -> float:
    """Every winner is trained as long as planned."""
    return 1.0


@dataclass(frozen=True)
class Tuning:
    """Fine-tunes the winners of a search, in the folder of its run."""

    job: Job
    settings: FineTune
    output: Output
    watch: Watch
    supernet: SuperNetwork
    original: nn.Module
    """The teacher."""
    evaluator: Evaluator
    pace: Callable[[int], float] = as_planned
    """How many times as long as planned each winner is trained, by its place; asked when its turn comes."""

    def run(self, winners: Winners) -> Record:
        """Fine-tune all winners; one that is finished stays as it is, and one that was interrupted goes on.

        Where other winners were fine-tuned in this folder, their files are replaced.
        """
        record, before = self.planned(winners), read_record(self.output)
        if before is not None and before.same(record):
            if before.finished and all(there(self.output.folder / _weights(one.name)) for one in before.winners):
                return before
        else:
            self.output.ledger.remove(self.output.ledger.removable((TUNING, "tuning")))
            record.write(self.output.path(TUNING))
        with team.joint("tune", settings=self.settings, record=record):
            found = self.trained(record)
        done = Record(record.settings, found)
        done.write(self.output.path(TUNING))
        return done

    def planned(self, winners: Winners) -> Record:
        """What is to be done: each sub-network once, the largest first."""
        order = in_order(winners, self.supernet).items()
        before = {name: winners.found[name].values[self.job.quality.name] for _, name in order}
        planned = tuple(Tuned(name, subnet, before[name]) for subnet, name in order)
        return Record(json.loads(json.dumps(asdict(self.settings))), planned)

    def trained(self, record: Record) -> tuple[Tuned, ...]:
        """The winners after their training; only the first process of several writes and measures them."""
        return tuple(self._made(record))

    def _made(self, record: Record) -> Iterator[Tuned]:
        """Each winner after its training, whose weights are written."""
        shared = self._shared() if self.settings.order == "shared" else None
        lengths = shared_lengths(self.supernet, [one.subnet for one in record.winners])
        for place, one in enumerate(record.winners):
            self.watch.phase(f"fine-tuning {one.name}")
            pace = parallel.from_first(self.pace(place))
            tuned = self._alone(one, pace) if shared is None else self._in(shared, one, pace * lengths[one.subnet])
            if parallel.rank() > 0:
                continue
            module = self.evaluator.recalibrated(tuned)
            write_bytes(self.output.path(_weights(one.name)), tensor_bytes(module.state_dict()))
            yield Tuned(one.name, one.subnet, one.before, self.evaluator.measure(module))

    def _shared(self) -> SuperNetwork:
        """The trained super-network, on copies of its weights."""
        return SuperNetwork.load(self.output.folder / "supernet", deep_copy(self.job.model)).eval()

    def _alone(self, one: Tuned, length: float) -> GraphModule:
        """A winner that is trained by itself, for this multiple of the length."""
        module = self.evaluator.prepare(one.subnet)
        single = alone(module, self.supernet.example_inputs)
        self._fit(one.name, self._trainer(one.name, single, length))
        module.load_state_dict(single.model.state_dict())
        return module

    def _in(self, shared: SuperNetwork, one: Tuned, length: float) -> GraphModule:
        """A winner that is trained where the larger ones were trained, for this multiple of the length."""
        self._fit(one.name, self._trainer(one.name, shared, length, subnet=one.subnet))
        return shared.extract(one.subnet)

    def _lasting(self, length: float) -> tuple[int, Recipe]:
        """The epochs of a training that is so many times as long as the settings say, and its recipe."""
        if length == 1:
            return self.settings.epochs, self._recipe
        loader, accumulate = self.job.data.train, self.job.recipe.accumulate
        steps = self.settings.epochs * Batches(loader, accumulate, self._recipe.train_steps).steps
        epochs = Epochs.of(max(1, round(length * steps)), loader, accumulate=accumulate)
        return epochs.total, replace(self._recipe, train_steps=epochs.train_steps)

    @property
    def _recipe(self) -> Recipe:
        """The evaluator recalibrates BatchNorm statistics afterwards."""
        return replace(self.settings.recipe(self.job.recipe), num_bn_adaptation_samples=0)

    def _trainer(self, name: str, supernet: SuperNetwork, length: float, **more: Any) -> Trainer:
        """What trains a winner, for this multiple of the length."""
        epochs, recipe = self._lasting(length)
        own = {key: value for key, value in self.job.training.items() if key in ("criterion", "checkpoint_every")}
        told: dict[str, Any] = {"callbacks": (self.watch, *self.job.callbacks), "name": name}
        settings = {"directory": self.output.path(f"tuning/{name}"), "teacher": self.original, **own, **more}
        return Trainer(supernet, [Stage(epochs=epochs)], recipe, **told, **settings)

    def _fit(self, name: str, trainer: Trainer) -> None:
        """Train from generators with a fixed seed: whatever was drawn before by this process does not matter."""
        if TRAINING.exists(self.output.folder / f"tuning/{name}/last"):
            self.output.ledger.check(f"tuning/{name}/last/{TRAINING.manifest}")
        with random_state.undisturbed(self.job.data.train, self.job.recipe.seed):
            trainer.fit(shared_out(self.job.data.train), resume=True)
