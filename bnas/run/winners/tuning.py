"""The fine-tuning of a run: one winner after another. An interrupted winner continues from its own checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn
from torch.fx import GraphModule

from bnas.passes import Subnet
from bnas.passes.frontend.copies import deep_copy
from bnas.run import team
from bnas.run.files.names import TUNING
from bnas.run.files.output import Output
from bnas.run.files.weights import check_training
from bnas.run.job import Job, Watch
from bnas.runtime import Epochs, Evaluator, FineTune, Recipe, Stage, SuperNetwork, Trainer
from bnas.runtime.storage.archive import tensor_bytes
from bnas.runtime.storage.files import there, write_bytes
from bnas.runtime.train import parallel, random_state
from bnas.runtime.train.batches import Batches
from bnas.runtime.train.share import shared_out
from bnas.runtime.train.tuning import alone, shared_lengths

from .tuned import Record, Tuned, in_order, read_record, weights_of
from .winners import Again, Chosen, Winners


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
    again: Again | None = None
    """In shared weights, chooses each smaller winner again; of several processes, only process 0 needs it."""

    def run(self, winners: Winners) -> Record:
        """Fine-tune all winners. Finished winners stay as they are, and an interrupted one continues.

        If the folder has a fine-tuning of other winners, its files are replaced.
        """
        record, before = self.planned(winners), read_record(self.output)
        if before is not None and before.same(record):
            if before.finished and all(there(self.output.folder / weights_of(one.name)) for one in before.winners):
                return before
            record = before
        else:
            self.output.ledger.remove(self.output.ledger.removable((TUNING, "tuning")))
            record.write(self.output.path(TUNING))
        with team.joint("tune", settings=self.settings, record=record):
            done = self.trained(record)
        done.write(self.output.path(TUNING))
        return done

    def planned(self, winners: Winners) -> Record:
        """Return the record of the work to do: each sub-network once, largest first."""
        order = in_order(winners, self.supernet).items()
        before = {name: winners.found[name].values[self.job.quality.name] for _, name in order}
        planned = tuple(Tuned(name, subnet, before[name]) for subnet, name in order)
        return Record(json.loads(json.dumps(asdict(self.settings))), planned)

    def trained(self, record: Record) -> Record:
        """Train the winners; of several processes, only process 0 writes and measures them.

        In shared weights, each winner but the first one may be chosen again when its turn comes.
        """
        shared = self._shared() if self.settings.order == "shared" else None
        lengths = shared_lengths(self.supernet, [one.searched for one in record.winners])
        for place, one in enumerate(record.winners):
            if shared is not None and place and one.chosen is None:
                one = self._again(shared, one, record.winners[place - 1].subnet)
                record = self._noted(record, one)
            self.watch.phase(f"fine-tuning {one.name}")
            pace = parallel.from_first(self.pace(place))
            tuned = self._alone(one, pace) if shared is None else self._in(shared, one, pace * lengths[one.searched])
            if parallel.rank() == 0:
                record = record.updated(self._finished(one, tuned))
        return record

    def _again(self, shared: SuperNetwork, one: Tuned, larger: Subnet) -> Tuned:
        """Choose a winner again, in process 0, or leave it as it is; all processes have the result."""
        found = None
        if self.again is not None:
            self.watch.phase(f"choosing {one.name}")
            found = self.again(shared, one.name, larger)
        chosen: Chosen | None = parallel.from_first(found)
        if chosen is None or parallel.rank() > 0:
            return replace(one, chosen=chosen)
        before = self.evaluator.evaluate(chosen.evaluation.subnet)[self.job.quality.name]
        return replace(one, chosen=chosen, before=before)

    def _noted(self, record: Record, one: Tuned) -> Record:
        """Return the record with a winner that was chosen again, and write it: a resumed run keeps the choice."""
        record = record.updated(one)
        if parallel.rank() == 0:
            record.write(self.output.path(TUNING))
        return record

    def _finished(self, one: Tuned, module: GraphModule) -> Tuned:
        """Write the weights of a trained winner, and measure it."""
        module = self.evaluator.recalibrated(module)
        write_bytes(self.output.path(weights_of(one.name)), tensor_bytes(module.state_dict()))
        return replace(one, after=self.evaluator.measure(module))

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
        check_training(self.output, f"tuning/{name}")
        with random_state.undisturbed(self.job.data.train, self.job.recipe.seed):
            trainer.fit(shared_out(self.job.data.train), resume=True)
