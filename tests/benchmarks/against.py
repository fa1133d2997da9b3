"""bnas against the alternative, prune once and fine-tune, in equal CPU seconds.

    python tests/benchmarks/against.py resnet20 --data ../shared/data --seconds 300 --columns prune,torch_pruning,bnas

A row is a bound. "prune" is `bnas.prune`; "torch_pruning" is Torch-Pruning 1.6 (`pip install torch-pruning==1.6.1`), by
its own Taylor importance over the whole network; both are fine-tuned as bnas fine-tunes its winners, each for as long
as one row may take. "bnas" trains, searches and fine-tunes once for all rows, in as many seconds as the rivals' rows
have together. Seconds are CPU seconds of this process, with one thread; all that a column does counts, but for the
measurements that the table shows. Of the data, the test part is only used for the table.

Needs the data of the examples (`against_tasks.py`). Results are appended to FILE as JSON lines.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from against_tasks import Task, read_task
from torch import nn
from torch.fx import GraphModule

import bnas
from bnas.run import Row, Watch, budget
from bnas.run.lock import kept
from bnas.run.output import open_output
from bnas.run.steps import Steps
from bnas.runtime import Epochs, Stage, SuperNetwork, Trainer, accuracy, first_samples, machine, steps_within
from bnas.runtime.latency.settings import LatencySettings
from bnas.runtime.nested import as_batch, batch_size
from bnas.runtime.train.tuning import alone
from bnas.search import Constraint

clock = time.process_time
RUNS = 50
"""Of a latency."""


@dataclass(frozen=True)
class Found:
    """A row of a column, measured."""

    column: str
    row: str
    accuracy: float
    """On the test data."""
    before: float
    """The same before the fine-tuning; of bnas on a hundred samples."""
    macs: float
    """As a share of the original's."""
    latency: float
    """The same, on ONNX Runtime."""
    seconds: float
    """Of the row, or for bnas of all rows."""
    int8: float | None = None
    int8_latency: float | None = None


class Column:
    """What the columns share."""

    def __init__(self, task: Task, seconds: float, seed: int) -> None:
        self.task, self.seconds, self.seed = task, seconds, seed
        self.unmeasured = 0.0
        """Seconds for the table alone."""

    def tested(self, module: nn.Module) -> float:
        """Accuracy on the test data; it takes none of the column's time."""
        start = clock()
        found = accuracy(module.eval(), self.task.data.test)
        self.unmeasured += clock() - start
        return found

    def tuned(self, module: GraphModule, seconds: float) -> GraphModule:
        """The module after so many seconds of fine-tuning."""
        task, start = self.task, clock()
        recipe = replace(task.tuning.recipe(task.recipe), num_bn_adaptation_samples=task.calibration)
        trainer = Trainer(alone(module, task.example), [Stage()], recipe, teacher=task.model)
        with torch.random.fork_rng():
            steps = steps_within(seconds, trainer, task.data.train, measure=0.02 * seconds, clock=clock)
        steps = max(1, int(steps * (1 - (clock() - start) / seconds)))
        epochs = Epochs.of(steps, task.data.train)
        recipe = replace(recipe, train_steps=epochs.train_steps)
        return bnas.fine_tune(
            module, task.example, task.data.train, epochs=epochs.total, recipe=recipe, teacher=task.model
        )


class Prune(Column):
    """Pruned once to each bound, and fine-tuned."""

    name = "prune"

    def found(self) -> Iterator[Found]:
        for row, bound in self.task.bounds.items():
            start, self.unmeasured = clock(), 0.0
            module = self.pruned(Constraint.parse(bound))
            before = self.tested(module)
            module = self.tuned(module, self.seconds - (clock() - start - self.unmeasured))
            seconds = clock() - start - self.unmeasured
            yield Found(self.name, row, self.tested(module), before, *self.measured(module), seconds)

    def measured(self, module: GraphModule) -> tuple[float, float]:
        """MACs and latency as shares of the original's."""
        whole = self.captured(self.task.model)
        macs = [self.macs(one) for one in (whole, module)]
        return macs[1] / macs[0], self.ratio(whole, module, RUNS)

    def captured(self, model: nn.Module) -> GraphModule:
        """A model as a plain graph."""
        single = SuperNetwork.from_model(
            copy.deepcopy(model).eval(), self.task.example, {"dimensions": ()}, dynamic=self.task.dynamic
        )
        return single.extract(single.space.maximal())

    def macs(self, module: GraphModule) -> float:
        single = alone(module, self.task.example)
        return float(single.costs(single.space.maximal(), self.task.sizes)["macs"])

    def ratio(self, whole: GraphModule, module: GraphModule, runs: int) -> float:
        """The latency of `module` divided by that of `whole`."""
        with tempfile.TemporaryDirectory() as folder:
            paths = {name: Path(folder) / f"{name}.onnx" for name in ("original", "own")}
            for name, one in (("original", whole), ("own", module)):
                bnas.export_onnx(one, paths[name], self.task.example)
            settings = LatencySettings(runs=runs, sizes=self.task.sizes)
            return bnas.measure_latency(paths, settings=settings, reference="original")["own"].ratio or 1.0

    def pruned(self, bound: Constraint) -> GraphModule:
        """By bnas's own `prune`."""
        elasticity = replace(self.task.elasticity, dimensions=("width",))
        samples = elasticity.importance_samples
        latency = LatencySettings(runs=RUNS, sizes=self.task.sizes)
        more: dict[str, Any] = {"dynamic": self.task.dynamic, "latency": latency, "samples": samples}
        return bnas.prune(
            self.task.model, self.task.example, self.task.data, bound, elasticity=elasticity, **more
        ).module


