"""Table of what a search costs and finds: ``python tests/benchmarks/search.py [PART ...]``.

CPU seconds of one thread; goals as they were set for a quiet machine. Parts: costs, overhead, generation, sharing,
hypervolume, surrogate, racing. The last five need a trained ResNet-20 on CIFAR-10: ``--supernet FOLDER --data FOLDER``,
a folder of `SuperNetwork.save` and one of `examples/cifar10.py`; without them they are tried on a small untrained
model, and the figures say nothing. ``--evaluations FILE`` keeps what hypervolume and surrogate evaluate: run them again
and they go on from there.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rivals import OBJECTIVES, Learning, Memory, PeerEncoding, head, ours, theirs, together, volume
from timing import Spread
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from zoo_models import make_model, traced_input

from bnas.data.digits import DigitNet
from bnas.passes import SearchSpace, Subnet
from bnas.runtime import Evaluator, SuperNetwork, first_samples, recalibrate
from bnas.runtime.evaluate.together import Layers, share_layers
from bnas.search import RandomSearch, Searcher, SearchResult, SearchSettings
from bnas.search.algorithms.candidates import Candidates, Genes, scaled_genes
from bnas.search.algorithms.contract import Fitness, Individual
from bnas.search.algorithms.nsga2 import Evolution, GlobalRandom, Variation

EXAMPLE = Path(__file__).parents[2] / "examples" / "cifar10.py"
SEEDS = range(5)


@dataclass(frozen=True)
class Trial:
    """What the parts that evaluate are tried on."""

    evaluator: Evaluator
    memory: Memory
    count: int
    """Evaluations of a search."""
    rounds: int
    """So many times is each evaluation of a generation timed."""


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
    algorithm = Evolution(Candidates(space, np.random.default_rng(0)), GlobalRandom(0), population, Variation())
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


def mutations(space: SearchSpace, origins: Sequence[Genes], count: int = 50) -> list[Subnet]:
    """Different mutations, one gene on average, of some sub-networks in turn."""
    candidates, variation, stream = Candidates(space, np.random.default_rng(0)), Variation(), GlobalRandom(0)
    found = list[Subnet]()
    for _ in map(candidates.claim, origins):
        pass
    while len(found) < count:
        with stream.lent():
            child = variation.mutate(origins[len(found) % len(origins)], candidates.last_genes)
        if candidate := candidates.claim(child):
            found.append(candidate.subnet)
    return found


def kinds_of_generations(trial: Trial) -> Iterator[tuple[str, list[Subnet]]]:
    """What may be meant by 50 mutated candidates, by name."""
    space = trial.memory.supernet.space
    scaled = [scaled_genes(space.variables(), fraction) for fraction in (1.0, 0.5, 0.75, 0.25)]
    yield "50 mutations of the maximal one", mutations(space, scaled[:1])
    yield "50 mutations of one of half size", mutations(space, scaled[1:2])
    yield "50 mutations of these and two more", mutations(space, scaled)
    result = together(trial.memory, [partial(ours, trial.memory, trial.count, 0)])[0]
    for number in range(50, trial.count - 49, 100):
        yield (
            f"evaluations {number} to {number + 50} of NSGA-II",
            [one.subnet for one in result.evaluations[number : number + 50]],
        )


def generation(trial: Trial) -> Table:
    """Generations evaluated together, one by one, and naively."""
    table = Table(
        "generation", "trie, CPU s", "one by one / trie", "naive / trie", "numbers", title="Generations of 50"
    )
    evaluator = trial.evaluator
    naive_data = [[(x.contiguous(), y) for x, y in data] for data in (evaluator.calibration, evaluator.validation)]
    for name, subnets in kinds_of_generations(trial):
        shared, alone, naive = list[float](), list[float](), list[float]()
        for _ in range(trial.rounds):
            took, many = cpu(partial(evaluator.evaluate_many, subnets))
            shared.append(took)
            took, single = cpu(lambda subnets=subnets: [evaluator.evaluate(one) for one in subnets])
            alone.append(took / shared[-1])
            took, _ = cpu(lambda subnets=subnets: [naively(evaluator, one, *naive_data) for one in subnets])
            naive.append(took / shared[-1])
        same = "identical" if many == single else "DIFFERENT"
        table.add_row(name, Spread(shared).shown(1), Spread(alone).shown(2), Spread(naive).shown(2), same)
        Console().print(name, shared, alone, naive, same)
    table.add_row("goal", "", "2.5", "3", "identical")
    return table


def sharing(trial: Trial) -> Table:
    """A whole search, evaluated together and one by one; and how much less work equal beginnings allow at best."""
    evaluator = trial.evaluator
    result = ours(Learning(trial.memory), trial.count, 0)
    subnets = [one.subnet for one in result.evaluations]
    took, many = cpu(partial(evaluator.evaluate_many, subnets))
    alone, single = cpu(lambda: [evaluator.evaluate(one) for one in subnets])
    table = Table("evaluated together", "fewer MACs", "CPU time", "numbers", title=f"A search of {len(subnets)}")
    every = sum(work_together(evaluator.supernet, [one]) for one in subnets)
    for size in (10, evaluator.group, 100, len(subnets)):
        groups = [subnets[start : start + size] for start in range(0, len(subnets), size)]
        less = every / sum(work_together(evaluator.supernet, one) for one in groups)
        timed = size == evaluator.group
        numbers = "identical" if many == single else "DIFFERENT"
        table.add_row(str(size), f"{less:.2f}", *((f"{alone / took:.2f}", numbers) if timed else ()))
    table.add_row("goal", "", "3", "identical")
    return table


def work_together(supernet: SuperNetwork, subnets: Sequence[Subnet]) -> float:
    """MACs of the convolutions and linear layers that run if equal beginnings of sub-networks are computed once."""
    layers = Layers()
    modules = [supernet.skeleton.build(subnet, layers).eval() for subnet in subnets]
    trie = share_layers(modules, layers)
    counted = [macs_of_layers(module, *supernet.example()) for module in modules]
    return sum(counted[members[0]].get(path, 0) for members, paths in trie.shared for path in paths)


def macs_of_layers(module: nn.Module, *inputs: Any) -> dict[str, int]:
    """MACs of each layer with a matrix or a kernel, by path."""
    found = dict[str, int]()

    def note(layer: nn.Module, _: Any, output: Any, path: str) -> None:
        found[path] = output.numel() * layer.weight[0].numel()

    weighted = [(path, layer) for path, layer in module.named_modules() if getattr(layer, "weight", None) is not None]
    hooks = [layer.register_forward_hook(partial(note, path=path)) for path, layer in weighted if layer.weight.ndim > 1]
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return found


def naively(evaluator: Evaluator, subnet: Subnet, calibration: Sequence[Any], validation: Sequence[Any]) -> float:
    """Accuracy as somebody would measure it who knows no better."""
    module = evaluator.supernet.extract(subnet)
    recalibrate(module, calibration)
    right = total = 0
    with torch.no_grad():
        for inputs, targets in validation:
            right += int((module(inputs).argmax(1) == targets).sum())
            total += len(targets)
    return right / total


def hypervolume(trial: Trial) -> Table:
    """Ours, random search and pymoo's NSGA-II at the same number of evaluations, five seeds."""
    memory, count = trial.memory, trial.count
    encoding = PeerEncoding(memory.supernet.space)
    searches: dict[str, Callable[[int], SearchResult]] = {
        "bnas, NSGA2": lambda seed: ours(memory, count, seed),
        "random": lambda seed: ours(memory, count, seed, RandomSearch),
        "pymoo as BootstrapNAS sets it up": lambda seed: theirs(memory, encoding, count, seed),
    }
    results = together(memory, [partial(search, seed) for search in searches.values() for seed in SEEDS])
    best = volume(SearchResult(OBJECTIVES, tuple(memory.log)), memory)
    table = Table("search", "median", "of all known", "seeds", title=f"Hypervolume at {count} evaluations")
    for place, name in enumerate(searches):
        found = [volume(one, memory) for one in results[place * len(SEEDS) :][: len(SEEDS)]]
        shown = " ".join(f"{one:.5f}" for one in found)
        table.add_row(name, f"{median(found):.5f}", f"{100 * median(found) / best:.2f} %", shown)
    table.add_row(f"all {len(memory.log)} that were evaluated", f"{best:.5f}", "100 %", "")
    return table


