"""Table of the module form of torchvision's models and of text encoders: ``python tests/benchmarks/module_form.py``.

Of each model the minimal sub-network, with and without its skipped blocks, and random ones are extracted with
``form="module"``, and compared with the graph in single precision.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn
from zoo_models import enliven, make_model, run_input

from bnas.passes import Elasticity, Subnet
from bnas.passes.errors import ModuleFormError
from bnas.passes.modules.trial import difference
from bnas.runtime import SuperNetwork

FAMILIES = (
    *("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "convnext_tiny"),
    *("regnet_y_400mf", "densenet121", "vit_b_16", "swin_t", "swin_t (mlp, depth)"),
)
SETTINGS = {"swin_t (mlp, depth)": Elasticity(target_scopes=("features.*.mlp*",))}
"""What is elastic, where it is not all: Swin's own code ties the widths of its stages to the heads."""
TEXT = ("BertForSequenceClassification", "DistilBertForSequenceClassification", "RobertaForSequenceClassification")
RANDOM, SAME = 3, 1e-4
"""Random sub-networks, and the largest relative difference that passes for rounding in single precision."""


@dataclass(frozen=True)
class Row:
    """What became of the sub-networks of one model."""

    name: str
    tried: int
    equal: int
    refused: tuple[str, ...]
    worst: float
    seconds: float

    def __str__(self) -> str:
        counts = self.tried, self.equal, len(self.refused)
        refused = ", ".join(sorted(set(self.refused))) or "-"
        cells = self.name, *counts, f"{self.worst:.0e}", f"{self.seconds:.1f}", refused
        return f"| {' | '.join(map(str, cells))} |"


HEAD = "| model | tried | equal | refused | difference | s each | refused at |\n|---|---:|---:|---:|---:|---:|---|"


def made(name: str) -> tuple[nn.Module, Any]:
    """A model with random weights, and inputs."""
    if name not in TEXT:
        model = make_model(name.partition(" ")[0])
        images = run_input(name.partition(" ")[0])
        enliven(model, images)
        return model, images
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, name)
    sizes = {"vocab_size": 100, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6}
    config = kind.config_class(**sizes, **({} if "Distil" in name else {"intermediate_size": 192}))
    return kind(config).eval(), torch.randint(3, 100, (2, 10))


def subnets(supernet: SuperNetwork) -> Iterator[Subnet]:
    """The sub-networks to try."""
    yield supernet.space.minimal()
    yield replace(supernet.space.minimal(), skipped=frozenset())
    generator = np.random.default_rng(0)
    for _ in range(RANDOM):
        yield supernet.space.sample(generator)


def measure(name: str) -> Row:
    """The row of one model."""
    model, inputs = made(name)
    supernet = SuperNetwork.from_model(model, inputs, SETTINGS.get(name))
    refused, worst, equal, start, chosen = [], 0.0, 0, perf_counter(), list(subnets(supernet))
    for subnet in chosen:
        try:
            module = supernet.extract(subnet, form="module")
        except ModuleFormError as error:
            refused.append(_line(str(error)))
            continue
        with torch.no_grad():
            error, _ = difference(module(inputs), supernet.extract(subnet)(inputs))
        worst, equal = max(worst, error), equal + (error <= SAME)
    return Row(name, len(chosen), equal, tuple(refused), worst, (perf_counter() - start) / len(chosen))


def _line(reason: str) -> str:
    """The file and the line that an error names."""
    found = next((word for word in reason.split() if ".py:" in word), reason)
    return f"`{os.path.basename(found).rstrip(':')}`"


def main() -> None:
    """The command line."""

    def show(line: str) -> None:
        print(line, flush=True)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; by default all")
    names = parser.parse_args().names or (*FAMILIES, *TEXT)
    torch.set_num_threads(1)
    show(HEAD)
    rows = []
    for name in names:
        rows.append(measure(name))
        show(str(rows[-1]))
    wrong = [row.name for row in rows if row.equal + len(row.refused) < row.tried]
    raise SystemExit(f"other numbers than the graph: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