class TorchPruning(Prune):
    """The same by Torch-Pruning: first-order Taylor importance over the whole network, channels as bnas rounds them."""

    name = "torch_pruning"
    BATCHES = 10
    WAYS = ((0.95, True), (0.75, True), (0.95, False))
    """The most that a layer loses, and whether channels are rounded. Where rounding leaves a layer without a channel,
    Torch-Pruning leaves it whole: then less for each layer, or no rounding, prunes more."""

    def pruned(self, bound: Constraint) -> GraphModule:
        whole, self.gradients = self.captured(self.task.model), self._gradients()
        found = [one for way in self.WAYS if (one := self._largest(bound, whole, *way)) is not None]
        if not found:
            raise SystemExit(f"Torch-Pruning does not reach {bound}")
        best = max(found, key=lambda one: one[0])[1]
        if self.task.calibration:
            bnas.runtime.recalibrate(best, first_samples(self.task.data.train, self.task.calibration))
        return best

    def _largest(
        self, bound: Constraint, whole: GraphModule, most: float, rounded: bool
    ) -> tuple[float, GraphModule] | None:
        """The largest network within a bound, and its share."""
        low, high, best = 0.0, most, None
        for _ in range(6):
            ratio = (low + high) / 2
            module = self.captured(self._at(ratio, most, rounded))
            share = self._share(bound, whole, module)
            if share <= bound.bound:
                best, high = (share, module), ratio
            else:
                low = ratio
        return best

    def _share(self, bound: Constraint, whole: GraphModule, module: GraphModule) -> float:
        if bound.name == "latency":
            return self.ratio(whole, module, 15)
        return self.macs(module) / self.macs(whole)

    def _at(self, ratio: float, most: float, rounded: bool) -> nn.Module:
        import torch_pruning as tp

        model, heads = copy.deepcopy(self.task.model).eval(), {}
        for module in model.modules():
            if hasattr(module, "num_attention_heads") and hasattr(module, "query"):
                heads |= {part: module.num_attention_heads for part in (module.query, module.key, module.value)}
        pruner = tp.pruner.BasePruner(
            model,
            self.task.example,
            importance=tp.importance.GroupTaylorImportance(),
            global_pruning=not heads,
            pruning_ratio=ratio,
            max_pruning_ratio=most,
            ignored_layers=self.task.ignored(model),
            round_to=self.task.elasticity.divisor if rounded and not heads else None,
            num_heads=heads,
            prune_num_heads=bool(heads),
            prune_head_dims=not heads,
            head_pruning_ratio=ratio if heads else 0.0,
            output_transform=lambda outputs: outputs.sum(),
        )
        for own, gradient in zip(model.parameters(), self.gradients, strict=True):
            own.grad = gradient
        pruner.step()
        for module in model.modules():
            if getattr(module, "query", None) in pruner.num_heads:
                module.num_attention_heads = pruner.num_heads[module.query]
                module.all_head_size = module.query.out_features
                module.attention_head_size = module.all_head_size // module.num_attention_heads
        return model

    def _gradients(self) -> list[torch.Tensor | None]:
        """Of the loss, by some training batches."""
        model = copy.deepcopy(self.task.model).eval()
        for inputs, targets in islice(map(as_batch, self.task.data.train), self.BATCHES):
            outputs = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
            nn.functional.cross_entropy(outputs, targets).backward()
        return [one.grad for one in model.parameters()]


