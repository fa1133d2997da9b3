"""bnas against the alternative, prune once and fine-tune, in equal CPU seconds.

    python tests/benchmarks/against.py resnet20 --data ../shared/data --seconds 300 --columns prune,torch_pruning,bnas

A row is a bound. "prune" is `bnas.prune`; "torch_pruning" is Torch-Pruning 1.6 (`pip install torch-pruning==1.6.1`), by
its own Taylor importance over the whole network; both are fine-tuned as bnas fine-tunes its winners, each for as long
as one row may take. "bnas" trains, searches and fine-tunes once for all rows, in as many seconds as the rivals' rows
have together. Seconds are CPU seconds of this process, with one thread; with `--device cuda` they are seconds on the
wall. All that a column does counts, but for the measurements that the table shows. Of the data, the test part is only
used for the table.

Needs the data of the examples (`against_tasks.py`). Results are appended to FILE as JSON lines.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from against_columns import RUNS, Column, Found, Prune, TorchPruning
from against_tasks import read_task

import bnas
from bnas.run import Row, Watch
from bnas.run.files.lock import kept
from bnas.run.files.output import open_output
from bnas.run.plan import budget
from bnas.run.plan.probe import Probe
from bnas.run.steps import Steps
from bnas.runtime import Stage, accuracy, first_samples, machine
from bnas.runtime.latency.settings import LatencySettings
from bnas.runtime.nested import batch_size
from bnas.search import Constraint


class Bnas(Column):
    """One run of bnas, whose budget is the time of all rows; like the rivals' its export is not part of it."""

    name = "bnas"
    order = "shared"
    int8 = True

    def found(self) -> Iterator[Found]:
        task, start = self.task, self.clock()
        batches = list(task.data.validation)  # texts are sorted by length: some of all lengths
        size = batch_size(batches[0])
        validation = batches[:: max(1, len(batches) * size // task.validation)]
        test = first_samples(task.data.test, 100) if task.device.type == "cpu" else task.data.test
        job = bnas.Job(
            copy.deepcopy(task.model),
            replace(task.data, validation=validation, test=test),
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
                steps = Steps(job, output, watch, self.clock)
                steps.train(), steps.search(), steps.tune()
                seconds = self.clock() - start
                report = steps.export()
            for row, one in zip(task.bounds, report.rows[1:], strict=True):
                yield self._read(folder, row, one, report.rows[0], seconds)

    def _read(self, folder: Path, row: str, one: Row, first: Row, seconds: float) -> Found:
        """What became of a winner, on all test data: by its files, or where a run measures quickly by its module."""
        print(row, one.subnet.to_json())
        files = [folder / "subnets" / f"{one.name}{end}.onnx" for end in ("", ".int8")]
        int8 = one.int8.latency if one.int8 is not None else None
        return Found(
            self.name,
            row,
            one.accuracy if self.task.device.type != "cpu" else bnas.evaluate_onnx(files[0], self.task.data.test),
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
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: in bfloat16, and seconds on the wall")
    parser.add_argument("--batch", type=int, default=128, help="images of a batch; the rates grow with its root")
    parser.add_argument("--output", type=Path, default=Path("against.jsonl"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1 if arguments.device == "cpu" else 4)
    Probe.delivery = lambda *_: 0.0  # type: ignore[method-assign]
    if arguments.shares:
        budget.SHARES = dict(zip(budget.SHARES, map(float, arguments.shares.split(",")), strict=True))
    Bnas.order, Bnas.int8 = arguments.order, not arguments.no_int8
    for column in arguments.columns.split(","):
        torch.manual_seed(arguments.seed)
        task = read_task(arguments.task, arguments.data, arguments.original, arguments.batch)
        task = task.on(torch.device(arguments.device))
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
                "device": arguments.device,
                "batch": arguments.batch,
            }
            print(json.dumps(told), flush=True)
            with arguments.output.open("a") as file:
                file.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
