"""The steps of a run: train, search, tune, export. Each step reads the files of earlier steps from the run folder."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cached_property

from torch import nn
from torch.fx import GraphModule

from bnas.passes import Subnet
from bnas.runtime import Evaluator, SuperNetwork, Trainer, fold, machine
from bnas.runtime.evaluate.evaluation import Batch, counted_samples
from bnas.runtime.feed import in_memory
from bnas.runtime.storage.checkpoint import MODEL, SUPERNET, TRAINING, write_model
from bnas.runtime.storage.files import write_json
from bnas.runtime.train import random_state
from bnas.runtime.train.batches import Batches
from bnas.runtime.train.share import shared_out
from bnas.runtime.train.timing import Clock
from bnas.search.source import by_name

from . import team
from .files.lock import holding
from .files.mark import OutputError
from .files.names import EVALUATIONS, EVALUATIONS_CSV, FOUND, FRONT, RESULTS, TUNING, WINNERS
from .files.output import Output, note_architecture, note_data, note_environment
from .files.weights import check_training, read_original
from .job import Job, Watch, callbacks_of, evaluator_of, trainer_settings
from .plan.outlook import Outlook
from .plan.planner import Planner
from .quantised import InInt8
from .results.delivery import Delivery
from .results.results import Report, judged
from .search import SearchPlan
from .spread import Elsewhere, spread
from .winners.choice import Choice
from .winners.tuned import Record, tuned_modules, winners_after
from .winners.tuning import Tuning
from .winners.winners import ORIGINAL, Winners, read_winners


class Steps:
    """Runs a job in one folder. Each step can run alone, in another process, and repeatedly.

    Args:
        job: The job.
        output: The run folder; if it is resumed, unfinished steps of an earlier process continue.
        watch: Functions that follow the progress.
        clock: Clock of the job's budget: wall clock, or `time.process_time` if other processes disturb it.
        elsewhere: Returns the recipe by which another process recreates the evaluator (`SearchSettings.executor`).

    Raises, from every step:
        OutputError: Files of the previous step are missing (the message has the command that makes them), or another
            process uses the folder.
        BnasError: Any other error, with its place and the remedy; all written files are complete.
    """

    def __init__(
        self,
        job: Job,
        output: Output,
        watch: Watch | None = None,
        clock: Clock = time.perf_counter,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.job, self.output, self.watch, self.elsewhere = job, output, watch or Watch(), elsewhere
        self.clock, self._began = clock, clock()
        self._supernet: SuperNetwork | None = None
        self.watch.on_job(job)
        self._noted = False

    @holding
    def all(self) -> Report:
        """Run all steps, one after another."""
        self.train()
        self.search()
        if self.job.tuning is not None:
            self.tune()
        return self.export()

    @holding
    def train(self) -> SuperNetwork:
        """Train the super-network, unless it is trained already.

        Leaves ``environment.json``, ``architecture.json``, ``data.json`` where the data have a record, ``original/``,
        ``training/`` and ``supernet/``.
        """
        if SUPERNET.exists(self.output.folder / "supernet"):
            return self._trained()
        self.job.data.check_held_out(self.job.model)
        random_state.begin_at(self.job.search.seed)
        team.ask("prepare")
        self.watch.phase("analysing the model")
        supernet = self.untrained()
        self.watch.on_supernet(supernet)
        SearchPlan(self.job, self.output, self.watch, supernet).check()  # raises for invalid settings now
        self._note(supernet)
        note_data(self.output, self.job.data.record)
        self._keep_original()
        check_training(self.output)
        job = self.planner.train(supernet)
        self.watch.phase("training")
        with team.joint("train", stages=job.stages, recipe=job.recipe, resume=self.output.resumed):
            self.fit(supernet, job, self.output.resumed)
        supernet.eval()
        supernet.save(self.output.path("supernet"))
        self.planner.ended("train")
        self._supernet = supernet
        return supernet

    def untrained(self) -> SuperNetwork:
        """Make the super-network of the untrained model."""
        job = self.job
        return SuperNetwork.from_model(job.model, job.example_inputs, job.elasticity, dynamic=job.dynamic)

    def fit(self, supernet: SuperNetwork, job: Job, resume: bool) -> None:
        """Train a super-network on this process's part of the data."""
        validation = job.data.validation if job.budget is None else None
        self._trainer(supernet, job).fit(shared_out(job.data.train), validation, resume=resume)

    def _trained(self) -> SuperNetwork:
        """Load the super-network that was trained before, and write missing description files again."""
        if not MODEL.exists(self.output.folder / "original"):
            folder = self.output.folder
            told = f"restore it from a backup, or train again: `bnas train CONFIG --output {folder} --overwrite`"
            raise OutputError(f"{folder / 'original' / MODEL.manifest} is missing and cannot be recreated; {told}")
        self._note(self.supernet)
        note_data(self.output, self.job.data.record)
        self.planner.ended("train")
        return self.supernet

    @holding
    def search(self) -> Winners:
        """Search the space that the last stage trained. All evaluations in the folder are reused.

        Leaves ``search.json``, ``latency.json`` if asked for, ``evaluations.jsonl`` and ``.csv``, ``pareto.json``,
        ``winners.json``.
        """
        self.output.ledger.refuse_foreign(FOUND)
        random_state.begin_at(self.job.search.seed)
        self._note(self.supernet)
        job, samples = self.planner.search(self.supernet)  # determines the validation data of the evaluator
        evaluator, workers, in_int8 = spread(self.job.search, self.evaluator, self.in_int8, self.elsewhere)
        job = replace(job, search=replace(job.search, workers=workers, executor=None))
        plan = SearchPlan(job, self.output, self.watch, self.supernet, in_int8)
        paths = plan.paths(self._samples(samples))
        reference, latencies = self._reference(), plan.latencies(paths)
        plan = plan.informed(paths, latencies)
        self.watch.phase("searching")
        plan.note(reference, counted_samples(self.evaluator.validation, "the validation data"))
        log = self.output.path(EVALUATIONS)
        result = plan.found(
            evaluator, latencies, log=log, callbacks=callbacks_of(job, self.watch, self.output, "search")
        )
        if plan.in_int8 is not None:
            self.watch.phase(plan.in_int8.told())
        result.write_csv(self.output.path(EVALUATIONS_CSV))
        write_json(self.output.path(FRONT), plan.front(result))
        winners = plan.winners(result, latencies, reference)
        winners.write(self.output.path(WINNERS))
        self.planner.ended("search")
        return winners

    @holding
    def tune(self) -> Record:
        """Fine-tune the winners of the search with `Job.fine_tune`; an interrupted fine-tuning continues.

        Leaves ``tuning.json``, ``tuning/NAME.safetensors`` and the checkpoints in ``tuning/NAME/``.
        """
        if self.job.tuning is None:
            raise OutputError("the job has no fine-tuning: give fine_tune, at least its number of epochs")
        self.output.ledger.refuse_foreign((TUNING,))
        winners, supernet = read_winners(self.output), self.supernet
        random_state.begin_at(self.job.search.seed)
        self._note(supernet)
        settings, effort = self.planner.tune(supernet, self.evaluator, self.original, winners)
        told = (self.job, settings, self.output, self.watch, supernet, self.original, self.evaluator)
        plan = SearchPlan(self.job, self.output, self.watch, supernet, self.in_int8)
        choice = None if effort is None else Choice(plan, plan.fitted, self.evaluator, winners, self._samples, effort)
        record = Tuning(*told, self.planner.pace, self.planner.timed(choice)).run(winners)
        self.planner.ended("tune")
        return record

    @holding
    def export(self) -> Report:
        """Write the original and the winners as modules and ONNX files, check them against PyTorch, measure them.

        Leaves ``subnets/NAME.{json,safetensors,onnx}``, ``NAME.int8.onnx`` if asked for, and ``report.json``.
        """
        winners, supernet, prepare = self.winners(), self.supernet, self.evaluator.prepare
        random_state.begin_at(self.job.search.seed)
        self.watch.phase("exporting and measuring")
        self._note(supernet)
        maximal = supernet.space.maximal()
        plain = supernet.extract(maximal, self.original)
        tuned = {} if self.job.tuning is None else tuned_modules(self.output, supernet, winners)
        test = in_memory(self.job.data.test)
        before = {one: self.job.quality.measure(fold(prepare(one)), test) for one in tuned}
        modules = tuned or {subnet: prepare(subnet) for subnet in {one.subnet for one in winners.found.values()}}
        networks = {name: (one.subnet, modules[one.subnet]) for name, one in winners.found.items()}
        int8 = [] if self.job.int8 is None else self._samples(self.job.int8.samples)
        rows = Delivery(self.job, self.output, supernet, int8).rows({ORIGINAL: (maximal, plain), **networks})
        rows = (rows[0], *(replace(row, before=before.get(row.subnet)) for row in rows[1:]))
        rows = judged(rows, winners.targets, self.job.clocks.keys() - by_name(self.job.search.latency).keys())
        missed = any(row.target.missed for row in rows if row.target) if winners.targets else winners.missed
        settings = (winners.reference, winners.acc_delta, winners.evaluations, missed)
        samples = counted_samples(test, "the test data")
        report = Report(rows, *settings, machine(), samples, self.job.quality, winners.whole_space, winners.maximal)
        write_json(self.output.path(RESULTS), report.to_json())
        return report

    @property
    def supernet(self) -> SuperNetwork:
        """The trained super-network, in evaluation mode."""
        if self._supernet is None:
            folder = self.output.folder / "supernet"
            if not SUPERNET.exists(folder):
                begun = TRAINING.exists(self.output.folder / "training" / "last")
                told = f"bnas train CONFIG --output {self.output.folder}{' --resume' if begun else ''}"
                raise OutputError(f"{self.output.folder} holds no trained super-network; train it with `{told}`")
            self.output.ledger.check(f"supernet/{SUPERNET.manifest}")
            self._supernet = SuperNetwork.load(folder, self.job.model).eval()
            self.watch.on_supernet(self._supernet)
        return self._supernet

    @cached_property
    def original(self) -> nn.Module:
        """The original model, before the training, in evaluation mode."""
        return read_original(self.output, self.job.model)

    @cached_property
    def evaluator(self) -> Evaluator:
        """The evaluator of the search, on all or the planned part of the validation data; equal in every process."""
        samples = self.job.num_bn_adaptation_samples
        calibration = self._samples(samples) if samples else None
        return evaluator_of(self.job, self.supernet, calibration, self.planner.validation())

    @cached_property
    def in_int8(self) -> InInt8 | None:
        """The measure of int8 accuracy, if the search uses it."""
        return InInt8.of(self.job, self.evaluator, self._samples)

    def module(self, subnet: Subnet) -> GraphModule:
        """Return a sub-network with recalibrated statistics; for a fine-tuned winner, the fine-tuned module."""
        if self.job.tuning is not None:
            winners = self.winners()
            if any(one.subnet == subnet for one in winners.found.values()):
                return tuned_modules(self.output, self.supernet, winners)[subnet]
        return self.evaluator.prepare(subnet)

    def winners(self) -> Winners:
        """Return the winners: of the search or, where the fine-tuning chose again, of the fine-tuning."""
        return read_winners(self.output) if self.job.tuning is None else winners_after(self.output)

    def _note(self, supernet: SuperNetwork) -> None:
        """Write the description files of this process and the super-network, once."""
        if not self._noted:
            note_environment(self.output)
            note_architecture(self.output, supernet.architecture)
        self._noted = True

    def _keep_original(self) -> None:
        """Write the original once. The trainer checks that a resumed training has the same initial weights."""
        folder = self.output.path("original")
        if not (MODEL.exists(folder) and TRAINING.exists(self.output.folder / "training" / "last")):
            write_model(folder, self.job.model)

    @cached_property
    def planner(self) -> Planner | Outlook:
        """Divides the budget of the job, or only reports a plan if there is no budget."""
        told = (self.job, self.output, self.watch)
        return Outlook(*told) if self.job.budget is None else Planner(*told, self._began, self.clock)

    def _trainer(self, supernet: SuperNetwork, job: Job) -> Trainer:
        return Trainer(supernet, job.stages, job.recipe, **trainer_settings(job, self.watch, self.output))

    def _samples(self, count: int) -> list[Batch]:
        """Return the first training samples, drawn with all generators at seed 0, so that they are always the same.

        They do not depend on the seed of the search, so evaluations stay valid for a search with another seed.
        """
        return Batches(self.job.data.train).calibration(count, 0)

    def _reference(self) -> float:
        if not isinstance(self.job.reference, str):
            return self.job.reference
        whole = self.job.reference == "maximal"
        module = self.evaluator.prepare(self.supernet.space.maximal()) if whole else self.original
        return self.job.quality.measure(module, self.evaluator.validation)
