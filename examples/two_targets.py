"""One search for two machines: a server that runs OpenVINO, and a phone that a program of yours measures.

    python examples/two_targets.py --data DIR --output runs/two

Your model is a ResNet-20 for CIFAR-10 (`cifar10.py` says what DIR has to hold). A super-network is made of it and
trained for an epoch, and searched for accuracy and for both latencies. Two winners come out: the most accurate
sub-network within a share of the original's latency on the server, and the same for the phone. What is quick on one
machine need not be so on the other: the table shows both latencies of both winners, and ``targets.png`` all
sub-networks of the search.

The phone is `phone.py` here, which any program may replace that takes a file and prints milliseconds. The numbers
that it told are remembered, so a second run does not ask for them again.

Needs `pip install 'bnas[openvino]' matplotlib`. About 10 minutes of one core; the winners are then fine-tuned for an
epoch.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from cifar10 import read_data, read_model
from rich.console import Console

import bnas
from bnas.cli.terminal import watching
from bnas.run import Report
from bnas.runtime import first_samples
from bnas.search import Constraint, Evaluation, EvaluationLog

PHONE = {
    "kind": "command",
    "command": [sys.executable, str(Path(__file__).with_name("phone.py")), "{file}", "{shapes}"],
    "description": "one thread of this machine, graphs as they are",
}


def job(arguments: argparse.Namespace) -> bnas.Job:
    """What is searched for: both latencies are objectives, and each has its own bound."""
    bound, data = f"<= {100 * arguments.share:g} %", read_data(arguments.data, batch=128)
    return bnas.Job(
        read_model(arguments.data, 20),
        replace(data, validation=first_samples(data.validation, 1000)),
        torch.zeros(1, 3, 32, 32),
        elasticity=bnas.Elasticity(("depth", "width"), width_step=4, divisor=4, min_width=4),
        stages=[bnas.Stage(epochs=1, reorg_weights=True)],
        recipe=bnas.Recipe(learning_rate=0.02, sampling="spread", train_steps=arguments.samples),
        objectives=[
            bnas.Objective("accuracy", "max"),
            bnas.Objective("server", "min", target="openvino"),
            bnas.Objective("phone", "min", target=PHONE),
        ],
        search=bnas.SearchSettings(num_evals=arguments.evals),
        targets={"for_server": Constraint.parse(f"server {bound}"), "for_phone": Constraint.parse(f"phone {bound}")},
        fine_tune=bnas.FineTune(epochs=1, train_steps=arguments.samples, learning_rate=0.04),
        latency=bnas.LatencySettings(turns=1, subnets=12),
        num_bn_adaptation_samples=1000,
        int8=None,
    )


def plot(folder: Path, report: Report) -> None:
    """All sub-networks over both latencies, as predicted; the winners as they were measured."""
    from matplotlib.figure import Figure

    found = [one for one in EvaluationLog.read(folder / "evaluations.jsonl") if one.failure is None]
    picture = Figure(figsize=(7, 5), layout="constrained")
    axes = picture.add_subplot()
    colours = axes.scatter(*latencies(found), c=[100 * one.values["accuracy"] for one in found], s=18)
    for row, marker in zip(report.rows, "s^v", strict=True):
        at = [row.latencies[name].median_ms for name in ("server", "phone")]
        axes.scatter(*at, marker=marker, s=110, facecolors="none", edgecolors="black", label=row.name)
    axes.set_xlabel("server: ms on OpenVINO")
    axes.set_ylabel("phone: ms as the program tells")
    axes.legend(loc="upper left")
    picture.colorbar(colours, label="accuracy (%), on validation data, before fine-tuning")
    picture.savefig(folder / "targets.png", dpi=120)


def latencies(found: list[Evaluation]) -> list[list[float]]:
    return [[one.values[name] for one in found] for name in ("server", "phone")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the images and weights")
    parser.add_argument("--output", type=Path, default=Path("runs/two"), help="folder for all results")
    parser.add_argument("--share", type=float, default=0.5, help="of the original's latency, for either winner")
    parser.add_argument("--samples", type=int, help="of each training, instead of an epoch")
    parser.add_argument("--evals", type=int, default=60, help="sub-networks that the search looks at")
    arguments = parser.parse_args()
    console = Console()
    with watching(console) as watch:
        report = bnas.run_job(job(arguments), arguments.output, watch, resume=(arguments.output / "run.json").exists())
    console.print(report.table())
    plot(arguments.output, report)
    console.print(f"All files are in {arguments.output}; targets.png shows the search")


if __name__ == "__main__":
    try:
        main()
    except bnas.BnasError as error:
        sys.exit(f"two_targets: {error}")