def surrogate(trial: Trial) -> Table:
    """How many evaluations a search with a predictor needs for what plain NSGA-II has at the end."""
    memory, count = trial.memory, trial.count
    table = Table("seed", f"plain at {count}", "evaluations with predictor", "goal", title="Surrogate mode")
    plain = together(memory, [partial(ours, memory, count, seed) for seed in SEEDS])
    needed = list[float]()
    for seed, result in zip(SEEDS, plain, strict=True):
        goal = volume(result, memory)
        needed.append(evaluations_to_reach(goal, memory, seed, count))
        table.add_row(str(seed), f"{goal:.5f}", f"{needed[-1]:.0f}", str(count // 2))
    table.add_row("median", "", f"{median(needed):.0f}", str(count // 2))
    return table


def evaluations_to_reach(goal: float, memory: Memory, seed: int, most: int) -> float:
    """Evaluations of a search with a predictor until its hypervolume is `goal`; infinity where `most` do not do."""
    for count in (most // 2, most):
        result = ours(Learning(memory), count, seed, predictor=True)
        if found := [n for n in range(1, count + 1) if volume(head(result, n), memory) >= goal]:
            return found[0]
    return np.inf


def racing(trial: Trial) -> Table:
    """The same search with and without racing, both without what was evaluated before."""
    table = Table("", "CPU s", "samples", "front", "hypervolume", title=f"Racing, {trial.count // 2} evaluations")
    found = {}
    for name, error in (("plain", None), ("racing 0.001", 0.001)):
        search = Searcher(
            trial.evaluator.supernet,
            trial.evaluator,
            OBJECTIVES,
            SearchSettings(num_evals=trial.count // 2, racing=error),
        )
        took, result = cpu(search.run)
        parts = [one.values.get("part", 1.0) for one in result.evaluations]
        found[name] = [one.subnet for one in result.pareto()]
        front = f"{len(found[name])}, {len(set(found[name]) & set(found['plain']))} of plain's"
        table.add_row(name, f"{took:.1f}", f"{np.mean(parts):.1%}", front, f"{volume(result, trial.memory):.5f}")
    return table


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
    "sharing": sharing,
    "hypervolume": hypervolume,
    "surrogate": surrogate,
    "racing": racing,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="parts to run; all by default")
    parser.add_argument("--supernet", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--evaluations", type=Path, help="file to keep evaluations in")
    parser.add_argument("--rounds", type=int, default=3, help="of the part generation")
    given = parser.parse_args()
    torch.set_num_threads(1)
    evaluator = trained(given.supernet, given.data)
    count = 300 if given.supernet and given.data else 100
    trial = Trial(evaluator, Memory(evaluator, given.evaluations), count, given.rounds)
    for part in given.parts or PARTS:
        Console().print(PARTS[part](trial))


if __name__ == "__main__":
    main()
