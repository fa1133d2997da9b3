"""How well latency models rank sub-networks, on each target: Kendall's tau, 15 measured and 20 held out.

    python tests/benchmarks/targets.py [--targets onnxruntime,openvino] [--batch 1,16] [--threads 1,2] [--int8]

MobileNetV2 at 64 x 64; the sub-networks that are held out are random ones, which differ less than those that a model is
fitted to. "Twice" is the tau of measuring them twice: no model can be expected to rank them better. Median of all
repetitions, smallest and largest. Targets that are not installed are left out, and said.
"""

from __future__ import annotations

import argparse
import time
import warnings
from itertools import product
from statistics import median
from typing import Any

import numpy as np
import torch
from lowering import FITTED, HELD_OUT, SPACE, TAU, images, make_model, random
from rich.console import Console
from rich.table import Table

from bnas.runtime import LatencyError, LatencyModel, SuperNetwork
from bnas.runtime.latency.measurement import ratios
from bnas.runtime.latency.model import kendall_tau

ALL = ("onnxruntime", "openvino", "executorch", "litert")


def taus(supernet: SuperNetwork, seed: int, settings: dict[str, Any]) -> tuple[float, float, float]:
    """Of the predictions, of measuring twice, and the mean relative error of the predictions."""
    model = LatencyModel.fit(supernet, subnets=FITTED, seed=seed, **settings)
    ones = random(supernet, FITTED + HELD_OUT, np.random.default_rng(100 + seed))
    held = [one for one in ones if one not in model.measured][:HELD_OUT]
    one, two = (np.array(list(ratios(supernet, held, model.settings).found.values())) for _ in range(2))
    truth, found = (one + two) / 2, model.many(held)
    assert model.level is not None
    error = float(np.mean(np.abs(found - model.level * truth) / (model.level * truth)))
    return kendall_tau(found, truth), kendall_tau(one, two), error


def told(values: list[float], form: str = ".3f") -> str:
    """Median, smallest and largest."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default=",".join(ALL), help="with commas between")
    parser.add_argument("--batch", default="1", help="samples in a run, with commas between")
    parser.add_argument("--threads", default="1", help="within an operator, with commas between")
    parser.add_argument("--int8", action="store_true", help="networks in int8")
    parser.add_argument("--repeat", type=int, default=5, help="models that are fitted, by other seeds")
    parser.add_argument("--turns", type=int, default=3, help="so often each sub-network is measured")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    supernet = SuperNetwork.from_model(make_model("mobilenet_v2"), images(64), SPACE).eval()
    table = Table(title=f"MobileNetV2, {FITTED} fitted, {HELD_OUT} random held out; goal: tau {TAU}")
    for column in ("target", "batch", "threads", "tau", "of measuring twice", "error", "CPU s each"):
        table.add_column(column)
    choices = (arguments.targets.split(","), arguments.batch.split(","), arguments.threads.split(","))
    for target, batch, threads in product(*choices):
        settings = {"target": target, "batch": int(batch), "threads": int(threads), "turns": arguments.turns}
        start = time.process_time()
        try:
            found = [taus(supernet, seed, {**settings, "int8": arguments.int8}) for seed in range(arguments.repeat)]
        except LatencyError as error:
            print(f"{target}: left out: {error}", flush=True)
            continue
        name = f"{target}{', int8' if arguments.int8 else ''}"
        seconds = (time.process_time() - start) / arguments.repeat
        tau, twice, errors = (list(some) for some in zip(*found, strict=True))
        row = (name, batch, threads, told(tau), told(twice), told(errors, ".1%"), f"{seconds:.0f}")
        print(" | ".join(row), flush=True)
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
