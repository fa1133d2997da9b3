"""`bnas prune` in a run folder: prune, fine-tune, export and measure. Each part is saved for a resumed run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from torch.fx import GraphModule

from bnas.passes import Elasticity, Subnet
from bnas.passes.frontend.copies import deep_copy
from bnas.runtime import FineTune, SuperNetwork, fine_tune, machine
from bnas.runtime.evaluate.evaluation import counted_samples
from bnas.runtime.storage.archive import tensor_bytes
from bnas.runtime.storage.checkpoint import MODEL, SUPERNET, write_model
from bnas.runtime.storage.files import there, write_bytes, write_json
from bnas.runtime.train import random_state
from bnas.runtime.train.batches import Batches
from bnas.search import Constraint, prune

from .files.lock import kept
from .files.mark import REPEAT, OutputError
from .files.names import RESULTS
from .files.output import Output, note_architecture, note_data, note_environment
from .files.weights import check_training, read_module, read_original
from .job import Job, Watch, trainer_settings
from .latencies import LATENCY
from .results.delivery import Delivery
from .results.results import Report
from .winners.winners import ORIGINAL

if TYPE_CHECKING:
    from rich.table import Table

PRUNED, WEIGHTS = "pruned.json", "pruned.safetensors"
"""Files with the pruned sub-network and its weights before the fine-tuning."""


@dataclass(frozen=True)
class PrunePlan:
    """The settings of `bnas prune`."""

    to: str
    """The bound, in the form of `bnas.search.Constraint.parse`."""
    importance: str = "taylor"
    allocation: str = "global"
    epochs: int = 10
    """Number of epochs of the fine-tuning; 0 for none."""
    divisor: int = 8
    """Step of the widths."""
    depth: bool = False
    """Whether blocks may be removed too."""

    def elasticity(self, given: Elasticity) -> Elasticity:
        """Return the settings of the search space; `given` determines which layers may change."""
        sizes: dict[str, Any] = {"width_step": self.divisor, "divisor": self.divisor, "min_width": self.divisor}
        sizes["dimensions"] = ("depth", "width") if self.depth else ("width",)
        return replace(given, width_multipliers=None, max_num_widths=None, **sizes)


@dataclass(frozen=True)
class PruneReport:
    """Measurements of the original, the pruned network, and the fine-tuned network."""

    measured: Report
    bound: str

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {**self.measured.to_json(), "bound": self.bound}

    def table(self) -> Table:
        """Return a table for the terminal, like that of `bnas.run.Report`."""
        return self.measured.titled(
            f"Test {self.measured.quality.name} and latency on {self.measured.place}, pruned to {self.bound}", ""
        )


class Pruning:
    """Prunes the model of a job in a run folder, and continues what an interrupted process left there.

    Args:
        job: Model, data, recipe, and the settings of latency and int8 files; its search is ignored.
        plan: The settings of the pruning.
        output: The folder.
        watch: Functions that follow the progress.
    """

    def __init__(self, job: Job, plan: PrunePlan, output: Output, watch: Watch | None = None) -> None:
        self.job, self.plan, self.output, self.watch = job, plan, output, watch or Watch()
        self.watch.on_job(job)

    def all(self) -> PruneReport:
        """Prune, fine-tune, export and measure.

        Leaves ``environment.json``, ``architecture.json``, ``data.json`` where the data have a record, ``original/``,
        ``supernet/``, ``pruned.json``, ``pruned.safetensors``, ``training/``,
        ``subnets/NAME.{json,safetensors,onnx}``, ``NAME.int8.onnx`` if asked for, and ``report.json``.

        Raises:
            OutputError: Another process uses the folder, or a file of the user has the name of a run's file.
            BnasError: Any other error, with its place and the remedy; all written files are complete.
        """
        with kept(self.output.folder):
            self.job.data.check_held_out(self.job.model)
            random_state.begin_at(self.job.search.seed)
            done = there(self.output.folder / PRUNED)
            supernet, subnet = self._read() if done else self._prune()
            module = self._module(supernet, subnet)
            networks = {"pruned": (subnet, module)}
            if self.plan.epochs:
                networks["fine-tuned"] = (subnet, self._tuned(module))
            return self._delivered(supernet, networks)

    def _prune(self) -> tuple[SuperNetwork, Subnet]:
        job, plan, path = self.job, self.plan, self.output.path
        self.watch.phase("pruning")
        settings: dict[str, Any] = {"importance": plan.importance, "allocation": plan.allocation}
        found = prune(
            job.model,
            job.example_inputs,
            job.data.train,
            plan.to,
            elasticity=plan.elasticity(job.elasticity),
            criterion=job.training.get("criterion"),
            samples=job.elasticity.importance_samples,
            dynamic=job.dynamic,
            latency=job.clocks[LATENCY],
            **settings,
        )
        self.watch.on_supernet(found.supernet)
        note_environment(self.output)
        note_architecture(self.output, found.supernet.architecture)
        note_data(self.output, job.data.record)
        write_model(path("original"), job.model)
        found.supernet.save(path("supernet"))
        write_bytes(path(WEIGHTS), tensor_bytes(found.module.state_dict()))
        noted = {"plan": asdict(plan), "original": dict(found.original), "costs": dict(found.costs)}
        write_json(path(PRUNED), {**noted, "subnet": found.subnet.to_json()})  # last: marks all as complete
        return found.supernet, found.subnet

    def _read(self) -> tuple[SuperNetwork, Subnet]:
        """Read the result of an earlier process."""
        ledger, folder = self.output.ledger, self.output.folder
        for name in (f"supernet/{SUPERNET.manifest}", f"original/{MODEL.manifest}"):
            ledger.check(name)
        note_environment(self.output)
        noted = ledger.json(PRUNED)
        try:
            subnet = Subnet.from_json(noted["subnet"])
        except (KeyError, TypeError) as error:
            raise OutputError(f"{folder / PRUNED} is damaged: it does not name a sub-network; {REPEAT}") from error
        return SuperNetwork.load(folder / "supernet", deep_copy(self.job.model)).eval(), subnet

    def _module(self, supernet: SuperNetwork, subnet: Subnet) -> GraphModule:
        return read_module(supernet, subnet, self.output.ledger.check(WEIGHTS))

    def _tuned(self, module: GraphModule) -> GraphModule:
        """Fine-tune the module as winners of a run are: with the settings of the job, or the defaults of `FineTune`."""
        job = self.job
        tuning = replace(job.fine_tune or FineTune(epochs=self.plan.epochs), epochs=self.plan.epochs)
        recipe = tuning.recipe(job.recipe)
        check_training(self.output)
        self.watch.phase("fine-tuning")
        return fine_tune(
            module,
            job.example_inputs,
            job.data.train,
            job.data.validation,
            epochs=self.plan.epochs,
            recipe=recipe,
            teacher=None if recipe.distillation is None else read_original(self.output, job.model),
            resume=self.output.resumed,
            **trainer_settings(job, self.watch, self.output),
        )

    def _delivered(self, supernet: SuperNetwork, networks: Mapping[str, tuple[Subnet, GraphModule]]) -> PruneReport:
        job, maximal = self.job, supernet.space.maximal()
        self.watch.phase("exporting and measuring")
        original = read_original(self.output, job.model)
        batches = Batches(job.data.train)
        int8 = [] if job.int8 is None else batches.calibration(job.int8.samples, 0)
        plain = {ORIGINAL: (maximal, supernet.extract(maximal, original))}
        rows = Delivery(job, self.output, supernet, int8).rows({**plain, **networks})
        reference = job.quality.measure(original, job.data.validation)
        samples = counted_samples(job.data.test, "the test data")
        measured = Report(rows, reference, job.acc_delta, 0, False, machine(), samples, job.quality)
        report = PruneReport(measured, str(Constraint.parse(self.plan.to)))
        write_json(self.output.path(RESULTS), report.to_json())
        return report
