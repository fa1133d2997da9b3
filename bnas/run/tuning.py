"""The fine-tuning of a run: one winner after another. An interrupted winner continues from its own checkpoint."""

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
from bnas.passes.frontend.copies import deep_copy
from bnas.runtime import Epochs, Evaluator, FineTune, Recipe, Stage, SuperNetwork, Trainer
from bnas.runtime.storage.archive import tensor_bytes
from bnas.runtime.storage.checkpoint import TRAINING, check_state
from bnas.runtime.storage.files import there, write_bytes, write_json
from bnas.runtime.train import parallel, random_state
from bnas.runtime.train.batches import Batches
from bnas.runtime.train.share import shared_out
from bnas.runtime.train.tuning import alone, shared_lengths

from . import team
from .commands import step_command
from .job import Job, Watch
from .mark import OutputError
from .output import TUNING, Output
from .winners import Winners, check_name

FORMAT = 1

# The record of a fine-tuning, and its file.


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned sub-network, with its accuracy (or the job's metric) on the validation data."""

    name: str
    """Name of the winner; if it has several, the first one."""
    subnet: Subnet
    before: float
    after: float | None = None
    """Accuracy before the fine-tuning; None until the whole fine-tuning is finished."""

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
        """Whether both records have the same winners and settings, so that one can continue the other."""
        names = [[(one.name, one.subnet) for one in record.winners] for record in (self, other)]
        return self.settings == other.settings and names[0] == names[1]

    def write(self, path: Path) -> None:
        """Write the file, atomically."""
        winners = [one.to_json() for one in self.winners]
        write_json(path, {"format": FORMAT, "settings": dict(self.settings), "winners": winners})


def _weights(name: str) -> str:
    """Return the file name, in the run folder, of the weights of a fine-tuned winner."""
    return f"tuning/{name}.safetensors"


def read_record(output: Output) -> Record | None:
    """Read ``tuning.json``; None if it does not exist.

    Raises:
        OutputError: The file is damaged, or of another format.
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
    """Return the extracted sub-network with the weights and statistics in `file`.

    Raises:
        OutputError: The file cannot be read.
        CheckpointError: The file belongs to another sub-network.
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
    """Return the winners after a finished fine-tuning, in evaluation mode.

    Raises:
        OutputError: The folder has no finished fine-tuning of these winners; the message has the command for it.
    """
    record = read_record(output)
    subnets = {one.subnet for one in winners.found.values()}
    if record is None or not record.finished or {one.subnet for one in record.winners} != subnets:
        told = step_command("tune", output.folder, resume=record is not None)
        raise OutputError(f"{output.folder} holds no finished fine-tuning of its winners; run it with `{told}`")
    files = {one.subnet: output.ledger.check(_weights(one.name)) for one in record.winners}
    return {subnet: read_module(supernet, subnet, file).eval() for subnet, file in files.items()}


def in_order(winners: Winners, supernet: SuperNetwork) -> dict[Subnet, str]:
    """Return the sub-networks to fine-tune by name, largest first; one with several names has its first name."""
    named = {one.subnet: name for name, one in reversed(tuple(winners.found.items()))}
    return {subnet: named[subnet] for subnet in sorted(named, key=lambda one: -supernet.costs(one)["macs"])}


# The fine-tuning itself.


def as_planned(_: int) -> float:
    """Return 1: every winner is trained as long as planned."""
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
    """Returns the factor by which the winner at a place is trained longer than planned; called when its turn comes."""

    def run(self, winners: Winners) -> Record:
        """Fine-tune all winners. Finished winners stay as they are, and an interrupted one continues.

        If the folder has a fine-tuning of other winners, its files are replaced.
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
        """Return the record of the work to do: each sub-network once, largest first."""
        order = in_order(winners, self.supernet).items()
        before = {name: winners.found[name].values[self.job.quality.name] for _, name in order}
        planned = tuple(Tuned(name, subnet, before[name]) for subnet, name in order)
        return Record(json.loads(json.dumps(asdict(self.settings))), planned)

    def trained(self, record: Record) -> tuple[Tuned, ...]:
        """Train the winners; of several processes, only process 0 writes and measures them."""
        return tuple(self._made(record))

    def _made(self, record: Record) -> Iterator[Tuned]:
        """Yield each winner after its training and after its weights are written."""
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
        """Return a copy of the trained super-network."""
        return SuperNetwork.load(self.output.folder / "supernet", deep_copy(self.job.model)).eval()

    def _alone(self, one: Tuned, length: float) -> GraphModule:
        """Train a winner as a standalone module, for this multiple of the length."""
        module = self.evaluator.prepare(one.subnet)
        single = alone(module, self.supernet.example_inputs)
        self._fit(one.name, self._trainer(one.name, single, length))
        module.load_state_dict(single.model.state_dict())
        return module

    def _in(self, shared: SuperNetwork, one: Tuned, length: float) -> GraphModule:
        """Train a winner in the shared weights, after the larger ones, for this multiple of the length."""
        self._fit(one.name, self._trainer(one.name, shared, length, subnet=one.subnet))
        return shared.extract(one.subnet)

    def _lasting(self, length: float) -> tuple[int, Recipe]:
        """Return epochs and recipe of a training with this multiple of the length in the settings."""
        if length == 1:
            return self.settings.epochs, self._recipe
        loader, accumulate = self.job.data.train, self.job.recipe.accumulate
        steps = self.settings.epochs * Batches(loader, accumulate, self._recipe.train_steps).steps
        epochs = Epochs.of(max(1, round(length * steps)), loader, accumulate=accumulate)
        return epochs.total, replace(self._recipe, train_steps=epochs.train_steps)

    @property
    def _recipe(self) -> Recipe:
        """The recipe without BatchNorm recalibration, which the evaluator does afterwards."""
        return replace(self.settings.recipe(self.job.recipe), num_bn_adaptation_samples=0)

    def _trainer(self, name: str, supernet: SuperNetwork, length: float, **more: Any) -> Trainer:
        """Return the trainer of a winner, for this multiple of the length."""
        epochs, recipe = self._lasting(length)
        own = {key: value for key, value in self.job.training.items() if key in ("criterion", "checkpoint_every")}
        told: dict[str, Any] = {"callbacks": (self.watch, *self.job.callbacks), "name": name}
        settings = {"directory": self.output.path(f"tuning/{name}"), "teacher": self.original, **own, **more}
        return Trainer(supernet, [Stage(epochs=epochs)], recipe, **told, **settings)

    def _fit(self, name: str, trainer: Trainer) -> None:
        """Train with freshly seeded generators, so that earlier draws of this process do not matter."""
        if TRAINING.exists(self.output.folder / f"tuning/{name}/last"):
            self.output.ledger.check(f"tuning/{name}/last/{TRAINING.manifest}")
        with random_state.undisturbed(self.job.data.train, self.job.recipe.seed):
            trainer.fit(shared_out(self.job.data.train), resume=True)
