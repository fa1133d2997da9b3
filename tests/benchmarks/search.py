"""Table of what a search costs and finds: ``python tests/benchmarks/search.py [PART ...]``.

CPU seconds of one thread; goals as they were set for a quiet machine. Parts: costs, overhead, generation, hypervolume,
surrogate. The last three need a trained ResNet-20 on CIFAR-10: ``--supernet FOLDER --data FOLDER``, a folder of
`SuperNetwork.save` and one of `examples/cifar10.py`; without them they are tried on a small untrained model, and
the figures say nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from zoo_models import make_model, traced_input

from bnas.digits import DigitNet
from bnas.passes import SearchSpace, Subnet
from bnas.runtime import Evaluator, SuperNetwork, first_samples, recalibrate
from bnas.search import Objective, Searcher, SearchResult
from bnas.search.candidates import Candidates
from bnas.search.fitness import Fitness, Individual
from bnas.search.global_random import GlobalRandom
from bnas.search.nsga2 import NSGA2
from bnas.search.variation import Variation

OBJECTIVES = (Objective("accuracy", "max"), Objective("macs", "min"))
EXAMPLE = Path(__file__).parents[2] / "examples" / "cifar10.py"


def cpu(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of `run`, and its result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def costs(_: Any) -> Table:
    """Cost expressions, vectorised, and against what is counted."""
    table = Table("model", "sub-networks/s", "goal", "parameters equal", "MACs equal", title="Cost expressions")
    for name in ("resnet50", "vit_b_16"):
        supernet = SuperNetwork.from_model(make_model(name).eval(), traced_input(name))
        space, generator = supernet.space, np.random.default_rng(0)
        genes = np.stack([generator.integers(len(v.choices), size=200_000) for v in space.variables()])
        columns = [np.array(v.choices)[row] for v, row in zip(space.variables(), genes, strict=True)]
        functions = supernet.cost_model._functions
        seconds, _ = cpu(lambda f=functions, c=columns: [one(*c) for one in f.values()])
        same = [counted(supernet, space.sample(generator)) for _ in range(3)]
        parameters, macs = (all(column) for column in zip(*same, strict=True))
        table.add_row(name, f"{200_000 / seconds:.2e}", "1e6", str(parameters), str(macs))
    return table


def counted(supernet: SuperNetwork, subnet: Subnet) -> tuple[bool, bool]:
    """Whether parameters and MACs are those counted on the extracted module."""
    module, expected = supernet.extract(subnet), supernet.costs(subnet)
    inputs = supernet.example()[0][:1]
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        module(inputs)
    parameters = sum(p.numel() for p in module.parameters())
    return parameters == expected["parameters"], counter.get_total_flops() // 2 == expected["macs"]


def overhead(_: Any) -> Table:
    """A generation of NSGA-II without evaluation, on the space of ResNet-50."""
    table = Table("population", "CPU ms a generation: median (range)", "goal", title="Overhead of NSGA-II, ResNet-50")
    supernet = SuperNetwork.from_model(make_model("resnet50").eval(), traced_input("resnet50"))
    for population, goal in ((50, 3), (200, 10), (1000, 80)):
        took = [1000 * one for one in generations(supernet.space, population)]
        table.add_row(str(population), f"{median(took):.1f} ({min(took):.1f} to {max(took):.1f})", str(goal))
    return table


def generations(space: SearchSpace, population: int, count: int = 12) -> list[float]:
    """CPU seconds of each generation but the first, on two objectives that contradict each other."""
    algorithm = NSGA2(Candidates(space, np.random.default_rng(0)), GlobalRandom(0), population, Variation())
    took = []
    for _ in range(count):
        asking, asked = cpu(lambda: algorithm.ask(population))
        rows = np.array([candidate.genes for candidate in asked], dtype=float)
        first, second = rows.sum(1), (rows**2).sum(1) + rows[:, ::3].sum(1)
        scored = [
            Individual(c.genes, Fitness((1.0, -1.0), (a, b)))
            for c, a, b in zip(asked, first.tolist(), second.tolist(), strict=True)
        ]
        telling, _ = cpu(lambda found=scored: algorithm.tell(found))
        took.append(asking + telling)
    return took[1:]


def mutated(space: SearchSpace, count: int, parents: int = 4) -> list[Subnet]:
    """Mutations, one gene on average, of a few sub-networks of different sizes."""
    candidates, variation, stream = Candidates(space, np.random.default_rng(0)), Variation(), GlobalRandom(0)
    origins, found = candidates.claim_first(parents), list[Subnet]()
    while len(found) < count:
        with stream.lent():
            child = variation.mutate(origins[len(found) % parents].genes, candidates.last_genes)
        if candidate := candidates.claim(child):
            found.append(candidate.subnet)
    return found


def generation(evaluator: Evaluator) -> Table:
    """A generation of 50 evaluated together, one by one, and naively."""
    subnets = mutated(evaluator.supernet.space, 50)
    shared, together = cpu(lambda: evaluator.evaluate_many(subnets))
    alone, single = cpu(lambda: [evaluator.evaluate(subnet) for subnet in subnets])
    naive, _ = cpu(lambda: [naively(evaluator, subnet) for subnet in subnets])
    table = Table("", "CPU s", "ratio to the trie", "goal", title="A generation of 50 mutated candidates")
    table.add_row("trie", f"{shared:.1f}", "1", "")
    table.add_row("one by one", f"{alone:.1f}", f"{alone / shared:.2f}", "2.5")
    table.add_row("naive: contiguous, unfolded, one by one", f"{naive:.1f}", f"{naive / shared:.2f}", "3")
    table.add_row("numbers identical", str(together == single), "", "True")
    return table


def naively(evaluator: Evaluator, subnet: Subnet) -> float:
    """Accuracy as somebody would measure it who knows no better."""
    module = evaluator.supernet.extract(subnet)
    recalibrate(module, [(inputs.contiguous(), targets) for inputs, targets in evaluator.calibration])
    right = total = 0
    with torch.no_grad():
        for inputs, targets in evaluator.validation:
            right += int((module(inputs.contiguous()).argmax(1) == targets).sum())
            total += len(targets)
    return right / total


def hypervolume(evaluator: Evaluator) -> Table:
    """Ours, random search, and pymoo's NSGA-II with the settings of BootstrapNAS, 300 evaluations, five seeds."""
    table = Table("search", "median", "seeds", title="Hypervolume at 300 evaluations (accuracy x share of MACs)")
    memory = Memory(evaluator)
    for name, run in (("bnas", ours), ("random", at_random), ("pymoo", theirs)):
        found = [volume(run(memory, 300, seed), memory) for seed in range(5)]
        table.add_row(name, f"{median(found):.5f}", " ".join(f"{one:.5f}" for one in found))
    return table