class Bnas(Column):
    """One run of bnas, whose budget is the time of all rows; its export and measurements of latency are part of it."""

    name = "bnas"
    order = "shared"
    int8 = True

    def found(self) -> Iterator[Found]:
        task, start = self.task, clock()
        batches = list(task.data.validation)  # texts are sorted by length: some of all lengths
        size = batch_size(batches[0])
        validation = batches[:: max(1, len(batches) * size // task.validation)]
        job = bnas.Job(
            copy.deepcopy(task.model),
            replace(task.data, validation=validation, test=first_samples(task.data.test, 100)),
            task.example,
            elasticity=task.elasticity,
            stages=[Stage(epochs=1, reorg_weights=True)],
            recipe=replace(task.recipe, seed=self.seed, num_bn_adaptation_samples=task.calibration),
            search=bnas.SearchSettings(num_evals=400, seed=self.seed),
            targets={f"r{number}": Constraint.parse(one) for number, one in enumerate(task.bounds.values())},
            num_bn_adaptation_samples=min(task.calibration, 500),
            fine_tune=replace(task.tuning, order=self.order),
            budget=self.seconds * len(task.bounds),
            latency=LatencySettings(runs=RUNS, sizes=task.sizes, subnets=16),
            int8=bnas.Int8() if self.int8 else None,
            dynamic=task.dynamic,
        )
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "run"
            with kept(folder):
                output = open_output(folder, {}, resume=False, overwrite=False, free=lambda _: True)
                watch = Watch(on_plan=lambda plan: print(plan.to_json()))
                report = Steps(job, output, watch, clock).all()
            seconds = clock() - start
            for row, one in zip(task.bounds, report.rows[1:], strict=True):
                yield self._read(folder, row, one, report.rows[0], seconds)

    def _read(self, folder: Path, row: str, one: Row, first: Row, seconds: float) -> Found:
        """What became of a winner, measured on all test data by its files."""
        print(row, one.subnet.to_json())
        files = [folder / "subnets" / f"{one.name}{end}.onnx" for end in ("", ".int8")]
        int8 = one.int8.latency if one.int8 is not None else None
        return Found(
            self.name,
            row,
            bnas.evaluate_onnx(files[0], self.task.data.test),
            one.before or 0.0,
            one.costs["macs"] / first.costs["macs"],
            one.latency.median_ms / first.latency.median_ms,
            seconds,
            None if int8 is None else bnas.evaluate_onnx(files[1], self.task.data.test),
            None if int8 is None else int8.median_ms / first.latency.median_ms,
        )


COLUMNS: dict[str, type[Column]] = {"prune": Prune, "torch_pruning": TorchPruning, "bnas": Bnas}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("resnet20", "resnet56", "fashion", "elpv", "spam", "movies"))
    parser.add_argument("--data", type=Path, required=True, help="folder of the data, as the example takes it")
    parser.add_argument("--original", type=Path, help="file of the trained model, where the example trains it")
    parser.add_argument("--seconds", type=float, default=300, help="CPU seconds of a row")
    parser.add_argument("--columns", default="prune,torch_pruning,bnas")
    parser.add_argument("--rows", help="only these, by name, with commas between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shares", help="of bnas's phases: train,search,tune")
    parser.add_argument("--order", default="shared", choices=("shared", "separate"), help="of bnas's fine-tuning")
    parser.add_argument("--no-int8", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("against.jsonl"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if arguments.shares:
        budget.SHARES = dict(zip(budget.SHARES, map(float, arguments.shares.split(",")), strict=True))
    Bnas.order, Bnas.int8 = arguments.order, not arguments.no_int8
    for column in arguments.columns.split(","):
        torch.manual_seed(arguments.seed)
        task = read_task(arguments.task, arguments.data, arguments.original)
        if arguments.rows:
            task = replace(task, bounds={row: task.bounds[row] for row in arguments.rows.split(",")})
        if arguments.seed:
            task.data.train.generator.manual_seed(arguments.seed)
        whole = accuracy(task.model, task.data.test)
        for found in COLUMNS[column](task, arguments.seconds, arguments.seed).found():
            told = {"task": arguments.task, "seed": arguments.seed, "original": whole, **asdict(found)}
            told |= {
                "shares": arguments.shares,
                "order": arguments.order,
                "budget": arguments.seconds,
                "cpu": machine()["cpu"],
            }
            print(json.dumps(told), flush=True)
            with arguments.output.open("a") as file:
                file.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
