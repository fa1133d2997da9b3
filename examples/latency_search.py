"""Search the digits model for accuracy and latency on this machine, and plot the front as predicted and as measured.

    python examples/latency_search.py --output runs/latency

Some 16 sub-networks are measured on ONNX Runtime, and a latency model is fitted to them; the search asks that one, and
what the search gives back is measured. The folder then holds ``latency.json`` (the model), ``search.json``,
``front.csv`` and ``front.svg``.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import bnas
from bnas.data.digits import pretrain, splits
from bnas.runtime import first_samples
from bnas.search import Evaluation


@dataclass(frozen=True)
class Point:
    """A sub-network of the front."""

    subnet: bnas.Subnet
    accuracy: float
    predicted_ms: float
    measured_ms: float


def trained(epochs: int, data: bnas.Splits) -> bnas.SuperNetwork:
    """The super-network of a digits model that is trained from scratch."""
    model = pretrain(data, epochs, lambda epoch, loss: print(f"\rpre-training: epoch {epoch}, loss {loss:.3f}", end=""))
    print()
    supernet = bnas.SuperNetwork.from_model(model, torch.zeros(1, 1, 8, 8))
    half = max(1, epochs // 2)
    stages = [bnas.Stage(("depth",), epochs=half), bnas.Stage(("depth", "width"), epochs=half, reorg_weights=True)]
    bnas.Trainer(supernet, stages).fit(data.train)
    supernet.eval()
    return supernet


def searched(
    supernet: bnas.SuperNetwork, latency: bnas.LatencyModel, data: bnas.Splits, evals: int, output: Path
) -> tuple[Evaluation, ...]:
    """The Pareto front of accuracy and predicted latency."""
    evaluator = bnas.Evaluator(supernet, first_samples(data.train, 500), list(data.validation))
    objectives = (bnas.Objective("accuracy", "max"), bnas.Objective("latency", "min"))
    searcher = bnas.Searcher(supernet, evaluator, objectives, bnas.SearchSettings(num_evals=evals, latency=latency))
    result = searcher.run()
    result.write_json(output / "search.json")
    return result.pareto()


def measured(front: Sequence[Evaluation], latency: bnas.LatencyModel) -> list[Point]:
    """The front with latencies as they are."""
    times = latency.measure([one.subnet for one in front])
    pairs = zip(front, times, strict=True)
    return [Point(one.subnet, one.values["accuracy"], one.values["latency"], ms) for one, ms in pairs]


def write_csv(points: Sequence[Point], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["accuracy", "predicted_ms", "measured_ms"])
        writer.writerows([one.accuracy, one.predicted_ms, one.measured_ms] for one in points)


WIDTH, HEIGHT, MARGIN = 640, 400, 60


def write_svg(points: Sequence[Point], path: Path) -> None:
    """Accuracy over milliseconds: circles as predicted, dots as measured, each pair joined."""
    most = 1.05 * max(max(one.predicted_ms, one.measured_ms) for one in points)
    low, high = min(one.accuracy for one in points), max(one.accuracy for one in points)
    span = max(high - low, 0.01)

    def x(ms: float) -> float:
        return MARGIN + ms / most * (WIDTH - 2 * MARGIN)

    def y(accuracy: float) -> float:
        return HEIGHT - MARGIN - (accuracy - low) / span * (HEIGHT - 2 * MARGIN)

    marks = []
    for one in points:
        height, predicted, real = y(one.accuracy), x(one.predicted_ms), x(one.measured_ms)
        marks.append(
            f'<line x1="{predicted:.1f}" y1="{height:.1f}" x2="{real:.1f}" y2="{height:.1f}" stroke="silver"/>'
        )
        marks.append(f'<circle cx="{predicted:.1f}" cy="{height:.1f}" r="5" fill="none" stroke="black"/>')
        marks.append(f'<circle cx="{real:.1f}" cy="{height:.1f}" r="3" fill="crimson"/>')
    right, bottom = WIDTH - MARGIN, HEIGHT - MARGIN
    labels = [
        (WIDTH / 2 - 150, HEIGHT - 15, "CPU ms on ONNX Runtime: circles predicted, dots measured"),
        (MARGIN, bottom + 20, "0"),
        (right - 20, bottom + 20, f"{most:.3f}"),
        (5, bottom, f"{low:.1%}"),
        (5, MARGIN, f"{low + span:.1%}"),
    ]
    marks += [f'<text x="{left:.0f}" y="{down:.0f}">{text}</text>' for left, down, text in labels]
    axes = f'<path d="M{MARGIN} {MARGIN}V{bottom}H{right}" fill="none" stroke="black"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-size="12">'
    path.write_text("\n".join([head, axes, *marks, "</svg>\n"]), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/latency"), help="folder for all results")
    parser.add_argument("--epochs", type=int, default=20, help="of the pre-training, and of the super-network")
    parser.add_argument("--evals", type=int, default=100, help="evaluations in the search, 4 at least")
    parser.add_argument("--fitted", type=int, default=16, help="sub-networks that are measured for the latency model")
    parser.add_argument("--batch", type=int, default=1, help="images in a run")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    arguments.output.mkdir(parents=True, exist_ok=True)
    data = splits()
    supernet = trained(arguments.epochs, data)
    latency = bnas.LatencyModel.fit(supernet, subnets=arguments.fitted, batch=arguments.batch)
    latency.save(arguments.output / "latency.json")
    print(f"latency model: cross-validated tau {latency.tau:.2f}, error {latency.error:.0%}")
    points = measured(searched(supernet, latency, data, arguments.evals, arguments.output), latency)
    print("accuracy  predicted ms  measured ms")
    for one in points:
        print(f"{one.accuracy:8.2%}  {one.predicted_ms:12.4f}  {one.measured_ms:11.4f}")
    write_csv(points, arguments.output / "front.csv")
    write_svg(points, arguments.output / "front.svg")
    print(f"All files are in {arguments.output}")


if __name__ == "__main__":
    try:
        main()
    except bnas.BnasError as error:
        sys.exit(f"latency_search: {error}")