def surrogate(evaluator: Evaluator) -> Table:
    """How many evaluations a search with a predictor needs for what plain NSGA-II has at 300."""
    table = Table("seed", "plain at 300", "evaluations with predictor", "goal", title="Surrogate mode")
    memory = Memory(evaluator)
    for seed in range(5):
        goal = volume(ours(memory, 300, seed), memory)
        result = ours(memory, 300, seed, predictor=True)
        needed = next((n for n in range(20, 301) if volume(head(result, n), memory) >= goal), None)
        table.add_row(str(seed), f"{goal:.5f}", str(needed or "more than 300"), "150")
    return table


class Memory:
    """Evaluates each sub-network once, for all searches that are compared."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator, self.known = evaluator, dict[Subnet, dict[str, float]]()
        self.supernet = evaluator.supernet

    def evaluate_many(self, subnets: Sequence[Subnet]) -> list[Any]:
        new = [subnet for subnet in subnets if subnet not in self.known]
        self.known.update(zip(new, self.evaluator.evaluate_many(new), strict=True))  # type: ignore[arg-type]
        return [self.known[subnet] for subnet in subnets]


def ours(memory: Memory, count: int, seed: int, **settings: Any) -> SearchResult:
    settings = {"population": min(50, count // 2), **settings}
    return Searcher(memory.supernet, memory, OBJECTIVES, num_evals=count, seed=seed, **settings).run()


def at_random(memory: Memory, count: int, seed: int) -> SearchResult:
    return ours(memory, count, seed, algorithm="random")


def theirs(memory: Memory, count: int, seed: int) -> SearchResult:
    """Pymoo's NSGA-II on random integers, as BootstrapNAS sets it up."""
    from pymoo.algorithms.moo.nsga2 import NSGA2 as Peer
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.optimize import minimize

    from bnas.search import Evaluation

    space, seen = memory.supernet.space, list[Evaluation]()

    class Peers(Problem):  # type: ignore[misc]
        def __init__(self) -> None:
            last = [len(v.choices) - 1 for v in space.variables()]
            super().__init__(n_var=len(last), n_obj=2, xl=0, xu=np.array(last), vtype=int)

        def _evaluate(self, x: Any, out: Any, *_: Any, **__: Any) -> None:
            subnets = [space.canonical(space.repair(space.decode([int(g) for g in row]))) for row in x]
            values = memory.evaluate_many(subnets)
            seen.extend(Evaluation(len(seen), s, v, 0.0) for s, v in zip(subnets, values, strict=True))
            out["F"] = np.array([[v["macs"], -v["accuracy"]] for v in values])

    peer = Peer(
        pop_size=min(50, count // 2),
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=0.9, eta=10.0, vtype=float, repair=RoundingRepair()),
        mutation=PM(prob=0.02, eta=3.0, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    minimize(Peers(), peer, ("n_eval", count), seed=seed)
    return SearchResult(OBJECTIVES, tuple(seen[:count]))


def head(result: SearchResult, count: int) -> SearchResult:
    return SearchResult(result.objectives, result.evaluations[:count])


def volume(result: SearchResult, memory: Memory) -> float:
    full = memory.supernet.costs(memory.supernet.space.maximal())["macs"]
    return result.hypervolume({"accuracy": 0.0, "macs": full}) / full


def trained(supernet: Path | None, data: Path | None) -> Evaluator:
    """The evaluator of a trained ResNet-20 on 500 and 2,000 images, or of a small model on noise."""
    if supernet is None or data is None:
        return stand_in()
    spec = importlib.util.spec_from_file_location("cifar10", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    splits = example.read_data(data, 100)
    network = SuperNetwork.load(supernet, example.ResNet(20)).eval()
    return Evaluator(network, first_samples(splits.train, 500), first_samples(splits.validation, 2000))


def stand_in() -> Evaluator:
    torch.manual_seed(0)
    network = SuperNetwork.from_model(DigitNet().eval(), torch.zeros(2, 1, 8, 8))
    batches = [(torch.randn(100, 1, 8, 8), torch.randint(10, (100,))) for _ in range(2)]
    return Evaluator(network, batches, batches)


PARTS: dict[str, Callable[[Any], Table]] = {
    "costs": costs,
    "overhead": overhead,
    "generation": generation,
    "hypervolume": hypervolume,
    "surrogate": surrogate,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="parts to run; all by default")
    parser.add_argument("--supernet", type=Path)
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    evaluator = trained(given.supernet, given.data)
    for part in given.parts or PARTS:
        Console().print(PARTS[part](evaluator))


if __name__ == "__main__":
    main()
