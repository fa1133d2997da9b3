"""The columns of `against.py` that prune a model once and fine-tune it: bnas's own way, and Torch-Pruning's."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from against_tasks import Task
from torch import nn
from torch.fx import GraphModule

import bnas
from bnas.runtime import Epochs, Stage, SuperNetwork, Trainer, accuracy, first_samples, steps_within
from bnas.runtime.latency.settings import LatencySettings
from bnas.runtime.nested import as_batch, placed
from bnas.runtime.train.tuning import alone
from bnas.search import Constraint, SearchError

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


class Unreached(Exception):
    """A bound that a library cannot prune a model to."""


class Column:
    """What the columns share."""

    def __init__(self, task: Task, seconds: float, seed: int) -> None:
        self.task, self.seconds, self.seed = task, seconds, seed
        self.clock = time.process_time if task.device.type == "cpu" else time.perf_counter
        """Seconds of the CPU; where another device computes, those on the wall."""
        self.unmeasured = 0.0
        """Seconds for the table alone."""

    def tested(self, module: nn.Module) -> float:
        """Accuracy on the test data; it takes none of the column's time."""
        start = self.clock()
        found = accuracy(module.eval(), self.task.data.test)
        self.unmeasured += self.clock() - start
        return found

    def tuned(self, module: GraphModule, seconds: float) -> GraphModule:
        """The module after so many seconds of fine-tuning."""
        task, start = self.task, self.clock()
        recipe = replace(task.tuning.recipe(task.recipe), num_bn_adaptation_samples=task.calibration)
        trainer = Trainer(alone(module, task.example), [Stage()], recipe, teacher=task.model)
        with torch.random.fork_rng():
            steps = steps_within(seconds, trainer, task.data.train, measure=0.02 * seconds, clock=self.clock)
        steps = max(1, int(steps * (1 - (self.clock() - start) / seconds)))
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
            start, self.unmeasured = self.clock(), 0.0
            try:
                module = self.pruned(Constraint.parse(bound))
            except (SearchError, Unreached) as error:
                print(f"{self.name}, {row}: {error}", flush=True)
                continue
            before = self.tested(module)
            module = self.tuned(module, self.seconds - (self.clock() - start - self.unmeasured))
            seconds = self.clock() - start - self.unmeasured
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
        """By bnas's own `prune`; blocks are removed too where widths alone do not meet the bound."""
        try:
            return self.pruned_by(("width",), bound)
        except SearchError as error:
            print(f"{self.name}: {error}; blocks are removed, too", flush=True)
            return self.pruned_by(("width", "depth"), bound)

    def pruned_by(self, dimensions: tuple[Literal["width", "depth"], ...], bound: Constraint) -> GraphModule:
        """With these dimensions."""
        elasticity = replace(self.task.elasticity, dimensions=dimensions)
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
        ways = self.WAYS[:1] if self._heads(self.task.model) else self.WAYS
        found = [one for way in ways if (one := self._largest(bound, whole, *way)) is not None]
        if not found:
            raise Unreached(f"Torch-Pruning does not reach {bound}")
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
            single = alone(whole, self.task.example)
            named: dict[str, Any] = {"original": whole, "own": module}
            quick: dict[str, Any] = {"runs": 20, "sizes": self.task.sizes, "reference": "original"}
            return bnas.measure_latency(named, supernet=single, **quick)["own"].ratio or 1.0
        return self.macs(module) / self.macs(whole)

    def _at(self, ratio: float, most: float, rounded: bool) -> nn.Module:
        import torch_pruning as tp

        model = copy.deepcopy(self.task.model).eval()
        heads = self._heads(model)
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

    def _heads(self, model: nn.Module) -> dict[nn.Module, int]:
        """The numbers of heads of the layers of attentions."""
        found: dict[nn.Module, int] = {}
        for module in model.modules():
            if hasattr(module, "num_attention_heads") and hasattr(module, "query"):
                found |= {part: module.num_attention_heads for part in (module.query, module.key, module.value)}
        return found

    def _gradients(self) -> list[torch.Tensor | None]:
        """Of the loss, by some training batches."""
        model = copy.deepcopy(self.task.model).eval()
        for inputs, targets in islice(map(as_batch, self.task.data.train), self.BATCHES):
            inputs, targets = placed(inputs, self.task.device), placed(targets, self.task.device)
            outputs = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
            nn.functional.cross_entropy(outputs, targets).backward()
        return [one.grad for one in model.parameters()]
