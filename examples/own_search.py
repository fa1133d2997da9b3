"""A search algorithm of your own, in twenty lines, against NSGA-II with the same number of evaluations.

    python examples/own_search.py

A search space is a list of variables, each with so many choices; a candidate is a list of numbers that
`SearchSpace.decode` makes a sub-network of, and `Evaluator.evaluate` gives its accuracy and its costs. This is all that
an algorithm needs. Here it is local search on the front (SEMO, Laumanns et al. 2004): change one choice of a random
member of the front, keep the child if no other one beats it.

Needs scikit-learn (`pip install 'bnas[demo]'`). About a minute of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
import torch

import bnas
from bnas.data.digits import DigitNet, splits
from bnas.search import Evaluation

OBJECTIVES = (bnas.Objective("accuracy", "max"), bnas.Objective("macs", "min"))


def neighbours(space: bnas.SearchSpace, genes: Sequence[int], generator: np.random.Generator) -> Iterator[bnas.Subnet]:
    """Sub-networks that differ in one choice at first, and the longer one looks in more."""
    changed = list(genes)
    while True:
        place = generator.integers(len(changed))
        changed[place] = int(generator.integers(len(space.variables()[place].choices)))
        yield space.canonical(space.decode(changed))  # one form for all vectors that are the same network


def local_search(evaluator: bnas.Evaluator, evals: int, seed: int = 0) -> bnas.SearchResult:
    """From the maximal and the minimal sub-network on; nothing is evaluated twice."""
    space, generator = evaluator.supernet.space, np.random.default_rng(seed)
    found: dict[bnas.Subnet, Evaluation] = {}
    waiting = [space.canonical(space.maximal()), space.canonical(space.minimal())]
    while len(found) < evals:
        for subnet in waiting:
            found[subnet] = Evaluation(len(found), subnet, evaluator.evaluate(subnet), seconds=0.0)
        front = bnas.SearchResult(OBJECTIVES, tuple(found.values())).pareto()
        parent = space.encode(front[generator.integers(len(front))].subnet)
        waiting = [next(child for child in neighbours(space, parent, generator) if child not in found)]
    return bnas.SearchResult(OBJECTIVES, tuple(found.values()))


def trained(data: bnas.Splits, epochs: int) -> bnas.SuperNetwork:
    supernet = bnas.SuperNetwork.from_model(DigitNet(), torch.zeros(1, 1, 8, 8))
    recipe = bnas.Recipe(rule="sandwich", learning_rate=0.05)
    bnas.Trainer(supernet, [bnas.Stage(epochs=epochs)], recipe).fit(data.train)
    return supernet.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="of the super-network, which is trained from scratch")
    parser.add_argument("--evals", type=int, default=80, help="evaluations of each search, 4 at least")
    settings = parser.parse_args()
    torch.manual_seed(0)
    data = splits()
    supernet = trained(data, settings.epochs)
    evaluator = bnas.Evaluator(supernet, list(data.train)[:10], data.validation)
    results = {
        name: bnas.Searcher(
            supernet, evaluator, OBJECTIVES, bnas.SearchSettings(algorithm=algorithm, num_evals=settings.evals)
        ).run()
        for name, algorithm in {"NSGA2": bnas.NSGA2(), "random": bnas.RandomSearch()}.items()
    }
    results["own"] = local_search(evaluator, settings.evals)

    corner = {"accuracy": 0.5, "macs": supernet.costs(supernet.space.maximal())["macs"]}
    print("search  evaluations  front  hypervolume (M MACs x accuracy)")
    for name, result in results.items():
        volume = result.hypervolume(corner) / 1e6
        print(f"{name:6}  {len(result.evaluations):11}  {len(result.pareto()):5}  {volume:11.4f}")


if __name__ == "__main__":
    main()
